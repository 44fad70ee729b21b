"""A part of a volume for one container: found and bound by descriptors, so that no link leads out of the volume.

Whoever writes to the volume may swap a directory for a link at any moment. So a path is opened once, below the volume
(openat2(2), RESOLVE_BENEATH), and what was opened is what is bound; a name is never resolved a second time.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Final

from holdfast.linux import files, mount
from holdfast.linux.inject import crashpoint

LINKS: Final = 16  # of a path of which somebody makes parts while it is being made


def bind(volume: Path, path: str, target: Path, *, read_only: bool = False) -> None:
    """Bind what `path` is below `volume` to `target`, a name that nobody else can touch; missing directories are made.

    Raises ValueError for a path that is absolute or goes up; OSError EXDEV for one that a link leads out of the volume.
    """
    found = open_or_make(volume, path)
    try:
        files.mkdir(target.parent, 0o700, parents=True, exist_ok=True)
        if stat.S_ISDIR(os.fstat(found).st_mode):
            files.mkdir(target, 0o700, exist_ok=True)
        else:
            os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        crashpoint("volume.part-made")
        mount.bind(f"/proc/self/fd/{found}", target, recursive=True, read_only=read_only)
    finally:
        os.close(found)


def unbind(target: Path) -> None:
    """Unmount what was bound, and remove its name. What is mounted in it stays where it came from. Idempotent.

    Raises OSError; ENOTEMPTY, EBUSY or the like when there is more to it than that.
    """
    place = os.fspath(target)
    for _ in range(LINKS):
        mounts = mount.mountinfo()
        pile = [one for one in mounts if one.target == place]
        if not pile:
            break
        below = {one.parent for one in mounts}
        top = next(one for one in reversed(pile) if not any(other.parent == one.id for other in pile))
        if top.id in below:  # an unmount in the copy would be one in the volume as well, of which it is a peer
            _seclude(place, top.id)
        mount.detach(target)
    crashpoint("volume.part-unbound")
    with contextlib.suppress(FileNotFoundError):
        try:
            files.rmdir(target)
        except NotADirectoryError:
            files.unlink(target)


def _seclude(place: str, wanted: int) -> None:
    descriptor = os.open(place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if mount.mount_id(descriptor) == wanted:
            mount.seclude(descriptor)
    finally:
        os.close(descriptor)


def open_or_make(volume: Path, path: str) -> int:
    """An O_PATH descriptor of `path` below the volume; what is missing is made as directories of the volume's mode."""
    parts = Path(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError(f"subPath {path!r} is not a path below the volume")
    top = os.open(volume, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(top).st_mode)
        for _ in range(LINKS):
            try:
                return files.open_beneath(top, path, os.O_PATH)
            except FileNotFoundError:
                _make(top, parts, mode)
        raise OSError(errno.ELOOP, "its parts come and go", path)
    finally:
        os.close(top)


def _make(top: int, parts: tuple[str, ...], mode: int) -> None:
    """The first of `parts` that is missing, and those behind it."""
    above = os.dup(top)
    try:
        for number, name in enumerate(parts):
            way = os.path.join(*parts[: number + 1])
            try:
                below = files.open_beneath(top, way, os.O_PATH | os.O_DIRECTORY)
            except FileNotFoundError:
                try:
                    os.mkdir(name, mode, dir_fd=above)
                except FileExistsError:  # a link that leads nowhere is not ours to fill
                    raise OSError(errno.ENOTDIR, "is a link that leads nowhere", way) from None
                below = files.openat2(above, name, os.O_PATH | os.O_DIRECTORY, files.RESOLVE_NO_SYMLINKS)
                os.chmod(f"/proc/self/fd/{below}", mode)
            os.close(above)
            above = below
    finally:
        os.close(above)
