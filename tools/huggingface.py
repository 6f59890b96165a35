"""A tuned model for Hugging Face's `transformers` and `peft`, without code of ours."""
import copy
import os

import numpy as np

from fltuning.errors import UserError
from fltuning.files import write_json
from fltuning.hf_weights import to_huggingface
from tools.merged import refuse_prompts, write_floats, write_head
from tools.tokenizer_files import PEFT, TRANSFORMERS, write_readme, write_tokenizer, write_tokenizer_config

MODEL_TYPES = {'roberta': 'bert', 'nezha': 'nezha', 'roformer': 'roformer'}
CLASSES = {'bert': 'Bert', 'nezha': 'Nezha', 'roformer': 'RoFormer'}


def to_transformers(exported, folder):
    """config.json, model.safetensors and vocab.txt for `transformers`, without code of ours.

    Classification and multiple choice become its classes of that name; of the others the backbone,
    with the head beside it.
    """
    refuse_prompts(exported, 'transformers model')
    write_huggingface(exported, folder)
    write_readme(exported, folder, TRANSFORMERS, auto_class(exported))


def huggingface_class(exported):
    return CLASSES[MODEL_TYPES[exported.kind]] + (exported.task.transformers_class or 'Model')


def auto_class(exported):
    return 'AutoModel' + (exported.task.transformers_class or '')


def is_classification(exported):
    return exported.task.transformers_class == 'ForSequenceClassification'


def huggingface_config(exported):
    config, kind = exported.config, MODEL_TYPES[exported.kind]
    activations = {'gelu': 'gelu', 'gelu_erf': 'gelu', 'gelu_tanh': 'gelu_new', 'relu': 'relu'}
    if config['hidden_act'] not in activations:
        raise UserError('hidden_act %s: transformers has none such' % config['hidden_act'])
    narrow = config.get('embedding_size') or config['hidden_size']
    if narrow != config['hidden_size']:
        raise UserError('embedding_size %d: expected hidden_size, %d: models of transformers have embeddings as wide '
                        'as their layers; --to checkpoint or onnx can hold this one' % (narrow, config['hidden_size']))
    fields = dict({name: config[name] for name in (
        'vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size',
        'type_vocab_size', 'hidden_dropout_prob', 'attention_probs_dropout_prob') if name in config},
        model_type=kind, architectures=[huggingface_class(exported)], pad_token_id=0,
        layer_norm_eps=config.get('layer_norm_eps', 1e-12), hidden_act=activations[config['hidden_act']],
        torch_dtype='float32',
        max_position_embeddings=config.get('max_position_embeddings', 512))
    if kind == 'nezha':  # bert4keras clips distances at 64, whatever the config says
        fields.update(use_relative_position=True, max_relative_position=64)
    if kind == 'roformer':
        fields.update(embedding_size=config['hidden_size'], rotary_value=False,
                      summary_type='first', summary_use_proj=False)
    if is_classification(exported):
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
    weights = to_huggingface({name: value for name, value in variables.items() if name.startswith('bert/')}, kind)
    if kind == 'roformer':  # it has no pooler, and its positions are a weight, though not trained
        weights = {name: value for name, value in weights.items() if '.pooler.' not in name}
        size = exported.config['hidden_size'] // exported.config['num_attention_heads']
        places = np.arange(exported.config.get('max_position_embeddings', 512))[:, None]
        angles = places / np.power(10000, np.arange(0, size, 2) / float(size))
        weights['roformer.encoder.embed_positions.weight'] = np.concatenate(
            [np.sin(angles), np.cos(angles)], 1)
    if not exported.task.transformers_class:
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
    if kind == 'roformer' and not is_classification(exported):
        return {'classifier.weight': kernel.T, 'classifier.bias': bias}
    scale, factor, dense, last = 2.0**-14, 1, kind + '.pooler.dense', 'classifier'
    if kind == 'roformer':
        if exported.config['hidden_act'] == 'relu':
            raise UserError('hidden_act relu: the head of RoFormerForSequenceClassification cannot '
                            'hold this one; --to checkpoint or onnx can')
        scale, factor, dense, last = 2.0**-24, 0.5, 'classifier.dense', 'classifier.out_proj'
    with np.errstate(over='ignore'):  # what float32 cannot hold is refused as infinite
        weight = kernel.T / (scale * factor)
    return {dense + '.weight': np.eye(hidden) * scale, dense + '.bias': np.zeros(hidden),
            last + '.weight': weight, last + '.bias': bias}


def write_huggingface(exported, folder):
    write_json(os.path.join(folder, 'config.json'), huggingface_config(exported))
    write_tokenizer_config(folder, exported.belongs_to['maxlen'])
    write_tokenizer(exported.dict_path, folder)
    write_floats(os.path.join(folder, 'model.safetensors'), huggingface_weights(exported),
                 {'format': 'pt'})
    if not exported.task.transformers_class:
        write_head(exported, folder)


def to_peft(exported, folder):
    """P-Tuning V2 on a BERT: the backbone with the head as `transformers` folder, the keys and values
    in `adapter/`, as peft's prefix tuning has them. The heads of other tasks than text classification, for
    which peft has no model with a prefix, are beside the backbone.

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
    if not is_classification(exported):
        task = copy.copy(exported.task)
        task.transformers_class = None
        exported = exported._replace(task=task)
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
            'SEQ_CLS' if is_classification(exported) else 'FEATURE_EXTRACTION'),
        # To be read from inside the folder: peft knows no path that begins at the adapter.
        'base_model_name_or_path': '.', 'inference_mode': True,
        'num_virtual_tokens': size, 'token_dim': hidden, 'num_transformer_submodules': 1,
        'num_attention_heads': exported.config['num_attention_heads'], 'num_layers': layers,
        'encoder_hidden_size': hidden, 'prefix_projection': False})
    tensors = {'prompt_embeddings': np.concatenate(prompts, 1)}
    if is_classification(exported):  # the classifier counts as trained there
        tensors.update(('base_model.' + name, value) for name, value in
                       classifier_weights(exported, 'bert').items() if name.startswith('classifier.'))
    write_floats(os.path.join(adapter, 'adapter_model.safetensors'), tensors, {'format': 'pt'})
    write_readme(exported, folder, PEFT, auto_class(exported))
