"""A delta: the weights that were trained, in a safetensors file that says what they belong to.

The metadata have one entry, JSON under the name of the format, with a SHA-256 of everything else in the
file. Files of format 1 have no such checksum, and their `backbone_sha256` is `weights.frozen_sha256`,
which depends on the stack; they load where they always loaded.
"""
import functools
import hashlib
import json
import re
import sys
from typing import Any, Callable, Dict, Tuple

import numpy as np
from safetensors import SafetensorError, safe_open

from fltuning import methods
from fltuning.errors import UserError
from fltuning.files import parse_json, write_tensors
from fltuning.records import shorten

FORMAT = 'fl-tuning-delta-2'
STATE = 'fl-tuning-state-2'  # the same with the optimizer's moments: a run that can go on
CHECKSUM = 'content_sha256'
Values = Dict[str, np.ndarray]


def layer_numbers(names, pattern):
    """The numbers i, sorted, for which `pattern % i` is among the names."""
    expression = re.compile(re.escape(pattern).replace(re.escape('%d'), '(0|[1-9][0-9]{0,8})') + '$')
    return sorted(int(found.group(1)) for found in map(expression.match, names) if found)


def identity(task, transformer, backbone_sha256):
    """What a delta belongs to: it loads where all of this is the same."""
    name = methods.name_of(transformer.method, transformer.prompt_size, transformer.ffn_prompt_size)
    found = {
        'task': task.name, 'labels': getattr(task, 'labels', []), 'maxlen': task.maxlen,
        'method': methods.METHODS[name].title,
        'prompt_size': transformer.prompt_size, 'ffn_prompt_size': transformer.ffn_prompt_size,
        'layers_to_transform': transformer.layers_to_transform,
        'backbone_kind': transformer.backbone, 'backbone_sha256': backbone_sha256}
    if transformer.method and methods.METHODS[name].unit:
        found['size'] = transformer.size
    return found


def check_identity(path, theirs, ours, frozen_sha256=None):
    """Raises UserError with the first value that differs.

    frozen_sha256: f() -> what a file of format 1 calls `backbone_sha256`.
    """
    if theirs.get('format') == 1 and frozen_sha256:
        ours = dict(ours, backbone_sha256=frozen_sha256())
    for key, value in sorted(ours.items()):
        if theirs.get(key) != value:
            raise UserError('%s: %s is %s, here it is %s'
                            % (path, key, shorten(theirs.get(key), 80), shorten(value, 80)))


def checksum(values: Values, text: str) -> str:
    """SHA-256 of tensors (names, dtypes, shapes, bytes) and of the text that goes with them."""
    digest = hashlib.sha256(text.encode('utf-8'))
    for name, value in sorted(values.items()):
        digest.update(json.dumps([name, value.dtype.str, list(value.shape)]).encode('utf-8'))
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def check_finite(path: str, values: Values) -> None:
    """Raises UserError with the first tensor that holds NaN or infinity."""
    for name, value in sorted(values.items()):
        if value.dtype.kind == 'f' and not np.isfinite(value).all():
            raise UserError('%s: tensor %s: expected finite numbers, it holds %s'
                            % (path, name, value[~np.isfinite(value)].flat[0]))


def save_delta(path, values, belongs_to, kind=FORMAT):
    """Write {name: array} and the JSON-able dict `belongs_to` to `path`, whole or not at all.

    Raises UserError, and leaves what is there, if a value is not finite.
    """
    check_finite(path, values)
    text = json.dumps(belongs_to, sort_keys=True, allow_nan=False)
    # One entry, since safetensors writes several in an order left to chance.
    write_tensors(path, values, {kind: json.dumps(
        dict(belongs_to, **{CHECKSUM: checksum(values, text)}), sort_keys=True)})


