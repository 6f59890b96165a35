"""What the two software stacks need different. Import this before bert4keras.

`tf1` is the paper's stack (TensorFlow 1.15 with Keras 2.3.1), `tf2` today's (TensorFlow 2 with
tf-keras). Everything else in the project is written once.
"""
import contextlib
import importlib
import os
import sys
import warnings

if os.environ.get('RECOMPUTE', '0').lower() not in ('0', '', 'false', 'no', 'off', 'n', 'f'):
    # bert4keras's recomputation drops the padding masks on Keras 2.3.1 and breaks on TensorFlow 2.15+.
    raise ImportError('RECOMPUTE=1 loses the padding masks in bert4keras: unset RECOMPUTE')

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # no word on the GPUs that are not there
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # oneDNN rounds differently from run to run
# Keep the memory of tensors between steps: handing large ones back to the system and asking for them
# anew takes a tenth of a step, and glibc, which cuts up what it keeps, needs a third more at the peak.
os.environ.setdefault('TF_CPU_ALLOCATOR_USE_BFC', 'true')
os.environ['TF_USE_LEGACY_KERAS'] = '1'


@contextlib.contextmanager
def quiet():
    """Nothing on standard error: what the libraries say while they are imported helps no one."""
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
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


with quiet():
    import tensorflow as tf

TF2 = tf.__version__ >= '2'
STACK = 'tf2' if TF2 else 'tf1'

if TF2:
    os.environ['TF_KERAS'] = '1'
    # bert4keras puts tf.keras into sys.modules['keras'], which is a lazy loader: its parts exist only
    # once they have been touched, and its optimizers must be the ones bert4keras was written for.
    for part in ('layers', 'backend', 'optimizers', 'initializers', 'activations', 'models', 'utils'):
        getattr(tf.keras, part)
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
tf.get_logger().setLevel('ERROR')

with quiet():
    from bert4keras.backend import K, keras  # noqa: E402,F401
