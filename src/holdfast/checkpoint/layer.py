"""The writable layer of a container as checkpoint archives have it: what was changed as a tar, what was deleted as a
list.

overlayfs marks a deletion by a character device 0:0 and a directory that hides what lower layers have there by an
attribute of its own (Documentation/filesystems/overlayfs.rst of the kernel). The tar of an archive has neither: podman
and CRI-O delete the paths of deleted.files one by one. So what a directory hides is listed name by name, as far as the
lower layers have it; then it does not matter whether the deletions are done before the tar is unpacked or after.
"""

import errno
import os
import stat
from dataclasses import replace
from typing import IO, Final

from holdfast.checkpoint.tree import Entry, TreeWriter, walk
from holdfast.linux import files

OVERLAY: Final = "trusted.overlay."
OPAQUE: Final = "trusted.overlay.opaque"
# Attributes by which one file stands for another one below: the content is not all here. Holdfast's mounts make none.
_ELSEWHERE: Final = ("trusted.overlay.redirect", "trusted.overlay.metacopy")


def pack_layer(upper: int, lower: int | None, out: IO[bytes]) -> tuple[list[str], list[str]]:
    """Write overlayfs's upper directory as a tar; `lower` is a descriptor of the layers below as they are seen
    together, None for none.

    Returns what was deleted, sorted, and the sockets that are left out, both as paths from the root. Raises OSError.
    """
    writer, deleted = TreeWriter(out), set[str]()
    for entry in walk(upper):
        if _is_whiteout(entry.status):
            deleted.add(entry.path)
            continue
        if entry.attributes.get(OPAQUE) == b"y" and lower is not None:
            deleted.update(_hidden(entry, lower))
        writer.add(_without_marks(entry))
    writer.close()
    return sorted(deleted), writer.sockets


def _without_marks(entry: Entry) -> Entry:
    if elsewhere := next((name for name in _ELSEWHERE if name in entry.attributes), None):
        raise OSError(errno.ENOTSUP, f"has {elsewhere}: its content is in another layer", entry.path)
    own = {name: value for name, value in entry.attributes.items() if not name.startswith(OVERLAY)}
    return replace(entry, attributes=own)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _hidden(entry: Entry, lower: int) -> list[str]:
    """What lower layers have in a directory that hides it, and the directory has not itself."""
    try:
        below = files.open_beneath(lower, entry.path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        above = entry.open(os.O_RDONLY | os.O_DIRECTORY)
        try:
            return list(_missing(above, below, entry.path))
        finally:
            os.close(above)
    finally:
        os.close(below)


def _missing(above: int, below: int, path: str) -> list[str]:
    """What `below` has and `above` has not; where both have a directory, what is missing in that."""
    missing = []
    for name in sorted(os.listdir(below)):
        place = f"{path}/{name}" if path else name
        try:
            there = os.stat(name, dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            missing.append(place)
            continue
        if _is_whiteout(there) or not stat.S_ISDIR(there.st_mode):
            continue  # it is listed when it is met, or takes the other's place
        if stat.S_ISDIR(os.stat(name, dir_fd=below, follow_symlinks=False).st_mode):
            missing += _missing_in(above, below, name, place)
    return missing


def _missing_in(above: int, below: int, name: str, path: str) -> list[str]:
    ours = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        theirs = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=below)
        try:
            return _missing(ours, theirs, path)
        finally:
            os.close(theirs)
    finally:
        os.close(ours)
