"""What README and docs/ say of experiments is what the published result files say."""
import glob
import os
import re

import pytest

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


@pytest.mark.parametrize('name', ['README.md', 'README_zh.md'])
def test_the_readmes_table_is_of_these_results(name):
    """Its figures; what the columns are called is the README's own."""
    found = results.load(os.path.join(ROOT, 'results_published', 'minilm'))
    said = small.read_text(os.path.join(ROOT, name))
    for row in rows(tables.score_table(found, 'minilm'))[2:]:
        figures = [cell.strip() for cell in row.strip('|').split('|')[1:-1]]
        assert re.search(r'\| ' + r' \| '.join(map(re.escape, figures)) + r' \|', said), row


@pytest.mark.parametrize('folder', FOLDERS, ids=os.path.basename)
def test_no_result_tells_of_the_machine(folder):
    for path in glob.glob(os.path.join(folder, '**', '*.json'), recursive=True):
        assert '"/' not in small.read_text(path), path
