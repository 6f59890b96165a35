"""Predictions of tuned models for new texts, without training (`scripts/predict`)."""
import argparse
import collections
import itertools
import json
import os
import sys

import h5py

import checkpoints
import deltas
import loop
import snippets
import train
from data import replacing
from datasets import PUBLISHED, load_task
from errors import Parser, UserError, run_tool

Tuned = collections.namedtuple('Tuned', 'values belongs_to')
Tuned.__doc__ = """What was trained: {name: array} as `deltas` names them, and what it belongs to."""


class Predictor(object):
    """Tuned models over one frozen backbone, which is loaded once.

    config_path, checkpoint_path, dict_path, backbone: as in snippets.py; a Hugging Face folder as
    `config_path` is enough.

    >>> predictor = Predictor('bert_config.json', 'bert_model.ckpt', 'vocab.txt')  # doctest: +SKIP
    >>> afqmc = predictor.load('weights/afqmc.weights')  # doctest: +SKIP
    >>> afqmc.predict([{'sentence1': '花呗怎么还款', 'sentence2': '如何还花呗'}])  # doctest: +SKIP
    [{'id': 0, 'label': '1', 'probabilities': {'0': 0.1, '1': 0.9}}]
    """

    def __init__(self, config_path='', checkpoint_path='', dict_path='', backbone='auto'):
        self.paths = checkpoints.find_files(config_path, checkpoint_path, dict_path)
        self.tokenizer, self.keep_tokens = snippets.load_tokenizer(self.paths['dict_path'])
        snippets.check_backbone(**self.paths)
        self.backbone, self.layers, self.sha256 = backbone, None, None

    def load(self, path, task_name=None):
        """A `TunedModel` of a delta, or of a whole-model file of the original, which needs the task.

        Raises UserError if it belongs to another backbone, or to another task than `task_name`.
        """
        tuned = read_tuned(path, task_name)
        theirs = tuned.belongs_to
        task = load_task(theirs['task'], self.tokenizer, theirs['maxlen'])
        settings = argparse.Namespace(
            backbone=self.backbone, padded=False,
            **{name: theirs[name] for name in ('prompt_size', 'ffn_prompt_size',
                                               'layers_to_transform')})
        paths = dict(self.paths, checkpoint_path=None) if self.layers else self.paths
        try:
            model, transformer = train.build_model(task, settings, paths, self.keep_tokens,
                                                   dict(self.layers or {}))
        except ValueError as error:  # e.g. a layer that this backbone has not
            raise UserError('%s: %s' % (path, error))
        if self.layers is None:
            self.backbone = transformer.backbone
            self.layers = {name: layer for name, layer in transformer.layers.items()
                           if getattr(layer, 'weights', None) and not layer.trainable}
            self.sha256 = deltas.fingerprint(model, self.tokenizer._token_dict)
        if 'backbone_sha256' in theirs:
            deltas.load_delta(path, model, deltas.identity(task, transformer, self.sha256))
        else:
            deltas.set_values(deltas.named_weights(model),
                              whole_model_values(path, tuned.values, model))
        return TunedModel(task, model)


class TunedModel(object):
    """A task's tuned model, ready to predict. From `Predictor.load`."""

    def __init__(self, task, model):
        self.task, self.model = task, model
        self.outputs = loop.predict_function(model)

    def predict(self, records):
        """Predictions for records as the task's test file has them, ids and labels left out or not.

        Returns JSON-able dicts, see `predictions` of the task's kind in tasks.py. Raises UserError
        naming record and field.
        """
        return self.predict_records([self.task.record(value, 'record %d' % i)
                                     for i, value in enumerate(records)])

    def predict_records(self, records, description=None):
        task = self.task
        task.default_ids = itertools.count()
        samples = task.to_predict(task.parse(records, False))
        results = loop.predict(self.outputs, task, list(map(task.encode, samples)), description)
        return task.predictions(samples, results)


def read_tuned(path, task_name=None):
    """`Tuned` of a weights file, delta or HDF5. Raises UserError if it is of another task."""
    if os.path.isfile(path) and h5py.is_hdf5(path):
        return read_whole_model(path, task_name)
    values, belongs_to = deltas.read_delta(path)
    if task_name and belongs_to.get('task') != task_name:
        raise UserError('%s: task is %s, here it is %s' % (path, belongs_to.get('task'), task_name))
    return Tuned(values, belongs_to)


