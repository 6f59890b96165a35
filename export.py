"""Tuned models for other programs (`scripts/export`).

FL-Tuning's hidden units are part of an ordinary feed-forward network (the paper's equation 6), so a
tuned model IS a plain BERT with a wider intermediate layer:

    act(x W1 + b1) W2 + b2 + act(x P1 + p1) P2 + p2 = act(x [W1 P1] + [b1 p1]) [W2; P2] + (b2 + p2)

Formats: checkpoint (Google's layout, for bert4keras), transformers (a Hugging Face folder), onnx (the
whole task model), peft (P-Tuning V2 on a BERT: backbone and adapter, for Hugging Face's peft).
"""
import argparse
import collections
import json
import os
import shutil

import numpy as np

import checkpoints
import deltas
import predict
import train
from checkpoints import write_json
from data import replacing, write_tensors
from datasets import load_task
from errors import UserError, run_tool
from tasks import Classification, MultipleChoice

Exported = collections.namedtuple(
    'Exported', 'task kind config variables layers belongs_to dict_path')
Exported.__doc__ = """What the formats are made of.

config, variables: of the merged backbone, by Google's names, with its whole vocabulary;
layers: {layer: [array, ...]} of what was trained, the head's as 'head'; kind: of the backbone.
"""
HEAD = 'fl-tuning-head-1'
MODEL_TYPES = {'roberta': 'bert', 'nezha': 'nezha', 'roformer': 'roformer'}
CLASSES = {'bert': 'Bert', 'nezha': 'Nezha', 'roformer': 'RoFormer'}


def merge(config, variables, layers):
    """(config, variables) of the backbone with its hidden units merged into its FFNs, exactly.

    A layer without any gets as many zero units, whose output is 0, since one size holds for all.
    """
    units = {i: layers['Transformer-%d-AddFFN' % i]
             for i in deltas.layer_numbers(layers, 'Transformer-%d-AddFFN')}
    if not units:
        return config, variables
    hidden, size = next(iter(units.values()))[0].shape
    none = [np.zeros(shape, 'float32') for shape in [(hidden, size), size, (size, hidden), hidden]]
    config = dict(config, intermediate_size=config['intermediate_size'] + size)
    variables = dict(variables)
    for i in range(config['num_hidden_layers']):
        names = ['bert/encoder/layer_%d/%s' % (i, name) for name in (
            'intermediate/dense/kernel', 'intermediate/dense/bias', 'output/dense/kernel',
            'output/dense/bias')]
        kernel_1, bias_1, kernel_2, bias_2 = [variables[name] for name in names]
        prompt_1, prompt_bias_1, prompt_2, prompt_bias_2 = units.get(i, none)
        variables.update(zip(names, [
            np.concatenate([kernel_1, prompt_1], 1), np.concatenate([bias_1, prompt_bias_1]),
            np.concatenate([kernel_2, prompt_2], 0), bias_2 + prompt_bias_2]))
    return config, variables


def by_layer(values):
    """{layer: [array, ...]} of {name: array} as `deltas` names them."""
    layers = {}
    for name in sorted(values, key=lambda name: (name.split('/')[0], int(name.split('/')[1]))):
        layers.setdefault(name.split('/')[0], []).append(values[name])
    return layers


def load(task_name, weights_path, backbone='auto', **paths):
    """`Exported` of a tuned model. Raises UserError if it does not belong to this backbone."""
    predictor = predict.Predictor(backbone=backbone, **paths)
    model = predictor.load(weights_path, task_name)  # which checks that all fits
    values = deltas.get_values(deltas.named_weights(model.model))
    tuned = predict.read_tuned(weights_path, task_name)
    paths, layers = predictor.paths, by_layer(values)
    config, variables = merge(checkpoints.read_config(paths['config_path']),
                              checkpoints.read_variables(paths['checkpoint_path']), layers)
    return Exported(model.task, predictor.backbone, config, variables, layers, tuned.belongs_to,
                    paths['dict_path'])


def refuse_prompts(exported, target):
    size = exported.belongs_to['prompt_size']
    if size:
        raise UserError(
            'prompt_size %d: trained keys and values stand beside a sequence and are no part of any '
            'layer: they cannot be merged into a plain %s; --to onnx can hold them%s' % (
                size, target, ', and --to peft' if exported.kind == 'roberta' else ''))


def to_checkpoint(exported, folder):
    """bert_config.json, bert_model.ckpt and vocab.txt for bert4keras; the head beside them."""
    refuse_prompts(exported, 'checkpoint')
    write_backbone(exported, folder)
    write_head(exported, folder)


def write_backbone(exported, folder):
    write_json(os.path.join(folder, 'bert_config.json'), exported.config)
    checkpoints.write_checkpoint(os.path.join(folder, 'bert_model.ckpt'), exported.variables)
    copy(exported.dict_path, os.path.join(folder, 'vocab.txt'))


