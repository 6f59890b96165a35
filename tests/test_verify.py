"""scripts/verify: a record's run made again, and what it says of a difference."""
import os
import shutil
import subprocess
import sys

import pytest

import small
import train
from afqmc import AFQMC
from fltuning import compat
from fltuning.errors import UserError
from tools import verify


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(output_dir, data folder) of a run of many settings that are not the defaults."""
    folder = tmp_path_factory.mktemp('verify')
    small.write_task(folder / 'data', 'afqmc', train=20)
    paths = small.write_backbone(folder / 'backbone', num_hidden_layers=2)
    train.run(AFQMC, small.flags(dict(
        paths, data_path=folder / 'data', output_dir=folder, epochs=2, batch_size=4, ffn_prompt_size=2,
        prompt_size=1, layers_to_transform=1, learning_rate=0.01, seed=7, few_shot=6, draw_seed=3,
        eval_every=2, warmup=0.5, select='last', tensorboard=folder / 'tb')) + ['--bucket'])
    return folder


@pytest.fixture
def record(made):
    return small.read_json(made, 'results', 'afqmc_run.json')


def write(folder, record):
    path = folder / 'run.json'
    small.write_json(path, record)
    return str(path)


@pytest.fixture
def again(made, monkeypatch):
    """Stands for the run made again: its folder has what the first one's has, changed by `again.change`."""
    def call(command, **options):
        out = next(flag.split('=', 1)[1] for flag in command if flag.startswith('--output_dir='))
        call.commands.append(command)
        shutil.copytree(str(made / 'results'), os.path.join(out, 'results'))
        path = os.path.join(out, 'results', 'afqmc_run.json')
        found = small.read_json(path)
        call.change(found)
        small.write_json(path, found)
        return call.code
    call.change, call.code, call.commands = (lambda record: None), 0, []
    monkeypatch.setattr(subprocess, 'call', call)
    return call


