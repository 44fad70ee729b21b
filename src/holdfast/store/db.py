"""The store: one SQLite file, one writer thread, group commit, and space held in reserve.

Everything queued while a commit is under way goes into the next one together, each change in a savepoint of its own,
so that one that fails takes nobody else's back. A caller is answered after COMMIT, with `synchronous=FULL`.

The connection locks the file exclusively, which also means that no shared-memory file is needed.

While the file's disk cannot be written to at the start, the store is a copy of it in memory: it is read from there, and
changes are refused, but for what reading needs (`mend`). The file is opened as soon as that is possible, and opened
anew when it is on another filesystem than before: one that was repaired and mounted again.
"""

import asyncio
import contextlib
import ctypes
import errno
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.model import tally, trace
from holdfast.model.errors import Damaged, FailedPrecondition, HoldfastError, ResourceExhausted, Unavailable
from holdfast.store import salvage
from holdfast.store.copy import in_memory
from holdfast.store.migrations import MIGRATIONS
from holdfast.store.reserve import RESERVE_BYTES, Reserve, ReserveState
from holdfast.store.space import NO_SPACE, wanting

log = logging.getLogger(__name__)

T = TypeVar("T")

# Errors of the file rather than of one change. After some of them SQLite has already rolled the transaction back
# (lang_transaction.html, "Response To Errors Within A Transaction"), so the whole batch is.
STORAGE_ERRORS: Final = (
    apsw.FullError, apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.NoMemError, apsw.BusyError,
    apsw.ReadOnlyError, apsw.CantOpenError, apsw.InterruptError,
)  # fmt: skip

_COUNT: Final = "INSERT OR REPLACE INTO meta (key, value) VALUES ('generation', ?)"