def copy(source, target):
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def write_floats(path, tensors, metadata):
    write_tensors(path, {name: np.ascontiguousarray(value, 'float32')
                         for name, value in tensors.items()}, metadata)


def write_head(exported, folder):
    """head.safetensors: the head's weights, with task, labels and maxlen as metadata."""
    write_floats(
        os.path.join(folder, 'head.safetensors'),
        {'head/%d' % i: value for i, value in enumerate(exported.layers['head'])},
        {HEAD: json.dumps({name: exported.belongs_to[name] for name in ('task', 'labels', 'maxlen')},
                          sort_keys=True)})


def to_transformers(exported, folder):
    """config.json, model.safetensors and vocab.txt for `transformers`, without code of ours.

    Classification and multiple choice become its classes of that name; of the others the backbone,
    with the head beside it.
    """
    refuse_prompts(exported, 'transformers model')
    write_huggingface(exported, folder)
    if 'For' not in huggingface_class(exported):
        write_head(exported, folder)


def huggingface_class(exported):
    purpose = {Classification: 'ForSequenceClassification', MultipleChoice: 'ForMultipleChoice'}
    names = [name for kind, name in purpose.items() if isinstance(exported.task, kind)] + ['Model']
    return CLASSES[MODEL_TYPES[exported.kind]] + names[0]


def huggingface_config(exported):
    config, kind = exported.config, MODEL_TYPES[exported.kind]
    activations = {'gelu': 'gelu', 'gelu_erf': 'gelu', 'gelu_tanh': 'gelu_new', 'relu': 'relu'}
    if config['hidden_act'] not in activations:
        raise UserError('hidden_act %s: transformers has none such' % config['hidden_act'])
    fields = dict({name: config[name] for name in (
        'vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size',
        'type_vocab_size', 'hidden_dropout_prob', 'attention_probs_dropout_prob') if name in config},
        model_type=kind, architectures=[huggingface_class(exported)], layer_norm_eps=1e-12,
        hidden_act=activations[config['hidden_act']], pad_token_id=0, torch_dtype='float32',
        max_position_embeddings=config.get('max_position_embeddings', 512))
    if kind == 'nezha':  # bert4keras clips distances at 64, whatever the config says
        fields.update(use_relative_position=True, max_relative_position=64)
    if kind == 'roformer':
        fields.update(embedding_size=config['hidden_size'], rotary_value=False,
                      summary_type='first', summary_use_proj=False)
    if isinstance(exported.task, Classification):
        labels = exported.task.labels
        fields.update(id2label={str(i): label for i, label in enumerate(labels)},
                      label2id={label: i for i, label in enumerate(labels)},
                      problem_type='single_label_classification')
    return fields


def huggingface_weights(exported):
    """{name: array}, PyTorch's way round."""
    kind, variables = MODEL_TYPES[exported.kind], dict(exported.variables)
    # All segments were trained as 0; the tokenizers there mark a second text with 1.
    segments = variables['bert/embeddings/token_type_embeddings']
    variables['bert/embeddings/token_type_embeddings'] = np.repeat(segments[:1], len(segments), 0)
    weights = {checkpoints.huggingface_name(name, kind): checkpoints.transposed(name, value)
               for name, value in variables.items() if name.startswith('bert/')}
    if kind == 'roformer':  # it has no pooler, and its positions are a weight, though not trained
        weights = {name: value for name, value in weights.items() if '.pooler.' not in name}
        size = exported.config['hidden_size'] // exported.config['num_attention_heads']
        places = np.arange(exported.config.get('max_position_embeddings', 512))[:, None]
        angles = places / np.power(10000, np.arange(0, size, 2) / float(size))
        weights['roformer.encoder.embed_positions.weight'] = np.concatenate(
            [np.sin(angles), np.cos(angles)], 1)
    if 'For' not in huggingface_class(exported):
        prefix = kind + '.'
        return {name[len(prefix):]: value for name, value in weights.items()}
    weights.update(classifier_weights(exported, kind))
    return weights


def classifier_weights(exported, kind):
    """The head, behind the layer that `transformers` puts in front of it, which is made to do nothing.

    That layer is act(W x). tanh(e x) = e x and gelu(e x) = e x / 2, but for terms in (e x)^2, so with
    W = e I, and a classifier divided by that, it is the identity, to 1e-6 of x and better.
    """
    kernel, bias = exported.layers['head']
    hidden = len(kernel)
    if kind == 'roformer' and isinstance(exported.task, MultipleChoice):
        return {'classifier.weight': kernel.T, 'classifier.bias': bias}
    scale, factor, dense, last = 2.0**-14, 1, kind + '.pooler.dense', 'classifier'
    if kind == 'roformer':
        if exported.config['hidden_act'] == 'relu':
            raise UserError('hidden_act relu: the head of RoFormerForSequenceClassification cannot '
                            'hold this one; --to checkpoint or onnx can')
        scale, factor, dense, last = 2.0**-24, 0.5, 'classifier.dense', 'classifier.out_proj'
    return {dense + '.weight': np.eye(hidden) * scale, dense + '.bias': np.zeros(hidden),
            last + '.weight': kernel.T / (scale * factor), last + '.bias': bias}


