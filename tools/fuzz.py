"""Odd records and damaged files for every reader: each must be read, or refused in one line.

Records are the bundled sample's, changed by hypothesis: fields replaced, removed, nested, doubled. Files are
changed by bytes and by structure. What counts as a fault: another error than the one line that a user gets, a
line that is too long, an input that takes too long or too much memory.
"""
import argparse
import collections
import os
import tempfile

from fltuning.errors import Parser
from fltuning.files import write_json
from fltuning.settings import whole_number
from fltuning.extras import import_extra


def parse_flags(argv=None):
    parser = Parser(prog='scripts/fuzz', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    count = whole_number(0)
    parser.add_argument('--records', type=count, default=2000, help='records in all (%(default)s)')
    parser.add_argument('--files', type=count, default=500, help='files in all (%(default)s)')
    parser.add_argument('--seed', type=count, default=0, help='one seed, the same inputs (%(default)s)')
    parser.add_argument('--output', default='', help='a JSON file for the counts and what was found')
    return parser.parse_args(argv)


def run(argv=None):
    """Returns the exit code: 1 if a fault was found."""
    flags = parse_flags(argv)
    import_extra('hypothesis', 'fuzz')
    from tools import fuzzing  # which loads TensorFlow
    counts, faults = collections.Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for found in (fuzzing.fuzz_records(flags.records, flags.seed),
                      fuzzing.fuzz_files(os.path.join(folder, 'files'), flags.files, flags.seed)):
            counts.update(found.counts)
            faults += found.faults
    for (reader, outcome), number in sorted(counts.items()):
        print('%-40s %-8s %7d' % (reader, outcome, number))
    print('%d inputs, %d faults' % (sum(counts.values()), len(faults)))
    for fault in faults[:20]:
        print('FAULT %s: %s\n  %s' % (fault['reader'], fault['error'], fault['input']))
    if flags.output:
        write_json(flags.output, {'settings': vars(flags), 'faults': faults, 'counts': [
            {'reader': reader, 'outcome': outcome, 'number': number}
            for (reader, outcome), number in sorted(counts.items())]})
    return 1 if faults else 0
