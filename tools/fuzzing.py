"""The inputs of scripts/fuzz, and the readers that get them."""
import base64
import collections
import contextlib
import copy
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
import zipfile
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from fltuning import compat  # noqa: F401  (before TensorFlow)
import hypothesis
from hypothesis import strategies

import predict
import snippets
from fltuning import checkpoints, deltas, hf_weights, weights
from fltuning.errors import UserError
from fltuning.files import read_json
from fltuning.graphs import Graph
from tasks import CLUE, ROOT, load_task
from tools import data, download, pretraining_data, submit
from tools.random_backbone import write_random_backbone

SECONDS = 40  # for one input
MEGABYTES = 1500  # that the process may grow by
LINE = 2000  # characters of an error
BACKBONE = os.path.join(ROOT, 'pretrained', 'roberta')
SAMPLE = os.path.join(ROOT, 'clue_dataset', 'sample')


class Found(NamedTuple):
    """What became of some inputs."""
    counts: collections.Counter  # {(reader, 'read' or 'refused' or 'fault'): number}
    faults: List[Dict[str, str]]  # reader, error, input


class Hang(BaseException):
    """Of an input that takes too long; not an Exception, so that no reader catches it."""


@contextlib.contextmanager
def limits():
    """Raises Hang after `SECONDS`, MemoryError if the process has grown by more than `MEGABYTES`."""
    def stop(*args):
        raise Hang('more than %g seconds' % SECONDS)
    before, handler = peak_megabytes(), signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    if peak_megabytes() > before + MEGABYTES:
        raise MemoryError('grew by %d MB' % (peak_megabytes() - before))


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == 'darwin' else 10)


