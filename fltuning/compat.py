"""Where the two software stacks differ. Import this before bert4keras.

`tf1` is the paper's stack (TensorFlow 1.15 with Keras 2.3.1), `tf2` today's (TensorFlow 2 with
tf-keras). Everything else in the project is written once.
"""
import contextlib
import importlib
import os
import sys
import warnings

from fltuning.errors import UserError

if os.environ.get('RECOMPUTE', '0').lower() not in ('0', '', 'false', 'no', 'off', 'n', 'f'):
    # bert4keras's recomputation drops the padding masks on Keras 2.3.1 and breaks on TensorFlow 2.15+.
    raise UserError('RECOMPUTE=%s loses the padding masks in bert4keras: unset RECOMPUTE'
                    % os.environ['RECOMPUTE'])
os.environ['RECOMPUTE'] = '0'  # bert4keras refuses an empty one

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # no word on the GPUs that are not there
# oneDNN rounds differently from run to run in float32; precision.py has set it where it is needed.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
# Keep the memory of tensors between steps: handing large ones back to the system and asking for them
# anew takes a tenth of a step, and glibc, which cuts up what it keeps, needs a third more at the peak.
os.environ.setdefault('TF_CPU_ALLOCATOR_USE_BFC', 'true')
os.environ['TF_USE_LEGACY_KERAS'] = '1'


@contextlib.contextmanager
def quiet():
    """Nothing on standard error: what the libraries say while they are imported helps no one."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed: no other file may get its number and what is written to it
        stderr = os.dup(devnull)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, 'w')
    sys.stderr.flush()
    os.dup2(devnull, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


@contextlib.contextmanager
def environment(**values):
    """These variables in the environment, inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def prepare_keras():
    """tf-keras as bert4keras expects it."""
    # bert4keras puts tf.keras into sys.modules['keras'], which is a lazy loader: its parts exist only
    # once they have been touched, and its optimizers must be the ones bert4keras was written for.
    for part in ('layers', 'backend', 'optimizers', 'initializers', 'activations', 'models', 'utils'):
        getattr(tf.keras, part)
    if getattr(tf.keras, '__version__', '2') >= '3':  # tf-keras states none there
        raise UserError('Keras 3 was imported before: expected tf-keras; import fltuning first, or set '
                        'TF_USE_LEGACY_KERAS=1')
    # The lazy loader looks tf_keras up anew by this name; then all parts see the same classes.
    tf_keras = importlib.import_module('tf_keras')
    for name in ('Optimizer', 'Adam', 'SGD'):
        legacy = getattr(tf_keras.optimizers.legacy, name)
        setattr(tf.keras.optimizers, name, legacy)
    # tf-keras saves activations it does not know as dicts, which its own HDF5 reader refuses; names
    # it reads.
    activations = importlib.import_module('tf_keras.src.activations')
    activations._TF_ACTIVATIONS_V2.update(
        {name: name for name in ('exact_gelu', 'gelu_erf', 'gelu_tanh')})
    # The backbone's initial values, which this warns of, are overwritten by the checkpoint's.
    warnings.filterwarnings('ignore', 'The initializer .* is unseeded')


@contextlib.contextmanager
def policy_of(layer):
    """`tf2`: inside, layers that are made have the dtype policy of this one, not Keras's own, float32."""
    if not TF2:
        yield
        return
    mixed_precision = tf.keras.mixed_precision
    before = mixed_precision.global_policy()
    mixed_precision.set_global_policy(layer.dtype_policy)
    try:
        yield
    finally:
        mixed_precision.set_global_policy(before)


# What the user has set for other programs, in these variables and in keras.json in KERAS_HOME or
# ~/.keras, would change what is computed here. No file is in a KERAS_HOME that is no folder.
with environment(KERAS_HOME=os.devnull, KERAS_BACKEND='tensorflow'):
    with quiet():
        import tensorflow as tf
    TF2 = tf.__version__ >= '2'
    STACK = 'tf2' if TF2 else 'tf1'
    os.environ['TF_KERAS'] = '1' if TF2 else '0'  # which Keras bert4keras takes
    if TF2:
        prepare_keras()
    tf.get_logger().setLevel('ERROR')
    with quiet():
        from bert4keras.backend import K, keras  # noqa: F401

# Where Keras was imported before, it is as the user has set it.
for name, expected in [('backend', 'tensorflow'), ('floatx', 'float32'), ('epsilon', 1e-7),
                       ('image_data_format', 'channels_last')]:
    if getattr(K, name)() != expected:
        raise UserError('Keras was imported before, with %s %s: expected %s; import fltuning first, or '
                        'change ~/.keras/keras.json' % (name, getattr(K, name)(), expected))
