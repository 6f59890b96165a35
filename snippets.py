"""The settings you edit, and what every task loads from them: tokenizer, backbone, optimizer."""

# The backbone: files in Google's layout, as the RoBERTa, NEZHA and RoFormer releases have it, or a
# Hugging Face folder: its name as config_path, and the other two left empty. All three empty: the
# small one in pretrained/, a roberta unless `backbone` says otherwise.
backbone = 'auto'  # auto (read off the checkpoint), roberta, nezha or roformer
config_path = ''  # e.g. '/models/chinese_roberta_wwm_ext_L-12_H-768_A-12/bert_config.json'
checkpoint_path = ''  # e.g. '/models/chinese_roberta_wwm_ext_L-12_H-768_A-12/bert_model.ckpt'
dict_path = ''  # e.g. '/models/chinese_roberta_wwm_ext_L-12_H-768_A-12/vocab.txt'

# What is trained besides the task's head.
prompt_size = 0  # P-Tuning V2: trainable keys and values in every attention
ffn_prompt_size = 160  # FL-Tuning: trainable hidden units in every feed-forward network
layers_to_transform = ''  # the layers that get either, from 0, e.g. '0-5,11'; '' for all
prompt_dropout = 0.1  # dropout of the keys and values in training

data_path = 'clue_dataset'  # a folder with a folder for each task; this, beside this file
output_dir = ''  # where weights/ and results/ go; '' for the current folder
seed = 42  # one seed, one result

# ---------------------------------------------------------------------------- end of the settings
import os

import compat  # noqa: F401  (before bert4keras)
from bert4keras.backend import keras
from bert4keras.tokenizers import load_vocab

import checkpoints
from errors import UserError
from models import PtuningV2AddFNNPtuning, build_transformer_model
from optimizer import PromptAdam
from tokenizer import FastTokenizer

# [unused1..99] stay in the vocabulary: tasks mark places with them.
SPECIAL_TOKENS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] + ['[unused%d]' % i
                                                                  for i in range(1, 100)]


def load_tokenizer(dict_path):
    """The tokenizer of the simplified vocabulary, and the ids of the tokens that were kept.

    Tokens of several characters that Chinese text never yields are left out, so the embedding
    matrix shrinks by a third; `keep_tokens` are the rows to keep, in their new order.
    Raises UserError if the file is no BERT vocabulary.
    """
    tokens = load_tokens(dict_path)
    token_dict, keep_tokens = load_vocab(
        dict_path, simplified=True, startswith=[t for t in SPECIAL_TOKENS if t in tokens])
    return FastTokenizer(token_dict), keep_tokens


def load_tokens(dict_path):
    """{token: id} of the whole file. Raises UserError if it is no BERT vocabulary."""
    check_file(dict_path, 'dict_path')
    try:
        tokens = load_vocab(dict_path)
    except UnicodeDecodeError:
        raise UserError('%s: expected UTF-8, one token a line' % dict_path)
    for token in SPECIAL_TOKENS[:5]:
        if token not in tokens:
            raise UserError('%s: no token %s: expected a BERT vocabulary, one token a line'
                            % (dict_path, token))
    return tokens


def check_file(path, setting, suffix=''):
    if not path or not os.path.isfile(path + suffix):
        raise UserError('%s: %s: no such file; expected the path of %s' % (setting, path, {
            'config_path': 'bert_config.json', 'dict_path': 'vocab.txt',
            'checkpoint_path': 'a checkpoint, without .index'}[setting]))


def check_backbone(config_path, checkpoint_path, dict_path, maxlen=None, layers_to_transform=None):
    """Raises UserError if config, checkpoint and vocabulary do not belong together.

    maxlen, layers_to_transform: what is to be done with it, which it may be too small for.
    """
    check_file(config_path, 'config_path')
    check_file(checkpoint_path, 'checkpoint_path',
               '' if checkpoints.is_huggingface(checkpoint_path) else '.index')
    config = checkpoints.read_config(config_path)
    try:
        sizes = {name: int(config[name]) for name in (
            'vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
            'intermediate_size')}
        keras.activations.get(config['hidden_act'])
    except (ValueError, TypeError) as error:
        raise UserError('%s: expected a BERT config: %s' % (config_path, error))
    except KeyError as error:
        raise UserError('%s: no field %s' % (config_path, error))
    last = sizes['num_hidden_layers'] - 1
    if layers_to_transform and max(layers_to_transform) > last:
        raise UserError('layers_to_transform: %d: the layers of %s are 0 to %d'
                        % (max(layers_to_transform), config_path, last))
    vocab = len(load_vocab(dict_path))
    if vocab != sizes['vocab_size']:
        raise UserError('%s: %d tokens, but %s says vocab_size %d: expected the vocabulary of '
                        'this checkpoint' % (dict_path, vocab, config_path, sizes['vocab_size']))
    variables = checkpoints.list_variables(checkpoint_path)
    rows = variables.get('bert/embeddings/word_embeddings', [vocab])[0]
    if rows != vocab:
        raise UserError('%s: %d tokens, but the checkpoint %s embeds %d'
                        % (dict_path, vocab, checkpoint_path, rows))
    positions = variables.get('bert/embeddings/position_embeddings')
    if maxlen and positions and maxlen > positions[0]:
        raise UserError('maxlen %d: the checkpoint %s has %d positions'
                        % (maxlen, checkpoint_path, positions[0]))


def load_backbone(config_path, checkpoint_path, keep_tokens=None, backbone='auto', **options):
    """The backbone with its prompts, everything else frozen: a bert4keras Transformer.

    options: of `PromptTuning` and of bert4keras's Transformer.
    """
    transformer = build_transformer_model(
        config_path, checkpoint_path, model=PtuningV2AddFNNPtuning, backbone=backbone,
        keep_tokens=keep_tokens, return_keras_model=False, **options)
    transformer.freeze()
    return transformer


def get_optimizer(learning_rate, num_warmup_steps, num_train_steps, weight_decay_rate=0.01,
                  exclude_from_weight_decay=('Norm', 'bias'), grad_accum_steps=1):
    """Adam with weight decay; the rate rises from 0 in the warm-up and then falls to 0, linearly.

    Steps count batches, also where `grad_accum_steps` of them make one update.
    """
    schedule = {0: 0.0, num_warmup_steps: 1.0} if num_warmup_steps else {0: 1.0}
    schedule[max(num_train_steps, num_warmup_steps + 1)] = 0.0
    return PromptAdam(
        learning_rate, weight_decay_rate=weight_decay_rate, lr_schedule=schedule,
        exclude_from_weight_decay=exclude_from_weight_decay, grad_accum_steps=grad_accum_steps)
