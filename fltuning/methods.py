"""The ways of tuning by name: what each trains, what its size counts, at which rate it learns.

Four of them are the two sizes of `models.PromptTuning` under a name, and resolve to these; the others are
in `tuned.py`. Here stand names and numbers alone, without TensorFlow.
"""
import collections
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

from fltuning.errors import UserError

SHARE = 3.0  # percent of the backbone's parameters that a method has, unless its size is given
PROMPTS = 20  # at the input, unless said: each makes every sequence longer
LSTM_LAYERS = 2  # of P-Tuning


class Method(NamedTuple):
    """A way of tuning.

    title: what a delta calls it; unit: what its size counts, '' for a method without one.
    rate: learning rate unless one is given; None for the task's.
    in_layers: it may be in some of the layers only.
    """
    title: str
    unit: str
    rate: Optional[float]
    in_layers: bool


METHODS = collections.OrderedDict([
    ('fl', Method('FL-Tuning', 'hidden units', None, True)),
    ('ptuning_v2', Method('P-Tuning V2', 'keys and values', None, True)),
    ('both', Method('FL-Tuning + P-Tuning V2', 'hidden units, and as many keys and values', None, True)),
    ('prompt_tuning', Method('Prompt Tuning', 'input prompts', 1e-3, False)),
    ('ptuning', Method('P-Tuning', 'input prompts', 1e-3, False)),
    ('lora', Method('LoRA', 'rank', 5e-4, True)),
    ('ia3', Method('IA3', '', 3e-3, True)),
    ('bitfit', Method('BitFit', '', 4e-4, True)),
    ('finetune', Method('fine-tuning', '', 3e-5, True)),
    ('head', Method('head only', '', None, False))])
# {method: which of the two sizes its own is}; the settings of those are `prompt_size`, `ffn_prompt_size`.
BY_SIZES = {'fl': ('ffn_prompt_size',), 'ptuning_v2': ('prompt_size',),
            'both': ('prompt_size', 'ffn_prompt_size'), 'head': ()}
AT_INPUT = ('prompt_tuning', 'ptuning')
NOT_DECAYED = ('Norm', 'bias', 'scale')  # parts of names of weights: those of IA3 mean nothing at 1


def name_of(method: Optional[str], prompt_size: int, ffn_prompt_size: int) -> str:
    """The method of resolved settings by its name."""
    if method:
        return method
    sizes = {name for name, size in [('prompt_size', prompt_size), ('ffn_prompt_size', ffn_prompt_size)]
             if size}
    return next(name for name, own in BY_SIZES.items() if set(own) == sizes)


def size_of(name: str, size: Optional[int], prompt_size: int, ffn_prompt_size: int) -> Optional[int]:
    """The size of a method; None without one, and where there are two that differ."""
    if name not in BY_SIZES:
        return size
    own = {dict(prompt_size=prompt_size, ffn_prompt_size=ffn_prompt_size)[one] for one in BY_SIZES[name]}
    return own.pop() if len(own) == 1 else None


def check_given(given: Dict[str, Any], method: Optional[str]) -> None:
    """Raises UserError if what the user gave, {setting: value}, contradicts itself or the method."""
    for name in ('size', 'share'):
        if name in given and not method:
            raise UserError('--%s: expected --method with it; without one, sizes are --prompt_size and '
                            '--ffn_prompt_size' % name)
    if not method:
        return
    for name in ('prompt_size', 'ffn_prompt_size'):
        if given.get(name):  # that none is wanted is no contradiction
            raise UserError('--%s: not with --method %s, %s' % (
                name, method, 'whose size is --size' if METHODS[method].unit else 'which has no size'))
    if 'size' in given and 'share' in given:
        raise UserError('--share: not with --size, which is what it would say')
    if 'size' in given and not METHODS[method].unit:
        raise UserError('--size: %s has no size' % method)
    if 'share' in given and (method in AT_INPUT or not METHODS[method].unit):
        raise UserError('--share: %s' % (
            '%s takes --size: a percent of a backbone would be hundreds of prompts before every sequence'
            % method if method in AT_INPUT else '%s has no size' % method))


