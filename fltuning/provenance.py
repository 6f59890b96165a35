"""What the record of a run says of the machine and the code."""
import contextlib
import os
import platform
import resource
import subprocess
import sys
from typing import Dict, Optional, Set


def versions() -> Dict[str, str]:
    """{package: version}, of those that numbers may depend on."""
    from fltuning import compat  # before TensorFlow
    import bert4keras
    import numpy as np
    import tensorflow as tf
    return {'stack': compat.STACK, 'python': platform.python_version(), 'tensorflow': tf.__version__,
            'numpy': np.__version__, 'bert4keras': bert4keras.__version__,
            'keras': getattr(compat.keras, '__version__', tf.__version__)}


def cpu_fields() -> Dict[str, str]:
    """What Linux says of a processor of this machine, e.g. `model name`; nothing elsewhere."""
    fields: Dict[str, str] = {}
    with contextlib.suppress(OSError), open('/proc/cpuinfo') as reader:
        for line in reader:
            name, _, value = line.partition(':')
            fields.setdefault(name.strip(), value.strip())
    return fields


def cpu_model() -> str:
    return cpu_fields().get('model name') or platform.processor() or platform.machine()


def cpu_flags() -> Optional[Set[str]]:
    """The instruction sets of this machine's CPU; None where nothing says them."""
    fields = cpu_fields()
    said = fields.get('flags', fields.get('Features'))  # of x86, of ARM
    return None if said is None else set(said.split())


def cpu_name() -> str:
    """As the system calls it, with those of its instruction sets that are for low precisions."""
    flags = cpu_flags()
    if flags is None:
        return cpu_model()
    found = sorted(flag for flag in flags if flag.startswith(('amx', 'avx', 'bf16', 'asimdhp')))
    return '%s (%s)' % (cpu_model(), ' '.join(found) or 'none of them')


def peak_memory() -> int:
    """MB that this process held at most."""
    try:
        with open('/proc/self/status') as reader:
            status = dict(line.split(':', 1) for line in reader)
        return int(status['VmHWM'].split()[0]) // 1024
    except (OSError, KeyError):  # not Linux, where this may be what the process that started it held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (
            2**20 if sys.platform == 'darwin' else 2**10)


def git_commit() -> Optional[str]:
    """The commit of the code, with '+' where files differ from it; None outside a checkout."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        commit = subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=root,
                                         stderr=subprocess.DEVNULL).decode().strip()
        dirty = subprocess.check_output(['git', 'status', '--porcelain', '-uno'], cwd=root,
                                        stderr=subprocess.DEVNULL)
        return commit + ('+' if dirty else '')
    except (OSError, subprocess.CalledProcessError):
        return None
