"""Archives on disk: sealed when they are written, believed in nothing until all of them was read.

    holdfast.json    format version, kind, what it is of, and every part with its length and SHA-256, in their order
    <part> ...       exactly those
    holdfast.seal    the SHA-256 of holdfast.json: an archive without it is cut off

It is a tar, or one packed by zstd. Reading checks each part while it is copied into a private directory, and removes
that directory again if anything is wrong: nobody gets to see half an archive. The digests tell what was damaged or
exchanged in part; who has made an archive they do not tell, so what is in it is looked at as a stranger's all the same.

Archives of one container that others have written have no holdfast.json. Of them the parts that are known are taken.
"""

import contextlib
import gzip
import hashlib
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, cast

import zstandard

from holdfast.checkpoint import layout
from holdfast.checkpoint.head import PARTS, Head, Part, encode, parse
from holdfast.checkpoint.layout import Kind
from holdfast.linux import files
from holdfast.linux.inject import crashpoint, fault
from holdfast.model.archive import PlainHeader
from holdfast.model.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

HEAD: Final = "holdfast.json"
SEAL: Final = "holdfast.seal"
HEAD_LIMIT: Final = 16 * 1024 * 1024
CHUNK: Final = 1024 * 1024
WINDOW: Final = 128 * 1024 * 1024  # of memory that a zstd stream may ask for
ZSTD: Final = b"\x28\xb5\x2f\xfd"
GZIP: Final = b"\x1f\x8b"
# What the readers of tar and compression raise for archives that are damaged, or made to be.
_UNREADABLE: Final = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    zstandard.ZstdError,
    EOFError,
    ValueError,
    OverflowError,
    RecursionError,
)


