"""The hashes in tests/golden/clue.json of what the original makes of CLUE's data, and what made them.

The texts are CLUE's and stay outside the repository; of the arrays and files made of them it keeps
hashes. `record` writes them anew from a recording of the original, which is no part of it either.
"""
import hashlib
import json
import os
import sys

import numpy as np

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'golden', 'clue.json')


def digest_bytes(content):
    return hashlib.sha256(content).hexdigest()


def digest_file(path):
    with open(path, 'rb') as reader:
        return digest_bytes(reader.read())


def digest_array(array):
    """Shape and SHA-256 of an array of whole numbers, as 32 bits each, whatever their type.

    >>> digest_array(np.ones((2, 3)))[:12]
    '2x3 9638834d'
    """
    array = np.asarray(array)
    numbers = np.ascontiguousarray(array, '<i4')
    if not np.array_equal(numbers, array):
        raise ValueError('expected whole numbers')
    return '%s %s' % ('x'.join(map(str, array.shape)), digest_bytes(numbers.tobytes()))


def load():
    with open(PATH, encoding='utf-8') as reader:
        return json.load(reader)


def record(golden, clue):
    """golden: a folder with batches.npz and submissions/; clue: the data that these were made of."""
    import tasks

    def digests(name, files):
        return {file: digest_file(os.path.join(clue, name, file)) for file in files}

    numbers = dict(np.load(os.path.join(golden, 'batches.npz')))
    batches, submissions = {}, {}
    for name in tasks.CLUE:
        task = tasks.load_task(name)
        for split, files in [('train', task.find_train_files(os.path.join(clue, name))),
                             ('valid', task.dev_files)]:
            if name == 'chid':
                files = files + [file.replace('.json', '_answer.json') for file in files]
            prefix = '%s/%s/' % (name, split)
            found = {key[len(prefix):]: array for key, array in numbers.items()
                     if key.startswith(prefix)}
            batches[prefix[:-1]] = {
                'files': digests(name, files), 'len': int(found.pop('len')),
                'steps': int(found.pop('steps')),
                'arrays': {key: digest_array(array) for key, array in found.items()}}
        for file, result in task.test_files.items():
            path = os.path.join(golden, 'submissions', result)
            if os.path.exists(path):
                submissions[name] = {'files': digests(name, [file]), 'result': result,
                                     'sha256': digest_file(path)}
    recorded = {
        'vocabulary': {'sha256': digest_file(os.path.join(clue, 'vocab.txt')),
                       'keep_tokens_len': int(numbers['keep_tokens_len']),
                       'keep_tokens[:500]': digest_array(numbers['keep_tokens_sha_head'])},
        'batches': batches, 'submissions': submissions}
    with open(PATH, 'w', encoding='utf-8') as writer:
        json.dump(recorded, writer, indent=1, sort_keys=True)
        writer.write('\n')


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit('usage: PYTHONPATH=. scripts/python tests/record_hashes.py GOLDEN CLUE')
    record(*sys.argv[1:])
