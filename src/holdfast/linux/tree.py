"""A directory tree in one walk: what it takes on disk, and a digest of its shape."""

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tree:
    """`bytes` as allocated; `inodes` without that of the directory itself; `shape` see measure."""

    bytes: int
    inodes: int
    shape: str


def measure(directory: int) -> Tree:
    """Walk what is below a descriptor, following no symlink. Raises OSError.

    The shape is the SHA-256 of every path with its mode, owner, device number and, but for directories, length. What
    a power cut has taken or cut short changes it; other content of the same length does not, since nothing is read.
    """
    digest = hashlib.sha256()
    seen: set[int] = set()
    size = 0
    for path, names, others, fd in os.fwalk(".", dir_fd=directory, follow_symlinks=False, onerror=_raise):
        names.sort()
        for name in sorted((*names, *others)):
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            length = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
            digest.update(os.fsencode(f"{path}/{name}"))
            digest.update(f"\0{found.st_mode:o} {found.st_uid} {found.st_gid} {found.st_rdev} {length}\n".encode())
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                size += found.st_blocks * 512
    return Tree(size, len(seen), digest.hexdigest())


def measure_at(path: str | os.PathLike[str]) -> Tree:
    """The same of a directory by its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return measure(descriptor)
    finally:
        os.close(descriptor)


def allocated(path: str | os.PathLike[str]) -> int:
    """About how many bytes a tree takes on disk; it may change while it is looked at, and is none when it is gone."""
    size = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return size


def _raise(error: OSError) -> None:
    raise error
