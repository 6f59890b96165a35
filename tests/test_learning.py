"""On the bundled sample a short run learns each task: well above what the majority class scores."""
import importlib
import os

import pytest

import train
from tools.random_backbone import write_random_backbone

pytestmark = pytest.mark.costly

# task, epochs, learning rate, what always saying the same would score at most, what must be reached
RUNS = [
    ('afqmc', 10, 5e-3, 0.55, 0.75),
    ('c3', 6, 3e-3, 0.40, 0.90),
    ('chid', 12, 3e-3, 0.20, 0.45),
    ('cluener', 20, 5e-3, 0.00, 0.80),
    ('cmnli', 12, 3e-3, 0.45, 0.65),
    ('cmrc2018', 12, 3e-3, 0.10, 0.70),
    ('csl', 30, 3e-3, 0.60, 0.75),
    ('iflytek', 15, 5e-3, 0.35, 0.55),
    ('ocnli', 12, 3e-3, 0.45, 0.65),
    ('tnews', 12, 5e-3, 0.35, 0.65),
    ('wsc', 20, 3e-3, 0.60, 0.80),
]


@pytest.mark.parametrize('name,epochs,rate,majority,reached', [
    run if run[0] == 'afqmc' else pytest.param(*run, marks=pytest.mark.slow) for run in RUNS])
def test_a_short_run_learns(name, epochs, rate, majority, reached, root, tmp_path):
    characters = set()
    folder = os.path.join(root, 'clue_dataset', 'sample', name)
    for file in os.listdir(folder):
        with open(os.path.join(folder, file), encoding='utf-8') as reader:
            characters.update(reader.read().lower())
    paths = write_random_backbone(str(tmp_path / 'backbone'), characters, stddev=0.1,
                                  hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    flags = {'epochs': epochs, 'learning_rate': rate, 'batch_size': 16, 'grad_accum_steps': 1,
             'data_path': os.path.dirname(folder), 'output_dir': str(tmp_path)}
    task_class = getattr(importlib.import_module(name), name.upper())
    record = train.run(task_class, [text for flag, value in dict(flags, **paths).items()
                                    for text in ('--' + flag, str(value))])
    assert record['best']['dev'][task_class.metric] >= reached > majority + 0.1
    if hasattr(task_class, 'Text') and name != 'cluener':  # the majority class, counted
        task = task_class(None)
        labels = [sample.label for sample in task.load(folder, task.dev_files, True)]
        assert max(map(labels.count, labels)) / len(labels) <= majority