def try_reader(found: Found, reader: str, function: Callable[[], Any], shown: Callable[[], str]) -> None:
    """Note what becomes of one input: read, refused in one line, or a fault."""
    outcome, error = 'read', ''
    try:
        with limits(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            function()
    except UserError as refused:
        outcome, text = 'refused', str(refused)
        if len(text) > LINE or not text.strip() or any(ord(c) < 32 for c in text):
            outcome, error = 'fault', 'not one line of text: %r' % text[:300]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as other:
        outcome, error = 'fault', ''.join(traceback.format_exception_only(type(other), other)).strip()
        place = traceback.extract_tb(other.__traceback__)[-1]
        error += ' (%s:%s)' % (os.path.basename(place.filename), place.lineno)
    found.counts[reader, outcome] += 1
    if outcome == 'fault':
        found.faults.append({'reader': reader, 'error': error[:500], 'input': shown()[:4000]})


# ------------------------------------------------------------------ records

SCALARS = (strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats()
           | strategies.text(max_size=30) | strategies.sampled_from(
               ['', ' ', '\x00', '\ufeff', '\ud800', '\u0301\u0327', '\U0001d165\U0001d16e', '[MASK]', '[CLS]',
                '#idiom000001#', 'ß', 'İ', 'ﬃ', 'a' * 300, '的' * 700, '1e999', -1, 2**63, 1e308]))
VALUES = strategies.recursive(
    SCALARS, lambda inner: strategies.lists(inner, max_size=4) | strategies.dictionaries(
        strategies.text(max_size=10), inner, max_size=4), max_leaves=8)


def places(value: Any, path: Tuple = ()) -> List[Tuple]:
    """The paths of all nodes of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for key, inner in items for place in places(inner, path + (key,))]


@strategies.composite
def changed(draw, genuine):
    """A genuine JSON value with a few of its nodes replaced, removed, doubled or wrapped."""
    value = copy.deepcopy(draw(strategies.sampled_from(genuine)))
    for _ in range(draw(strategies.integers(0, 3))):
        path = draw(strategies.sampled_from(places(value)))
        if not path:
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        how = draw(strategies.sampled_from(['replace', 'replace', 'text', 'remove', 'wrap', 'double']))
        if how == 'remove':
            del parent[path[-1]]
        elif how == 'wrap':
            parent[path[-1]] = [parent[path[-1]]]
        elif how == 'double' and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif how == 'text' and isinstance(parent[path[-1]], str):
            text = parent[path[-1]]
            place = draw(strategies.integers(0, len(text)))
            parent[path[-1]] = text[:place] + draw(strategies.text(max_size=5)) + text[place:]
        else:
            parent[path[-1]] = draw(VALUES)
    return value


def fuzz_records(count: int, seed: int) -> Found:
    """Records of every task, labelled and not, parsed, encoded and made a batch of."""
    found = Found(collections.Counter(), [])
    tokenizer, _ = snippets.load_tokenizer(os.path.join(BACKBONE, 'vocab.txt'))
    kinds = [(name, labelled) for name in CLUE for labelled in (False, True) if (name, labelled) != ('chid', True)]
    for i, (name, labelled) in enumerate(kinds):
        share = count * (i + 1) // len(kinds) - count * i // len(kinds)
        task = load_task(name, tokenizer)
        file = task.find_train_files(os.path.join(SAMPLE, name))[0] if labelled else next(
            file for file in task.test_files if os.path.exists(os.path.join(SAMPLE, name, file)))
        genuine = [plain(record) for record in list(task.read_records(os.path.join(SAMPLE, name, file)))[:20]]
        if name == 'c3':
            genuine = [[record['turns'], record['questions'], '1'] for record in genuine]
        if share:
            fuzz_task(found, task, genuine, labelled, share, seed + i)
    return found


def plain(record):
    """A `Record` as an ordinary dict."""
    return json.loads(json.dumps(record))


def fuzz_task(found, task, genuine, labelled, count, seed):
    def read(value):
        samples = task.parse([task.record(value, 'record 0')], labelled)
        encoded = list(map(task.encode, itertools.islice(task.to_predict(samples), 20)))
        if encoded:
            task.collate(encoded)

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=count, deadline=None, database=None, derandomize=False,
                         phases=[hypothesis.Phase.generate],
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(changed(genuine))
    def attempt(value):
        name = '%s, %s' % (task.name, 'labelled' if labelled else 'to be predicted')
        try_reader(found, name, lambda: read(value), lambda: ascii(value))

    attempt()


# ------------------------------------------------------------------ files


def change_bytes(content: bytes, state: random.Random) -> bytes:
    """Bits flipped, parts cut out, doubled, overwritten or put elsewhere."""
    content = bytearray(content)
    for _ in range(state.choice([1, 1, 1, 2, 5, 20])):
        if not content:
            break
        place, length = state.randrange(len(content)), state.choice([1, 2, 4, 8, 100, 5000])
        how = state.choice(['flip', 'flip', 'cut', 'end', 'insert', 'set', 'double', 'text'])
        if how == 'flip':
            content[place] ^= 1 << state.randrange(8)
        elif how == 'cut':
            del content[place:place + length]
        elif how == 'end':
            del content[place:]
        elif how == 'insert':
            content[place:place] = bytes(state.randrange(256) for _ in range(min(length, 100)))
        elif how == 'set':
            content[place:place + length] = bytes([state.choice([0, 255])]) * len(content[place:place + length])
        elif how == 'double':
            content[place:place] = content[place:place + length]
        else:
            content[place:place] = state.choice(['\n', '"', '{', '[', ',', 'NaN', '1e999', '\\ud800', '\ufeff',
                                                 'null', '-1', '99999999999']).encode('utf-8')
    return bytes(content)


ODD = [None, True, -1, 0, 1, 2**31, 10**30, 1e308, float('nan'), '', 'gelu', '\x00', [], {}, [[]], {'a': 1}, '1']


def change_json(content: bytes, state: random.Random) -> bytes:
    """A node of a JSON text replaced or removed; other texts by their bytes."""
    try:
        value = json.loads(content.decode('utf-8'))
    except ValueError:
        return change_bytes(content, state)
    path = state.choice(places(value))
    if not path:
        return json.dumps(state.choice(ODD)).encode('utf-8')
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if state.random() < 0.3:
        del parent[path[-1]]
    else:
        parent[path[-1]] = state.choice(ODD)
    return json.dumps(value, ensure_ascii=False).encode('utf-8', 'surrogatepass')


def change_header(content: bytes, state: random.Random) -> bytes:
    """The JSON header of a safetensors file, its metadata among it."""
    size = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8:8 + size].decode('utf-8'))
    metadata = header.get('__metadata__', {})
    for name in metadata if state.random() < 0.6 else ():
        metadata[name] = change_json(metadata[name].encode('utf-8'), state).decode('utf-8', 'replace')
    text = json.dumps(header).encode('utf-8')
    if state.random() < 0.4:
        text = change_json(text, state)
    return len(text).to_bytes(8, 'little') + text + content[8 + size:]


class Reader(NamedTuple):
    """Something that reads a file."""
    name: str
    path: str  # of a genuine file, relative to the folder of all
    read: Callable[[str], Any]  # given the folder
    changes: List[Callable]


def write_genuine(folder: str) -> None:
    """Small genuine files of every kind that is read."""
    paths = write_random_backbone(os.path.join(folder, 'backbone'), '你好吗我是的一二三', hidden_size=16,
                                  intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    variables = checkpoints.read_variables(paths['checkpoint_path'])
    hf = os.path.join(folder, 'hf')
    os.makedirs(hf)
    shutil.copy(paths['dict_path'], hf)
    config = dict(read_json(paths['config_path']), model_type='bert')
    with open(os.path.join(hf, 'config.json'), 'w') as writer:
        json.dump(config, writer)
    from fltuning.files import write_tensors
    write_tensors(os.path.join(hf, 'model.safetensors'), hf_weights.to_huggingface(variables), {'format': 'pt'})
    tokenizer, keep_tokens = snippets.load_tokenizer(paths['dict_path'])
    task = load_task('afqmc', tokenizer)
    with Graph().build():
        model, transformer = snippets.build_model(
            task, snippets.ModelSettings(prompt_size=2, ffn_prompt_size=3), paths, keep_tokens)
        values = weights.get_values(weights.named_weights(model))
        identity = deltas.identity(task, transformer, weights.fingerprint(transformer, tokenizer._token_dict))
        model.save_weights(os.path.join(folder, 'model.h5'))
    deltas.save_delta(os.path.join(folder, 'afqmc.weights'), values, identity)
    deltas.save_delta(os.path.join(folder, 'afqmc.state'), values, dict(
        identity, history=[{'loss': 1.0}], best={'epoch': 1, 'dev': {'accuracy': 0.5}}, place=[0, 0.0, 0],
        seconds=1.0, train_seconds=1.0), deltas.STATE)
    shutil.copytree(SAMPLE, os.path.join(folder, 'sample'))
    with zipfile.ZipFile(os.path.join(folder, 'data.zip'), 'w') as archive:
        for name in sorted(os.listdir(os.path.join(SAMPLE, 'afqmc'))):
            archive.write(os.path.join(SAMPLE, 'afqmc', name), 'afqmc/' + name)
    for name, lines in [('afqmc', ['{"id": "%d", "label": "0"}' % i for i in range(60)])]:
        with open(os.path.join(folder, name + '_predict.json'), 'w') as writer:
            writer.write('\n'.join(lines) + '\n')


def readers() -> List[Reader]:
    def paths(folder, name='backbone'):
        return checkpoints.find_files(os.path.join(folder, name))

    def read_state(folder):
        _, theirs = deltas.read_delta(os.path.join(folder, 'afqmc.state'), deltas.STATE)
        deltas.check_fields(folder, theirs, deltas.STATE_FIELDS)

    def unpack(folder):
        shutil.rmtree(os.path.join(folder, 'unpacked'), ignore_errors=True)
        os.makedirs(os.path.join(folder, 'unpacked'))
        download.unpack(os.path.join(folder, 'data.zip'), os.path.join(folder, 'unpacked'), '.json')

    def load_model(folder, file, name='backbone'):
        predictor = predict.Predictor(**paths(folder, name))
        model = predictor.load(os.path.join(folder, file), 'afqmc')
        model.predict([{'sentence1': '你好', 'sentence2': '好吗'}])

    def check_submission(folder):
        path = os.path.join(folder, 'afqmc_predict.json')
        submit.check_file(load_task('afqmc'), os.path.join(folder, 'sample', 'afqmc', 'test.json'), path)

    found = [
        Reader('vocabulary', 'backbone/vocab.txt', lambda f: checkpoints.check_backbone(**paths(f)), [change_bytes]),
        Reader('config', 'backbone/bert_config.json', lambda f: checkpoints.check_backbone(**paths(f)),
               [change_bytes, change_json, change_json]),
        Reader('checkpoint, index', 'backbone/bert_model.ckpt.index', lambda f: (
            checkpoints.check_backbone(**paths(f)), checkpoints.read_variables(paths(f)['checkpoint_path'])),
            [change_bytes]),
        Reader('checkpoint, data', 'backbone/bert_model.ckpt.data-00000-of-00001',
               lambda f: checkpoints.read_variables(paths(f)['checkpoint_path']), [change_bytes]),
        Reader('Hugging Face config', 'hf/config.json', lambda f: checkpoints.check_backbone(**paths(f, 'hf')),
               [change_bytes, change_json, change_json]),
        Reader('Hugging Face weights', 'hf/model.safetensors', lambda f: (
            checkpoints.check_backbone(**paths(f, 'hf')),
            checkpoints.read_variables(paths(f, 'hf')['checkpoint_path'])), [change_bytes, change_header]),
        Reader('delta', 'afqmc.weights', lambda f: predict.read_tuned(os.path.join(f, 'afqmc.weights'), 'afqmc'),
               [change_bytes, change_header, change_header]),
        Reader('state', 'afqmc.state', read_state, [change_bytes, change_header]),
        Reader('whole model', 'model.h5', lambda f: predict.read_tuned(os.path.join(f, 'model.h5'), 'afqmc'),
               [change_bytes]),
        Reader('a tuned model, loaded', 'afqmc.weights', lambda f: load_model(f, 'afqmc.weights'), [change_header]),
        Reader('archive', 'data.zip', unpack, [change_bytes]),
        Reader('result file', 'afqmc_predict.json', check_submission, [change_bytes]),
    ]
    for name in CLUE:
        task = load_task(name)
        for file in sorted(os.listdir(os.path.join(SAMPLE, name))):
            path = 'sample/%s/%s' % (name, file)
            genuine = file.replace('_answer', '')

            def read(folder, task=task, genuine=genuine):
                file = os.path.join(folder, 'sample', task.name, genuine)
                task.read(file, genuine not in task.test_files)
                if genuine in task.published:
                    data.check_file(task, file)
                collections.deque(pretraining_data.read_strings(file, task), maxlen=0)
            found.append(Reader(path, path, read, [change_bytes]))
    return found


def fuzz_files(folder: str, count: int, seed: int) -> Found:
    """Files of every kind, one of them changed at a time."""
    found, state = Found(collections.Counter(), []), random.Random(seed)
    write_genuine(folder)
    every = readers()
    contents = {}
    for reader in every:
        with open(os.path.join(folder, reader.path), 'rb') as genuine:
            contents[reader.path] = genuine.read()
    for i in range(count):
        reader = every[i % 12 if state.random() < 0.6 else state.randrange(len(every))]
        path = os.path.join(folder, reader.path)
        try:
            content = state.choice(reader.changes)(contents[reader.path], state)
        except (UnicodeEncodeError, RecursionError):
            continue
        with open(path, 'wb') as writer:
            writer.write(content)
        try_reader(found, reader.name, lambda reader=reader: reader.read(folder),
                   lambda content=content: base64.b64encode(content).decode('ascii'))
        with open(path, 'wb') as writer:
            writer.write(contents[reader.path])
        if compat.TF2 and i % 200 == 199 or not compat.TF2 and i % 100 == 99:
            compat.K.clear_session()
    return found
