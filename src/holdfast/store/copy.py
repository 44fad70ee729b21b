"""A copy of the store, to look into while nobody runs it, or to work from while its disk takes nothing.

The original is neither locked nor written to.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from holdfast.model.errors import NotFound, Unavailable

MEMORY: Final = "/dev/shm"  # so that a full disk is no hindrance
TRIES: Final = 5


@contextlib.contextmanager
def copied(path: Path) -> Iterator[Path]:
    """The database with its log, somewhere else for as long as the context lasts. Raises NotFound, Unavailable."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="holdfast-", dir=place) as directory:
        copy = Path(directory, path.name)
        for _ in range(TRIES):
            before = _versions(path)
            if not before:
                raise NotFound(f"cannot read {path}: there is no store")
            for source in before:
                shutil.copyfile(source, copy.with_name(source.name))
            if _versions(path) == before:
                break
        else:
            raise Unavailable(f"cannot read {path}: somebody is writing to it")
        yield copy


def in_memory(path: Path) -> apsw.Connection:
    """The database with its log as one that lives in memory only. Raises NotFound, Unavailable, OSError, apsw.Error."""
    memory = apsw.Connection(":memory:")
    with copied(path) as copy:
        source = apsw.Connection(str(copy))
        try:
            with memory.backup("main", source, "main") as backup:
                backup.step(-1)
        finally:
            source.close()
    return memory


def _versions(path: Path) -> dict[Path, tuple[int, int, int]]:
    """The files that make up the store, and what tells that one has changed."""
    found = {}
    for source in (path, path.with_name(f"{path.name}-wal")):
        with contextlib.suppress(FileNotFoundError):
            status = source.stat()
            found[source] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found if path in found else {}
