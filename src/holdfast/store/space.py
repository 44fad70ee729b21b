"""Room on a disk: asked for before work that needs it, and named in the error when it runs out all the same.

This is the one place where ENOSPC, EDQUOT and EROFS become errors that a client can act on: ResourceExhausted says
which filesystem lacks what, Unavailable that it cannot be written to at the moment.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux import files
from holdfast.model.errors import HoldfastError, ResourceExhausted, Unavailable

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
UNITS: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True)
class Minimum:
    """What must stay free on a disk, so that what runs is not disturbed by what is new."""

    bytes: int = 0
    inodes: int = 0


def require(directory: Path, minimum: Minimum, what: str) -> None:
    """Raise ResourceExhausted unless `directory` has the minimum free: "cannot <what>: ..."."""
    if (why := lacking(files.filesystem(directory), minimum)) is not None:
        raise ResourceExhausted(f"cannot {what}: the filesystem of {directory} {why}")


def lacking(found: files.Filesystem, minimum: Minimum) -> str | None:
    """What there is too little of; None when there is enough. Some filesystems do not count inodes."""
    if found.free_bytes <= minimum.bytes:
        return f"is full: {amount(found.free_bytes)} free, more than {amount(minimum.bytes)} needed"
    if found.total_inodes and found.free_inodes <= minimum.inodes:
        return f"is out of inodes: {found.free_inodes} free, more than {minimum.inodes} needed"
    return None


@contextlib.contextmanager
def named(directory: Path, what: str) -> Iterator[None]:
    """An operation below `directory`: an OSError for want of space becomes an error that names what is wanting."""
    try:
        yield
    except OSError as exc:
        if (error := translate(exc, directory, what)) is None:
            raise
        raise error from exc


def translate(exc: OSError, directory: Path, what: str) -> HoldfastError | None:
    """The error for a client; None when it has nothing to do with space. The disk may be another than was thought."""
    if exc.errno not in NO_SPACE and exc.errno != errno.EROFS:
        return None
    place = _directory_of(exc.filename, directory)
    if exc.errno == errno.EROFS:
        return Unavailable(f"cannot {what}: the filesystem of {place} is read-only")
    return ResourceExhausted(f"cannot {what}: {wanting(place, exc.errno)}")


def wanting(directory: Path, number: int = errno.ENOSPC) -> str:
    """What the filesystem lacks, in words: what was refused is the one of which there is less."""
    if number == errno.EDQUOT:
        return f"the quota of the filesystem of {directory} is used up"
    try:
        found = files.filesystem(directory)
    except OSError:
        return f"the filesystem of {directory} is full"
    starved = found.total_inodes > 0 and found.free_inodes * found.total_bytes < found.free_bytes * found.total_inodes
    state = "out of inodes" if starved else "full"
    return f"the filesystem of {directory} is {state}: {amount(found.free_bytes)}, {found.free_inodes} inodes free"


def amount(count: int) -> str:
    """Bytes as people say them."""
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _directory_of(name: object, otherwise: Path) -> Path:
    """The nearest directory above a path that exists."""
    if not isinstance(name, str) or not name.startswith("/"):
        return otherwise
    place = Path(name).parent
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return Path(os.path.normpath(place))
