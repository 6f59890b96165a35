"""Hugging Face's checkpoints, without TensorFlow: the files of weights, and their names in Google's terms."""
import json
import os
import re
import zipfile
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import safetensors

from fltuning.errors import UserError
from fltuning.extras import setup_command
from fltuning.files import read_json
from fltuning.records import shorten

SHARDS = '.index.json'  # the list of the files that hold a checkpoint in parts
FLOATS = ('BF16', 'F16', 'F32', 'F64')  # of safetensors, that are weights


def is_huggingface(checkpoint_path):
    return checkpoint_path.endswith(('.safetensors', '.bin', SHARDS))


def google_name(name):
    """Google's name of a Hugging Face weight; None for what is computed or tied."""
    name = re.sub(r'^(bert|nezha|roformer)\.', '', name)
    if name.startswith(('embeddings.', 'encoder.', 'pooler.')):
        name = 'bert.' + name
    elif not name.startswith('cls.'):
        return None
    name = name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
        'LayerNorm.bias', 'LayerNorm.beta')  # older files have gamma and beta
    name = re.sub(r'\.layer\.(\d+)\.', r'.layer_\1.', name)
    name = re.sub(r'_embeddings\.weight$', '_embeddings', name)
    name = re.sub(r'\.weight$', '.kernel', name)
    name = {'cls.predictions.bias': 'cls.predictions.output_bias',
            'cls.seq_relationship.kernel': 'cls.seq_relationship.output_weights',
            'cls.seq_relationship.bias': 'cls.seq_relationship.output_bias'}.get(name, name)
    if name.startswith('cls.predictions.decoder') or re.search('position_ids|embed_positions', name):
        return None
    return name.replace('.', '/')


def huggingface_name(name, kind='bert'):
    """Hugging Face's name of Google's variable; kind is the model_type."""
    name = re.sub(r'/layer_(\d+)/', r'/layer/\1/', name).replace('/', '.')
    name = re.sub(r'^bert\.', kind + '.', name)
    name = {'cls.predictions.output_bias': 'cls.predictions.bias',
            'cls.seq_relationship.output_weights': 'cls.seq_relationship.weight',
            'cls.seq_relationship.output_bias': 'cls.seq_relationship.bias'}.get(name, name)
    name = re.sub(r'_embeddings$', '_embeddings.weight', name)
    return re.sub(r'\.beta$', '.bias', re.sub(r'\.(kernel|gamma)$', '.weight', name))


def transposed(name, value):
    """PyTorch's dense kernels are (outputs, inputs)."""
    return np.ascontiguousarray(value.T) if name.endswith('/kernel') else value


def to_huggingface(variables: Dict[str, Any], kind: str = 'bert') -> Dict[str, Any]:
    """{Google's name: array} as Hugging Face has them; kind is the model_type."""
    return {huggingface_name(name, kind): transposed(name, value) for name, value in variables.items()}


def read_weights(path: str) -> Iterator[Tuple[str, Any]]:
    """(name, float32 array) of a checkpoint's weights. Raises UserError if a file cannot be read."""
    for part in parts(path):
        if part.endswith('.bin'):
            for name, value in load_torch(part):
                yield name, value.detach().float().numpy()
        else:
            yield from read_safetensors(part)


def list_weights(path: str) -> Dict[str, tuple]:
    """{name: shape} of a checkpoint's weights, of safetensors from the headers alone."""
    shapes = {}
    for part in parts(path):
        shapes.update({name: tuple(value.shape) for name, value in load_torch(part)}
                      if part.endswith('.bin') else read_header(part)[0])
    return shapes


def check_weights(path: str) -> None:
    """Raises UserError if a checkpoint's files are not of their kind, by their headers and sizes."""
    for part in parts(path):
        (check_torch if part.endswith('.bin') else check_safetensors)(part)


