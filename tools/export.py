"""Tuned models for other programs (`scripts/export`).

FL-Tuning's hidden units are part of an ordinary feed-forward network (the paper's equation 6), so a
tuned model IS a plain BERT with a wider intermediate layer:

    act(x W1 + b1) W2 + b2 + act(x P1 + p1) P2 + p2 = act(x [W1 P1] + [b1 p1]) [W2; P2] + (b2 + p2)

Formats: checkpoint (Google's layout, for bert4keras), transformers (a Hugging Face folder), onnx (the
whole task model), peft (P-Tuning V2 on a BERT: backbone and adapter, for Hugging Face's peft).
"""
import argparse
import contextlib
import os
import shutil
import tempfile
from typing import Iterator, List, Optional

from fltuning.errors import UserError
from fltuning.files import make_folder
from predict import find_tuned, make_predictor, read_tuned, tool_parser

FORMATS = ['checkpoint', 'transformers', 'onnx', 'peft']


@contextlib.contextmanager
def filling(folder: str) -> Iterator[str]:
    """A temporary folder whose files move into `folder` if all goes well; else nothing is left of it."""
    was_there = os.path.isdir(folder)
    make_folder(folder, 'output')
    beside = None
    try:
        beside = tempfile.mkdtemp(dir=folder, prefix='.export.')
        yield beside
        for place, _, names in os.walk(beside):
            target = os.path.join(folder, os.path.relpath(place, beside))
            os.makedirs(target, exist_ok=True)
            for name in names:
                os.replace(os.path.join(place, name), os.path.join(target, name))
    except OSError as error:  # e.g. a folder that may not be written
        raise UserError('%s: %s' % (folder, error.strerror))
    except UserError as error:
        raise UserError(str(error).replace(beside, folder))
    finally:
        if beside:
            shutil.rmtree(beside, ignore_errors=True)
        if not was_there and not os.listdir(folder):
            os.rmdir(folder)


def run(argv: Optional[List[str]] = None) -> None:
    parser = tool_parser('scripts/export', __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument('--to', required=True, choices=FORMATS, help='the format')
    parser.add_argument('--output', default=argparse.SUPPRESS,
                        help='the folder to write; export/TASK-FORMAT, unless said')
    flags = parser.parse_args(argv)
    path = find_tuned(flags)
    tuned = read_tuned(path, flags.task)
    from tools import huggingface, merged, onnx_model  # which load TensorFlow
    write = {'checkpoint': merged.to_checkpoint, 'transformers': huggingface.to_transformers,
             'onnx': onnx_model.to_onnx, 'peft': huggingface.to_peft}[flags.to]
    exported = merged.load(make_predictor(flags, tuned), flags.task, path)
    folder = getattr(flags, 'output', os.path.join('export', '%s-%s' % (flags.task, flags.to)))
    with filling(folder) as beside:
        write(exported, beside)
    print('wrote %s: %s' % (folder, ', '.join(sorted(os.listdir(folder)))))
