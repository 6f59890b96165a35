"""A whole model's weights in HDF5 (Keras's save_weights and save), as the original leaves them.

HDF5's library crashes on some damaged files, so a process of its own reads them, after it has looked at
structure and sizes.
"""
import os
import subprocess
import sys
from typing import Dict, List

import h5py
import numpy as np
from safetensors.numpy import load, save

from fltuning.errors import UserError

SIGNATURE = b'\x89HDF\r\n\x1a\n'
MAX_EXPANSION = 16  # how many times as large as the file, in which they may be compressed, values are
TIME_LIMIT, SPEED = 15, 4e6  # seconds to begin with, and bytes a second that a slow disk gives


def is_whole_model(path: str) -> bool:
    try:
        with open(path, 'rb') as reader:
            return reader.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def read_layers(path: str) -> Dict[str, List[np.ndarray]]:
    """{layer: [float32 array, ...]}, without layers that have no weights. Raises UserError."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = ('import sys; sys.path.insert(0, sys.argv[1]); '
            'from fltuning import whole_models; whole_models.main(sys.argv[2])')
    limit = TIME_LIMIT + os.path.getsize(path) / SPEED  # damaged bytes can send the library round in circles
    try:
        done = subprocess.run([sys.executable, '-c', code, root, os.path.abspath(path)],
                              capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise UserError('%s: reading it takes more than %d s: it is damaged' % (path, limit))
    if done.returncode:
        said = done.stderr.decode('utf-8', 'replace').strip().splitlines()
        raise UserError("%s: expected a whole model's weights, as Keras saves them: %s" % (
            path, said[-1][:300] if done.returncode == 2 and said else 'the HDF5 library fails on it'))
    layers: Dict[str, List[np.ndarray]] = {}
    for name, value in sorted(load(done.stdout).items()):
        layers.setdefault(name.split('/', 2)[2], []).append(value)
    return layers


# -------------------------------------------------------------------- in the other process


def main(path: str) -> None:
    """Write the weights to standard output, as safetensors; the last line of an error is the cause."""
    import resource
    limit = (4 << 30) + 2 * MAX_EXPANSION * os.path.getsize(path)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (
        limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        with h5py.File(path, 'r') as reader:
            group = find(reader, 'model_weights') if 'model_weights' in reader else reader
            content = save(read_group(group, MAX_EXPANSION * os.path.getsize(path)))
    except Exception as error:  # whatever the library makes of a wrong file
        print(' '.join(str(error).split()) or type(error).__name__, file=sys.stderr)
        sys.exit(2)
    sys.stdout.buffer.write(content)


def read_group(group, room):
    """{layer's place/weight's place/layer: array}; all values together have at most `room` bytes."""
    sets, names = [], set()
    for i, layer_name in enumerate(read_names(group, 'layer_names')):
        if layer_name in names:
            raise ValueError('layer %s is there twice' % layer_name)
        names.add(layer_name)
        layer = find(group, layer_name)
        for j, name in enumerate(read_names(layer, 'weight_names')):
            dataset = find(layer, name)
            room -= check_dataset(dataset, name)
            if room < 0:
                raise ValueError('%s: more values than a file of this size can hold' % name)
            sets.append(('%06d/%06d/%s' % (i, j, layer_name), dataset))
    return {name: np.ascontiguousarray(dataset[()]) for name, dataset in sets}


def read_names(group, attribute):
    """A list of names; Keras cuts long ones into several attributes, NAME0, NAME1 and so on."""
    attributes = group.attrs
    parts = [attribute] if attribute in attributes else []
    while not (parts and parts[0] == attribute) and '%s%d' % (attribute, len(parts)) in attributes:
        parts.append('%s%d' % (attribute, len(parts)))
    if not parts:
        raise ValueError('no %s' % attribute)
    names = []
    for part in parts:
        for name in np.asarray(attributes[part]).reshape(-1).tolist():
            name = name.decode('utf-8') if isinstance(name, bytes) else name
            if not isinstance(name, str) or not name:
                raise ValueError('%s: expected texts' % attribute)
            names.append(name)
    return names


def find(group, path):
    """The group or data set at a path, inside this file: no link leads elsewhere."""
    for part in path.split('/'):
        if not isinstance(group, h5py.Group) or not isinstance(
                group.get(part, getlink=True) if part else None, h5py.HardLink):
            raise ValueError('no %s' % path)
        group = group[part]
    return group


def check_dataset(dataset, name):
    """How many bytes its values have. Raises ValueError if it does not hold them all."""
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError('%s: expected values' % name)
    if dataset.dtype != np.dtype('float32'):
        raise ValueError('%s: expected float32, got %s' % (name, dataset.dtype))
    size = 4
    for length in dataset.shape:
        size *= int(length)
    stored = dataset.id.get_storage_size()
    if dataset.external or dataset.is_virtual or (size and not stored) or (
            dataset.chunks is None and stored != size):
        raise ValueError('%s: its values, %d bytes, are not all in the file' % (name, size))
    return size
