"""The machine's memory, in bytes."""

import os
from typing import Final

from holdfast.linux import files

MEMINFO: Final = "/proc/meminfo"
_LIMIT: Final = 64 * 1024


def total() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available() -> int:
    """What can be had without swapping, as the kernel estimates it (MemAvailable). Raises OSError."""
    for line in files.read_bounded(MEMINFO, _LIMIT).splitlines():
        name, _, rest = line.partition(b":")
        if name == b"MemAvailable":
            return int(rest.split()[0]) * 1024
    return total()
