"""A table as a list of cells, and as Markdown or LaTeX; report.html has it as HTML."""
import html
import re
from typing import List, NamedTuple

LATEX = {'\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '&': r'\&', '%': r'\%', '$': r'\$', '#': r'\#',
         '_': r'\_', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$', '≈': r'$\approx$',
         '†': r'$\dagger$', '−': '$-$', '×': r'$\times$', '–': '--'}


class Item(NamedTuple):
    """A table's cell."""
    text: str
    bold: bool = False


class Table(NamedTuple):
    """note: what its figures are. The first column is of names, the others of numbers."""
    title: str
    head: List[str]
    rows: List[List[Item]]
    note: str = ''


def percent(value: float) -> str:
    return ('%.1f' % (100 * value)).replace('-', '−')


def markdown_text(text: str) -> str:
    """
    >>> markdown_text('a|b <c>')
    'a\\\\|b &lt;c&gt;'
    """
    text = html.escape(' '.join(text.split()), quote=False)
    return re.sub(r'([\\|*_`\[\]])', r'\\\1', text)


def markdown(table: Table) -> str:
    lines = ['### ' + markdown_text(table.title), '',
             '| %s |' % ' | '.join(map(markdown_text, table.head)), '| --- ' * len(table.head) + '|']
    for row in table.rows:
        lines.append('| %s |' % ' | '.join(
            '**%s**' % markdown_text(item.text) if item.bold else markdown_text(item.text) for item in row))
    return '\n'.join(lines + ['', markdown_text(table.note), ''])


def latex_text(text: str) -> str:
    """
    >>> latex_text('50 % of a_b')
    '50 \\\\% of a\\\\_b'
    """
    return ''.join(LATEX.get(character, character) for character in ' '.join(text.split()))


def latex(table: Table) -> str:
    """A table that needs booktabs, and xeCJK or ctex where a title is Chinese."""
    rows = [' & '.join(r'\textbf{%s}' % latex_text(item.text) if item.bold else latex_text(item.text)
                       for item in row) + r' \\' for row in table.rows]
    return '\n'.join([
        r'\begin{table}', r'\centering', r'\caption{%s. %s}' % (latex_text(table.title), latex_text(table.note)),
        r'\begin{tabular}{l%s}' % ('r' * (len(table.head) - 1)), r'\toprule',
        ' & '.join(map(latex_text, table.head)) + r' \\', r'\midrule'] + rows + [
        r'\bottomrule', r'\end{tabular}', r'\end{table}', ''])
