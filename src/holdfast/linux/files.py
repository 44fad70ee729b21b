"""Files: atomic writes, bounded reads, look-ups below a root, and a recursive delete that stops at every mount."""

import ctypes
import errno
import fcntl
import math
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux.inject import fault
from holdfast.linux.libc import SYS_OPENAT2, check, libc, path_bytes, syscall

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

_PAGE: Final = 4096
_TEMPORARY: Final = re.compile(r"\..+\.([0-9a-f]{16})[0-9a-f]{8}")
_LINKS: Final = 40  # as many as path_resolution(7) allows
_OPEN_LEVELS: Final = 64  # of a tree that is being removed
REMOVE_TRIES: Final = 100
REMOVE_PAUSE: Final = 0.002

Path_ = str | os.PathLike[str]


class _OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(directory: int, path: Path_, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); the descriptor closes on exec. Raises OSError: EXDEV at a mount, ELOOP at a symlink, if forbidden."""
    fault("openat2", path)
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    size = ctypes.sizeof(how)
    return syscall(SYS_OPENAT2, "openat2", directory, path_bytes(path), ctypes.byref(how), size, paths=(path,))


def open_beneath(directory: int, path: Path_, flags: int, mode: int = 0, *, in_root: bool = False) -> int:
    """Open `path` without leaving `directory`. With `in_root` it is what chroot(2) would see: links and .. stay inside.

    Raises OSError; EXDEV for a path that would leave.
    """
    resolve = (RESOLVE_IN_ROOT if in_root else RESOLVE_BENEATH) | RESOLVE_NO_MAGICLINKS
    return openat2(directory, path, flags, resolve, mode)


def follow(root: int, path: str) -> str:
    """Where a path leads for whoever has `root` for its root: absolute, without links, .. and what is double.

    From the first name that is not there on it is taken as it is written. Raises OSError; ELOOP for too many links.
    """
    pending = path.split("/")[::-1]
    found: list[str] = []
    links = 0
    while pending:
        name = pending.pop()
        if name == "..":
            del found[-1:]
        elif name not in ("", "."):
            found.append(name)
            if (link := _link_at(root, "/".join(found))) is not None:
                if (links := links + 1) > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                found = [] if link.startswith("/") else found[:-1]
                pending += link.split("/")[::-1]
    return "/" + "/".join(found)


def _link_at(root: int, path: str) -> str | None:
    """What a link says; None for anything else, and for nothing."""
    try:
        descriptor = open_beneath(root, path, os.O_PATH | os.O_NOFOLLOW, in_root=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.readlink("", dir_fd=descriptor) if stat.S_ISLNK(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)


def read_bounded(path: Path_, limit: int) -> bytes:
    """The whole content of a regular file, and never a wait for the other end of a pipe.

    Raises OSError: EFBIG when there is more than `limit` bytes of it, EINVAL for anything but a regular file.
    """
    fault("read", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return data


def write_atomic(path: Path_, data: bytes, mode: int = 0o600, *, sync: bool = True) -> None:
    """Replace `path` as a whole: readers see the old content or the new. With `sync` it is on disk on return."""
    target = Path(path)
    temporary = target.with_name(temporary_name(target.name))
    fault("open", temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)  # whatever the umask is
            fault("write", temporary)
            file.write(data)
            file.flush()
            if sync:
                fsync(file.fileno(), temporary)
        rename(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_directory(target.parent)


def temporary_name(name: str) -> str:
    """What a file is called while it is written that will be `name`; with when that was, on the boot-time clock."""
    return f".{name}.{time.clock_gettime_ns(time.CLOCK_BOOTTIME):016x}{os.urandom(4).hex()}"


def temporary_age(name: str) -> float | None:
    """For how many seconds a file has had its temporary name: infinitely since an earlier boot; None if it is none."""
    if (found := _TEMPORARY.fullmatch(name)) is None:
        return None
    age = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(found[1], 16)) / 1e9
    return age if age >= 0 else math.inf


def overwrite(path: Path_, data: bytes, *, sync: bool = False) -> None:
    """Write over the beginning of a file, which takes no room that it does not have already."""
    fault("write", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.pwrite(descriptor, data, 0) < len(data):
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(path))
        if sync:
            fsync(descriptor, path)
    finally:
        os.close(descriptor)


def fsync(descriptor: int, path: object = None) -> None:
    """fsync(2); the path is for the error."""
    fault("fsync", path)
    os.fsync(descriptor)


def rename(source: Path_, target: Path_) -> None:
    """rename(2)."""
    fault("rename", target)
    os.rename(source, target)


def link(source: Path_, target: Path_) -> None:
    """link(2): another name. Raises FileExistsError if it is one already."""
    fault("link", target)
    os.link(source, target, follow_symlinks=False)


def unlink(path: Path_) -> None:
    """unlink(2). Idempotent."""
    fault("unlink", path)
    Path(path).unlink(missing_ok=True)


def mkdir(path: Path_, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
    """As Path.mkdir."""
    fault("mkdir", path)
    Path(path).mkdir(mode, parents, exist_ok)


def rmdir(path: Path_) -> None:
    """rmdir(2)."""
    fault("rmdir", path)
    os.rmdir(path)


def sync_directory(path: Path_) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fsync(descriptor, path)
    finally:
        os.close(descriptor)


def syncfs(descriptor: int) -> None:
    """syncfs(2): everything written to that filesystem, data and names."""
    fault("syncfs")
    check(libc.syncfs(descriptor), "syncfs")


def make_private(path: Path_) -> None:
    """A directory that only its owner may enter, with its parents; one that exists is made so."""
    directory = Path(path)
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        mkdir(directory, 0o700, exist_ok=True)
    if stat.S_IMODE(os.stat(directory).st_mode) != 0o700:  # else nothing is written, not even to a disk that is full
        os.chmod(directory, 0o700)


def is_passage(path: Path_) -> bool:
    """Whether a directory is its owner's alone, but for others passing through."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode) == 0o711
    except FileNotFoundError:
        return False


