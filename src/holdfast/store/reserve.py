"""Space held in reserve, so that the status of what runs can still be written when the disk is full.

Filler rows are inserted, deleted and checkpointed. That leaves pre-written pages on the database's freelist, and a
write-ahead log of the same size which is then written over in place: on ext4 and xfs a change needs no new block.
Where blocks are never written in place (btrfs, zfs), or when the pages are used up, there is the ballast: a file that
is deleted when SQLite finds the disk full, after which the change is tried again.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from holdfast.linux import files

RESERVE_BYTES: Final = 8 * 1024 * 1024
_FILLER: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ReserveState:
    """Bytes that can be had without a new block: free pages in the database, the log's own file, and the ballast.

    `missing_bytes` is what they are short of what they should be, `file_bytes` the size of the whole database.
    """

    free_bytes: int
    wal_bytes: int
    ballast_bytes: int
    missing_bytes: int = 0
    file_bytes: int = 0


class Reserve:
    """The reserve of the database at `path`: its free pages, `<name>-wal` and `<name>-ballast`."""

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        self._wal = path.with_name(f"{path.name}-wal")
        self._ballast = path.with_name(f"{path.name}-ballast")

    def fill(self, connection: apsw.Connection) -> None:
        """Top it up to its size. Without room for that the store works on with what there is."""
        # The log is written over from its start after each checkpoint, so it stays within what was pre-grown.
        connection.wal_autocheckpoint(max(self._size // 2 // _page(connection), 1))
        try:
            self._fill_pages(connection)
            if _size(self._ballast) < self._size:
                # Random, since a filesystem that compresses would make nothing of zeros.
                files.write_atomic(self._ballast, os.urandom(self._size))
        except (apsw.FullError, apsw.IOError, OSError):
            return

    def give_back(self) -> bool:
        """Delete the ballast and wait until its blocks can be had again. Returns whether there was one."""
        try:
            self._ballast.unlink()
        except OSError:
            return False
        directory = os.open(self._ballast.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            files.syncfs(directory)
        finally:
            os.close(directory)
        return True

    def state(self, connection: apsw.Connection) -> ReserveState:
        free, wal, ballast = _free_bytes(connection), _size(self._wal), _size(self._ballast)
        half = self._size // 2  # below which pages and log are filled up
        missing = max(0, half - free) + max(0, half - wal) + max(0, self._size - ballast)
        return ReserveState(free, wal, ballast, missing, int(connection.pragma("page_count")) * _page(connection))

    def _fill_pages(self, connection: apsw.Connection) -> None:
        if _free_bytes(connection) >= self._size // 2 and _size(self._wal) >= self._size // 2:
            return
        execute = connection.execute
        try:
            execute("BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS filler (data BLOB)")
            for _ in range(self._size // _FILLER):
                execute("INSERT INTO filler VALUES (zeroblob(?))", (_FILLER,))
            execute("COMMIT; BEGIN IMMEDIATE; DELETE FROM filler; COMMIT")
        finally:
            if connection.in_transaction:  # SQLite itself takes back what found the disk full
                execute("ROLLBACK")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)


def _free_bytes(connection: apsw.Connection) -> int:
    return int(connection.pragma("freelist_count")) * _page(connection)


def _page(connection: apsw.Connection) -> int:
    return int(connection.pragma("page_size"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