def write_huggingface(exported, folder):
    write_json(os.path.join(folder, 'config.json'), huggingface_config(exported))
    write_json(os.path.join(folder, 'tokenizer_config.json'), {
        'tokenizer_class': 'BertTokenizer', 'do_lower_case': True,
        'model_max_length': exported.belongs_to['maxlen']})
    copy(exported.dict_path, os.path.join(folder, 'vocab.txt'))
    write_floats(os.path.join(folder, 'model.safetensors'), huggingface_weights(exported),
                 {'format': 'pt'})


def to_peft(exported, folder):
    """P-Tuning V2 on a BERT: the backbone with the head as `transformers` folder, the keys and values
    in `adapter/`, as peft's prefix tuning has them.

    There, a sequence's positions begin behind the prefix; here at 0. So the position table of this
    backbone is moved by `prompt_size`, and it is this backbone that the adapter belongs to.
    """
    size, layers = exported.belongs_to['prompt_size'], exported.config['num_hidden_layers']
    if exported.kind != 'roberta' or not size:
        raise UserError('--to peft: expected P-Tuning V2 on a BERT: prompt_size is %d, the backbone %s'
                        % (size, exported.kind))
    name = 'Transformer-%d-MultiHeadSelfAttention-%s-PromptEmbedding'
    if len(exported.belongs_to['layers_to_transform']) < layers:
        raise UserError('--to peft: expected keys and values in all layers, they are in %s'
                        % exported.belongs_to['layers_to_transform'])
    table = exported.variables['bert/embeddings/position_embeddings']
    moved = np.concatenate([np.zeros((size, table.shape[1]), table.dtype), table])
    write_huggingface(exported._replace(
        config=dict(exported.config, max_position_embeddings=len(moved)),
        variables=dict(exported.variables, **{'bert/embeddings/position_embeddings': moved})), folder)
    adapter, hidden = os.path.join(folder, 'adapter'), exported.config['hidden_size']
    prompts = [exported.layers[name % (i, part)][0].reshape(size, hidden)
               for i in range(layers) for part in ('Key', 'Value')]
    write_json(os.path.join(adapter, 'adapter_config.json'), {
        'peft_type': 'PREFIX_TUNING', 'task_type': (
            'SEQ_CLS' if isinstance(exported.task, Classification) else 'FEATURE_EXTRACTION'),
        'base_model_name_or_path': os.path.abspath(folder), 'inference_mode': True,
        'num_virtual_tokens': size, 'token_dim': hidden, 'num_transformer_submodules': 1,
        'num_attention_heads': exported.config['num_attention_heads'], 'num_layers': layers,
        'encoder_hidden_size': hidden, 'prefix_projection': False})
    tensors = {'prompt_embeddings': np.concatenate(prompts, 1)}
    if isinstance(exported.task, Classification):  # the classifier counts as trained there
        tensors.update(('base_model.' + name, value) for name, value in
                       classifier_weights(exported, 'bert').items() if name.startswith('classifier.'))
    write_floats(os.path.join(adapter, 'adapter_model.safetensors'), tensors, {'format': 'pt'})


def to_onnx(exported, folder):
    """model.onnx, the whole task model, with vocab.txt and task.json."""
    from onnx_model import write_model  # it and what it needs are for this alone
    inputs, outputs = write_model(exported, os.path.join(folder, 'model.onnx'))
    copy(exported.dict_path, os.path.join(folder, 'vocab.txt'))
    write_json(os.path.join(folder, 'task.json'), dict(
        {name: exported.belongs_to[name] for name in ('task', 'labels', 'maxlen')},
        inputs=inputs, outputs=outputs))


FORMATS = collections.OrderedDict([
    ('checkpoint', to_checkpoint), ('transformers', to_transformers), ('onnx', to_onnx),
    ('peft', to_peft)])


def run(argv=None):
    parser = predict.tool_parser('scripts/export', __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('--to', required=True, choices=list(FORMATS), help='the format')
    parser.add_argument('--output', default=argparse.SUPPRESS,
                        help='the folder to write; export/TASK-FORMAT, unless said')
    settings = parser.parse_args(argv)
    load_task(settings.task)
    weights = predict.find_weights(settings)
    tuned = predict.read_tuned(weights, settings.task)
    paths = train.find_backbone(settings, tuned.belongs_to.get('backbone_kind'))
    exported = load(settings.task, weights, settings.backbone, **paths)
    folder = getattr(settings, 'output', os.path.join(
        'export', '%s-%s' % (settings.task, settings.to)))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError('output: %s: %s' % (folder, error.strerror))
    FORMATS[settings.to](exported, folder)
    print('wrote %s: %s' % (folder, ', '.join(sorted(os.listdir(folder)))))


if __name__ == '__main__':
    run_tool('scripts/export', run)
