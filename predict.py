"""Predictions of tuned models for new texts, without training (`scripts/predict`)."""
import argparse
import itertools
import os
import sys
import warnings
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional

import numpy as np

import snippets
from fltuning import deltas, methods, precision as precisions, whole_models
from fltuning.errors import Parser, UserError, run_tool
from fltuning.files import json_line, writing
from fltuning.records import Record, attempt, plain
from fltuning.streaming import predict_windows
from tasks import NAMES, load_task


class Tuned(NamedTuple):
    """What was trained, and what it belongs to."""
    values: Dict[str, Any]  # {name: array}, as weights.py names them
    belongs_to: Dict[str, Any]


class Predictor:
    """Tuned models over one frozen backbone, which is loaded once.

    config_path, checkpoint_path, dict_path, backbone: as in snippets.py; a Hugging Face folder as
    `config_path` is enough. May be used from several threads, but not from processes that are forked
    later.
    precision: float32, or on the stack `tf2` bfloat16 or float16, in which the backbone is then held; deltas
    are the same. For its speed, this must be what first loads TensorFlow.

    >>> predictor = Predictor('bert_config.json', 'bert_model.ckpt', 'vocab.txt')  # doctest: +SKIP
    >>> afqmc = predictor.load('weights/afqmc.weights')  # doctest: +SKIP
    >>> afqmc.predict([{'sentence1': '花呗怎么还款', 'sentence2': '如何还花呗'}])  # doctest: +SKIP
    [{'id': 0, 'label': '1', 'probabilities': {'0': 0.1, '1': 0.9}}]
    """

    def __init__(self, config_path: str = '', checkpoint_path: str = '', dict_path: str = '',
                 backbone: str = 'auto', precision: str = 'float32'):
        if precision not in precisions.NAMES:
            raise UserError('precision: expected %s, got %s' % (', '.join(precisions.NAMES), precision))
        precisions.use(precision)
        from fltuning import checkpoints, graphs
        self.precision = precision
        self.graph = graphs.Graph()
        self.paths = checkpoints.find_files(config_path, checkpoint_path, dict_path)
        self.tokenizer, self.keep_tokens = snippets.load_tokenizer(self.paths['dict_path'])
        checkpoints.check_backbone(**self.paths)
        self.backbone, self.layers, self.sha256, self.frozen = backbone, None, None, None
        self.shared: Dict[tuple, Any] = {}  # {shape: SharedModel}

    def load(self, path: str, task_name: Optional[str] = None) -> 'TunedModel':
        """A `TunedModel` of a delta, or of a whole-model file of the original, which needs the task.

        The first of a shape (task, sizes, layers) builds its graph, the others cost what their weights
        cost. Raises UserError if it belongs to another backbone, or to another task than `task_name`.
        """
        tuned = read_tuned(path, task_name)
        theirs = tuned.belongs_to
        task = load_task(theirs['task'], self.tokenizer, theirs['maxlen'])
        with self.graph.build():
            shape = (task.name, theirs['prompt_size'], theirs['ffn_prompt_size'],
                     tuple(theirs['layers_to_transform'])) + methods.of_delta(path, theirs)
            shared = self.shared.get(shape)
            try:
                shared = shared or self.build(task, theirs)
            except ValueError as error:  # e.g. a layer that this backbone lacks
                raise UserError('%s: %s' % (path, error))
            values = self.check(path, tuned, task, shared)
            self.shared[shape] = shared
            return TunedModel(task, values, shared, lambda: self.take(shape, task, theirs))

    def build(self, task, theirs):
        """A `SharedModel` of what `theirs` says."""
        from fltuning import serving, weights
        method, size = methods.of_delta('', theirs)
        settings = snippets.ModelSettings(
            backbone=self.backbone, precision=self.precision, prompt_size=theirs['prompt_size'],
            ffn_prompt_size=theirs['ffn_prompt_size'], layers_to_transform=theirs['layers_to_transform'],
            method=method, size=size)
        layers = {} if method == 'finetune' else self.layers or {}  # it has a backbone of its own
        paths = dict(self.paths, checkpoint_path=None) if layers else self.paths
        model, transformer = snippets.build_model(task, settings, paths, self.keep_tokens, dict(layers))
        if self.sha256 is None:
            self.sha256 = weights.fingerprint(transformer, self.tokenizer._token_dict)
            self.backbone = transformer.backbone
        if self.layers is None and method != 'finetune':
            self.layers = {name: layer for name, layer in transformer.layers.items()
                           if getattr(layer, 'weights', None) and not layer.trainable}
        return serving.SharedModel(model, transformer, self.graph)

    def check(self, path, tuned, task, shared):
        """{name: array} of what was trained. Raises UserError if it does not belong to this backbone."""
        from fltuning import weights
        theirs, transformer = tuned.belongs_to, shared.transformer
        if 'backbone_sha256' not in theirs:
            return whole_model_values(path, tuned.values, shared.model)

        def frozen_sha256():
            if transformer.low_weights:
                raise UserError('%s: of an earlier version, and belongs to float32 weights as the stack holds '
                                'them: load it with precision float32' % path)
            if self.frozen is None:
                self.frozen = weights.frozen_sha256(shared.model, self.tokenizer._token_dict)
            return self.frozen

        deltas.check_identity(path, theirs, deltas.identity(task, transformer, self.sha256), frozen_sha256)
        if transformer.backbone == 'roberta' and task.maxlen > transformer.max_position:
            raise UserError('%s: maxlen is %d, the backbone has %d positions'
                            % (path, task.maxlen, transformer.max_position))
        weights.check_values(path, shared.weights, tuned.values)
        return tuned.values

    def take(self, shape, task, theirs):
        """A `SharedModel` for one alone: the one in use, if no other tuned model has it, or a new one."""
        shared = self.shared.get(shape)
        if shared is None or shared.users:
            return self.build(task, theirs)
        return self.shared.pop(shape)


