"""Unpacks one layer into one directory, and can reach nothing else.

A worker of its own: private mount, network and IPC namespaces, chroot into the target, and only the capabilities that
extraction needs. With lower layers the target is the upper directory of an overlay mount that nobody else sees, so
that whiteouts are plain deletes, hard links across layers work, and directories keep the attributes they had below.

Paths in a layer are meant from its root: a leading slash is dropped, symlinks are followed as the chroot has them, and
a `..` is refused. Of extended attributes those are set that mean something in a container: user.*, POSIX ACLs and file
capabilities; overlayfs's own would let a layer speak to overlayfs itself.

What a checkpoint has kept is unpacked alike, but that names with .wh. are nothing special: a writable layer comes with
a list of what was deleted, and in a volume anything may lie about, overlayfs's marks included.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import resource
import select
import socket
import stat
import sys
import zlib
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Final, cast

from holdfast.linux import files, mount, namespace, process, tree
from holdfast.linux.inject import crashpoint, fault
from holdfast.model.spec import Mount
from holdfast.workers.context import Context

if TYPE_CHECKING:
    import tarfile

MEMORY_BYTES: Final = 1024 * 1024 * 1024
CHUNK: Final = 256 * 1024
PACKED: Final = 64 * 1024  # zlib's leftovers are copied as well
# tarfile copies the rest of its buffer for each header it takes: a large buffer costs more than it saves.
BUFFER: Final = 32 * 1024
GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
XATTR: Final = "SCHILY.xattr."
_KEEP: Final = frozenset({0, 1, 3, 4, 27, 31})  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP
_ATTRIBUTES: Final = ("user.", "system.posix_acl_", "security.capability")
_OVERLAY: Final = "user.overlay."
# What the machine is to blame for. Every other error is what the archive asked for.
_MACHINE: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.ENFILE, errno.EMFILE}
)


class Hostile(Exception):
    """The archive asks for something that no honest layer does."""


class Abandoned(Exception):
    """Nobody waits for the result any more."""


class Hashing(io.RawIOBase):
    """Passes a stream on and takes its digest; ends the work when nobody wants it."""

    def __init__(self, source: IO[bytes], abandoned: Callable[[], bool]) -> None:
        self._source = source
        self._abandoned = abandoned
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._abandoned():
            raise Abandoned
        data = self._source.read(size)
        self.digest.update(data)
        return data


class Inflating(io.RawIOBase):
    """A gzip stream of one or many members (RFC 1952), unpacked; the standard library's reader is half as fast."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._member = zlib.decompressobj(wbits=31)
        self._packed = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """`size` bytes at most, b"" at the end. Raises EOFError when it is cut off, zlib.error when it is damaged."""
        while True:
            if self._member.eof and not self._next_member():
                return b""
            self._packed = self._packed or self._source.read(PACKED)
            if not self._packed:
                raise EOFError("the gzip stream is cut off")
            data = self._member.decompress(self._packed, max(size, 0))
            self._packed = self._member.unconsumed_tail
            if self._member.eof:
                self._packed = self._member.unused_data
            if data:
                return data

    def _next_member(self) -> bool:
        """Whether another member follows; zeros behind the last one are padding."""
        self._packed = self._packed.lstrip(b"\0") or self._source.read(PACKED).lstrip(b"\0")
        if self._packed:
            self._member = zlib.decompressobj(wbits=31)
        return bool(self._packed)


