"""What README and docs/ say of experiments is what the published result files say."""
import filecmp
import glob
import os
import re

import pytest

import lab
import small
from tools import results, table_formats, tables, words

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = sorted(os.path.dirname(path) for path in glob.glob(os.path.join(ROOT, 'results_published', '*', 'grid.json')))
PAGES = glob.glob(os.path.join(ROOT, 'docs', 'results', '*.md'))


def rows(table):
    return [line for line in table_formats.markdown(table).splitlines() if line.startswith('|')]


def test_something_is_published():
    assert FOLDERS


@pytest.mark.parametrize('folder', FOLDERS, ids=os.path.basename)
def test_the_documentation_has_every_table_and_sentence(folder):
    page = os.path.join(ROOT, 'docs', 'results', os.path.basename(folder) + '.md')
    found, said = results.load(folder), small.read_text(page)
    flat = ' '.join(said.split())
    for table in tables.all_tables(found, with_rliable=False):
        assert '\n'.join(rows(table)) in said, table.title
    for sentence in words.sentences(found):
        assert table_formats.markdown_text(sentence) in flat


def figures_of(folder, backbone):
    """{method: the cells of its tasks} of a backbone's scores."""
    found = results.load(os.path.join(ROOT, 'results_published', folder))
    cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows(tables.score_table(found, backbone))]
    return {method: figures[:len(found.tasks)] for method, *figures in cells[2:]}


@pytest.mark.parametrize('name', ['README.md', 'README_zh.md'])
@pytest.mark.parametrize('parts, methods, columns', [
    ([('bundled', 'nezha'), ('bundled', 'roformer')], 4, 6),
    ([(name, 'minilm') for name in ('minilm', 'minilm_longer', 'minilm_4000', 'minilm_few_shot')], 7, 6)],
    ids=['bundled', 'minilm'])
def test_the_readmes_tables_are_of_these_results(name, parts, methods, columns):
    """Their figures, in one row for each method; what the columns are called is the README's own."""
    said = small.read_text(os.path.join(ROOT, name))
    found = [figures_of(*part) for part in parts]
    every = list(dict.fromkeys(method for part in found for method in part))
    assert len(every) == methods
    for method in every:
        figures = [cell for part in found for cell in part.get(method, ['–'] * len(next(iter(part.values()))))]
        assert len(figures) == columns
        assert re.search(r'\| ' + r' \| '.join(map(re.escape, figures)) + r' \|', said), (method, figures)


@pytest.mark.parametrize('name, about, to', [('README.md', '## Results', 'to'), ('README_zh.md', '## 结果', '到')])
def test_the_readmes_intervals_are_those_of_the_results(name, about, to):
    """Each estimate with its interval stands so in a page of docs/results/ too, whose tables are the files'."""
    said = ' '.join(small.read_text(os.path.join(ROOT, name)).split(about)[1].split('\n## ')[0].split())
    interval = r'([+−]?[\d.]+) ?[(（]([+−]?[\d.]+) %s ([+−]?[\d.]+)[)）]' % to
    found = re.findall(interval, said)
    assert len(found) > 10
    known = ' '.join(' '.join(small.read_text(page) for page in PAGES).split())
    assert [one for one in found if '%s (%s to %s)' % one not in known] == []


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