def read_whole_model(path, task_name):
    """`Tuned` of a whole model's weights in HDF5 (Keras's save_weights), as the original saves them.

    The values are {layer: [array, ...]}; sizes are read off them.
    """
    if not task_name:
        raise UserError('%s: a whole model in HDF5 does not say of which task: name it' % path)
    try:
        with h5py.File(path, 'r') as reader:
            group = reader.get('model_weights', reader)
            layers = {as_text(name): [group[name][weight][()]
                                      for weight in group[name].attrs['weight_names']]
                      for name in group.attrs['layer_names']}
    except (OSError, KeyError) as error:
        raise UserError('%s: expected a whole model\'s weights, as Keras saves them: %s'
                        % (path, error))
    layers = {name: arrays for name, arrays in layers.items() if arrays}
    hidden_units = deltas.layer_numbers(layers, 'Transformer-%d-AddFFN')
    prefixes = deltas.layer_numbers(layers, 'Transformer-%d-MultiHeadSelfAttention-Key-PromptEmbedding')
    last = max(deltas.layer_numbers(layers, 'Transformer-%d-FeedForward'), default=-1)
    transformed = hidden_units or prefixes or range(last + 1)
    task = load_task(task_name)
    return Tuned(layers, {
        'task': task_name, 'maxlen': task.maxlen, 'labels': getattr(task, 'labels', []),
        'ffn_prompt_size': len(layers['Transformer-%d-AddFFN' % hidden_units[0]][1])
        if hidden_units else 0,
        'prompt_size': len(layers['Transformer-%d-MultiHeadSelfAttention-Key-PromptEmbedding'
                                  % prefixes[0]][0]) if prefixes else 0,
        'layers_to_transform': list(transformed)})


def as_text(name):
    return name.decode() if isinstance(name, bytes) else name


def whole_model_values(path, layers, model):
    """{name: array} of what was trained in a whole model. Raises UserError if the rest differs.

    The head may have any name: it is the one layer that the backbone does not have.
    """
    names = {layer.name for layer in model.layers}
    heads = [name for name in layers if name not in names]
    if 'head' not in layers and len(heads) == 1:
        layers['head'] = layers.pop(heads[0])
    found = {}
    for trainable in (False, True):
        for name, weight in deltas.named_weights(model, trainable):
            layer, place = name.split('/')[:2]
            if int(place) < len(layers.get(layer, [])):
                found[name] = layers[layer][int(place)]
    frozen = deltas.named_weights(model, trainable=False)
    deltas.check_values(path, frozen + deltas.named_weights(model), found)
    for name, value in deltas.get_values(frozen).items():
        if abs(value - found.pop(name)).max() > 1e-5:  # computed positions differ a little
            raise UserError('%s: %s is not that of this backbone' % (path, name))
    return found


def tool_parser(prog, description):
    """A parser with the flags that scripts/predict and scripts/export share."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('task', choices=sorted(PUBLISHED), metavar='TASK',
                        help='one of ' + ', '.join(sorted(PUBLISHED)))
    parser.add_argument('--weights', default=argparse.SUPPRESS,
                        help='what a run left; weights/TASK.weights in output_dir, unless said')
    train.add_flags(parser, train.backbone_flags())
    return parser


def find_weights(settings):
    return getattr(settings, 'weights', os.path.join(
        snippets.output_dir, 'weights', settings.task + '.weights'))


def run(argv=None):
    parser = tool_parser('scripts/predict', __doc__)
    parser.add_argument('--input', required=True,
                        help='a file in the format of the task\'s test file; - for standard input')
    parser.add_argument('--output', default='-',
                        help='one JSON object a line; - for standard output')
    settings = parser.parse_args(argv)
    weights = find_weights(settings)
    tuned = read_tuned(weights, settings.task)
    # Before the backbone, which takes longer, is loaded: can the input be read?
    records = load_task(settings.task).read_records(settings.input)
    predictor = Predictor(backbone=settings.backbone, **train.find_backbone(
        settings, tuned.belongs_to.get('backbone_kind')))
    predictions = predictor.load(weights, settings.task).predict_records(records, settings.task)
    text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in predictions)
    if settings.output == '-':
        sys.stdout.buffer.write(text.encode('utf-8'))
        return
    with replacing(settings.output) as temporary:
        with open(temporary, 'w', encoding='utf-8', newline='\n') as writer:
            writer.write(text)


if __name__ == '__main__':
    run_tool('scripts/predict', run)