class Extraction:
    """Applies the entries of one layer below `/`, which is the target; with `volume` anything may be in it."""

    def __init__(self, whiteouts: bool = True, volume: bool = False) -> None:
        self._whiteouts = whiteouts
        self._volume = volume
        self._written: set[str] = {""}
        self._parents: set[str] = {""}  # directories that are known to be there
        self._times: dict[str, int] = {}  # of directories, to be set when nothing is put into them any more

    def apply(self, archive: "tarfile.TarFile") -> None:
        while (entry := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or it would remember them all
            path = _inside(entry.name)
            directory, _, base = path.rpartition("/")
            if not (self._whiteouts and base.startswith(WHITEOUT)):
                self._entry(archive, entry, path, directory)
            elif base == OPAQUE:
                self._hide_content(directory)
            else:
                self._whiteout(directory, base)
        for path, moment in reversed(self._times.items()):
            os.utime(f"/{path}", ns=(moment, moment), follow_symlinks=False)

    def delete(self, paths: list[str]) -> None:
        """What a list says was deleted, before anything is added."""
        for path in paths:
            self._hide(path)

    def _whiteout(self, directory: str, base: str) -> None:
        name = base.removeprefix(WHITEOUT)
        if name in ("", ".", ".."):
            raise Hostile(f"whiteout {base!r} of no file")
        self._hide(f"{directory}/{name}" if directory else name)

    def _hide(self, path: str) -> None:
        """Hide what lower layers have there; never what this layer itself has written, wherever in it that is."""
        try:
            if path not in self._written:
                self._remove(path)
            elif stat.S_ISDIR(os.lstat(f"/{path}").st_mode):
                self._hide_content(path)
        except (FileNotFoundError, NotADirectoryError):
            return  # there is nothing to hide

    def _hide_content(self, directory: str) -> None:
        try:
            names = os.listdir(f"/{directory}")
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            self._hide(f"{directory}/{name}" if directory else name)

    def _remove(self, path: str) -> None:
        files.remove_tree(f"/{path}")
        self._parents = {""}

    def _entry(self, archive: "tarfile.TarFile", entry: "tarfile.TarInfo", path: str, directory: str) -> None:
        if directory not in self._parents:
            self._make_parents(directory)
        target = f"/{path}"
        there = self._make_room(entry, path)
        if entry.isdir():
            if not there:
                os.mkdir(target, 0o700)
            self._parents.add(path)
            self._times[path] = _nanoseconds(entry)
        elif entry.isreg():
            _write(archive, entry, target)
        elif entry.issym():
            os.symlink(entry.linkname, target)
        elif entry.islnk():
            os.link(f"/{_inside(entry.linkname)}", target, follow_symlinks=False)
        elif entry.ischr() or entry.isblk():
            _device(entry, target, marks=self._volume)
        elif entry.isfifo():
            os.mkfifo(target, 0o600)
        else:
            raise Hostile(f"{path!r} is of unknown type {entry.type!r}")
        self._written.add(path)
        if not entry.islnk():
            _set_attributes(entry, target, marks=self._volume)

    def _make_parents(self, directory: str) -> None:
        """Directories that the archive does not mention itself belong to root and are as open as usual."""
        self._written.add(directory)
        path = ""
        for part in directory.split("/"):
            path = f"{path}/{part}" if path else part
            if path not in self._parents:
                if not os.path.isdir(f"/{path}"):
                    os.mkdir(f"/{path}", 0o755)
                self._parents.add(path)
                self._written.add(path)

    def _make_room(self, entry: "tarfile.TarInfo", path: str) -> bool:
        """Remove what is in the way. Returns whether the directory that is wanted is there already."""
        try:
            mode = os.lstat(f"/{path}").st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(mode) and entry.isdir():
            return True
        if not path:
            raise Hostile("the root of the layer is not a directory")
        if stat.S_ISREG(mode):
            os.unlink(f"/{path}")
            return False
        self._remove(path)
        if stat.S_ISDIR(mode):
            gone = [name for name in self._times if name == path or name.startswith(f"{path}/")]
            for name in gone:
                del self._times[name]
        return False


def _inside(name: str) -> str:
    """A member's path relative to the root of the layer. Raises Hostile for one that climbs."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Hostile(f"path {name!r} has .. in it")
    return "/".join(parts)


def _nanoseconds(entry: "tarfile.TarInfo") -> int:
    """Of a pax record to the nanosecond, which a float of today's length does not have."""
    if (text := entry.pax_headers.get("mtime")) is None:
        return int(entry.mtime * 1_000_000_000)
    whole, _, rest = text.lstrip("-").partition(".")
    moment = int(whole) * 1_000_000_000 + int(f"{rest:0<9.9}")
    return -moment if text.startswith("-") else moment


def _write(archive: "tarfile.TarFile", entry: "tarfile.TarInfo", target: str) -> None:
    """A regular file, holes left out. The data is taken from the stream itself: extractfile would buffer it twice."""
    source = cast(IO[bytes], archive.fileobj)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fault("unpack", target)
    descriptor = os.open(target, flags, 0o600)
    try:
        position = entry.offset_data
        sparse: list[tuple[int, int]] | None = getattr(entry, "sparse", None)
        for offset, size in [(0, entry.size)] if sparse is None else sparse:
            source.seek(position)
            position += size
            if offset:
                os.lseek(descriptor, offset, os.SEEK_SET)
            _copy(source, descriptor, size)
        if sparse is not None:
            os.ftruncate(descriptor, entry.size)
    finally:
        os.close(descriptor)


def _copy(source: IO[bytes], descriptor: int, size: int) -> None:
    while size > 0:
        data = source.read(min(size, CHUNK))
        if not data:
            raise EOFError("the archive ends within a file")
        size -= len(data)
        while data:
            data = data[os.write(descriptor, data) :]


def _device(entry: "tarfile.TarInfo", target: str, marks: bool) -> None:
    if (entry.devmajor, entry.devminor) == (0, 0) and not marks:
        raise Hostile(f"{entry.name!r} is the device by which overlayfs marks a deletion")
    kind = stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
    os.mknod(target, kind | 0o600, os.makedev(entry.devmajor, entry.devminor))


def _set_attributes(entry: "tarfile.TarInfo", target: str, marks: bool) -> None:
    """Owner first: chown(2) clears setuid bits and file capabilities."""
    if entry.uid < 0 or entry.gid < 0:
        raise Hostile(f"{entry.name!r} belongs to {entry.uid}:{entry.gid}")
    os.chown(target, entry.uid, entry.gid, follow_symlinks=False)
    for key, value in entry.pax_headers.items():
        if key.startswith(XATTR):
            _set_xattr(target, key.removeprefix(XATTR), value.encode("utf-8", "surrogateescape"), marks)
    if not entry.issym():
        os.chmod(target, entry.mode & 0o7777)
    if not entry.isdir():
        moment = _nanoseconds(entry)
        os.utime(target, ns=(moment, moment), follow_symlinks=False)


def _set_xattr(target: str, name: str, value: bytes, marks: bool) -> None:
    if not name.startswith(_ATTRIBUTES) or (name.startswith(_OVERLAY) and not marks):
        return
    try:
        os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as exc:
        # A filesystem without them, or user.* on a link or device, where the kernel has none (xattr(7)).
        if exc.errno != errno.ENOTSUP and not (exc.errno == errno.EPERM and name.startswith("user.")):
            raise


def _decompressed(blob: IO[bytes]) -> IO[bytes]:
    """The tar stream behind a blob; what it is packed with is told by its first bytes."""
    magic = blob.read(4)
    blob.seek(0)
    if magic.startswith(GZIP):
        return cast(IO[bytes], Inflating(blob))
    if magic == ZSTD:
        import zstandard

        reader: IO[bytes] = zstandard.ZstdDecompressor().stream_reader(blob, read_size=CHUNK, read_across_frames=True)
        return reader
    return blob


def lock_in(target: str, work: str, merged: str, lowers: list[str], capabilities: frozenset[int]) -> None:
    """From here on this process sees the target as its whole world, and has these rights in it."""
    namespace.unshare(process.CLONE_NEWNS | namespace.CLONE_NEWNET | namespace.CLONE_NEWIPC)
    mount.set_propagation("/", mount.MS_PRIVATE, recursive=True)
    if lowers:
        options = (f"lowerdir={':'.join(lowers)}", f"upperdir={target}", f"workdir={work}")
        mount.mount_one(Mount("overlay", "overlay", options=options), merged)
        target = merged
    os.chroot(target)
    os.chdir("/")
    # An import from here on would look for code below the new root, that is, in the layer.
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    process.drop_capabilities(capabilities)


def unpack(
    blob: IO[bytes],
    target: str,
    work: str,
    merged: str,
    lowers: list[str],
    abandoned: Callable[[], bool] = lambda: False,
    deleted: IO[bytes] | None = None,
    volume: bool = False,
) -> dict[str, Any]:
    """Lock in, extract, sync. Returns diff_id, bytes, inodes and shape. Raises Hostile, OSError, Abandoned.

    With `deleted`, a list of paths as JSON, the blob is a checkpoint's writable layer, and a volume with `volume`.
    """
    import tarfile

    from holdfast.model.archive import DELETED_LIMIT, BoundedHeader, parse_deleted

    stream = Hashing(_decompressed(blob), abandoned)
    target_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.umask(0)
    crashpoint("unpack.started")
    lock_in(target, work, merged, lowers, _KEEP)
    extraction = Extraction(whiteouts=deleted is None and not volume, volume=volume)
    try:
        if deleted is not None:
            extraction.delete(parse_deleted(deleted.read(DELETED_LIMIT)))
        with tarfile.open(
            fileobj=stream, mode="r|", bufsize=BUFFER, tarinfo=BoundedHeader, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            extraction.apply(archive)
        while stream.read(CHUNK):
            pass  # the digest is that of the whole stream, padding and all
    except OSError as exc:
        if exc.errno in _MACHINE:
            raise
        raise Hostile(str(exc)) from exc
    except (Hostile, Abandoned):
        raise
    except Exception as exc:  # tarfile's and the decompressors' own: the blob is not what it says
        raise Hostile(f"{type(exc).__name__}: {exc}") from exc
    crashpoint("unpack.extracted")
    files.syncfs(target_fd)
    crashpoint("unpack.synced")
    found = tree.measure(target_fd)  # by descriptor: the chroot hides its path
    diff_id = f"sha256:{stream.digest.hexdigest()}"
    return {"diff_id": diff_id, "bytes": found.bytes, "inodes": found.inodes, "shape": found.shape}


def hung_up(connection: socket.socket) -> Callable[[], bool]:
    """Tells whether whoever is at the other end has gone."""
    poller = select.poll()
    poller.register(connection, 0)
    return lambda: bool(poller.poll(0))


def main(context: Context) -> None:
    """fds: the blob, a socket for the one message that tells how it went, and the list of what was deleted, if any."""
    blob_fd, result_fd, *deleted_fd = context.fds
    args = context.args
    context.ready()
    with contextlib.ExitStack() as stack:
        result = stack.enter_context(socket.socket(fileno=result_fd))
        blob = stack.enter_context(os.fdopen(blob_fd, "rb"))
        deleted = stack.enter_context(os.fdopen(deleted_fd[0], "rb")) if deleted_fd else None
        places = (args["target"], args["work"], args["merged"], args["lowers"])
        try:
            message = unpack(blob, *places, hung_up(result), deleted, args.get("volume", False))
        except Abandoned:
            return
        except Hostile as exc:
            message = {"error": "invalid", "message": str(exc)}
        except OSError as exc:
            message = {"error": "io", "message": str(exc), "errno": exc.errno or errno.EIO}
        result.sendall(json.dumps(message).encode())
