"""In which precision a model computes, as far as it must be known before TensorFlow is loaded.

float32 is the default. In a low precision (`LOW`) the matrix products, GELU and dropout run in it and frozen
weights are held in it; trained weights, Adam's moments, layer norms, softmax, loss and scores are float32
(mixed.py).
"""
import os
import sys
from typing import Optional, Set

from fltuning.errors import UserError
from fltuning.provenance import cpu_flags

LOW = ['bfloat16', 'float16']
NAMES = ['float32'] + LOW
ONEDNN = 'TF_ENABLE_ONEDNN_OPTS'  # which compat.py sets to 0 where nothing else is said
# Of x86 and of ARM, as Linux names them; any of them is enough.
INSTRUCTIONS = {'bfloat16': ['amx_bf16', 'avx512_bf16', 'avx_ne_convert', 'bf16'],
                'float16': ['amx_fp16', 'avx512_fp16', 'asimdhp']}

_said: Set[str] = set()
_switched_on = False  # oneDNN, here


def say_once(text: str) -> None:
    """A line for the user; not among predictions that go to standard output."""
    if text not in _said:
        _said.add(text)
        print(text, file=sys.stderr)


def instructions(precision: str) -> Optional[bool]:
    """Has this CPU instructions for a low precision? None: nothing says it."""
    flags = cpu_flags()
    return None if flags is None else bool(flags & set(INSTRUCTIONS[precision]))


def use(precision: str) -> None:
    """Get ready for models of this precision. Call it before anything loads TensorFlow.

    oneDNN, which has the fast products of low precisions, is switched on for them alone: in float32 it
    rounds differently from run to run. TensorFlow looks once whether it is on, when it is loaded.
    Raises UserError where this stack computes in float32 only.
    """
    global _switched_on
    if precision == 'float32':
        if _switched_on:
            say_once('precision float32: TensorFlow was loaded with oneDNN, for a lower precision: last digits '
                     'may differ from run to run; use a process of its own')
        return
    if 'fltuning.compat' not in sys.modules and ONEDNN not in os.environ:
        os.environ[ONEDNN], _switched_on = '1', True
    from fltuning import compat
    if not compat.TF2:
        raise UserError('precision %s: the stack tf1 computes in float32 only; --stack tf2 has it' % precision)
    import tensorflow as tf
    if tf.config.list_physical_devices('GPU'):
        return
    if instructions(precision) is False:
        say_once('precision %s: this CPU has no instructions for it (any of %s): it will be slow'
                 % (precision, ', '.join(INSTRUCTIONS[precision])))
    elif os.environ.get(ONEDNN) == '0':
        say_once('precision %s: TensorFlow was loaded without oneDNN, which has the fast products of it: set '
                 '%s=1 before, or make the first Predictor one of this precision' % (precision, ONEDNN))
