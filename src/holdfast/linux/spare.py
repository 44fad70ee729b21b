"""Files that can be written anew when the disk is full: each has a spare beside it, which has the room already.

NAME          the content, and line feeds up to the size of the file
.NAME.spare   as large; the next content is written over it, and then the two change names (renameat2(2))
"""

import errno
from pathlib import Path
from typing import Final

from holdfast.linux import files
from holdfast.linux.inject import fault
from holdfast.linux.libc import AT_FDCWD, check, libc, path_bytes

RENAME_EXCHANGE: Final = 2
BLOCK: Final = 4096
MORE: Final = 2 * BLOCK  # that a content may grow by without new room


def write(path: files.Path_, data: bytes) -> None:
    """Replace `path` as a whole; it is on disk on return. It takes no room as long as the content does not outgrow it.

    For contents to which line feeds may be added. Raises OSError; then it is as it was.
    """
    target = Path(path)
    spare = beside(target)
    size = min(_size(spare), _size(target))
    if len(data) <= size:
        files.overwrite(spare, data.ljust(_size(spare), b"\n"), sync=True)
        exchange(spare, target)
        return files.sync_directory(target.parent)
    room = -(-(len(data) + MORE) // BLOCK) * BLOCK
    files.write_atomic(target, data.ljust(room, b"\n"))
    try:
        files.write_atomic(spare, b"\n" * room)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    return None


def remove(path: files.Path_) -> None:
    """Idempotent; the file itself goes last. Raises OSError."""
    target = Path(path)
    files.unlink(beside(target))
    files.unlink(target)


def exchange(one: Path, other: Path) -> None:
    """Both have to be there; at no moment is there none of a name. Raises OSError."""
    fault("rename", other)
    check(
        libc.renameat2(AT_FDCWD, path_bytes(one), AT_FDCWD, path_bytes(other), RENAME_EXCHANGE), "renameat2", one, other
    )


def beside(path: Path) -> Path:
    """Its spare."""
    return path.with_name(f".{path.name}.spare")


def _size(path: Path) -> int:
    """-1 for what is not there."""
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return -1
