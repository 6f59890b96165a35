"""What README and docs/ say of experiments is what the published result files say."""
import filecmp
import glob
import os
import re

import pytest

import lab
import small
from tools import results, tables, words

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = sorted(os.path.dirname(path) for path in glob.glob(os.path.join(ROOT, 'results_published', '*', 'grid.json')))


def rows(table):
    return [line for line in tables.markdown(table).splitlines() if line.startswith('|')]


def test_something_is_published():
    assert FOLDERS


@pytest.mark.parametrize('folder', FOLDERS, ids=os.path.basename)
def test_the_documentation_has_every_table_and_sentence(folder):
    found, said = results.load(folder), small.read_text(os.path.join(ROOT, 'docs', 'results.md'))
    flat = ' '.join(said.split())
    for table in tables.all_tables(found, with_rliable=False):
        assert '\n'.join(rows(table)) in said, table.title
    for sentence in words.sentences(found):
        assert tables.markdown_text(sentence) in flat


def figures_of(folder, backbone):
    """For each row of a backbone's scores the cells of its tasks."""
    found = results.load(os.path.join(ROOT, 'results_published', folder))
    return [[cell.strip() for cell in row.strip('|').split('|')[1:-1]]
            for row in rows(tables.score_table(found, backbone))[2:]]


@pytest.mark.parametrize('name', ['README.md', 'README_zh.md'])
def test_the_readmes_tables_are_of_these_results(name):
    """Their figures; what the columns are called is the README's own. Those of minilm are in sentences."""
    said = small.read_text(os.path.join(ROOT, name))
    nezha, roformer = [figures_of('bundled', backbone) for backbone in ('nezha', 'roformer')]
    assert len(nezha) == len(roformer) == 4 and len(nezha[0]) == 3
    for figures in [a + b for a, b in zip(nezha, roformer)]:
        assert re.search(r'\| ' + r' \| '.join(map(re.escape, figures)) + r' \|', said), figures
    for figures in figures_of('minilm', 'minilm'):
        assert figures[0].strip('*≈ ') in said, figures


@pytest.mark.parametrize('folder', FOLDERS, ids=os.path.basename)
def test_no_result_tells_of_the_machine(folder):
    for path in glob.glob(os.path.join(folder, '**', '*.json'), recursive=True):
        assert '"/' not in small.read_text(path), path


@lab.IN_LAB
@pytest.mark.slow
def test_the_readmes_picture_is_the_reports(tmp_path):
    code, output = lab.run('report', [os.path.join(ROOT, 'results_published', 'bundled'), '--output_dir', tmp_path],
                           tmp_path / 'log', python=lab.lab_python(), stand_in=False)
    assert code == 0, output
    drawn = tmp_path / 'pictures' / 'differences.png'
    assert filecmp.cmp(str(drawn), os.path.join(ROOT, 'docs', 'results.png'), shallow=False), (
        'docs/results.png is another: copy pictures/differences.png of the report there')
