"""What each task feeds the model and what it writes, against the hashes of what the original made."""
import functools
import json
import os

import numpy as np
import pytest

import record_hashes
import snippets
from fltuning.classification import Classification
from fltuning.multiple_choice import MultipleChoice
from fltuning.steps import batches, predict
from tasks import CLUE, load_task
from tools.submit import check_text

RECORDED = record_hashes.load()

load_tokenizer = functools.lru_cache(None)(snippets.load_tokenizer)


@pytest.fixture
def recorded(request, clue_folder, tmp_path):
    """A function: (name of a task, {file: SHA-256}) -> the task, and a folder with these files alone.

    Other files than those that were recorded have other batches; the test is skipped then.
    """
    def find(name, files):
        folder = clue_folder(name)
        for file, digest in files.items():
            path = os.path.join(folder, file)
            if not os.path.exists(path):
                pytest.skip('%s: no file %s' % (name, path))
            if record_hashes.digest_file(path) != digest:
                pytest.skip('%s: %s is not the file that the original was recorded with' % (name, path))
            os.symlink(os.path.abspath(path), str(tmp_path / file))
        # After the data, so that who has neither is told of the data.
        return load_task(name, load_tokenizer(request.getfixturevalue('vocab'))[0]), str(tmp_path)
    return find


def test_simplified_vocabulary(vocab):
    _, keep_tokens = load_tokenizer(vocab)
    assert len(keep_tokens) == RECORDED['vocabulary']['keep_tokens_len']
    assert record_hashes.digest_array(keep_tokens[:500]) == RECORDED['vocabulary']['keep_tokens[:500]']


@pytest.mark.parametrize('name', CLUE)
@pytest.mark.parametrize('split', ['train', 'valid'])
def test_batches(name, split, recorded):
    expected = RECORDED['batches'][name + '/' + split]
    task, folder = recorded(name, expected['files'])
    files = task.find_train_files(folder) if split == 'train' else task.dev_files
    samples = task.load(folder, files, True)
    length = len(samples)
    if (name, split) == ('cmrc2018', 'valid'):
        # Where the third answer listed is in no place, the original has windows for it all the same,
        # labelled as without an answer, though they may hold another answer listed. Not so here.
        length += windows_of_third_answers(task, os.path.join(folder, 'dev.json'))
    assert length == expected['len']
    assert -(-length // task.batch_size) == expected['steps']
    first = list(map(task.encode, samples[:2 * task.batch_size]))
    arrays = {}
    for i, batch in enumerate(batches(first, task.batch_size)):
        inputs, labels = task.collate(batch)
        arrays.update(('%d/x%d' % (i, j), array) for j, array in enumerate(inputs))
        arrays['%d/y0' % i] = labels
    assert {key: record_hashes.digest_array(array) for key, array in arrays.items()} == expected['arrays']


def windows_of_third_answers(task, path):
    with open(path, encoding='utf-8') as reader:
        data = json.load(reader)['data']
    count = 0
    for article in data:
        for paragraph in article['paragraphs']:
            for question in paragraph['qas']:
                if question['answers'][2]['answer_start'] == -1:
                    room = task.maxlen - len(question['question']) - 3
                    count += max(0, -(-(len(paragraph['context']) - room) // 128)) + 1
    return count


def stand_in(task):
    """The model that golden/README.md describes, instead of a trained one."""
    def scores(inputs):
        r = (inputs[0] % 97).astype('float64')
        total = r.sum(1)
        if isinstance(task, Classification):
            return np.sin(np.outer(total, np.arange(1, len(task.labels) + 1)))
        if isinstance(task, MultipleChoice):
            return np.sin(total)[:, None]
        length = r.shape[1]
        i, j = np.arange(length)[:, None], np.arange(length)[None]
        ends = (inputs[0] != 0).sum(1) - 1  # where the final [SEP] is
        scores = []
        for row, end in zip(r, ends):
            inside = (i >= 1) & (i <= j) & (j < i + 4) & (j < end)
            scores.append([np.where(inside, np.sin(3 * row[:, None] + 5 * row[None] + n) - 0.97, -1)
                           for n in range(len(task.labels))])
        return np.array(scores)

    return scores


def keep_first(path, name):
    """Only 40 records of a test file (dialogues in c3) instead of a link to all."""
    with open(path, encoding='utf-8') as reader:
        text = json.dumps(json.load(reader)[:40]) if name == 'c3' else ''.join(reader.readlines()[:40])
    os.remove(path)
    with open(path, 'w', encoding='utf-8') as writer:
        writer.write(text)


@pytest.mark.parametrize('name', sorted(RECORDED['submissions']))
def test_submissions(name, recorded):
    """They are the original's, in whatever batches, and scripts/submit finds nothing wrong in them."""
    expected = RECORDED['submissions'][name]
    task, folder = recorded(name, expected['files'])
    test_file, = expected['files']
    assert task.test_files[test_file] == expected['result']
    path = os.path.join(folder, test_file)
    keep_first(path, name)
    samples = task.load(folder, [test_file], False)
    encoded = list(map(task.encode, samples))
    for batching in [{'max_tokens': 700}, {'max_tokens': 8192}, {'padded': True}]:
        results = predict(stand_in(task), task, encoded, 'test', **batching)
        text = original = task.submission(samples, results)
        assert list(check_text(task, path, text)) == []
        if name == 'c3':
            # The original may answer with a choice that was only filled up, which is never right. This
            # project chooses among the real ones: equal to the original once all four count as real,
            # and otherwise the best of the real ones. Of the original's, those lines are found.
            for sample, scores, answer in zip(samples, results, labels(text)):
                assert answer == max(range(len(sample.choices)), key=lambda i: scores[i])
            original = task.submission([sample._replace(choices=[''] * 4) for sample in samples], results)
            filled_up = [number for number, (sample, answer) in enumerate(
                zip(samples, labels(original)), 1) if answer >= len(sample.choices)]
            errors = list(check_text(task, path, original))
            assert filled_up and len(errors) == len(filled_up)
            for number, error in zip(filled_up, errors):
                assert error.startswith('line %d: field "label": ' % number)
        assert record_hashes.digest_bytes(original.encode('utf-8')) == expected['sha256'], batching


def labels(text):
    return [int(json.loads(line)['label']) for line in text.splitlines()]
