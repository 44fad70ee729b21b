"""What has happened, in order: a ring that producers never wait for and any number of readers follow.

A reader has nothing but a number, the last event that it has seen. Who falls behind the ring, or asks for what was
before it, is told of the gap and has to list anew. Numbers only grow, across restarts of the daemon and whatever the
wall clock does: a daemon begins at the time of its start in ns or, if that is not after all that earlier ones were
allowed to hand out, after that.
"""

import asyncio
import collections
import copy
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Final

from holdfast.lifecycle.objects import Container, Pod
from holdfast.model.clock import Clock
from holdfast.model.tally import Counter
from holdfast.model.words import readable

KEEP: Final = 4096
MOST: Final = 1 << 32  # events of one daemon


class Kind(IntEnum):
    """As the CRI numbers them; it has no word for the others."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3
    CLEANED = 4  # of a container that has stopped: nothing of its task is left
    OOM = 6  # of a container: the kernel has killed one of its processes for want of memory
    ADOPTED = 5  # of a pod: its shim was dead, and another one has taken over
    DETACHED = 7  # of a pod: something that others had mounted in one of its volumes, told as the reason


CRI_KINDS: Final = frozenset({Kind.CREATED, Kind.STARTED, Kind.STOPPED, Kind.DELETED})


@dataclass(frozen=True, slots=True)
class Happening:
    """Something became of the container, or sandbox, `id`. Pod and containers are as they were right then."""

    number: int
    at: int  # ns since the epoch
    kind: Kind
    id: str
    pod: Pod
    container: Container | None  # whose event it is, when it is not the sandbox's
    containers: tuple[Container, ...]
    reason: str = ""  # more than the status says


@dataclass(frozen=True, slots=True)
class Notice:
    """A filesystem that the node uses has become unhealthy, for a reason, or healthy again."""

    number: int
    at: int  # ns since the epoch
    use: str  # root, state or logs
    path: str
    reason: str  # as the condition StorageHealthy has it; "" once it is well again


@dataclass(frozen=True, slots=True)
class Gap:
    """What a reader cannot be told any more: it has seen all up to `seen`, and goes on behind `until`."""

    seen: int
    until: int


class Events:
    """The ring."""

    def __init__(self, clock: Clock, keep: int = KEEP) -> None:
        self._clock = clock
        self._ring: collections.deque[Happening | Notice] = collections.deque(maxlen=keep)
        self._more = asyncio.Event()
        self._closed = False
        self.last = clock.now()
        self.kept = keep
        self.followers = 0
        self.count = Counter("holdfast_events_total", "Events, by what they tell.", ("kind",))
        self.gaps = Counter("holdfast_event_gaps_total", "How often a follower of events was behind the ring.")
        self.cut_off = Counter(
            "holdfast_event_followers_cut_off_total", "Followers over the CRI that were behind the ring, and cut off."
        )

    def begin(self, earlier: int) -> int:
        """Begin after what `earlier` daemons may have handed out; returns what this one may have in the end."""
        self.last = max(self.last, earlier)
        return self.last + MOST

    def add(self, kind: Kind, pod: Pod, container: Container | None = None, reason: str = "") -> None:
        """Tell whoever listens. Statuses are replaced, never changed, so that a shallow copy stays as it is."""
        self.last += 1
        about = copy.copy(container) if container is not None else None
        subject = (about or pod).meta.id
        containers = tuple(copy.copy(one) for one in pod.containers.values() if one.acknowledged)
        now, about_pod = self._clock.now(), copy.copy(pod)
        said = readable(reason)
        self._ring.append(Happening(self.last, now, kind, subject, about_pod, about, containers, said))
        self.count.add(kind.name.lower())
        self._wake()

    def add_notice(self, use: str, path: str, reason: str) -> None:
        """Tell whoever listens of a filesystem."""
        self.last += 1
        self._ring.append(Notice(self.last, self._clock.now(), use, readable(path), reason))
        self.count.add("storage")
        self._wake()

    @property
    def length(self) -> int:
        """How many events are in the ring."""
        return len(self._ring)

    def close(self) -> None:
        """There will be no more: readers come to their end."""
        self._closed = True
        self._wake()

    async def follow(self, seen: int, *, wait: bool = True) -> AsyncIterator[Happening | Notice | Gap]:
        """All that happens after number `seen`; `last` is where the present begins, and the end if not to `wait`."""
        self.followers += 1
        try:
            async for one in self._follow(seen, wait):
                yield one
        finally:
            self.followers -= 1

    async def _follow(self, seen: int, wait: bool) -> AsyncIterator[Happening | Notice | Gap]:
        while not self._closed:
            first = self._ring[0].number if self._ring else self.last + 1
            if seen + 1 < first:
                self.gaps.add()
                yield Gap(seen, first - 1)
                seen = first - 1
            elif seen < self.last:
                happening = next(islice(self._ring, seen + 1 - first, None))
                yield happening
                seen = happening.number
            elif wait:
                await self._more.wait()
            else:
                return

    def _wake(self) -> None:
        """Whoever waits now is woken; whoever comes later waits for the next."""
        self._more.set()
        self._more = asyncio.Event()