def read_delta(path: str, kind: str = FORMAT) -> Tuple[Values, Dict[str, Any]]:
    """({name: array}, belongs_to) of a delta; belongs_to['format'] is 1 in older files.

    Raises UserError if the file is none, if anything in it was changed, or if a value is not finite.
    """
    what, before = kind.split('-')[2], kind[:-1] + '1'
    try:
        with safe_open(path, 'numpy') as delta:
            metadata = delta.metadata() or {}
            values = {name: delta.get_tensor(name) for name in delta.keys()}  # noqa: SIM118  (no dict)
    except FileNotFoundError:
        raise UserError('%s: no such file; a run (scripts/run TASK) writes it' % path)
    except (SafetensorError, OSError, TypeError, AttributeError, ValueError) as error:  # e.g. of a dtype
        raise UserError('%s: not a whole %s: %s' % (path, what, error))
    text = metadata.get(kind, metadata.get(before))
    if text is None:
        raise UserError('%s: expected a %s of this project (%s)' % (path, what, kind))
    try:
        belongs_to = parse_json(text)
    except ValueError as error:
        raise UserError('%s: metadata: not JSON: %s' % (path, error))
    if not isinstance(belongs_to, dict):
        raise UserError('%s: metadata: expected an object, got %s' % (path, shorten(belongs_to)))
    if kind in metadata:
        check_content(path, values, belongs_to, text)
    else:
        belongs_to['format'] = 1
        note_before(path)
    check_finite(path, values)
    return values, belongs_to


def check_content(path, values, belongs_to, text):
    """Raises UserError unless everything is as it was written; takes the checksum out of `belongs_to`."""
    expected = belongs_to.pop(CHECKSUM, None)
    content = json.dumps(belongs_to, sort_keys=True)
    whole = json.dumps(dict(belongs_to, **{CHECKSUM: expected}), sort_keys=True)
    if whole != text or checksum(values, content) != expected:
        raise UserError('%s: damaged: the content is not that of its checksum; take it from a copy, or '
                        'train again' % path)


@functools.lru_cache(maxsize=None)  # once for each file
def note_before(path):
    print('%s: of an earlier version, without a checksum: whether it is whole is not known' % path,
          file=sys.stderr)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def is_list(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


# {field: (what is expected, whether a value is that)} of what a delta says of itself.
FIELDS = {
    'task': ('a text', is_text), 'labels': ('a list of texts', is_list(is_text)),
    'maxlen': ('a whole number from 1', lambda value: is_count(value) and value > 0),
    'prompt_size': ('a whole number from 0', is_count),
    'ffn_prompt_size': ('a whole number from 0', is_count),
    'layers_to_transform': ('a list of whole numbers', is_list(is_count)),
    'backbone_kind': ('a text', is_text), 'backbone_sha256': ('a text', is_text)}
STATE_FIELDS = {
    'history': ('a list of objects', is_list(lambda value: isinstance(value, dict))),
    'best': ('an object with epoch and dev', lambda value: isinstance(value, dict)
             and is_count(value.get('epoch')) and isinstance(value.get('dev'), dict)),
    'place': ('batches, the sum of their losses, and samples', lambda value: is_list(is_number)(value)
              and len(value) == 3 and is_count(value[0]) and is_count(value[2])),
    'seconds': ('a number', is_number), 'train_seconds': ('a number', is_number)}


def check_fields(path: str, metadata: Dict[str, Any], fields: Dict[str, Tuple[str, Any]]) -> None:
    """Raises UserError with the first of these fields that is missing or of another type."""
    for name, (expected, fits) in fields.items():
        if name not in metadata:
            raise UserError('%s: metadata: no field "%s"' % (path, name))
        if not fits(metadata[name]):
            raise UserError('%s: metadata: field "%s": expected %s, got %s'
                            % (path, name, expected, shorten(metadata[name])))


def check_sizes(path: str, values: Values, metadata: Dict[str, Any]) -> None:
    """Raises UserError unless the sizes that a delta states are those of its tensors.

    Before a model of that size is built, which may need more memory than there is.
    """
    shapes = {name: value.shape for name, value in values.items()}
    name, size = methods.of_delta(path, metadata)
    metadata = dict(metadata, size=size or 0)
    of_size = (r'Input-Prompts/0/', 0) if name in methods.AT_INPUT else (
        r'Transformer-\d+-MultiHeadSelfAttention-(Query|Value)-LoRA/0/', 1)
    for setting, pattern, axis in [
            ('ffn_prompt_size', r'Transformer-\d+-AddFFN/0/', 1),
            ('prompt_size', r'Transformer-\d+-MultiHeadSelfAttention-(Key|Value)-PromptEmbedding/0/', 0),
            ('size',) + of_size]:
        found = {shape[axis] if len(shape) > axis else None
                 for name, shape in shapes.items() if re.match(pattern, name)}
        stated = {metadata[setting]} - {0}
        if found != stated:
            raise UserError('%s: %s is %s, the tensors are of %s' % (
                path, setting, metadata[setting], ', '.join(map(str, sorted(found, key=str))) or 'none'))
