"""Backbones of random weights in the official layout: for tests, benchmarks and comparisons."""
import json
import os
import string

import numpy as np

from fltuning.checkpoints import detect_backbone, find_files, read_config, variable_shapes, write_checkpoint
from fltuning.files import copy_file, write_json
from fltuning.tokenizer import SPECIAL_TOKENS


def write_vocab(path, characters):
    """vocab.txt with the special tokens, ASCII letters and digits, and these characters."""
    ascii_characters = string.ascii_lowercase + string.digits
    tokens = SPECIAL_TOKENS + list(ascii_characters) + ['##' + c for c in ascii_characters]
    known = set(tokens)
    tokens += sorted(c for c in set(characters) if not c.isspace() and c not in known)
    with open(path, 'w', encoding='utf-8') as writer:
        writer.write('\n'.join(tokens) + '\n')
    return len(tokens)


def write_random_backbone(folder, characters='', backbone='roberta', seed=0, stddev=0.02, **sizes):
    """Write bert_config.json, bert_model.ckpt and vocab.txt; returns {setting: path}.

    sizes: fields of bert_config.json to be other than the default, e.g. num_hidden_layers=4.
    """
    os.makedirs(folder, exist_ok=True)
    paths = {'config_path': 'bert_config.json', 'checkpoint_path': 'bert_model.ckpt',
             'dict_path': 'vocab.txt'}
    paths = {setting: os.path.join(folder, name) for setting, name in paths.items()}
    config = dict(
        attention_probs_dropout_prob=0.1, hidden_act='gelu', hidden_dropout_prob=0.1,
        hidden_size=64, initializer_range=stddev, intermediate_size=256,
        max_position_embeddings=512, num_attention_heads=4, num_hidden_layers=2, type_vocab_size=2)
    config.update(sizes, vocab_size=write_vocab(paths['dict_path'], characters))
    if backbone == 'nezha':
        config['use_relative_position'] = True
    with open(paths['config_path'], 'w') as writer:
        json.dump(config, writer, indent=2)
    write_random_weights(paths['checkpoint_path'], config, backbone, seed, stddev)
    return paths


def write_random_weights(path, config, backbone, seed=0, stddev=0.02):
    """A checkpoint: gammas 1, betas and biases 0, all else normal."""
    random, variables = np.random.RandomState(seed), {}
    for name, shape in sorted(variable_shapes(config, backbone).items()):
        if name.endswith(('gamma', 'beta', 'bias')):
            variables[name] = np.full(shape, float(name.endswith('gamma')), 'float32')
        else:
            variables[name] = random.normal(0, stddev, shape).astype('float32')
    write_checkpoint(path, variables)


def copy_random(source, *folders):
    """A backbone of the shapes and vocabulary of the one in `source` in each folder, of other weights.

    The seed is the number that a folder's name ends with. vocab.txt is written last, and says that all is there.
    """
    found = find_files(source)
    kind, config = detect_backbone(found['config_path'], found['checkpoint_path']), read_config(found['config_path'])
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
        write_json(os.path.join(folder, 'bert_config.json'), config)
        write_random_weights(os.path.join(folder, 'bert_model.ckpt'), config, kind,
                             int(folder.rsplit('-', 1)[1]))
        copy_file(found['dict_path'], os.path.join(folder, 'vocab.txt'))
