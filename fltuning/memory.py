"""How much memory there is, so that what can never fit is refused before it is built."""
from typing import Dict, Optional

from fltuning.errors import UserError


def free_memory() -> Optional[int]:
    """Bytes of memory that can still be had, a container's limit included; None where nothing says it."""
    found = []
    try:
        with open('/proc/meminfo') as reader:
            lines = dict(line.split(':', 1) for line in reader)
        found.append(sum(int(lines[name].split()[0]) << 10 for name in ('MemAvailable', 'SwapFree')))
    except (OSError, KeyError, ValueError):  # not Linux
        return None
    for path in ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'):
        try:
            with open(path) as reader:
                found.append(int(reader.read()))
        except (OSError, ValueError):  # another version of cgroups; "max"
            pass
    return min(found)


def check_room(numbers: Dict[str, int], free: Optional[int] = None) -> None:
    """Raises UserError, naming the largest part, if so many float32 numbers do not fit into memory.

    That is the least that they take: training keeps several copies of what is trained.

    >>> check_room({'prompt_size 5': 10**12, 'the rest': 1}, free=2**33)
    Traceback (most recent call last):
    fltuning.errors.UserError: prompt_size 5: needs 3,725.3 GiB of memory, 8.0 GiB are free
    """
    free, needed = free_memory() if free is None else free, 4 * sum(numbers.values())
    if free is not None and needed > free:
        raise UserError('%s: needs %s of memory, %s are free' % (
            max(numbers, key=numbers.get), gibibytes(needed), gibibytes(free)))


def gibibytes(size: int) -> str:
    return f'{size / 2**30:,.1f} GiB'
