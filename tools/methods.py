"""Methods by name: how the cells of grids, their tables and pictures call them, and the flags that they are."""
import functools
import os
from typing import Any, Dict, Optional

from fltuning import methods as named
from fltuning.errors import UserError
from fltuning.files import read_json

METHODS = named.METHODS


def is_sized(method: str) -> bool:
    return bool(METHODS[method].unit)


def has_share(method: str) -> bool:
    """Whether its size is a share of the backbone, unless given."""
    return is_sized(method) and method not in named.AT_INPUT


@functools.lru_cache(maxsize=None)
def read_config(folder: str) -> Dict[str, Any]:
    """bert_config.json of a backbone's folder, or config.json. Raises UserError."""
    for name in ('bert_config.json', 'config.json'):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            config = read_json(path)
            for key in ('hidden_size', 'intermediate_size', 'num_hidden_layers', 'vocab_size'):
                if not isinstance(config, dict) or type(config.get(key)) is not int or config[key] < 1:
                    raise UserError('%s: %s: expected a whole number from 1' % (path, key))
            return dict({'type_vocab_size': 2, 'max_position_embeddings': 512}, **config)
    raise UserError('%s: no bert_config.json, nor config.json' % folder)


def method_flags(method: str, size: Optional[int], share: float) -> Dict[str, Any]:
    """{flag: value} of scripts/run. size: None for `share` percent of the backbone, where a method has that."""
    sized = {'size': size} if size else {'share': share} if has_share(method) else {}
    return dict(sized, method=method)


def count_parameters(config: Dict[str, Any]) -> int:
    """Of a backbone, absolute positions included, which it may not have."""
    return named.backbone_parameters(config, 'roberta')


def added_parameters(method: str, size: Optional[int], share: float, config: Dict[str, Any]) -> int:
    """Numbers that are trained besides the head, about."""
    if has_share(method) and not size:
        size = named.size_of_share(method, share, config, 'roberta')
    return named.trained_parameters(method, size or named.PROMPTS, config, 'roberta')