class TunedModel:
    """A task's tuned model, ready to predict. From `Predictor.load`."""

    def __init__(self, task, values, shared, take):
        self.task, self.graph = task, shared.graph
        self.values, self.shared, self.take = values, shared, take
        shared.users.add(self)

    @property
    def model(self):
        """Its Keras model, which from now on is its own: others of its shape get another one.

        On `tf1`, use it inside `with tuned.graph.use():`. On `tf2`, `save` writes a SavedModel, .keras
        or .h5; on `tf1` .h5.
        """
        with self.graph.build():
            if self.take is not None:
                self.shared.users.discard(self)
                self.shared, self.take = self.take(), None
                with self.shared.holding(self.values):
                    pass
            return self.shared.model

    def outputs(self, inputs: list) -> Any:
        """The model's output array for a batch of input arrays."""
        shared = self.shared
        with shared.holding(self.values):
            return shared.run(inputs)

    def get_values(self) -> Dict[str, Any]:
        """{name: array} of what was trained."""
        from fltuning import weights
        shared = self.shared
        with shared.holding(self.values):
            return weights.get_values(shared.weights)

    def predict(self, records: Iterable[Dict[str, Any]], skip_bad: bool = False) -> List[Dict[str, Any]]:
        """Predictions for records as the task's test file has them, ids and labels left out or not.

        Values may be NumPy's, and tuples. Returns JSON-able dicts, see `predictions` of the task's kind
        in fltuning/. Raises UserError naming record and field; with `skip_bad`, a bad record gives
        {'id', 'error'} instead.
        """
        records = (attempt(skip_bad, self.make_record, value, 'record %d' % i)
                   for i, value in enumerate(records))
        return [line for lines in self.predict_records(records, skip_bad) for line in lines]

    def make_record(self, value: Any, where: str) -> Record:
        return self.task.record(plain(value, where), where)

    def predict_records(self, records: Iterable, skip_bad: bool = False,
                        remark: Callable[[str], Any] = warnings.warn) -> Iterator[List[Dict[str, Any]]]:
        """Lists of predictions, some hundred, then some thousand at a time; see `predict_windows`."""
        from fltuning import steps

        def predict(task, encoded):
            with self.graph.use():
                return steps.predict(self.outputs, task, encoded)

        return predict_windows(self.task, predict, records, skip_bad, remark=remark)


def read_tuned(path: str, task_name: Optional[str] = None) -> 'Tuned':
    """`Tuned` of a weights file, delta or HDF5. Raises UserError if it is of another task."""
    if whole_models.is_whole_model(path):
        return read_whole_model(path, task_name)
    values, belongs_to = deltas.read_delta(path)
    deltas.check_fields(path, belongs_to, deltas.FIELDS)
    if task_name and belongs_to['task'] != task_name:
        raise UserError('%s: task is %s, here it is %s' % (path, belongs_to['task'], task_name))
    deltas.check_sizes(path, values, belongs_to)
    return Tuned(values, belongs_to)


