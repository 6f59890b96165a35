"""A tuned model as an ordinary one: what was trained becomes part of the layers that it stands beside."""
import json
import os
from typing import Any, Dict, List, NamedTuple

import numpy as np

from fltuning import checkpoints, deltas, methods
from fltuning.errors import UserError
from fltuning.files import copy_file, write_json, write_tensors
from predict import read_tuned

HEAD = 'fl-tuning-head-1'


class Exported(NamedTuple):
    """What the formats are made of."""
    task: Any
    kind: str  # of the backbone
    config: Dict[str, Any]  # of the merged backbone, as bert_config.json
    variables: Dict[str, np.ndarray]  # of it, by Google's names, with its whole vocabulary
    layers: Dict[str, List[np.ndarray]]  # what was trained, by layer, the head's as 'head'
    belongs_to: Dict[str, Any]  # what the delta says of itself
    dict_path: str


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


def merge_low_rank(variables, layers):
    """LoRA: x W + x A B = x (W + A B)."""
    for name, (down, up) in layers.items():
        if name.endswith('-LoRA'):
            kernel = attention_variable(name, 'kernel')
            variables[kernel] = variables[kernel] + down.dot(up)


def merge_scales(variables, layers):
    """IA3: (x W + b) * l = x (W * l) + b * l; of hidden values, (h * l) W = h (l[:, None] * W)."""
    for name, values in layers.items():
        if name.endswith('Inner-IA3'):
            kernel = 'bert/encoder/layer_%d/output/dense/kernel' % layer_number(name)
            variables[kernel] = variables[kernel] * values[0][:, None]
        elif name.endswith('-IA3'):
            for weight in ('kernel', 'bias'):
                variable = attention_variable(name, weight)
                variables[variable] = variables[variable] * values[0]


def merge_biases(variables, layers, mapping):
    """BitFit: x W + b + d = x W + (b + d). mapping: {layer: its variables}."""
    for name, values in layers.items():
        if name.endswith(('Query-Bias', 'Key-Bias', 'Value-Bias')):
            variable = attention_variable(name, 'bias')
        elif name.endswith('-Inner-Bias'):
            variable = 'bert/encoder/layer_%d/intermediate/dense/bias' % layer_number(name)
        elif name.endswith('-Bias'):  # of a layer's output: its last bias, a norm's beta
            variable = [variable for variable in mapping[name[:-len('-Bias')]]
                        if variable.endswith(('/bias', '/beta'))][-1]
        else:
            continue
        variables[variable] = variables[variable] + values[0]


def merge_all(variables, layers, mapping, keep_tokens):
    """Fine-tuning: the weights themselves; tokens that were not kept have the embeddings that they had."""
    for name, values in layers.items():
        for variable, value in zip(mapping.get(name, []), values):
            if name == 'Embedding-Token':
                value, kept = variables[variable].copy(), value
                value[keep_tokens] = kept
            variables[variable] = value


def layer_number(name):
    return int(name.split('-')[1])


def attention_variable(name, weight):
    """Of a layer beside a projection, e.g. Transformer-3-MultiHeadSelfAttention-Query-LoRA, its variable."""
    return 'bert/encoder/layer_%d/attention/self/%s/%s' % (
        layer_number(name), name.split('-')[-2].lower(), weight)


def by_layer(values):
    """{layer: [array, ...]} of {name: array} as `deltas` names them."""
    layers = {}
    for name in sorted(values, key=lambda name: (name.split('/')[0], int(name.split('/')[1]))):
        layers.setdefault(name.split('/')[0], []).append(values[name])
    return layers


def load(predictor, task_name, weights_path):
    """`Exported` of a tuned model over `predictor`'s backbone. Raises UserError if it belongs to another."""
    model = predictor.load(weights_path, task_name)  # which checks that all fits
    values = model.get_values()
    tuned = read_tuned(weights_path, task_name)
    paths, layers = predictor.paths, by_layer(values)
    for name, value in values.items():
        checkpoints.check_finite(weights_path, name, value)
    config, variables = merge(checkpoints.read_config(paths['config_path']),
                              checkpoints.read_variables(paths['checkpoint_path']), layers)
    method, _ = methods.of_delta(weights_path, tuned.belongs_to)
    mapping = model.shared.transformer.variable_mapping()
    if method == 'lora':
        merge_low_rank(variables, layers)
    elif method == 'ia3':
        merge_scales(variables, layers)
    elif method == 'bitfit':
        merge_biases(variables, layers, mapping)
    elif method == 'finetune':
        merge_all(variables, layers, mapping, predictor.keep_tokens)
    elif method == 'ptuning':  # computed once: the vectors are all that is needed
        layers['Input-Prompts'] = [prompt_vectors(model)]
    return Exported(model.task, predictor.backbone, config, variables, layers, tuned.belongs_to,
                    paths['dict_path'])


def prompt_vectors(model):
    """(size, width), what P-Tuning's encoder makes of its embeddings."""
    from bert4keras.backend import K
    layer = model.model.get_layer('Input-Prompts')
    with model.graph.build():
        return K.eval(layer.vectors())


def refuse_prompts(exported, target):
    method, size = methods.of_delta('', exported.belongs_to)
    if method in methods.AT_INPUT:
        raise UserError(
            'size %d: trained input prompts are no token and no part of any layer: they cannot be merged into '
            'a plain %s; --to onnx can hold them' % (size, target))
    size = exported.belongs_to['prompt_size']
    if size:
        raise UserError(
            'prompt_size %d: trained keys and values stand beside a sequence and are no part of any '
            'layer: they cannot be merged into a plain %s; --to onnx can hold them%s' % (
                size, target, ', and --to peft' if exported.kind == 'roberta' else ''))


def to_checkpoint(exported, folder):
    """bert_config.json, bert_model.ckpt and vocab.txt for bert4keras; the head beside them."""
    refuse_prompts(exported, 'checkpoint')
    if exported.config.get('layer_norm_eps', 1e-12) != 1e-12:
        raise UserError('layer_norm_eps %g: readers of this layout take 1e-12; --to transformers or onnx '
                        'can say it' % exported.config['layer_norm_eps'])
    write_backbone(exported, folder)
    write_head(exported, folder)


def write_backbone(exported, folder):
    write_json(os.path.join(folder, 'bert_config.json'), exported.config)
    checkpoints.write_checkpoint(os.path.join(folder, 'bert_model.ckpt'), exported.variables)
    copy_file(exported.dict_path, os.path.join(folder, 'vocab.txt'))


def write_floats(path, tensors, metadata):
    with np.errstate(over='ignore'):  # what float32 cannot hold is refused as infinite
        tensors = {name: np.ascontiguousarray(value, 'float32') for name, value in tensors.items()}
    for name, value in tensors.items():
        checkpoints.check_finite(path, name, value)
    write_tensors(path, tensors, metadata)


def write_head(exported, folder):
    """head.safetensors: the head's weights, with task, labels and maxlen as metadata."""
    write_floats(
        os.path.join(folder, 'head.safetensors'),
        {'head/%d' % i: value for i, value in enumerate(exported.layers['head'])},
        {HEAD: json.dumps({name: exported.belongs_to[name] for name in ('task', 'labels', 'maxlen')},
                          sort_keys=True)})
