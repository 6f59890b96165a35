"""Writes tests/cross/STACK-KIND: a delta of each kind of small backbone, and what it predicted.

    scripts/python tests/make_cross.py; scripts/python --stack tf2 tests/make_cross.py

The deltas of both stacks load on both (test_fingerprint.py). Make them anew only where a change of the
fingerprint is wanted; then the files that users have need a way to load as well.
"""
import os
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

import predict  # noqa: E402
import small  # noqa: E402
import train  # noqa: E402
from afqmc import AFQMC  # noqa: E402
from fltuning import compat  # noqa: E402
from fltuning.files import copy_file  # noqa: E402

KINDS = ['roberta', 'nezha', 'roformer']
RECORDS = [{'sentence1': small.sentence(i, 3 + i), 'sentence2': small.sentence(i + 1, 9 - i)}
           for i in range(6)]


def main():
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            small.write_task(folder, 'afqmc', train=16, dev=6, test=5)
            paths = small.write_backbone(os.path.join(folder, 'backbone'), kind)
            train.run(AFQMC, small.flags(dict(
                paths, data_path=folder, output_dir=folder, epochs=2, batch_size=4, maxlen=32,
                ffn_prompt_size=3, prompt_size=2, learning_rate=0.02, seed=5)))
            delta = os.path.join(folder, 'weights', 'afqmc.weights')
            target = os.path.join(HERE, 'cross', '%s-%s' % (compat.STACK, kind))
            copy_file(delta, os.path.join(target, 'afqmc.weights'))
            small.write_json(os.path.join(target, 'expected.json'),
                             predict.Predictor(**paths).load(delta).predict(RECORDS))


if __name__ == '__main__':
    main()