def read_whole_model(path, task_name):
    """`Tuned` of a whole model's weights in HDF5 (Keras's save_weights), as the original saves them.

    The values are {layer: [array, ...]}; sizes are read off them.
    """
    if not task_name:
        raise UserError('%s: a whole model in HDF5 does not say of which task: name it' % path)
    layers = whole_models.read_layers(path)
    deltas.check_finite(path, {'%s/%d' % (name, i): value for name, values in layers.items()
                               for i, value in enumerate(values)})
    hidden_units = deltas.layer_numbers(layers, 'Transformer-%d-AddFFN')
    prefixes = deltas.layer_numbers(layers, 'Transformer-%d-MultiHeadSelfAttention-Key-PromptEmbedding')

    def size(numbers, pattern, place):
        """The length of a weight of the first of these layers; 0 without layers."""
        if not numbers:
            return 0
        values = layers[pattern % numbers[0]]
        if len(values) <= place or not values[place].shape:
            raise UserError('%s: %s: expected more weights' % (path, pattern % numbers[0]))
        return len(values[place])

    task = load_task(task_name)
    return Tuned(layers, {
        'task': task_name, 'maxlen': task.maxlen, 'labels': task.labels,
        'ffn_prompt_size': size(hidden_units, 'Transformer-%d-AddFFN', 1),
        'prompt_size': size(prefixes, 'Transformer-%d-MultiHeadSelfAttention-Key-PromptEmbedding', 0),
        'layers_to_transform': hidden_units or prefixes or deltas.layer_numbers(
            layers, 'Transformer-%d-FeedForward')})


def whole_model_values(path, layers, model):
    """{name: array} of what was trained in a whole model. Raises UserError if the rest differs.

    The head may have any name: it is the one layer that the backbone does not have.
    """
    from fltuning import weights
    names = {layer.name for layer in model.layers}
    heads = [name for name in layers if name not in names]
    if 'head' not in layers and len(heads) == 1:
        layers['head'] = layers.pop(heads[0])
    found = {}
    for trainable in (False, True):
        for name, _weight in weights.named_weights(model, trainable):
            layer, place = name.split('/')[:2]
            if int(place) < len(layers.get(layer, [])):
                found[name] = layers[layer][int(place)]
    frozen = weights.named_weights(model, trainable=False)
    held = weights.get_values(frozen)
    for name in set(held) & set(found):  # as this model holds it, in its precision
        found[name] = found[name].astype(held[name].dtype)
    weights.check_values(path, frozen + weights.named_weights(model), found)
    for name, value in held.items():
        difference = np.asarray(value, 'float32') - np.asarray(found.pop(name), 'float32')
        if not abs(difference).max(initial=0) <= 1e-5:  # computed positions differ a little
            raise UserError('%s: %s is not that of this backbone' % (path, name))
    return found


def tool_parser(prog: str, description: str) -> Parser:
    """A parser with the flags that scripts/predict and scripts/export share."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('task', choices=NAMES, metavar='TASK', help='one of ' + ', '.join(NAMES))
    parser.add_argument('--weights', default=argparse.SUPPRESS,
                        help='what a run left; weights/TASK.weights in output_dir, unless said')
    snippets.BackboneSettings.add_flags(parser, vars(snippets))
    return parser


def find_tuned(flags: argparse.Namespace) -> str:
    """The weights file that the flags of `tool_parser` name."""
    return getattr(flags, 'weights', os.path.join(
        snippets.output_dir, 'weights', flags.task + '.weights'))


def make_predictor(flags: argparse.Namespace, tuned: Tuned) -> Predictor:
    """A predictor over the backbone that the flags of `tool_parser` name, or the weights' own kind."""
    paths = snippets.find_backbone(snippets.BackboneSettings.of(flags), tuned.belongs_to.get('backbone_kind'))
    return Predictor(backbone=flags.backbone, precision=getattr(flags, 'precision', 'float32'), **paths)


def run(argv: Optional[List[str]] = None) -> None:
    parser = tool_parser('scripts/predict', __doc__)
    parser.add_argument('--input', required=True,
                        help='a file in the format of the task\'s test file; - for standard input')
    parser.add_argument('--output', default='-',
                        help='one JSON object a line, in the order of the input; a file appears whole or, '
                             'after an error, not at all; on standard output (-) some thousand lines come at a '
                             'time, also those before an error')
    parser.add_argument('--skip_bad', action='store_true',
                        help='a record that is wrong gives {"id": ..., "error": ...}, and the rest goes on; '
                             'unless given, it ends the predictions')
    parser.add_argument('--precision', default=snippets.precision, choices=precisions.NAMES,
                        help='in which the backbone is held and computes; a low one needs the stack tf2')
    flags = parser.parse_args(argv)
    precisions.use(flags.precision)
    path = find_tuned(flags)
    tuned = read_tuned(path, flags.task)
    records = iter(load_task(flags.task).read_records(flags.input, flags.skip_bad))
    if flags.input != '-':  # before the backbone, which takes longer, is loaded: can the input be read?
        records = itertools.chain(list(itertools.islice(records, 1)), records)
    model = make_predictor(flags, tuned).load(path, flags.task)
    from fltuning.steps import progress

    def remark(text):
        print('%s: %s' % (flags.input, text), file=sys.stderr)

    with writing(flags.output) as write, progress(None, flags.task) as bar:
        for lines in model.predict_records(records, flags.skip_bad, remark):
            write(''.join(json_line(**line) for line in lines))
            bar.update(len(lines))


if __name__ == '__main__':
    run_tool('scripts/predict', run)
