"""Unpacks one layer into one directory, and can reach nothing else.

A worker of its own: private mount, network and IPC namespaces, chroot into the target, and only the capabilities that
extraction needs. With lower layers the target is the upper directory of an overlay mount that nobody else sees, so
that whiteouts are plain deletes, hard links across layers work, and directories keep the attributes they had below.
"""

import errno
import hashlib
import io
import json
import os
import resource
import socket
import stat
import sys
from typing import IO, TYPE_CHECKING, Any, Final, cast

from holdfast.linux import files, mount, namespace, process
from holdfast.model.spec import Mount
from holdfast.workers.context import Context

if TYPE_CHECKING:
    import tarfile

MEMORY_BYTES: Final = 1024 * 1024 * 1024
GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
XATTR: Final = "SCHILY.xattr."
_KEEP: Final = frozenset({0, 1, 3, 4, 27, 31})  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP
_NOT_OURS: Final = ("trusted.", "user.overlay.")


class Hostile(Exception):
    """The archive asks for something that no honest layer does."""


class Hashing(io.RawIOBase):
    """Passes a stream on and takes its digest."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self.digest.update(data)
        return data


class Extraction:
    """Applies the entries of one layer below `/`, which is the target."""

    def __init__(self) -> None:
        self._written: set[str] = set()
        self._directories: list[tuple[str, int]] = []

    def apply(self, archive: "tarfile.TarFile") -> None:
        for entry in archive:
            path = _inside(entry.name)
            base = os.path.basename(path)
            if base.startswith(WHITEOUT):
                self._whiteout(os.path.dirname(path), base)
            elif path:
                self._entry(archive, entry, path)
        for path, moment in reversed(self._directories):
            os.utime(f"/{path}", ns=(moment, moment), follow_symlinks=False)

    def _whiteout(self, directory: str, base: str) -> None:
        """Hide what lower layers have; never what this layer itself has written."""
        if base == OPAQUE:
            if os.path.isdir(f"/{directory}"):
                for name in os.listdir(f"/{directory}"):
                    self._hide(os.path.join(directory, name))
            return
        name = base.removeprefix(WHITEOUT)
        if name in ("", ".", ".."):
            raise Hostile(f"whiteout {base!r} of no file")
        self._hide(os.path.join(directory, name))

    def _hide(self, path: str) -> None:
        if path not in self._written:
            files.remove_tree(f"/{path}")

    def _entry(self, archive: "tarfile.TarFile", entry: "tarfile.TarInfo", path: str) -> None:
        target = f"/{path}"
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        self._make_room(target, entry)
        if entry.isdir():
            if not os.path.isdir(target):
                os.mkdir(target)
        elif entry.isreg():
            self._file(archive, entry, target)
        elif entry.issym():
            os.symlink(entry.linkname, target)
        elif entry.islnk():
            os.link(f"/{_inside(entry.linkname)}", target, follow_symlinks=False)
        elif entry.ischr() or entry.isblk():
            _device(entry, target)
        elif entry.isfifo():
            os.mkfifo(target)
        else:
            raise Hostile(f"{path!r} is of unknown type {entry.type!r}")
        parts = path.split("/")
        self._written.update("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        if not entry.islnk():
            self._attributes(entry, path)

    def _make_room(self, target: str, entry: "tarfile.TarInfo") -> None:
        try:
            there = os.lstat(target)
        except FileNotFoundError:
            return
        if not (stat.S_ISDIR(there.st_mode) and entry.isdir()):
            files.remove_tree(target)

    def _file(self, archive: "tarfile.TarFile", entry: "tarfile.TarInfo", target: str) -> None:
        source = archive.extractfile(entry)
        assert source is not None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
            while data := source.read(1024 * 1024):
                if data.count(0) == len(data) and entry.issparse():
                    file.seek(len(data), os.SEEK_CUR)
                else:
                    file.write(data)
            file.truncate(entry.size)

    def _attributes(self, entry: "tarfile.TarInfo", path: str) -> None:
        target = f"/{path}"
        os.chown(target, entry.uid, entry.gid, follow_symlinks=False)
        for key, value in entry.pax_headers.items():
            name = key.removeprefix(XATTR)
            if key.startswith(XATTR) and not name.startswith(_NOT_OURS):
                os.setxattr(target, name, value.encode("utf-8", "surrogateescape"), follow_symlinks=False)
        if not entry.issym():
            os.chmod(target, entry.mode & 0o7777)
        moment = int(entry.mtime * 1_000_000_000)
        if entry.isdir():
            self._directories.append((path, moment))
        else:
            os.utime(target, ns=(moment, moment), follow_symlinks=False)


def _inside(name: str) -> str:
    """A member's path relative to the root of the layer. Raises Hostile for one that climbs."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Hostile(f"path {name!r} has .. in it")
    return "/".join(parts)


