"""A directory tree as a tar (POSIX.1-2001 pax): what the unpacker makes the same tree of again.

Kept are holes (as GNU's sparse format 1.0 has them), hard links, owners, modes, times to the nanosecond, device nodes,
FIFOs and the extended attributes that a container can set. Whoever has made the files may be anybody: a tree is walked
by descriptors, no symlink is followed, and a mount in it is an error rather than a gap, as is whatever else could not
be brought back. Only sockets are left out, which their owners bind again, and said to be.
"""

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

from holdfast.linux import files

DEPTH: Final = 500  # of directories; paths that a program can use at all end at about 2000
XATTR: Final = "SCHILY.xattr."
RESTORED: Final = ("user.", "system.posix_acl_", "security.capability")  # the extended attributes that can be set again
HOSTS: Final = ("security.",)  # those that each host gives to files itself
CHUNK: Final = 256 * 1024
_BLOCK: Final = tarfile.BLOCKSIZE
_RESOLVE: Final = files.RESOLVE_NO_XDEV | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_BENEATH


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a tree: `path` from its root, "" for the root; `directory` is a descriptor of where it is."""

    path: str
    directory: int
    name: str
    status: os.stat_result
    attributes: dict[str, bytes]

    def open(self, flags: int = os.O_RDONLY) -> int:
        """Raises OSError: EXDEV for what something is mounted at."""
        return _open(self.directory, self.name, flags, self.path)


def pack_tree(directory: int, out: IO[bytes]) -> list[str]:
    """Write what a descriptor leads to as a tar. Returns the paths of sockets, which are not in it. Raises OSError."""
    writer = TreeWriter(out)
    for entry in walk(directory):
        writer.add(entry)
    writer.close()
    return writer.sockets


def walk(directory: int) -> Iterator[Entry]:
    """The root of a tree and all that is below it, each directory before what is in it. Raises OSError."""
    yield _entry(directory, ".", "")
    levels = [(os.dup(directory), "", _names(directory))]
    try:
        while levels:
            above, path, names = levels[-1]
            if (name := next(names, None)) is None:
                os.close(levels.pop()[0])
                continue
            entry = _entry(above, name, f"{path}/{name}" if path else name)
            yield entry
            if stat.S_ISDIR(entry.status.st_mode):
                if len(levels) > DEPTH:
                    raise OSError(errno.ENAMETOOLONG, f"is deeper than {DEPTH} directories", entry.path)
                below = entry.open(os.O_RDONLY | os.O_DIRECTORY)
                levels.append((below, entry.path, _names(below)))
    finally:
        for level in levels:
            os.close(level[0])


def _names(directory: int) -> Iterator[str]:
    yield from sorted(os.listdir(directory))


def _entry(directory: int, name: str, path: str) -> Entry:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return Entry(path, directory, name, status, _attributes(directory, name))


def _attributes(directory: int, name: str) -> dict[str, bytes]:
    place = f"/proc/self/fd/{directory}/{name}"
    try:
        names = os.listxattr(place, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.ENOTSUP, errno.EPERM):
            return {}
        raise
    return {one: os.getxattr(place, one, follow_symlinks=False) for one in names}


def _open(directory: int, name: str, flags: int, path: str) -> int:
    try:
        return files.openat2(directory, name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, _RESOLVE)
    except OSError as exc:
        if exc.errno == errno.EXDEV:
            raise OSError(errno.EXDEV, "has something mounted at it", path) from exc
        raise


class TreeWriter:
    """Writes entries in the order in which they are added, to a file of the host's."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._archive = tarfile.TarFile(
            fileobj=out,
            mode="w",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
            copybufsize=CHUNK,
        )
        self._linked: dict[tuple[int, int], str] = {}
        self.sockets: list[str] = []

    def add(self, entry: Entry) -> None:
        """Raises OSError with the path in the tree: ENOTSUP for what could not be brought back."""
        status, info = entry.status, tarfile.TarInfo(f"./{entry.path}" if entry.path else ".")
        info.mode, info.uid, info.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
        info.pax_headers = {"mtime": _seconds(status.st_mtime_ns), **_kept(entry)}
        if self._is_linked(entry, info):
            return
        if stat.S_ISREG(status.st_mode):
            self._add_file(entry, info)
        elif stat.S_ISSOCK(status.st_mode):
            self.sockets.append(entry.path)
        else:
            _describe(entry, info)
            self._write(info)

    def close(self) -> None:
        """Write the end of the archive; the stream below is left open."""
        self._archive.close()

    def _is_linked(self, entry: Entry, info: tarfile.TarInfo) -> bool:
        """Whether the entry is another name of one that was added, and is added as that."""
        status = entry.status
        if status.st_nlink < 2 or stat.S_ISDIR(status.st_mode) or stat.S_ISSOCK(status.st_mode):
            return False
        first = self._linked.setdefault((status.st_dev, status.st_ino), info.name)
        if first == info.name:
            return False
        info.type, info.linkname, info.pax_headers = tarfile.LNKTYPE, first, {}
        self._write(info)
        return True

    def _add_file(self, entry: Entry, info: tarfile.TarInfo) -> None:
        descriptor = entry.open()
        try:
            found = os.fstat(descriptor)
            if (found.st_dev, found.st_ino) != (entry.status.st_dev, entry.status.st_ino):
                raise OSError(errno.ESTALE, "was replaced while it was being read", entry.path)
            extents = list(_extents(descriptor, found.st_size))
            head = b""
            if extents != [(0, found.st_size)]:
                head = _sparse_map(extents, found.st_size)
                info.pax_headers = {
                    **info.pax_headers,
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": info.name,
                    "GNU.sparse.realsize": str(found.st_size),
                }
            info.size = len(head) + sum(size for _, size in extents)
            self._write(info)
            self._out.write(head)
            self._out.flush()  # what follows does not go through its buffer
            for offset, length in extents:
                self._copy(descriptor, offset, length, entry.path)
            padding = -info.size % _BLOCK
            self._out.write(bytes(padding))
            self._archive.offset += info.size + padding  # by which it is padded at its end
        finally:
            os.close(descriptor)

    def _copy(self, descriptor: int, offset: int, length: int, path: str) -> None:
        """By the kernel: whoever is frozen meanwhile waits for that."""
        while length:
            done = os.sendfile(self._out.fileno(), descriptor, offset, length)
            if not done:
                raise OSError(errno.ESTALE, "became shorter while it was being read", path)
            offset, length = offset + done, length - done

    def _write(self, info: tarfile.TarInfo) -> None:
        self._archive.addfile(info)
        self._archive.members.clear()  # type: ignore[attr-defined]  # or it would remember them all


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is not a hole; an empty file is one extent of nothing, as it has no hole."""
    if not size:
        yield 0, 0
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return  # a hole to the end
            raise
        position = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield start, position - start


def _sparse_map(extents: list[tuple[int, int]], size: int) -> bytes:
    """GNU's format 1.0: the number of extents, then offset and length of each, lines of decimals, padded to blocks."""
    ends = [] if extents and sum(extents[-1]) == size else [(size, 0)]  # tells where the file ends
    numbers = [number for extent in (*extents, *ends) for number in extent]
    text = "".join(f"{number}\n" for number in (len(extents) + len(ends), *numbers)).encode()
    return text + bytes(-len(text) % _BLOCK)