@dataclass(slots=True)
class _Job:
    """One change or query on its way; the outcome is set on the event loop that asked."""

    run: Callable[[apsw.Connection], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    transactional: bool
    then: Callable[[Any, int], None] | None = None
    result: Any = None
    error: Exception | None = None

    def answer(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._set)

    def _set(self) -> None:
        if self.future.done():  # cancelled
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Store:
    """The one connection and its thread. Made by `open`."""

    def __init__(self, path: Path, connection: apsw.Connection, reserve: Reserve) -> None:
        self._path = path
        self._connection = connection
        self._reserve = reserve
        self._file = _identity(path) if connection.filename else None  # None while it is a copy in memory
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self.commits = tally.Histogram(
            "holdfast_store_commit_duration_seconds", "How long commits took, each of all changes that were waiting."
        )
        self.syncs = tally.Histogram(
            "holdfast_store_sync_duration_seconds",
            "How long COMMIT itself took: the write-ahead log written and synced.",
        )
        self.changes = tally.Counter("holdfast_store_changes_total", "Changes of the store, by result.", ("result",))
        self.busy_since = 0.0  # monotonic, of the commit that is under way; 0 when none is
        self.salvaged = salvage.told(connection)  # what was wrong with the store, if it was salvaged
        self.generation = self._on_disk = _generation(
            connection
        )  # number of the last commit that is known to be on disk
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path, reserve_bytes: int = RESERVE_BYTES, witnesses: tuple[Path, ...] = ()) -> "Store":
        """Open or create the store and bring its schema up to date.

        What is corrupt, empty, lost or of a newer Holdfast is salvaged, see store.salvage; `witnesses` are directories
        that have something in them only where there was a store.

        Raises FailedPrecondition when another process has it open, ResourceExhausted when it cannot even be created,
        Damaged when what was salvaged cannot be used either.
        """
        try:
            salvage.finish(path)
            if salvage.is_lost(path, witnesses):
                salvage.salvage(path, "its file is empty" if path.exists() else "its file is missing")
        except OSError as exc:
            raise _from_os(exc, path) from exc
        try:
            return cls._open(path, reserve_bytes)
        except Damaged as exc:
            damage = exc
        except (Unavailable, ResourceExhausted) as exc:
            if not path.exists() or _takes(path.parent):
                raise
            log.error("%s; until it can be, nothing is recorded", exc)
            return cls(path, _copy(path), Reserve(path, reserve_bytes))
        try:
            salvage.salvage(path, str(damage))
        except OSError as exc:
            raise _from_os(exc, path) from exc
        except apsw.Error as exc:
            raise _translate(exc, path, 0) from exc
        return cls._open(path, reserve_bytes)

    @classmethod
    def _open(cls, path: Path, reserve_bytes: int) -> "Store":
        """Raises Damaged for what is to be salvaged."""
        reserve = Reserve(path, reserve_bytes)
        connection = None
        try:
            connection = _connect(path)
            _check(connection)
            _migrate(connection)
            with contextlib.suppress(apsw.FullError, apsw.IOError):  # a mark that says clean costs at most a check
                _mark(connection, clean=False)
            reserve.fill(connection)
        except BaseException as exc:
            code = connection.system_errno if connection else 0
            if connection:
                connection.close()
            if isinstance(exc, apsw.Error):
                raise _translate(exc, path, code) from exc
            raise
        return cls(path, connection, reserve)

    async def write(self, change: Callable[[apsw.Connection], T], then: Callable[[T, int], None] | None = None) -> T:
        """Run `change` in a transaction; returns its result once that is on disk. Its error takes back only itself.

        When the disk is full or the file cannot be written, everything in the same commit is taken back and each
        caller told so. A change may be run a second time before it is answered, so it has no effect but on the rows.
        `then` is for effects elsewhere: it is given the result and the number of the commit, once that is on disk and
        before the caller is answered, in the order of the commits. What it cannot do is logged and nobody's trouble.
        """
        with trace.span("store write"):
            return await self._submit(change, transactional=True, then=then)

    async def mend(self, change: Callable[[apsw.Connection], T]) -> T:
        """As `write`, for what reading depends on: while the file cannot be written, in the copy only."""
        return await self._submit(change, transactional=self._file is not None)

    async def read(self, query: Callable[[apsw.Connection], T]) -> T:
        """Run `query` on the same connection, outside of any transaction."""
        return await self._submit(query, transactional=False)

    @property
    def waiting(self) -> int:
        """How many changes and queries wait for the thread."""
        return self._jobs.qsize()

    async def reserve_state(self) -> ReserveState:
        """How much is held in reserve."""
        return await self.read(self._reserve.state)

    async def refill(self) -> None:
        """Bring back what the reserve has lost, if there is room for it."""
        await self.read(self._reserve.fill)

    def count_from(self, generation: int) -> None:
        """Let no later commit have a number up to this one; before the first change."""
        self.generation = max(self.generation, generation)

    async def doubt(self, lines: list[str]) -> None:
        """Record that rows were lost, so what has none may be somebody's; for this start and later ones."""
        self.salvaged = [*self.salvaged, *lines]
        await self.write(lambda tx: salvage.tell(tx, self.salvaged))

    async def trust(self) -> None:
        """Nothing is missing any more: what has no row is nobody's."""
        await self.write(lambda tx: salvage.tell(tx, []))
        self.salvaged = []

    def close(self) -> None:
        """Finish what is queued, mark the stop as clean, close."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._thread.join()

    async def _submit(
        self,
        run: Callable[[apsw.Connection], T],
        *,
        transactional: bool,
        then: Callable[[T, int], None] | None = None,
    ) -> T:
        if self._closed:
            raise Unavailable(f"cannot use {self._path}: the store is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(run, future, loop, transactional, then))
        return await future

    def _work(self) -> None:
        """The writer thread: take all that is queued, commit it together, answer."""
        over = False
        while not over:
            taken = [self._jobs.get()]
            while not self._jobs.empty():
                taken.append(self._jobs.get())
            over = None in taken
            jobs = [job for job in taken if job is not None]
            self._commit([job for job in jobs if job.transactional])
            for job in jobs:
                if not job.transactional:
                    self._run(job)
                job.answer()
        with contextlib.suppress(apsw.Error):  # then the next start checks the file, which is all the mark is for
            _mark(self._connection, clean=True)
        self._connection.close()

    def _commit(self, changes: list[_Job]) -> None:
        """All of them, or none; once more when that failed and the ballast could be given back, or the file is there
        again.
        """
        if not changes:
            return
        self.busy_since = began = time.monotonic()
        failure = self._try_commit(changes)
        if isinstance(failure, ResourceExhausted) and self._reserve.give_back():
            failure = self._try_commit(changes)
        if isinstance(failure, Unavailable) and self._open_again():
            failure = self._try_commit(changes)
        self.commits.observe(time.monotonic() - began)
        self.busy_since = 0.0
        for job in changes:
            job.error = job.error or failure
            self.changes.add(tally.OK if job.error is None else tally.result_of(job.error))
            if job.error is None and job.then is not None:
                try:
                    job.then(job.result, self.generation)
                except OSError as exc:
                    log.warning("what follows from a change of %s could not be done: %s", self._path, exc)

    def _try_commit(self, changes: list[_Job]) -> HoldfastError | None:
        if self._file is None:
            return Unavailable(f"cannot write {self._path}: the filesystem of {self._path.parent} is read-only")
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            for job in changes:
                execute("SAVEPOINT change")
                self._run(job)
                if job.error is not None:
                    execute("ROLLBACK TO change")
                execute("RELEASE change")
            execute(_COUNT, (str(self.generation + 1),))
            crashpoint("store.commit")
            began = time.monotonic()
            execute("COMMIT")
            self.syncs.observe(time.monotonic() - began)
            self.generation += 1
            self._on_disk = self.generation
            crashpoint("store.committed")
        except apsw.Error as exc:
            failure = _translate(exc, self._path, self._connection.system_errno)
            if self._connection.in_transaction:
                execute("ROLLBACK")
            return failure
        return None

    def _open_again(self) -> bool:
        """Work with the file again if it can be written to and is another one than before, of the same store."""
        file = _identity(self._path)
        if file is None or file == self._file:
            return False
        connection = None
        try:
            files.probe_write(self._path.parent)
            connection = _connect(self._path, create=False)
            found = _generation(connection)
        except (OSError, apsw.Error) as exc:
            log.debug("%s cannot be opened again yet: %s", self._path, exc)
            found = None
        if connection is None or found != self._on_disk:
            if connection is not None:
                log.error("%s is not the store as it was left (commit %s): it is left alone", self._path, found)
                connection.close()
            return False
        with contextlib.suppress(apsw.Error):  # of a file on a disk that is gone
            self._connection.close()
        self._connection, self._file = connection, file
        log.warning("%s is worked with again", self._path)
        return True

    def _run(self, job: _Job) -> None:
        """Run one job and keep its outcome. A change raises an error of the storage: it concerns the whole batch."""
        job.result = job.error = None
        try:
            job.result = job.run(self._connection)
        except STORAGE_ERRORS as exc:
            if job.transactional:
                raise
            job.error = _translate(exc, self._path, self._connection.system_errno)
        except apsw.ConstraintError as exc:
            job.error = FailedPrecondition(f"cannot change {self._path}: {exc}")
        except Exception as exc:
            job.error = exc


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _takes(directory: Path) -> bool:
    """Whether anything can be written there."""
    try:
        files.probe_write(directory)
    except OSError:
        return False
    return True


def _copy(path: Path) -> apsw.Connection:
    """Raises Damaged, Unavailable."""
    try:
        connection = in_memory(path)
        connection.execute("PRAGMA foreign_keys = ON")
        _check(connection)
    except apsw.Error as exc:
        raise _translate(exc, path, 0) from exc
    except OSError as exc:
        raise Unavailable(f"cannot read {path}: {exc}") from exc
    return connection


def _connect(path: Path, *, create: bool = True) -> apsw.Connection:
    """Open the file, with its log kept at close: a log that is deleted takes the reserve with it. Takes the lock."""
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    connection = apsw.Connection(str(path), flags=flags)
    try:
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN IMMEDIATE; COMMIT")  # takes the lock now rather than at the first change
        keep = ctypes.c_int(1)
        connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(keep))
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: apsw.Connection) -> None:
    """Nothing is written before the file is known to be sound, not even a migration."""
    if not 0 < int(connection.pragma("user_version")) <= len(MIGRATIONS):
        return
    try:
        problems = [text for (text,) in connection.execute("PRAGMA quick_check(5)") if text != "ok"]
        connection.execute("SELECT value FROM meta WHERE key = 'clean'").fetchall()
    except (apsw.SQLError, UnicodeDecodeError) as exc:
        raise Damaged(str(exc)) from exc
    if problems:
        raise Damaged(problems[0].splitlines()[-1])


def _migrate(connection: apsw.Connection) -> None:
    known, found = len(MIGRATIONS), int(connection.pragma("user_version"))
    if found > known:
        raise Damaged(f"it was written by a newer Holdfast (schema {found}, this one knows {known})")
    for number, statements in enumerate(MIGRATIONS[found:], start=found + 1):
        with connection:
            connection.execute(statements)
            connection.execute(f"PRAGMA user_version = {number}")


def _generation(connection: apsw.Connection) -> int:
    row = connection.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()
    return int(row[0]) if row and str(row[0]).isdigit() else 0


def _mark(connection: apsw.Connection, *, clean: bool) -> None:
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('clean', ?)", (str(int(clean)),))


def _translate(error: apsw.Error, path: Path, code: int) -> HoldfastError:
    """`code` is the errno that SQLite met, 0 when none."""
    if isinstance(error, apsw.FullError) or (isinstance(error, apsw.IOError) and code in NO_SPACE):
        return ResourceExhausted(f"cannot write {path}: {wanting(path.parent, code or errno.ENOSPC)}")
    if isinstance(error, apsw.ReadOnlyError) or (isinstance(error, apsw.IOError) and code == errno.EROFS):
        return Unavailable(f"cannot write {path}: the filesystem of {path.parent} is read-only")
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return Damaged(f"cannot use {path}: it is damaged ({error}); the next start saves what can be read")
    if isinstance(error, apsw.BusyError):
        return FailedPrecondition(f"cannot open {path}: another process is using it")
    return Unavailable(f"cannot use {path}: {error}")


def _from_os(error: OSError, path: Path) -> HoldfastError:
    if error.errno in NO_SPACE:
        return ResourceExhausted(f"cannot save what is left of {path}: the filesystem of {path.parent} is full")
    return Unavailable(f"cannot save what is left of {path}: {error}")