def _device(entry: "tarfile.TarInfo", target: str) -> None:
    if (entry.devmajor, entry.devminor) == (0, 0):
        raise Hostile(f"{entry.name!r} is the device by which overlayfs marks a deletion")
    kind = stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
    os.mknod(target, kind | 0o600, os.makedev(entry.devmajor, entry.devminor))


def _decompressed(blob: IO[bytes]) -> IO[bytes]:
    """The tar stream behind a blob; what it is packed with is told by its first bytes."""
    magic = blob.read(4)
    blob.seek(0)
    if magic.startswith(GZIP):
        import gzip

        return cast(IO[bytes], gzip.GzipFile(fileobj=blob))
    if magic == ZSTD:
        import zstandard

        reader: IO[bytes] = zstandard.ZstdDecompressor().stream_reader(blob, read_across_frames=True)
        return reader
    return blob


def _lock_in(target: str, work: str, merged: str, lowers: list[str]) -> None:
    """From here on this process sees the target as its whole world."""
    namespace.unshare(process.CLONE_NEWNS | namespace.CLONE_NEWNET | namespace.CLONE_NEWIPC)
    mount.set_propagation("/", mount.MS_PRIVATE, recursive=True)
    if lowers:
        options = (f"lowerdir={':'.join(lowers)}", f"upperdir={target}", f"workdir={work}")
        mount.mount_one(Mount("overlay", "overlay", options=options), merged)
        target = merged
    os.chroot(target)
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    process.drop_capabilities(_KEEP)


def unpack(blob: IO[bytes], target: str, work: str, merged: str, lowers: list[str]) -> dict[str, Any]:
    """Lock in, extract, sync. Returns diff_id, bytes and inodes."""
    import tarfile

    stream = Hashing(_decompressed(blob))
    target_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    sys.setrecursionlimit(2000)
    os.umask(0)
    _lock_in(target, work, merged, lowers)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1024 * 1024) as archive:
            Extraction().apply(archive)
    except (tarfile.TarError, EOFError, UnicodeError, ValueError, MemoryError) as exc:
        raise Hostile(f"{type(exc).__name__}: {exc}") from exc
    while stream.read(1024 * 1024):
        pass  # the digest is that of the whole stream, padding and all
    files.syncfs(target_fd)
    size, inodes = _usage(target_fd)
    return {"diff_id": f"sha256:{stream.digest.hexdigest()}", "bytes": size, "inodes": inodes}


def _usage(directory: int) -> tuple[int, int]:
    """(bytes, inodes) of the layer's own files, walked by descriptor: the chroot hides its path."""
    size = inodes = 0
    for _, names, others, fd in os.fwalk(".", dir_fd=directory, follow_symlinks=False):
        for name in (*names, *others):
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            size += found.st_blocks * 512
            inodes += 1
    return size, inodes


def main(context: Context) -> None:
    """fds: the blob, and a socket for the one message that tells how it went."""
    blob_fd, result_fd = context.fds
    args = context.args
    context.ready()
    with socket.socket(fileno=result_fd) as result, os.fdopen(blob_fd, "rb") as blob:
        try:
            message = unpack(blob, args["target"], args["work"], args["merged"], args["lowers"])
        except Hostile as exc:
            message = {"error": "invalid", "message": str(exc)}
        except OSError as exc:
            message = {"error": "io", "message": str(exc), "errno": exc.errno or errno.EIO}
        except Exception as exc:  # a decompressor's own errors: the blob is not what it says
            message = {"error": "invalid", "message": f"{type(exc).__name__}: {exc}"}
        result.sendall(json.dumps(message).encode())
