"""Tables, pictures and sentences of a grid's results, with their uncertainty (`scripts/report`).

Writes report.html, which opens without a network, tables.md, tables.tex, numbers.json and pictures/.
"""
import argparse
import base64
import os
from typing import Any, List, Optional

from fltuning.errors import Parser, UserError
from fltuning.extras import import_extra
from fltuning.files import make_folder, write_json, write_text
from fltuning.settings import whole_number
from tools.table_formats import latex, markdown, markdown_text


def run(argv: Optional[List[str]] = None) -> None:
    parser = Parser(prog='scripts/report', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', nargs='?', help='a folder that scripts/reproduce wrote')
    parser.add_argument('--output_dir', help='where the report goes; FOLDER/report, unless said')
    parser.add_argument('--calibrate', type=whole_number(1), metavar='GRIDS',
                        help='instead, simulate so many grids and show how often a report decides rightly')
    flags = parser.parse_args(argv)
    if flags.calibrate:
        from tools.calibration import report
        print(report(flags.calibrate), end='')
        return
    if not flags.folder:
        raise UserError('expected a folder that scripts/reproduce wrote')
    from tools import results
    found = results.load(flags.folder)
    if not found.rows and not found.without_rate:
        raise UserError('%s: only runs that choose a rate are there by now, and nothing to report' % flags.folder)
    write(found, flags.output_dir or os.path.join(flags.folder, 'report'))


def write(found: Any, folder: str) -> None:
    """The report of some `Results`."""
    from tools import pictures, tables, words
    jinja2 = import_extra('jinja2', 'lab')
    make_folder(folder, 'output_dir')
    shown, said = tables.all_tables(found), words.sentences(found)
    drawn = pictures.draw_all(found, os.path.join(folder, 'pictures'))
    title = found.title('grid') if 'grid' in found.titles else found.name
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined,
                                     loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))))
    inlined = [dict(picture._asdict(), png=read_base64(os.path.join(folder, 'pictures', picture.name + '.png')))
               for picture in drawn]
    write_text(os.path.join(folder, 'report.html'), environment.get_template('report.html').render(
        title=title, sentences=said, tables=shown, pictures=inlined) + '\n')
    write_text(os.path.join(folder, 'tables.md'), '\n'.join(
        ['## ' + markdown_text(title), ''] + ['- ' + markdown_text(text) for text in said] + ['']
        + list(map(markdown, shown))))
    write_text(os.path.join(folder, 'tables.tex'), '\n'.join(map(latex, shown)))
    write_json(os.path.join(folder, 'numbers.json'), tables.numbers(found))
    print('\n'.join(said))
    print('wrote %s, and beside it tables.md, tables.tex, numbers.json and %d pictures as PNG and PDF'
          % (os.path.join(folder, 'report.html'), len(drawn)))


def read_base64(path: str) -> str:
    with open(path, 'rb') as reader:
        return base64.b64encode(reader.read()).decode('ascii')