def resolve(method: Optional[str], size: Optional[int], share: Optional[float],
            layers: Optional[Sequence[int]], config: Dict[str, Any], backbone: str) -> Dict[str, Any]:
    """{setting: value} of a method: its size as a number, or the two sizes that it is a name for.

    config: of the backbone, as `checkpoints.read_config` has it; backbone: its kind.
    Raises UserError if the method is not one of layers, but some are given.
    """
    if not method:
        return {}
    about = METHODS[method]
    if layers is not None and not about.in_layers:
        raise UserError('layers_to_transform: %s is not a matter of layers' % method)
    if about.unit and not size:
        size = PROMPTS if method in AT_INPUT else size_of_share(
            method, SHARE if share is None else share, config, backbone)
    if method not in BY_SIZES:
        return dict(method=method, size=size if about.unit else None, prompt_size=0, ffn_prompt_size=0)
    own = BY_SIZES[method]
    return dict({name: size if name in own else 0 for name in ('prompt_size', 'ffn_prompt_size')},
                method=None, size=None)


def size_of_share(method: str, share: float, config: Dict[str, Any], backbone: str) -> int:
    """The size at which a method, in all layers, has this percentage of the backbone's parameters."""
    unit = trained_parameters(method, 2, config, backbone) - trained_parameters(method, 1, config, backbone)
    return max(1, int(round(share / 100 * backbone_parameters(config, backbone) / unit)))


def backbone_parameters(config: Dict[str, Any], backbone: str) -> int:
    """How many numbers a backbone has, without pooler and heads, with its whole vocabulary."""
    return embedding_parameters(config, backbone) + config['num_hidden_layers'] * layer_parameters(config)


def embedding_parameters(config: Dict[str, Any], backbone: str) -> int:
    hidden = config['hidden_size']
    width = config.get('embedding_size', hidden)
    rows = config['vocab_size'] + config['type_vocab_size'] + 2  # and the norm
    if backbone == 'roberta':  # the others' positions are computed
        rows += config['max_position_embeddings']
    return rows * width + (width * hidden + hidden if width != hidden else 0)


def layer_parameters(config: Dict[str, Any]) -> int:
    """Four projections, the feed-forward network, two norms."""
    hidden, inner = config['hidden_size'], config['intermediate_size']
    return 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden


def trained_parameters(method: str, size: Optional[int], config: Dict[str, Any], backbone: str,
                       layers: Optional[Sequence[int]] = None) -> int:
    """How many numbers a method trains, besides the head."""
    hidden, inner = config['hidden_size'], config['intermediate_size']
    width = config.get('embedding_size', hidden)
    count = config['num_hidden_layers'] if layers is None else len(layers)
    if method in AT_INPUT:
        return size * width + (prompt_encoder_parameters(width) if method == 'ptuning' else 0)
    a_layer = {'fl': lambda: size * (2 * hidden + 1) + hidden, 'ptuning_v2': lambda: size * 2 * hidden,
               'both': lambda: size * (4 * hidden + 1) + hidden, 'lora': lambda: size * 4 * hidden,
               'ia3': lambda: 2 * hidden + inner, 'bitfit': lambda: 7 * hidden + inner,
               'finetune': lambda: layer_parameters(config), 'head': lambda: 0}[method]()
    first = {'bitfit': width + (hidden if width != hidden else 0),
             'finetune': embedding_parameters(config, backbone)}.get(method, 0) if layers is None else 0
    return first + count * a_layer


def prompt_encoder_parameters(width: int) -> int:
    """Of P-Tuning: LSTMs in both directions of half the width, and two dense layers."""
    half = max(1, width // 2)
    lstms = sum(2 * 4 * half * (inputs + half + 1)
                for inputs in [width] + [2 * half] * (LSTM_LAYERS - 1))
    return lstms + 2 * half * 2 * half + 2 * half + 2 * half * width + width


def of_delta(path: str, belongs_to: Dict[str, Any]) -> Tuple[Optional[str], Optional[int]]:
    """(method, size) of what a delta says of itself, as resolved settings have them.

    Raises UserError if that is no method, or not its size.
    """
    titles = {about.title: name for name, about in METHODS.items()}
    title = belongs_to.get('method', METHODS['head'].title)  # files of the original say no method
    if not isinstance(title, str) or title not in titles:
        raise UserError('%s: metadata: field "method": expected one of %s, got %s'
                        % (path, ', '.join(titles), title))
    name = titles[title]
    if name in BY_SIZES:
        return None, None
    size = belongs_to.get('size')
    if METHODS[name].unit and (type(size) is not int or not 0 < size < 2**31):
        raise UserError('%s: metadata: field "size": expected a whole number from 1, got %s' % (path, size))
    return name, size if METHODS[name].unit else None