def _describe(entry: Entry, info: tarfile.TarInfo) -> None:
    """Of all that has no content."""
    mode = entry.status.st_mode
    if stat.S_ISDIR(mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(entry.name, dir_fd=entry.directory)
    elif stat.S_ISFIFO(mode):
        info.type = tarfile.FIFOTYPE
    else:
        info.type = tarfile.CHRTYPE if stat.S_ISCHR(mode) else tarfile.BLKTYPE
        info.devmajor, info.devminor = os.major(entry.status.st_rdev), os.minor(entry.status.st_rdev)


def _kept(entry: Entry) -> dict[str, str]:
    """The extended attributes as pax records. One that could not be set again is refused, not lost."""
    kept = {}
    for name, value in entry.attributes.items():
        if name.startswith(RESTORED):
            kept[f"{XATTR}{name}"] = value.decode("utf-8", "surrogateescape")
        elif not name.startswith(HOSTS):
            raise OSError(errno.ENOTSUP, f"has the attribute {name}, which cannot be brought back", entry.path)
    return kept


def _seconds(nanoseconds: int) -> str:
    """As pax has times: a decimal, to the nanosecond."""
    whole, rest = divmod(nanoseconds, 1_000_000_000)
    if whole < 0 and rest:
        return f"-{-whole - 1}.{1_000_000_000 - rest:09d}"
    return f"{whole}.{rest:09d}" if rest else f"{whole}"