def give_way(path: Path_, group: int) -> None:
    """Let a group pass through a directory of ours; its members may neither list nor change it."""
    os.chown(path, -1, group)
    os.chmod(path, 0o710)


def fifo(path: Path_, mode: int = 0o600) -> None:
    """A named pipe, with this mode whatever the umask is."""
    fault("mkfifo", path)
    os.mkfifo(path, mode)
    os.chmod(path, mode)


def lock(path: Path_) -> int:
    """Lock a file for the life of the descriptor that is returned. Raises BlockingIOError when somebody has it.

    On a filesystem that is read-only it has to be there already.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_tree(path: Path_) -> None:
    """Delete a directory with all that is in it, or a file; never across a mount, never through a symlink. Idempotent.

    Works on directory descriptors alone, of which it needs few however deep the tree is. A mount below raises
    OSError(EXDEV) that names it; what lies behind it is not touched.
    """
    target = Path(path)
    try:
        parent = os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        for left in reversed(range(REMOVE_TRIES)):
            try:
                return _Removal(parent, target).run()
            except OSError as exc:  # somebody still writes there: what he has made goes, too
                if exc.errno != errno.ENOTEMPTY or not left:
                    raise
                time.sleep(REMOVE_PAUSE)
    finally:
        os.close(parent)


@dataclass(slots=True)
class _Level:
    """A directory on the way down; `fd` is -1 once it is so far up that its descriptor was given back."""

    name: str
    fd: int
    identity: tuple[int, int]
    pending: list[str]  # directories in it that are still to be removed; all else in it is gone


class _Removal:
    """Removes one tree depth first, without recursion: `levels` lead from its top to where the work is."""

    def __init__(self, parent: int, target: Path) -> None:
        self._parent = parent
        self._target = target
        self._levels: list[_Level] = []

    def run(self) -> None:
        try:
            if self._unlink(self._parent, self._target.name):
                self._descend(self._target.name)
            while self._levels:
                if self._levels[-1].pending:
                    self._descend(self._levels[-1].pending.pop())
                else:
                    self._ascend()
        finally:
            for level in self._levels:
                if level.fd >= 0:
                    os.close(level.fd)

    def _descend(self, name: str) -> None:
        above = self._levels[-1].fd if self._levels else self._parent
        resolve = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH
        try:
            fd = openat2(above, name, os.O_RDONLY | os.O_DIRECTORY, resolve)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise self._error(exc, name) from exc
        found = os.fstat(fd)
        level = _Level(name, fd, (found.st_dev, found.st_ino), [])
        self._levels.append(level)
        if len(self._levels) > _OPEN_LEVELS:
            far = self._levels[-1 - _OPEN_LEVELS]
            os.close(far.fd)
            far.fd = -1
        with os.scandir(fd) as entries:
            names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        level.pending = [name for name, directory in names if directory or self._unlink(fd, name)]

    def _ascend(self) -> None:
        done = self._levels.pop()
        try:
            if self._levels and self._levels[-1].fd < 0:
                self._levels[-1].fd = self._above(done)
        finally:
            os.close(done.fd)
        try:
            fault("rmdir", done.name)
            os.rmdir(done.name, dir_fd=self._levels[-1].fd if self._levels else self._parent)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise self._error(exc, done.name) from exc

    def _above(self, level: _Level) -> int:
        """The directory above, opened again; not if the tree has been moved meanwhile and it is another one."""
        fd = openat2(level.fd, "..", os.O_RDONLY | os.O_DIRECTORY, RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != self._levels[-1].identity:
            os.close(fd)
            raise OSError(errno.ESTALE, "was moved while it was being deleted", str(self._target))
        return fd

    def _unlink(self, directory: int, name: str) -> bool:
        """Unlink a name unless it is a directory. Returns whether it is one."""
        try:
            fault("unlink", name)
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            return False
        except IsADirectoryError:
            return True
        except OSError as exc:
            raise self._error(exc, name) from exc
        return False

    def _error(self, exc: OSError, name: str) -> OSError:
        """The same with the whole path. EBUSY is what a mount answers that is on the very name."""
        levels = [level.name for level in self._levels]
        path = str(self._target.parent.joinpath(*levels, name))
        if exc.errno in (errno.EXDEV, errno.EBUSY):
            return OSError(errno.EXDEV, "will not delete across the mount", path)
        return OSError(exc.errno, os.strerror(exc.errno or errno.EIO), path)


@dataclass(frozen=True, slots=True)
class Filesystem:
    """statvfs(3) in words."""

    device: int
    total_bytes: int
    free_bytes: int
    total_inodes: int
    free_inodes: int
    read_only: bool = False


def filesystem(path: Path_) -> Filesystem:
    """How full the filesystem behind `path` is."""
    found = os.statvfs(path)
    device = os.stat(path).st_dev
    return Filesystem(
        device,
        found.f_blocks * found.f_frsize,
        found.f_bavail * found.f_frsize,
        found.f_files,
        found.f_favail,
        bool(found.f_flag & os.ST_RDONLY),
    )


def probe_write(directory: Path_) -> None:
    """Write a page to a file without a name. Raises the OSError that any other write there would meet.

    The flags of a filesystem do not tell: since Linux 6.12 ext4 does not set them when it stops writing after an error.
    """
    fault("write", directory)
    descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(_PAGE))
    finally:
        os.close(descriptor)
