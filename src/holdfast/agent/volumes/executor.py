"""Does what was planned: one operation at a volume at a time, each in a thread, so that what hangs holds up no other.

What becomes of them is the actual state of the world, which only the event loop's thread touches.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from holdfast.agent.volumes import operations, plan
from holdfast.agent.volumes.operations import Kept
from holdfast.agent.volumes.paths import Key, Paths
from holdfast.agent.volumes.plan import Attempt, Operation, SetUp, TearDown, World
from holdfast.agent.volumes.world import Actual, State
from holdfast.linux.mount import MountEntry
from holdfast.linux.threads import in_thread

log = logging.getLogger(__name__)

SLOW: Final = 5.0  # seconds from which on an operation is told of
MOST_EVENTS: Final = 20  # remembered of a pod
MOST_PODS: Final = 256  # of which events are remembered


class Changes:
    """Something to wait for that happens again and again."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def until(self, is_so: Callable[[], bool], seconds: float) -> bool:
        """Whether it became so in time; looked at now, and after each change."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not is_so():
                    await self._next.wait()
        return is_so()


@dataclass(frozen=True, slots=True)
class Work:
    what: str
    since: float  # on the monotonic clock


class Executor:
    """`volumes`, `busy` and `attempts` are what the planner sees."""

    def __init__(self, paths: Paths) -> None:
        self.volumes: dict[Key, Actual] = {}
        self.busy: dict[Key, Work] = {}
        self.attempts: dict[Key, Attempt] = {}
        self.changes = Changes()
        self._paths = paths
        self._events: dict[str, deque[str]] = {}

    @property
    def world(self) -> World:
        return World(self.volumes, self.busy, self.attempts)

    def begin(self, operation: Operation) -> None:
        """The volume is busy from now on, and until `run` has ended."""
        key = operation.key
        assert key not in self.busy
        found = self.volumes.get(key, Actual())
        if isinstance(operation, TearDown):
            self.busy[key] = Work("torn down", time.monotonic())
            self.volumes[key] = replace(found, state=State.UNCERTAIN)
        else:
            self.busy[key] = Work("set up", time.monotonic())
            self.volumes[key] = replace(found, shape=operation.wanted.shape)

    async def run(self, operation: Operation) -> None:
        key = operation.key
        try:
            await (self._tear_down(key) if isinstance(operation, TearDown) else self._set_up(operation))
            self.attempts.pop(key, None)
        except (Kept, OSError, ValueError) as exc:
            self._has_failed(key, _words(exc))
        except Exception as exc:  # of one volume, which is no reason to leave the others alone
            log.exception("volume %s of pod %s cannot be %s", key.name, key.uid, self.busy[key].what)
            self._has_failed(key, f"{type(exc).__name__}: {exc}")
        finally:
            del self.busy[key]
            self.changes.tell()

    async def _set_up(self, operation: SetUp) -> None:
        wanted = operation.wanted
        path = await in_thread(operations.set_up, self._paths, wanted)
        self.volumes[wanted.key] = Actual(State.READY, wanted.shape, wanted.version, path)

    async def _tear_down(self, key: Key) -> None:
        try:
            detached = await in_thread(operations.tear_down, self._paths, key)
        except Kept as exc:
            self.has_detached(key, exc.detached)
            raise
        self.has_detached(key, detached)
        del self.volumes[key]

    def _has_failed(self, key: Key, why: str) -> None:
        before = self.attempts.get(key)
        self.attempts[key] = plan.failed(before, time.monotonic_ns(), why)
        if before is None or before.why != why:  # not again and again the same
            log.warning("volume %s of pod %s cannot be %s: %s", key.name, key.uid, self.busy[key].what, why)

    def has_detached(self, key: Key, detached: Iterable[MountEntry]) -> None:
        """Tell it."""
        for one in detached:
            what = f"detached what was mounted in volume {key.name}: {one.target} ({one.fstype} from {one.source})"
            log.warning("pod %s: %s", key.uid, what)
            self.remember(key.uid, what)

    def remember(self, uid: str, event: str) -> None:
        events = self._events.pop(uid, None) or deque(maxlen=MOST_EVENTS)
        events.append(event)
        self._events[uid] = events  # at the end: the pods of which nothing was told for longest are forgotten first
        for one in list(self._events)[:-MOST_PODS]:
            del self._events[one]

    def events(self, uid: str) -> list[str]:
        return list(self._events.get(uid, ()))

    @contextlib.asynccontextmanager
    async def alone(self, key: Key, what: str) -> AsyncIterator[None]:
        """Nobody else is at work at this volume meanwhile."""
        while key in self.busy:
            await self.changes.until(lambda: key not in self.busy, SLOW)
        self.busy[key] = Work(what, time.monotonic())
        try:
            yield
        finally:
            del self.busy[key]
            self.changes.tell()

    def forget_attempts(self, wanted: Iterable[Key]) -> None:
        """Of what is neither wanted nor there any more."""
        known = {*self.volumes, *self.busy, *wanted}
        for key in [key for key in self.attempts if key not in known]:
            del self.attempts[key]

    def words(self, key: Key) -> str:
        """What keeps a volume from being as it should be; "" for nothing that is known of."""
        if (attempt := self.attempts.get(key)) is not None:
            return attempt.why
        if (work := self.busy.get(key)) is not None and (lasts := time.monotonic() - work.since) > SLOW:
            return f"is being {work.what} for {lasts:.0f} s: the kernel does not answer"
        return ""


def _words(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
    return str(exc)
