"""A null device that is nobody else's.

OCI runtimes give a process what it has for stdin to the user it runs as: crun (1.8 at least) even the host's /dev/null,
to which that user could then deny everybody else. This one has no name, on a filesystem that nobody sees, null(4).
"""

import os
import stat
from typing import Final, NamedTuple

from holdfast.linux import mount

DEVICE: Final = os.makedev(1, 3)
MODE: Final = 0o666
_NAME: Final = "null"


class _Nowhere(NamedTuple):
    type: str = "tmpfs"
    source: str = "none"
    options: tuple[str, ...] = ("mode=755", "size=4k")


def open_own() -> int:
    """A descriptor for reading and writing. Raises OSError.

    Where devices cannot be made we are in a container ourselves, and the one there is the host's.
    """
    nowhere = mount.open_detached(_Nowhere())
    try:
        os.mknod(_NAME, stat.S_IFCHR | MODE, DEVICE, dir_fd=nowhere)
        os.chmod(_NAME, MODE, dir_fd=nowhere)
        return os.open(_NAME, os.O_RDWR | os.O_CLOEXEC, dir_fd=nowhere)
    except PermissionError:
        return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(nowhere)