def write(target: Path, directory: Path, kind: Kind, about: dict[str, Any], compress: str = "") -> int:
    """Make an archive of the files below `directory`; it is whole and on disk when it has its name.

    `compress` is "" or "zstd". Returns its length in bytes. Raises OSError, FailedPrecondition for what no reader would
    take; nothing is left of what was begun then.
    """
    parts = tuple(_part(directory, path) for path in sorted(_files(directory)))
    strangers = [part.name for part in parts if not layout.permits(kind, part.name)]
    if strangers:
        raise ValueError(f"no {kind} archive has a {strangers[0]}")
    head = encode(Head(kind, about, parts))
    if len(head) > HEAD_LIMIT or len(parts) > PARTS:
        many = f"{len(parts)} files, and a head of {len(head)} bytes that lists them"
        raise FailedPrecondition(f"cannot make {target}: it would have {many}, more than {PARTS} or {HEAD_LIMIT}")
    temporary = target.with_name(files.temporary_name(target.name))
    crashpoint("seal.begun")
    fault("open", temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with _packing(file, compress) as out:
                _write(out, head, parts, directory)
            file.flush()
            crashpoint("seal.written")
            files.fsync(file.fileno(), temporary)
            size = os.fstat(file.fileno()).st_size
        files.rename(temporary, target)
    except BaseException as exc:
        temporary.unlink(missing_ok=True)
        if isinstance(exc, OSError) and exc.filename is None:
            exc.filename = str(temporary)  # a disk that is full does not say which
        raise
    files.sync_directory(target.parent)
    crashpoint("seal.renamed")
    return size


def read_head(source: Path) -> Head:
    """What an archive says of itself; of its parts nothing is known yet. Raises InvalidArgument, OSError."""
    with _opened(source) as archive, _told(source):
        first = archive.next()
        if first is None or first.name != HEAD:
            raise InvalidArgument("it was not sealed by Holdfast")
        return parse(_small(archive, first))


def unpack(source: Path, into: Path, kind: Kind, limit: int) -> Head:
    """Read an archive into `into`, a directory that is made, and only if all of it is as it should be.

    Its parts may have `limit` bytes together. Raises InvalidArgument, ResourceExhausted for one that has more, OSError;
    then `into` is not there.
    """
    with _opened(source) as archive:
        files.mkdir(into, 0o700)
        try:
            with _told(source):
                first = archive.next()
                if first is not None and first.name == HEAD:
                    return _Unpacking(archive, into, kind, limit).sealed(first)
                if kind != "container":
                    raise InvalidArgument("it was not sealed by Holdfast")
                return _Unpacking(archive, into, kind, limit).of_others(first)
        except BaseException:
            files.remove_tree(into)
            raise


def _files(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            yield path
        elif not stat.S_ISDIR(found.st_mode):
            raise ValueError(f"{path} is neither a file nor a directory")


def _part(directory: Path, path: Path) -> Part:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Part(str(path.relative_to(directory)), file.tell(), digest.hexdigest())


@contextmanager
def _packing(file: IO[bytes], compress: str) -> Iterator[IO[bytes]]:
    if not compress:
        yield file
        return
    with zstandard.ZstdCompressor(write_checksum=True).stream_writer(file, closefd=False) as out:
        yield cast(IO[bytes], out)


def _write(out: IO[bytes], head: bytes, parts: tuple[Part, ...], directory: Path) -> None:
    with tarfile.TarFile(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, copybufsize=CHUNK) as archive:
        _add(archive, HEAD, io.BytesIO(head), len(head))
        made: set[str] = set()
        for part in parts:
            for above in reversed(PurePosixPath(part.name).parents[:-1]):  # checkpointctl looks for checkpoint/
                if str(above) not in made:
                    made.add(str(above))
                    archive.addfile(_directory(str(above)))
            with (directory / part.name).open("rb") as file:
                _add(archive, part.name, file, part.bytes)
        seal = f"{hashlib.sha256(head).hexdigest()}\n".encode()
        _add(archive, SEAL, io.BytesIO(seal), len(seal))


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    archive.addfile(info, file)


def _directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o700
    return info


@contextmanager
def _opened(source: Path) -> Iterator[tarfile.TarFile]:
    """The tar in a file, however it is packed; to be read from beginning to end."""
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidArgument(f"{source}: it is not a regular file")
        with _told(source):
            archive = tarfile.open(  # noqa: SIM115  (closed below)
                fileobj=_unpacked(file), mode="r|", tarinfo=PlainHeader, encoding="utf-8", errors="surrogateescape"
            )
        with contextlib.closing(archive):
            yield archive


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(GZIP):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if magic != ZSTD:
        return file
    packer = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    return packer.stream_reader(file, read_size=CHUNK, read_across_frames=True)


@contextmanager
def _told(source: Path) -> Iterator[None]:
    """What is wrong with an archive is told with its name."""
    try:
        yield
    except (InvalidArgument, ResourceExhausted) as exc:
        raise type(exc)(f"{source}: {exc}") from exc
    except _UNREADABLE as exc:
        raise InvalidArgument(f"{source}: cannot read it: {exc}") from exc


def _small(archive: tarfile.TarFile, entry: tarfile.TarInfo, limit: int = HEAD_LIMIT) -> bytes:
    if not entry.isreg() or entry.size > limit:
        raise InvalidArgument(f"its {entry.name} is no file, or larger than {limit} bytes")
    file = archive.extractfile(entry)
    assert file is not None  # it is a file
    return file.read()


class _Unpacking:
    """One archive."""

    def __init__(self, archive: tarfile.TarFile, into: Path, kind: Kind, limit: int) -> None:
        self._archive = archive
        self._into = into
        self._kind: Kind = kind
        self._limit = self._left = limit
        self._count = 0

    def sealed(self, first: tarfile.TarInfo) -> Head:
        """Take exactly what the head lists, in its order."""
        data = _small(self._archive, first)
        head = parse(data)
        if head.kind != self._kind:
            raise InvalidArgument(f"it is of a {head.kind}, not of a {self._kind}")
        if len({part.name for part in head.parts}) != len(head.parts):
            raise InvalidArgument("it has two parts of one name")
        if head.bytes > self._limit:
            raise ResourceExhausted(f"it has {head.bytes} bytes, more than the {self._limit} that it may have")
        for part in head.parts:
            entry = self._next_file()
            if entry is None or (entry.name, entry.size) != (part.name, part.bytes):
                what = "nothing" if entry is None else f"{entry.name!r} of {entry.size} bytes"
                raise InvalidArgument(f"it has {what} where {part.name} of {part.bytes} bytes should be")
            if self._take(entry, part.name) != part:
                raise InvalidArgument(f"its {part.name} is not as it was when it was written")
        last = self._next_file()
        if last is None or last.name != SEAL:
            raise InvalidArgument("it has no seal: it is cut off, or was added to")
        if _small(self._archive, last, 256).decode("ascii").strip() != hashlib.sha256(data).hexdigest():
            raise InvalidArgument("its seal is not that of its head")
        if self._next() is not None:
            raise InvalidArgument("it has something behind its seal")
        return head

    def of_others(self, first: tarfile.TarInfo | None) -> Head:
        """Take what is known of an archive that others have written; whatever no honest one has is refused."""
        parts: dict[str, Part] = {}
        entry = first
        while entry is not None:
            name = entry.name.removeprefix("./").rstrip("/")
            if name.startswith("/") or ".." in name.split("/"):
                raise InvalidArgument(f"its member {entry.name!r} is a path that leads out of it")
            if not (entry.isreg() or entry.isdir()):
                raise InvalidArgument(f"its member {entry.name!r} is neither a file nor a directory")
            self._left -= entry.size
            if self._left < 0:
                raise ResourceExhausted(f"it has more than the {self._limit} bytes that it may have")
            if entry.isreg() and layout.permits(self._kind, name):
                if name in parts:
                    raise InvalidArgument(f"it has two members {name!r}")
                parts[name] = self._take(entry, name)
            entry = self._next()
        if layout.CONFIG_DUMP not in parts:
            raise InvalidArgument(f"it has no {layout.CONFIG_DUMP}, so it is no checkpoint of a container")
        return Head(self._kind, {}, tuple(parts.values()))

    def _next_file(self) -> tarfile.TarInfo | None:
        """The next member that is no directory; directories say nothing that the files do not."""
        while (entry := self._next()) is not None and entry.isdir():
            continue
        if entry is not None and not entry.isreg():
            raise InvalidArgument(f"its member {entry.name!r} is not a file")
        return entry

    def _next(self) -> tarfile.TarInfo | None:
        self._count += 1
        if self._count > PARTS:
            raise InvalidArgument(f"it has more than {PARTS} members")
        self._archive.members.clear()  # type: ignore[attr-defined]  # or it would remember them all
        return self._archive.next()

    def _take(self, entry: tarfile.TarInfo, name: str) -> Part:
        """Copy a member, whose name was looked at, to its place."""
        if getattr(entry, "sparse", None) is not None:
            raise InvalidArgument(f"its member {name!r} is sparse")
        target = self._into / name
        for above in reversed(PurePosixPath(name).parents[:-1]):  # and not `into`, if somebody has given this up
            files.mkdir(self._into / above, 0o700, exist_ok=True)
        digest = hashlib.sha256()
        source = self._archive.extractfile(entry)
        assert source is not None  # it is a file
        fault("write", target)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            while data := source.read(CHUNK):
                digest.update(data)
                file.write(data)
            if file.tell() != entry.size:
                raise InvalidArgument(f"it is cut off within {name!r}")
        return Part(name, entry.size, digest.hexdigest())
