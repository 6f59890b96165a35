"""Precisions that there are not: on the stack tf1, or at all."""
import os

import pytest

import predict
import small
import train
from afqmc import AFQMC
from fltuning.errors import UserError
from tools import benchmark, pretrain


@pytest.mark.stack('tf1', 'tf2 has low precisions: what is refused is on tf1')
def test_tf1_names_the_stack_that_has_it(tmp_path):
    paths = small.write_backbone(tmp_path)
    small.write_task(tmp_path / 'data', 'afqmc')
    small.write_text(tmp_path / 'texts.txt', '一二三\n' * 50)
    flags = small.flags(dict(precision='bfloat16', output_dir=tmp_path / 'out'))
    for start in [
            lambda: train.run(AFQMC, small.flags(dict(paths, data_path=tmp_path / 'data')) + flags),
            lambda: predict.run(['afqmc', '--input', '-', '--precision', 'bfloat16']),
            lambda: predict.Predictor(precision='bfloat16', **paths),
            lambda: pretrain.run(['--texts', str(tmp_path / 'texts.txt'), '--no_whole_words'] + flags),
            lambda: benchmark.run(flags)]:
        with pytest.raises(UserError, match='precision bfloat16: the stack tf1 .* --stack tf2 has it'):
            start()
    assert not os.path.exists(str(tmp_path / 'out'))


def test_another_name(tmp_path):
    with pytest.raises(UserError, match='precision: expected float32, bfloat16, float16, got int8'):
        predict.Predictor(precision='int8', **small.write_backbone(tmp_path))
