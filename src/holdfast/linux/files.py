"""Files: atomic writes, bounded reads, look-ups below a root, and a recursive delete that stops at every mount."""

import ctypes
import errno
import fcntl
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux.libc import SYS_OPENAT2, check, libc, syscall

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

Path_ = str | os.PathLike[str]


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(directory: int, path: Path_, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); the descriptor closes on exec. Raises OSError: EXDEV at a mount, ELOOP at a symlink, if forbidden."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    size = ctypes.sizeof(how)
    return syscall(SYS_OPENAT2, "openat2", directory, os.fsencode(path), ctypes.byref(how), size, paths=(path,))


def open_beneath(directory: int, path: Path_, flags: int, mode: int = 0, *, in_root: bool = False) -> int:
    """Open `path` without leaving `directory`. With `in_root` it is what chroot(2) would see: links and .. stay inside.

    Raises OSError; EXDEV for a path that would leave.
    """
    resolve = (RESOLVE_IN_ROOT if in_root else RESOLVE_BENEATH) | RESOLVE_NO_MAGICLINKS
    return openat2(directory, path, flags, resolve, mode)


def read_bounded(path: Path_, limit: int) -> bytes:
    """The whole content. Raises OSError EFBIG when there is more than `limit` bytes of it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return data


def write_atomic(path: Path_, data: bytes, mode: int = 0o600, *, sync: bool = True) -> None:
    """Replace `path` as a whole: readers see the old content or the new. With `sync` it is on disk on return."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask is
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.rename(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(target.parent)


def sync_directory(path: Path_) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def syncfs(descriptor: int) -> None:
    """syncfs(2): everything written to that filesystem, data and names."""
    check(libc.syncfs(descriptor), "syncfs")


def make_private(path: Path_) -> None:
    """A directory that only its owner may enter, with its parents; one that exists is made so."""
    directory = Path(path)
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
    os.chmod(directory, 0o700)


def fifo(path: Path_, mode: int = 0o600) -> None:
    """A named pipe, with this mode whatever the umask is."""
    os.mkfifo(path, mode)
    os.chmod(path, mode)


def lock(path: Path_) -> int:
    """Lock a file for the life of the descriptor that is returned. Raises BlockingIOError when somebody has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_tree(path: Path_) -> None:
    """Delete a directory with all that is in it, or a file; never across a mount, never through a symlink. Idempotent.

    Works on directory descriptors alone. A mount below raises OSError(EXDEV) that names it; what lies behind it is
    not touched. Iterative, so that depth is no limit.
    """
    target = Path(path)
    try:
        parent = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _remove_entry(parent, target.name, target)
    finally:
        os.close(parent)


def _remove_entry(parent: int, name: str, shown: Path) -> None:
    """Remove one name. A stack of (directory, its name, names left in it) stands for recursion."""
    if not _unlink(parent, name, shown):
        return
    stack = [(_enter(parent, name, shown), name)]
    try:
        while stack:
            directory, own = stack[-1]
            deeper = _empty(directory, shown)
            if deeper is not None:
                stack.append((_enter(directory, deeper, shown), deeper))
                continue
            stack.pop()
            os.close(directory)
            os.rmdir(own, dir_fd=stack[-1][0] if stack else parent)
    finally:
        for directory, _ in stack:
            os.close(directory)


def _empty(directory: int, shown: Path) -> str | None:
    """Unlink what is not a directory; the name of a directory to go into first, or None when nothing is left."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries]
    return next((name for name in names if _unlink(directory, name, shown)), None)


def _unlink(parent: int, name: str, shown: Path) -> bool:
    """Unlink a name unless it is a directory. Returns whether it is one."""
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return True
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except OSError as exc:
        if exc.errno == errno.EBUSY:  # a file with something mounted on it
            raise OSError(errno.EXDEV, "will not delete across the mount", f"{shown}: {name}") from exc
        raise
    return False


def _enter(parent: int, name: str, shown: Path) -> int:
    resolve = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
    try:
        return openat2(parent, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, resolve)
    except OSError as exc:
        if exc.errno == errno.EXDEV:
            raise OSError(errno.EXDEV, "will not delete across the mount", f"{shown}: {name}") from exc
        raise


@dataclass(frozen=True, slots=True)
class Filesystem:
    """statvfs(3) in words."""

    device: int
    total_bytes: int
    free_bytes: int
    total_inodes: int
    free_inodes: int


def filesystem(path: Path_) -> Filesystem:
    """How full the filesystem behind `path` is."""
    found = os.statvfs(path)
    device = os.stat(path).st_dev
    return Filesystem(
        device, found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files, found.f_favail
    )


def tree_usage(path: Path_) -> tuple[int, int]:
    """(bytes on disk, inodes) of a tree, hard links counted once; what vanishes meanwhile is not counted."""
    seen: set[tuple[int, int]] = set()
    size = 0
    pending = [os.fspath(path)]
    while pending:
        directory = pending.pop()
        try:
            found = [os.lstat(directory)]
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        found.append(entry.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue
        for status in found:
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size += status.st_blocks * 512
    return size, len(seen)