@pytest.mark.costly
def test_a_run_is_what_it_says(made, root):
    """As a user does: in processes of their own, from the record alone."""
    listed = sorted(os.listdir(str(made / 'weights')) + os.listdir(str(made / 'results')))
    done = subprocess.run(
        [sys.executable, os.path.join(root, 'tools'), 'verify', str(made / 'results' / 'afqmc_run.json')],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == 'equal: 4 evaluations, 3 files'
    assert 'epoch 1, step 2: loss ' in done.stderr
    # Where the run was, nothing is written.
    assert listed == sorted(os.listdir(str(made / 'weights')) + os.listdir(str(made / 'results')))


@pytest.mark.parametrize('change, said', [
    (lambda new: new['history'][1].update(loss=0.25), 'epoch 1, step 3: loss '),
    (lambda new: new['history'][2]['dev'].update(macro_f1=0.125), 'epoch 2, step 4: dev macro_f1 '),
    (lambda new: new['history'].pop(), 'history: 4 entries were recorded, now 3'),
    (lambda new: new['sha256'].update({'weights/afqmc.weights': '0'}), 'weights/afqmc.weights: another file'),
    (lambda new: new['sha256'].pop('results/afqmc_predict.json'), 'results/afqmc_predict.json: another file: it '
                                                                  'is not written now'),
    (lambda new: new['settings'].update(padded=True), 'setting padded: False was recorded, now True'),
    (lambda new: new['few_shot'].update(train=[1]), 'few_shot: {"train": '),
    (lambda new: new['dev_points']['last'].update(got='0101'), 'dev_points: those of the last evaluation are others'),
    (lambda new: new.update(stopped='epoch 2: nan'), 'stopped: None was recorded, now epoch 2: nan'),
    (lambda new: (new['history'][3].update(loss=0.5), new['sha256'].update({'weights/afqmc.weights': '0'})),
     'epoch 2, step 6: loss ')])
def test_what_differs_first(change, said, made, again, capsys):
    again.change = change
    assert verify.run([str(made / 'results' / 'afqmc_run.json')]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith('differs: ' + said)


def test_the_command(made, record, again, tmp_path):
    """Every setting but where things go; threads are those that were counted; another stack by its script."""
    assert verify.run([str(made / 'results' / 'afqmc_run.json')]) == 0
    flags = again.commands[0][2:]
    assert again.commands[0][:2] == [sys.executable, os.path.join(verify.ROOT, 'afqmc.py')]
    settings = train.parse_flags(AFQMC, flags).record()
    assert settings.pop('threads') == record['threads'] > 0
    assert settings.pop('output_dir') != record['settings']['output_dir'] and settings.pop('tensorboard') == ''
    assert settings == {name: record['settings'][name] for name in settings}
    other = {'tf1': 'tf2', 'tf2': 'tf1'}[compat.STACK]
    record['stack'] = other
    verify.run([write(tmp_path, record), '--config_path', str(made / 'backbone')])
    command = again.commands[1]
    assert command[:4] == [os.path.join(verify.ROOT, 'scripts', 'run'), 'afqmc', '--stack', other]
    assert '--config_path=%s' % (made / 'backbone') in command and '--dict_path=' in command


@pytest.mark.parametrize('settings', [
    dict(method='lora', size=2, share=3.0), dict(method='bitfit'), dict(ffn_prompt_size=4, share=3.0),
    dict(limit=9, few_shot_split='few_all', warmup=7, early_stopping=3, layers_to_transform=[0, 1])])
def test_every_setting_has_its_flag(settings, record):
    """What a record says gives the same settings again, those of methods by name among them."""
    recorded = dict(train.RunSettings().record(), **settings)
    command = verify.make_command(dict(record, settings=recorded), {}, 'elsewhere')
    found = train.parse_flags(AFQMC, command[2:]).record()
    assert found.pop('output_dir') == 'elsewhere' and found.pop('share') is None and found.pop('threads')
    assert found == {name: recorded[name] for name in found}


def test_records_of_before(made, record, again, tmp_path, capsys):
    """Without checksums, steps and settings that came later: the rest is compared, and that is said."""
    for name in ('sha256', 'stack', 'trained_parameters', 'best', 'selected', 'steps', 'dev_points'):
        del record[name]
    for name in ('warmup', 'few_shot', 'eval_every'):
        del record['settings'][name]
    for entry in record['history']:
        del entry['step'], entry['dev']

    def change(new):
        new['settings'].update(warmup=0, few_shot=None, eval_every=None)
    again.change = change
    assert verify.run([write(tmp_path, record)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert 'note: the record has no checksums of weights and results: these are not compared' in said
    assert 'note: the record counts no steps: epochs are compared' in said
    assert said[-1] == 'equal: 4 evaluations'
    record['history'][0]['accuracy'] = 0.125
    assert verify.run([write(tmp_path, record)]) == 1
    assert 'differs: epoch 1: dev accuracy 0.125 was recorded, now ' in capsys.readouterr().out


def test_other_data(made, record, again, tmp_path, capsys):
    """Before anything is run."""
    copy = tmp_path / 'data'
    shutil.copytree(str(made / 'data'), str(copy))
    small.edit(copy / 'afqmc' / 'dev.json', '"label": "0"', '"label": "1"')
    assert verify.run([str(made / 'results' / 'afqmc_run.json'), '--data_path', str(copy)]) == 1
    assert capsys.readouterr().out == 'differs: %s: the file is another one than that of the run\n' % (
        copy / 'afqmc' / 'dev.json')
    os.remove(str(copy / 'afqmc' / 'dev.json'))
    assert verify.run([str(made / 'results' / 'afqmc_run.json'), '--data_path', str(copy)]) == 1
    assert 'the file is not there any more' in capsys.readouterr().out
    assert again.commands == []


def test_versions_are_told_of(made, again, capsys):
    def change(new):
        new['git_commit'], new['versions']['numpy'] = 'other', '9.9'
    again.change = change
    assert verify.run([str(made / 'results' / 'afqmc_run.json')]) == 0
    said = capsys.readouterr().out
    assert 'note: the code is of other, that of the record ' in said and 'note: numpy is 9.9, ' in said


@pytest.mark.parametrize('change, said', [
    (dict(task='chess'), 'field "task": expected one of afqmc, '),
    (dict(settings=None), 'field "settings": expected an object'),
    (dict(settings={'colour': 'red'}), 'field "settings": expected settings of this version, which has no colour'),
    (dict(history=[]), 'field "history": expected a list'),
    (dict(history=[{'epoch': 1}]), 'history[0]: field "loss": expected a number, the field is missing'),
    (dict(stack='tf3'), 'field "stack": expected tf1 or tf2'),
    (dict(seed='one'), 'field "seed": expected a whole number')])
def test_bad_records(change, said, record, tmp_path):
    with pytest.raises(UserError) as refused:
        verify.run([write(tmp_path, dict(record, **change))])
    assert said in str(refused.value)


def test_files_that_are_no_record(tmp_path):
    for text, said in [('{', 'not JSON'), ('[1]', 'expected an object'), ('{}', 'field "settings"')]:
        small.write_text(tmp_path / 'x.json', text)
        with pytest.raises(UserError) as refused:
            verify.run([str(tmp_path / 'x.json')])
        assert said in str(refused.value)


def test_a_run_that_cannot_be_made_again(made, again):
    again.code = 2
    with pytest.raises(UserError) as refused:
        verify.run([str(made / 'results' / 'afqmc_run.json')])
    assert 'the run could not be made again: exit code 2' in str(refused.value)
