"""fsGroup: what is in a volume is its group's to read and, but for files that are only read, to write (Kubernetes).

Everything gets the group; files g+rw, directories g+rwx and the set-group-ID bit, so that what is made later has the
group as well. Each name is opened once, without following a link or crossing a mount, and what was opened is changed:
containers may be at work in the volume, and what others have mounted in it is not ours.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux import files

READ_WRITE: Final = 0o660
READ_ONLY: Final = 0o440
PASS: Final = 0o110
HERE: Final = files.RESOLVE_BENEATH | files.RESOLVE_NO_XDEV  # with O_NOFOLLOW, so that a link itself is opened
INSIDE: Final = files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_XDEV
SWAPPED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV})  # or a mount, which is not ours


@dataclass(frozen=True, slots=True)
class Group:
    """`unless_root_fits` is OnRootMismatch: nothing is looked at when the volume's own directory is right."""

    id: int
    unless_root_fits: bool = False


def mode_for(mode: int, *, read_only: bool = False) -> int:
    """The mode (with its kind, as in st_mode) that a file or a directory of a group gets."""
    wanted = mode | (READ_ONLY if read_only else READ_WRITE)
    return wanted | stat.S_ISGID | PASS if stat.S_ISDIR(mode) else wanted


def fits(found: os.stat_result, group: int, *, read_only: bool = False) -> bool:
    return found.st_gid == group and mode_for(found.st_mode, read_only=read_only) == found.st_mode


def apply(directory: Path, group: Group, *, read_only: bool = False) -> None:
    """Give all of a volume to its group. Idempotent. Raises OSError."""
    top = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if group.unless_root_fits and fits(os.fstat(top), group.id, read_only=read_only):
            return
        pending = [""]
        while pending:
            way = pending.pop()
            pending += [os.path.join(way, name) for name in _give(top, way, group.id, read_only)]
        give(top, group.id, read_only=read_only)  # at last: after a crash it does not fit, and all is done again
    finally:
        os.close(top)


def _give(top: int, way: str, group: int, read_only: bool) -> list[str]:
    """Change what is in one directory. Returns the directories in it."""
    below = []
    try:
        directory = files.openat2(top, way or ".", os.O_RDONLY | os.O_DIRECTORY, INSIDE)
    except OSError as exc:
        if exc.errno in SWAPPED:
            return []
        raise
    try:
        for name, found in _opened(directory):
            try:
                give(found, group, read_only=read_only)
                if stat.S_ISDIR(os.fstat(found).st_mode):
                    below.append(name)
            finally:
                os.close(found)
    finally:
        os.close(directory)
    return below


def _opened(directory: int) -> Iterator[tuple[str, int]]:
    """What is in a directory, as O_PATH descriptors that are the caller's to close."""
    for name in os.listdir(directory):
        try:
            yield name, files.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, HERE)
        except OSError as exc:
            if exc.errno not in SWAPPED:
                raise


def give(descriptor: int, group: int, *, read_only: bool = False) -> None:
    """Give one file or directory to a group; a link's mode means nothing, and its owner little. Raises OSError."""
    found = os.fstat(descriptor)
    if stat.S_ISLNK(found.st_mode) or fits(found, group, read_only=read_only):
        return
    path = f"/proc/self/fd/{descriptor}"
    os.chown(path, -1, group)
    os.chmod(path, stat.S_IMODE(mode_for(found.st_mode, read_only=read_only)))  # chown(2) takes set-ID bits away
