"""What of the node can be told at any moment from what is known of it: gauges, which nothing is measured or asked for.

They are read by another thread while the event loop works, or hangs: a dictionary is copied before it is gone through.
"""

import collections
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from holdfast import __version__
from holdfast.lifecycle.events import Events
from holdfast.lifecycle.recover import Recovery
from holdfast.lifecycle.storage import Disk, Storage
from holdfast.lifecycle.sweep import Sweeper
from holdfast.lifecycle.world import World
from holdfast.model.state import REASON_SHIM
from holdfast.model.tally import Gauge, Labels, Measure, Values, gauge
from holdfast.runtime.shims import Shims
from holdfast.store.db import Store
from holdfast.store.reserve import ReserveState


@dataclass(frozen=True, slots=True)
class Known:
    """Who knows."""

    world: World
    events: Events
    recovery: Recovery
    storage: Storage
    store: Store
    shims: Shims
    sweeper: Sweeper


def of(known: Known) -> list[Measure]:
    """All of them, and what these have counted themselves."""
    built = (__version__,)
    return [
        Gauge("holdfast_build_info", "1, with the version.", lambda: [(built, 1)], ("version",)),
        *_objects(known.world, known.shims),
        *_events(known.events),
        *_recovery(known.world, known.recovery),
        *_disks(known.storage),
        *_store(known.store, known.storage),
        known.sweeper.orphans,
        Gauge(
            "holdfast_findings", "What the last look for orphans found, but what is well.",
            lambda: known.sweeper.found.items(), ("kind", "verdict"),
        ),
    ]  # fmt: skip


def _objects(world: World, shims: Shims) -> Iterable[Measure]:
    def pods() -> Values:
        return _count(str(pod.state) for pod in world.pods.copy().values())

    def containers() -> Values:
        return _count(str(one.state) for one in world.containers.copy().values())

    def by_state() -> Values:
        """A shim that hangs is connected all the same; calls of it are under way, and time out."""
        connected = set(shims.connected())
        return _count(
            "lost" if pod.status.reason == REASON_SHIM else "connected" if id in connected else "unconnected"
            for id, pod in world.pods.copy().items()
            if pod.status.shim is not None or pod.status.reason == REASON_SHIM
        )

    yield Gauge("holdfast_pods", "Pod sandboxes, by state.", pods, ("state",))
    yield Gauge("holdfast_containers", "Containers, by state.", containers, ("state",))
    yield Gauge("holdfast_shims", "Shims that pods should have, by what is known of them.", by_state, ("state",))
    yield world.oom_kills
    yield gauge(
        "holdfast_unwritten_objects", "Pods and containers of which more is known than could be written.",
        lambda: world.unwritten,
    )  # fmt: skip


def _events(events: Events) -> Iterable[Measure]:
    yield from (events.count, events.gaps, events.cut_off)
    yield gauge("holdfast_event_ring_length", "Events that can still be followed.", lambda: events.length)
    yield gauge("holdfast_event_ring_capacity", "Events that are kept at most.", lambda: events.kept)
    yield gauge("holdfast_event_followers", "Who follows events, over the CRI or not.", lambda: events.followers)


def _recovery(world: World, recovery: Recovery) -> Iterable[Measure]:
    report = recovery.report

    def seconds() -> Values:
        known = {"served": recovery.served_after, "complete": recovery.over_after}
        return [((phase,), value) for phase, value in known.items() if value]

    def found() -> Values:
        return _count_all((one.kind, one.before, one.after) for one in report.findings.copy())

    yield Gauge(
        "holdfast_recovery_seconds",
        "From the start of the process until calls were served, and until all was settled.",
        seconds,
        ("phase",),
    )
    yield Gauge(
        "holdfast_recovery_objects",
        "What the last start found, and what became of it.",
        found,
        ("kind", "before", "after"),
    )
    yield gauge(
        "holdfast_recovery_unsettled", "Containers of which is not known yet what has become of them.",
        lambda: sum(not one.settled.is_set() and one.acknowledged for one in world.containers.copy().values()),
    )  # fmt: skip
    yield gauge("holdfast_recovery_complete", "1 once the recovery is over.", lambda: recovery.over_after > 0)
    yield gauge("holdfast_recovery_swept", "Orphans that the recovery removed.", lambda: len(report.swept))
    yield gauge("holdfast_recovery_problems", "Problems that the recovery reported.", lambda: len(report.problems))


def _disks(storage: Storage) -> Iterable[Measure]:
    """Those of logs are one here: their paths are of pods, and come and go."""

    def each() -> Iterable[tuple[Labels, Disk]]:
        return [((one.use, "" if one.use == "logs" else one.path), one) for one in storage.found.copy()]

    def healthy() -> Values:
        reasons = {labels: one.reason for labels, one in sorted(each(), key=lambda entry: entry[1].reason)}
        return [((*labels, reason), not reason) for labels, reason in reasons.items()]

    def least(of: Callable[[Disk], int]) -> Callable[[], Values]:
        return lambda: dict(sorted(((labels, of(one)) for labels, one in each()), reverse=True)).items()

    where = ("use", "path")
    yield Gauge(
        "holdfast_storage_healthy", "1 while a filesystem in use is healthy, else 0 with the reason.",
        healthy, (*where, "reason"),
    )  # fmt: skip
    yield Gauge(
        "holdfast_storage_free_bytes", "Free bytes of a filesystem in use.", least(lambda one: one.free_bytes), where
    )
    yield Gauge(
        "holdfast_storage_free_inodes", "Free inodes of a filesystem in use.", least(lambda one: one.free_inodes), where
    )
    yield gauge(
        "holdfast_storage_look_age_seconds", "How long ago the filesystems in use were looked at.", lambda: storage.age
    )


def _store(store: Store, storage: Storage) -> Iterable[Measure]:
    """Sizes are as they were at the last look, every five seconds: whoever scrapes waits for no disk."""

    def parts() -> Values:
        if (seen := storage.reserve) is None:
            return []
        held = {"pages": seen.free_bytes, "log": seen.wal_bytes, "ballast": seen.ballast_bytes}
        return [((part,), size) for part, size in held.items()]

    def seen(what: str, help: str, read: Callable[[ReserveState], int]) -> Measure:
        return Gauge(what, help, lambda: [] if storage.reserve is None else [((), read(storage.reserve))])

    yield from (store.commits, store.syncs, store.changes)
    yield gauge("holdfast_store_waiting", "Changes and queries that wait for the store.", lambda: store.waiting)
    yield gauge(
        "holdfast_store_busy_seconds", "For how long the commit that is under way has been; 0 when none is.",
        lambda: time.monotonic() - since if (since := store.busy_since) else 0,
    )  # fmt: skip
    yield seen("holdfast_store_size_bytes", "Size of the store's file.", lambda one: one.file_bytes)
    yield seen("holdfast_store_wal_size_bytes", "Size of the store's write-ahead log.", lambda one: one.wal_bytes)
    yield Gauge("holdfast_store_reserve_bytes", "Bytes that the store can write without a new block.", parts, ("part",))
    yield seen(
        "holdfast_store_reserve_missing_bytes", "What the store's reserve is short of.", lambda one: one.missing_bytes
    )
    yield seen(
        "holdfast_store_reserve_in_use", "1 while the store's ballast is given away.", lambda one: not one.ballast_bytes
    )


def _count(words: Iterable[str]) -> Values:
    return _count_all((word,) for word in words)


def _count_all(labels: Iterable[Labels]) -> Values:
    return collections.Counter(labels).items()
