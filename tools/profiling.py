"""Where a training step goes, by kind of operation, as TensorFlow's profiler sees it."""
import collections
import concurrent.futures
import glob
import multiprocessing
import os
import re
import tempfile

from fltuning import compat  # before TensorFlow
import tensorflow as tf

from fltuning.errors import UserError
from tools import measure

# {kind: a pattern of the types of its operations}, the first that fits. oneDNN's begin with _Mkl.
KINDS = collections.OrderedDict([
    ('matrix products', r'(Batch)?MatMul|Einsum'),
    ('products, element by element', r'Mul$|RealDiv$'),
    ('sums and differences, biases too', r'Add|Bias|Sub$|Neg$'),
    ('erf and exp of GELU', r'Erf$|Exp$|Square$'),
    ('softmax', r'Softmax$'),
    ('sums and means of rows', r'Sum$|Mean$|Max$|Min$|Rsqrt$'),
    ('casts', r'Cast$'),
    ('random numbers and masks', r'Stateless|Bitcast$|GreaterEqual$'),
    ('chains that XLA made one pass', r'XlaFusion$'),
    ('moves of rows', r'TensorList|Gather|Concat|Transpose$|Tile$|Slice$|Split|Pack$|Unpack$|Pad'),
    ('other', r''),
])


def kind_of(operation):
    """The kind of an operation, "name:type".

    >>> kind_of('model/Transformer-0-FeedForward/dense/Erf:Erf'), kind_of('a/MatMul:_FusedMatMul')
    ('erf and exp of GELU', 'matrix products')
    """
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, operation.split(':')[1]))


def read_profile(folder):
    """{"name:type": [seconds, ...]} of what TensorFlow's profiler wrote to a folder."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2
    space, found = xplane_pb2.XSpace(), collections.defaultdict(list)
    path, = glob.glob(os.path.join(folder, '**', '*.xplane.pb'), recursive=True)
    with open(path, 'rb') as reader:
        space.ParseFromString(reader.read())
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                if re.match(r'[a-z_]+_fusion[.\d]*$', name):  # within an operation whose own name says nothing
                    name += ':XlaFusion'
                if re.match(r'[\w./-]+:_?[A-Z]\w+$', name):
                    found[name].append(event.duration_ps / 1e12)
    return found


def profile_step(name, flags, config_path, padded, precision):
    """{kind: seconds} of a training step on the batch of middling padding."""
    if not compat.TF2:
        raise UserError('profile: the stack tf1 has no profiler of this kind; --stack tf2 has it')
    tf.config.threading.set_inter_op_parallelism_threads(1)  # one operation at a time: times add up
    task = measure.make_task(name, flags)
    encoded = list(map(task.encode, measure.load_samples(task, flags.data_path, None)))
    batches = measure.typical_batches(task, encoded, flags.repeats)
    batch = task.collate(batches[len(batches) // 2])
    step = measure.build_path(task, flags, config_path, padded, precision).step
    for _ in range(2):  # the first ones also allocate
        step(*batch)
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        for _ in range(flags.repeats):
            step(*batch)
        tf.profiler.experimental.stop()
        found = read_profile(folder)
    kinds = collections.Counter()
    for operation, seconds in found.items():
        kinds[kind_of(operation)] += sum(seconds) / flags.repeats
    return dict(kinds)


def measure_profile(name, flags, config_path):
    """{path: {kind: seconds}}, each path in a process of its own."""
    found, context = {}, multiprocessing.get_context('spawn')
    for path, (padded, precision) in measure.paths_of(flags).items():
        with measure.onednn_of(precision), concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            found[path] = pool.submit(profile_step, name, flags, config_path, padded, precision).result()
    return found


def table(profile):
    """Markdown: milliseconds of a step, and shares."""
    paths = list(profile)
    lines = ['| operations | %s |' % ' | '.join('%s: ms | %%' % path for path in paths),
             '| --- ' * (1 + 2 * len(paths)) + '|']
    for kind in KINDS:
        cells = ['%.1f | %.1f' % (1e3 * profile[path].get(kind, 0),
                                  100 * profile[path].get(kind, 0) / sum(profile[path].values()))
                 for path in paths]
        lines.append('| %s | %s |' % (kind, ' | '.join(cells)))
    return '\n'.join(lines + ['| all | %s |' % ' | '.join(
        '%.1f | 100' % (1e3 * sum(profile[path].values())) for path in paths)])
