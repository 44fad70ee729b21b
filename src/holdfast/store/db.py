"""The store: one SQLite file, one writer thread, group commit, and space held in reserve.

Everything queued while a commit is under way goes into the next one together, each change in a savepoint of its own,
so that one that fails takes nobody else's back. A caller is answered after COMMIT, with `synchronous=FULL`.

Space: at set-up filler rows are inserted, deleted and checkpointed, which leaves pre-written pages on the database's
freelist and a WAL of the same size that is then written in place (`SQLITE_FCNTL_PERSIST_WAL` keeps it at close). So
status changes need no new block while the disk is full.

The connection locks the file exclusively, which also means that no shared-memory file is needed.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from holdfast.model.errors import Damaged, FailedPrecondition, HoldfastError, ResourceExhausted, Unavailable
from holdfast.store.migrations import MIGRATIONS

T = TypeVar("T")

RESERVE_BYTES: Final = 8 * 1024 * 1024
_FILLER: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ReserveState:
    """Bytes that can be written without a new block: free pages inside the database, and the WAL's own file."""

    free_bytes: int
    wal_bytes: int


@dataclass(slots=True)
class _Job:
    """One change on its way; the outcome is set on the event loop that asked."""

    run: Callable[[apsw.Connection], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    transactional: bool
    result: Any = None
    error: BaseException | None = None

    def settle(self) -> None:
        self.loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if self.future.cancelled():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Store:
    """The one connection and its thread. Made by `open`."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self._path = path
        self._connection = connection
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="store-writer")
        self._thread.start()

    @classmethod
    def open(cls, path: Path, reserve_bytes: int = RESERVE_BYTES) -> "Store":
        """Open or create the store and bring its schema up to date.

        Raises FailedPrecondition when another process has it open or a newer Holdfast wrote it, Damaged when SQLite
        finds it corrupt (after an unclean stop it is checked), ResourceExhausted when it cannot even be created.
        """
        try:
            connection = _connect(path)
            try:
                _migrate(connection, path)
                _check_after_unclean_stop(connection, path)
                _reserve(connection, path, reserve_bytes)
            except BaseException:
                connection.close()
                raise
        except apsw.BusyError as exc:
            raise FailedPrecondition(f"cannot open {path}: another process is using it") from exc
        except (apsw.CorruptError, apsw.NotADBError) as exc:
            raise Damaged(f"cannot open {path}: {exc}; move it aside to start without what it knows") from exc
        except (apsw.FullError, apsw.IOError, apsw.CantOpenError) as exc:
            raise _translate(exc, path) from exc
        return cls(path, connection)

    async def write(self, change: Callable[[apsw.Connection], T]) -> T:
        """Run `change` in a transaction; returns its result once that is on disk. Its error takes back only itself."""
        return await self._submit(change, transactional=True)

    async def read(self, query: Callable[[apsw.Connection], T]) -> T:
        """Run `query` on the same connection, outside of any transaction."""
        return await self._submit(query, transactional=False)

    def reserve_state(self) -> ReserveState:
        """How much is held in reserve; only from within write() or read(), or before the first of them."""
        page = _value(self._connection, "PRAGMA page_size")
        free = _value(self._connection, "PRAGMA freelist_count")
        wal = self._path.with_name(f"{self._path.name}-wal")
        return ReserveState(free * page, wal.stat().st_size if wal.exists() else 0)

    def close(self) -> None:
        """Finish what is queued, mark the stop as clean, close."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._thread.join()

    async def _submit(self, run: Callable[[apsw.Connection], T], *, transactional: bool) -> T:
        if self._closed:
            raise Unavailable(f"cannot use {self._path}: the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(run, future, loop, transactional))
        return await future

    def _work(self) -> None:
        """The writer thread: take all that is queued, commit it together, answer."""
        over = False
        while not over:
            jobs = [self._jobs.get()]
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            over = None in jobs
            batch = [job for job in jobs if job is not None]
            for job in batch:
                if not job.transactional:
                    self._run(job)
            changes = [job for job in batch if job.transactional]
            if changes:
                self._commit(changes)
            for job in batch:
                job.settle()
        self._end()

    def _commit(self, changes: list[_Job]) -> None:
        try:
            with self._connection:
                for job in changes:
                    self._run_in_savepoint(job)
        except apsw.Error as exc:
            failure = _translate(exc, self._path)
            for job in changes:
                job.error = job.error or failure

    def _run(self, job: _Job) -> None:
        try:
            job.result = job.run(self._connection)
        except HoldfastError as exc:
            job.error = exc
        except apsw.Error as exc:
            job.error = _translate(exc, self._path)
        except Exception as exc:
            job.error = exc

    def _run_in_savepoint(self, job: _Job) -> None:
        """APSW's connection is a context manager that nests: savepoints within the transaction."""
        try:
            with self._connection:
                self._run(job)
                if job.error is not None:
                    raise _TakeBack
        except _TakeBack:
            return

    def _end(self) -> None:
        try:
            self._connection.execute("UPDATE meta SET value = '1' WHERE key = 'clean'")
        except apsw.Error:
            pass  # then the next start checks the file, which is all that the mark is for
        finally:
            self._connection.close()


class _TakeBack(Exception):
    """Rolls back one savepoint."""


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(0)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA wal_autocheckpoint = 1000")
    connection.execute("BEGIN IMMEDIATE; COMMIT")  # takes the lock now rather than at the first change
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, _one())
    return connection


def _one() -> int:
    """The address of a C int 1, as file controls take it; the object is kept alive by the module."""
    import ctypes

    global _flag
    _flag = ctypes.c_int(1)
    return ctypes.addressof(_flag)


def _migrate(connection: apsw.Connection, path: Path) -> None:
    known, found = len(MIGRATIONS), _value(connection, "PRAGMA user_version")
    if found > known:
        raise FailedPrecondition(
            f"cannot open {path}: it was written by a newer Holdfast (schema {found}, this one knows {known})"
        )
    for number, statements in enumerate(MIGRATIONS[found:], start=found + 1):
        with connection:
            connection.execute(statements)
            connection.execute(f"PRAGMA user_version = {number}")


def _check_after_unclean_stop(connection: apsw.Connection, path: Path) -> None:
    row = connection.execute("SELECT value FROM meta WHERE key = 'clean'").fetchone()
    if row is not None and row[0] != "1":
        problems = [text for (text,) in connection.execute("PRAGMA quick_check(5)") if text != "ok"]
        if problems:
            raise Damaged(f"cannot use {path}: it is corrupt ({problems[0]}); move it aside to start without it")
    with connection:
        connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('clean', '0')")


def _reserve(connection: apsw.Connection, path: Path, size: int) -> None:
    """Fill up the freelist and the WAL to `size` bytes. Without room for that the store works on with less."""
    page = _value(connection, "PRAGMA page_size")
    wal = path.with_name(f"{path.name}-wal")
    enough = _value(connection, "PRAGMA freelist_count") * page >= size // 2
    if enough and wal.exists() and wal.stat().st_size >= size // 2:
        return
    try:
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS filler (data BLOB)")
            for _ in range(size // _FILLER):
                connection.execute("INSERT INTO filler VALUES (zeroblob(?))", (_FILLER,))
        with connection:
            connection.execute("DELETE FROM filler")
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
    except apsw.FullError:
        return


def _translate(error: apsw.Error, path: Path) -> HoldfastError:
    if isinstance(error, apsw.FullError):
        return ResourceExhausted(f"cannot write {path}: the filesystem of {path.parent} is full")
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return Damaged(f"cannot use {path}: {error}")
    return Unavailable(f"cannot write {path}: {error}")


def _value(connection: apsw.Connection, query: str, bindings: Sequence[Any] = ()) -> int:
    row = connection.execute(query, bindings).fetchone()
    return int(row[0]) if row else 0


_flag: Any = None
