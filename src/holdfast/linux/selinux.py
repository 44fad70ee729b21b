"""SELinux labels of files."""

import errno
import os
from typing import Final

ATTRIBUTE: Final = "security.selinux"
_UNLABELLED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOENT})  # its filesystem has no labels; it is gone


def relabel(path: str, label: str) -> None:
    """Give a file, or a directory with all that is in it, this label. Follows no link; stays on the filesystem.

    What has the label already is not written to. Raises OSError; a filesystem without labels is left as it is.
    """
    _label(path, label)
    device = os.lstat(path).st_dev
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            _label(os.path.join(directory, name), label)
        names[:] = [name for name in names if _is_on(os.path.join(directory, name), device)]


def _label(path: str, label: str) -> None:
    wanted = label.encode() + b"\0"
    try:
        if _read(path) != wanted:
            os.setxattr(path, ATTRIBUTE, wanted, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _UNLABELLED:
            raise


def _read(path: str) -> bytes:
    try:
        return os.getxattr(path, ATTRIBUTE, follow_symlinks=False)
    except OSError as exc:
        if exc.errno == errno.ENODATA:
            return b""
        raise


def _is_on(path: str, device: int) -> bool:
    try:
        return os.lstat(path).st_dev == device
    except FileNotFoundError:
        return False
