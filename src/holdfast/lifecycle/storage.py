"""The disks under this node: how they are, what is refused because of it, and the store's reserve brought back.

Asked for by every Status call and before whatever takes up room, so an answer is good for some seconds. Only the disk
of the root and that of the state directory are ours to spare; those of logs are looked at and reported.
"""

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.lifecycle.events import Events
from holdfast.lifecycle.tasks import apart, in_thread
from holdfast.linux import files
from holdfast.linux.patience import patience
from holdfast.model.errors import DeadlineExceeded, HoldfastError, ResourceExhausted, Unavailable
from holdfast.store.db import Store
from holdfast.store.reserve import ReserveState
from holdfast.store.space import Minimum, amount, lacking, named, require, translate

log = logging.getLogger(__name__)

FRESH_SECONDS: Final = 2.0  # for which a finding is good
LOOK_SECONDS: Final = 2.0  # a disk that does not answer in that time is said not to
WATCH_SECONDS: Final = 5.0  # between looks when nobody asks
NOT_SUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})

FULL: Final = "StorageFull"
INODES: Final = "InodesExhausted"
READ_ONLY: Final = "StorageReadOnly"
FAILED: Final = "StorageFailed"
BEHIND: Final = "RecordsUnwritten"


@dataclass(frozen=True, slots=True)
class Disk:
    """One filesystem in use: by what it is used, where, and what is wrong with it ("" for nothing)."""

    use: str
    path: str
    reason: str
    message: str
    free_bytes: int = 0
    free_inodes: int = 0