def parts(path: str) -> List[str]:
    """The files that hold a Hugging Face checkpoint: itself, or those that its index lists."""
    if not path.endswith(SHARDS):
        return [path]
    index = read_json(path)
    listed = index.get('weight_map') if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not listed or not all(
            isinstance(name, str) and name.endswith(('.safetensors', '.bin'))
            and name == os.path.basename(name) for name in listed.values()):
        raise UserError('%s: field "weight_map": expected {weight: name of a file beside this one}' % path)
    names = sorted(set(listed.values()))
    missing = [name for name in names if not os.path.isfile(os.path.join(os.path.dirname(path), name))]
    if missing:
        raise UserError('%s: %d of the %d files that it lists are missing: %s'
                        % (path, len(missing), len(names), ', '.join(missing)))
    return [os.path.join(os.path.dirname(path), name) for name in names]


def check_safetensors(path):
    """Raises UserError if a file is not as long as its header says."""
    _, expected = read_header(path)
    if os.path.getsize(path) != expected:
        raise UserError('%s: not a whole safetensors file: it has %d bytes, its header makes it %d'
                        % (path, os.path.getsize(path), expected))


def read_header(path):
    """({name: shape} of the tensors of floats, size of the whole file) of a safetensors file."""
    try:
        with open(path, 'rb') as reader:
            size = int.from_bytes(reader.read(8), 'little')
            if size > 100 << 20:  # the format's limit
                raise ValueError('the header would have %d bytes' % size)
            header = json.loads(reader.read(size).decode('utf-8'))
        tensors = {name: tensor for name, tensor in header.items() if name != '__metadata__'}
        end = max([tensor['data_offsets'][1] for tensor in tensors.values()] or [0])
        return {name: tuple(tensor['shape']) for name, tensor in tensors.items()
                if tensor['dtype'] in FLOATS}, 8 + size + end
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError('%s: not a whole safetensors file: %s' % (path, error))


def read_safetensors(path):
    """(name, float32 array) of a safetensors file, bfloat16 too, which NumPy lacks."""
    try:
        with open(path, 'rb') as reader:
            tensors = safetensors.deserialize(reader.read())
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError('%s: not a whole safetensors file: %s' % (path, error))
    for name, tensor in tensors:
        if tensor['dtype'] == 'BF16':
            value = (np.frombuffer(tensor['data'], '<u2').astype('<u4') << 16).view('<f4')
        elif tensor['dtype'] in FLOATS:
            value = np.frombuffer(tensor['data'], '<f%d' % (int(tensor['dtype'][1:]) // 8))
        else:
            continue  # position ids and the like
        with np.errstate(over='ignore'):  # what float32 cannot hold is refused as infinite
            yield name, value.astype('float32').reshape(tensor['shape'])


def load_torch(path):
    """[(name, tensor)] of a PyTorch file, of which only weights are read: no code is run."""
    check_torch(path)
    try:
        import torch
    except ImportError:
        raise UserError('%s: to read this file needs PyTorch: `%s` adds it; a model.safetensors in its '
                        'place needs nothing' % (path, setup_command('torch')))
    try:
        weights = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # whatever a wrong file makes the unpickler do
        reason = (str(error) or type(error).__name__).split('\n')[0]
        if 'eights only load' in reason:  # and it goes on to advise to run the code
            reason = 'it holds more than tensors, which is not read, since it could be code'
        raise UserError('%s: not a PyTorch file of weights: %s' % (path, reason))
    if not isinstance(weights, dict):
        raise UserError('%s: expected {name: tensor}, got %s' % (path, type(weights).__name__))
    found = []
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError('%s: expected {name: tensor}, got %s: %s' % (
                path, shorten(str(name)), type(value).__name__))
        if value.is_floating_point():
            if value.layout != torch.strided or value.is_quantized or value.is_meta:
                kind = 'sparse' if value.layout != torch.strided else (
                    'without values' if value.is_meta else 'quantized')
                raise UserError('%s: %s: expected a plain tensor, it is %s'
                                % (path, shorten(name, 120), kind))
            found.append((name, value))
    return found


def check_torch(path):
    """Raises UserError if a file does not begin as torch.save writes one: an archive, or a pickle."""
    try:
        with open(path, 'rb') as reader:
            begin = reader.read(4)
    except OSError as error:
        raise UserError('%s: %s' % (path, error.strerror))
    if not (begin[:1] == b'\x80' or (begin == b'PK\x03\x04' and zipfile.is_zipfile(path))):
        raise UserError('%s: not a whole PyTorch file' % path)