class Storage:
    """Looks at the filesystems of root, state and logs."""

    def __init__(
        self,
        store: Store,
        root: Path,
        state: Path,
        logs: Callable[[], Iterable[str]],
        minimum: Minimum,
        events: Events,
    ) -> None:
        self._store = store
        self._events = events
        self._root = root
        self._state = state
        self._logs = logs
        self._minimum = minimum
        self._found: list[Disk] = []
        self._found_at = -FRESH_SECONDS
        self._looking: asyncio.Task[list[Disk]] | None = None
        self._reported: dict[str, str] = {}
        self.reserve: ReserveState | None = None  # of the store, as it was seen last

    async def require(self, what: str) -> None:
        """Raise ResourceExhausted when there is too little room to begin anything new: "cannot <what>: ..."."""
        for directory in (self._root, self._state):
            await in_thread(require, directory, self._minimum, what)

    async def require_room(self, room: Mapping[Path, int], what: str) -> None:
        """The same, with so many bytes in each of these directories besides; those of one filesystem add up."""
        await apart(_require_room, room, self._minimum, what)

    def named(self, what: str) -> AbstractContextManager[None]:
        """An operation on our disks: an OSError for want of room is turned into an error that says so."""
        return named(self._root, what)

    @asynccontextmanager
    async def blamed(self, what: str) -> AsyncIterator[None]:
        """Work that a runtime does: if it fails and a disk of ours takes nothing, then it is that which is at fault.

        A runtime does not always say so: crun, for one, speaks of files that do not exist.
        """
        try:
            with self.named(what):
                yield
        except (Unavailable, DeadlineExceeded, ResourceExhausted):
            raise
        except HoldfastError as exc:
            for directory in (self._root, self._state):
                if (fault := await in_thread(_fault, directory, str(exc))) is not None:
                    raise fault from exc
            raise

    async def disks(self) -> list[Disk]:
        """Every filesystem in use, once each. A disk that hangs holds nobody up: it is said to."""
        if time.monotonic() - self._found_at < FRESH_SECONDS:
            return self._found
        if self._looking is None or self._looking.done():
            logs = sorted(set(self._logs()))
            self._looking = asyncio.get_running_loop().create_task(in_thread(self._look, logs), name="look at disks")
        looking = self._looking  # by the next look somebody else may have begun another
        with contextlib.suppress(TimeoutError):
            async with patience(LOOK_SECONDS):
                await asyncio.wait([looking])
        if looking.done() and looking.exception() is None:
            self._found = looking.result()
        else:
            message = f"the disks of {self._root}, {self._state} or the logs do not answer"
            self._found = [Disk("root", str(self._root), FAILED, message)]
        self._found_at = time.monotonic()
        self._report()
        return self._found

    async def condition(self, unwritten: int) -> tuple[bool, str, str]:
        """(healthy, reason, message) of all of them together; the worst reason first."""
        wrong = [disk for disk in await self.disks() if disk.reason]
        order = (READ_ONLY, FAILED, FULL, INODES)
        wrong.sort(key=lambda disk: order.index(disk.reason))
        messages = [disk.message for disk in wrong]
        if unwritten:
            messages.append(f"more is known of {unwritten} pods and containers than could be written yet")
        reason = wrong[0].reason if wrong else BEHIND if unwritten else ""
        return not messages, reason, "; ".join(messages)

    async def watch(self) -> None:
        """Notice what becomes of the disks, and bring back what the store's reserve has lost. Never ends."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self.disks()
            try:
                await self._store.refill()
                self.reserve = await self._store.reserve_state()
            except HoldfastError as exc:
                log.debug("the reserve of the store cannot be brought back yet: %s", exc)

    @property
    def age(self) -> float:
        """How many seconds ago the disks were looked at last, or did not answer in time."""
        return time.monotonic() - self._found_at

    @property
    def found(self) -> list[Disk]:
        """What was seen last."""
        return self._found

    def _look(self, logs: list[str]) -> list[Disk]:
        found: dict[int, Disk] = {}
        places = [("root", self._root), ("state", self._state), *(("logs", Path(path)) for path in logs)]
        for use, path in places:
            try:
                seen = files.filesystem(path)
            except FileNotFoundError:  # a pod's log directory that somebody has removed
                continue
            except OSError as exc:
                found[-len(found) - 1] = Disk(use, str(path), FAILED, f"{use} {path}: {exc.strerror}")
                continue
            if seen.device not in found:
                found[seen.device] = _examine(use, path, seen, self._minimum if use != "logs" else Minimum())
        return list(found.values())

    def _report(self) -> None:
        """Say in the log, and to whoever follows events, what has changed."""
        now = {disk.path: disk.reason for disk in self._found}
        for disk in self._found:
            if disk.reason == self._reported.get(disk.path, ""):
                continue
            self._events.add_notice(disk.use, disk.path, disk.reason)
            if disk.reason:
                log.error("storage: %s", disk.message)
            else:
                log.info("storage: %s at %s is healthy again", disk.use, disk.path)
        self._reported = now


def _require_room(room: Mapping[Path, int], minimum: Minimum, what: str) -> None:
    wanted: dict[int, tuple[Path, int]] = {}
    for directory, size in room.items():
        device = files.filesystem(directory).device
        wanted[device] = directory, size + (wanted[device][1] if device in wanted else 0)
    for directory, size in wanted.values():
        require(directory, Minimum(minimum.bytes + size, minimum.inodes), what)


def _fault(directory: Path, failure: str) -> HoldfastError | None:
    """What is wrong with a disk that takes nothing, told of a failure; None for one that does."""
    try:
        files.probe_write(directory)
    except OSError as exc:
        return translate(exc, directory, failure.removeprefix("cannot "))
    return None


def _examine(use: str, path: Path, seen: files.Filesystem, minimum: Minimum) -> Disk:
    where, free = f"{use} {path}", (seen.free_bytes, seen.free_inodes)
    figures = f"{amount(seen.free_bytes)} of {amount(seen.total_bytes)} free, {seen.free_inodes} inodes free"
    if seen.read_only:
        return Disk(use, str(path), READ_ONLY, f"{where} is read-only", *free)
    if (why := lacking(seen, minimum)) is not None:
        return Disk(use, str(path), INODES if why.startswith("is out of inodes") else FULL, f"{where} {why}", *free)
    try:
        files.probe_write(path)
    except OSError as exc:
        if exc.errno in NOT_SUPPORTED:
            return Disk(use, str(path), "", "", *free)
        reason = {errno.EROFS: READ_ONLY, errno.ENOSPC: FULL, errno.EDQUOT: FULL}.get(exc.errno or 0, FAILED)
        return Disk(use, str(path), reason, f"{where} cannot be written to: {exc.strerror} ({figures})", *free)
    return Disk(use, str(path), "", "", *free)
