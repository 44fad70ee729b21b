"""The node as it is known: one object per stored row, changed only together with its row.

Everything that is shown to clients is read from here; every change goes to the store first and becomes visible when
it is on disk. Only what has been found out (`learn`) is shown even when it cannot be written: it is true all the same,
its witnesses are kept, and it is written as soon as it can be. There is no second index: names live in the store's
unique indexes.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

import apsw

from holdfast.lifecycle.events import Events, Kind
from holdfast.lifecycle.loading import Containers, Pods, load_rows
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.tasks import in_thread
from holdfast.model.clock import Clock
from holdfast.model.errors import Damaged, HoldfastError, NotFound, ResourceExhausted, Unavailable
from holdfast.model.spec import ContainerMetadata, Intent, PodMetadata
from holdfast.model.state import ContainerState, ContainerStatus, PodState, PodStatus, moved
from holdfast.model.tally import Counter
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.store import pods as rows
from holdfast.store.copies import ContainerCopy, Copies, PodCopy
from holdfast.store.db import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOCK: Final = "clock"  # meta: ns since the epoch
EVENTS: Final = "events"  # meta: no event has a greater number

# What a change of state is to those who follow events; a sandbox is created when it is ready and not before.
POD_EVENTS: Final = {PodState.READY: (Kind.CREATED, Kind.STARTED), PodState.NOTREADY: (Kind.STOPPED,)}
CONTAINER_EVENTS: Final = {ContainerState.RUNNING: Kind.STARTED, ContainerState.EXITED: Kind.STOPPED}
# The store cannot take it at the moment.
UNWRITTEN: Final = (ResourceExhausted, Unavailable, Damaged)
WRITE_FIRST: Final = 0.25  # seconds until what could not be written is tried again
WRITE_LONGEST: Final = 5.0


class World:
    """All pods and containers, and the only way to change one."""

    def __init__(self, store: Store, copies: Copies, clock: Clock, events: Events) -> None:
        self._store = store
        self._copies = copies
        self._events = events
        self.clock = clock
        self.pods: dict[str, Pod] = {}
        self.containers: dict[str, Container] = {}
        self._unwritten: dict[str, set[str]] = {}  # by id: what is known better than written, and intents that are over
        self.oom_kills = Counter(
            "holdfast_container_oom_kills_total", "Processes of containers that were killed for want of memory."
        )
        self.changes = 0  # how often what lists show may have become another
        self._behind = asyncio.Event()
        self.unreadable: frozenset[str] = frozenset()  # ids of rows that were set aside: unknown, which is not gone

    async def load(self) -> None:
        """Fill the world from the store; rows that cannot be read have been set aside by it."""

        def load(tx: apsw.Connection) -> tuple[Pods, Containers, list[Intent], frozenset[str]]:
            pods, containers = load_rows(tx)
            return pods, containers, rows.load_intents(tx), frozenset(key for _, key, _ in rows.quarantined(tx))

        pods, containers, intents, self.unreadable = await self._store.mend(load)
        self.clock.not_before(int(await self._store.read(lambda tx: rows.get_meta(tx, CLOCK)) or 0))
        await self._number_events()
        for pod_meta, pod_status in pods:
            self._add_pod(pod_meta, pod_status)
        for meta, status in containers:
            self._add_container(meta, status)
        for intent in intents:
            owner = self.pods.get(intent.object_id) or self.containers.get(intent.object_id)
            if owner is not None:
                owner.intents[intent.op] = intent

    async def _number_events(self) -> None:
        """Where it cannot be recorded how far the numbers may go, the next start has only the clock to go by."""
        most = self._events.begin(int(await self._store.read(lambda tx: rows.get_meta(tx, EVENTS)) or 0))
        with contextlib.suppress(*UNWRITTEN):
            await self._store.write(lambda tx: rows.set_meta(tx, EVENTS, str(most)))

    def pod(self, wanted: str) -> Pod:
        """The pod with this id or unique prefix of one. Raises NotFound."""
        return _find(self.pods, wanted, "pod sandbox")

    def container(self, wanted: str) -> Container:
        """The container with this id or unique prefix of one. Raises NotFound."""
        return _find(self.containers, wanted, "container")

    def log_directories(self) -> set[str]:
        """Where the pods' logs are."""
        return {pod.config.log_directory for pod in self.pods.values() if pod.config.log_directory}

    async def insert_pod(self, meta: PodMetadata, status: PodStatus, intent: Intent) -> Pod:
        """Reserve the name, write the record and the intent to run it, all at once. Raises AlreadyExists."""

        def insert(tx: apsw.Connection) -> None:
            rows.insert_pod(tx, meta, status)
            rows.put_intent(tx, intent)

        await self._store.write(insert)
        pod = self._add_pod(meta, status)
        pod.intents[intent.op] = intent
        return pod

    async def insert_container(self, meta: ContainerMetadata, status: ContainerStatus, intent: Intent) -> Container:
        """Reserve the name, write the record and the intent to create it, all at once. Raises AlreadyExists."""

        def insert(tx: apsw.Connection) -> None:
            rows.insert_container(tx, meta, status)
            rows.put_intent(tx, intent)

        await self._store.write(insert)
        container = self._add_container(meta, status)
        container.intents[intent.op] = intent
        return container

    async def update_pod(
        self, pod: Pod, change: Callable[[PodStatus], PodStatus], begin: Intent | None = None, end: str = ""
    ) -> None:
        """Change the status, and begin or end an operation, in one transaction."""
        known, over = pod.status, self._over(pod)

        def update(tx: apsw.Connection) -> PodStatus:
            _intents(tx, pod.meta.id, begin, {end, *(over or ())})
            return rows.update_pod(tx, pod.meta.id, lambda before: change(before if over is None else known))

        def keep(status: PodStatus, generation: int) -> None:
            if end == "run" or pod.acknowledged:
                self._copies.keep(PodCopy(generation, pod.meta, status))

        written = await self._store.write(update, keep)
        if self._overtaken(pod, known, over):
            self._show_pod(pod, change(pod.status))
        else:
            self._show_pod(pod, written)
            self._unwritten.pop(pod.meta.id, None)
        _remember(pod.intents, begin, end)

    async def learn_pod(self, pod: Pod, change: Callable[[PodStatus], PodStatus], end: str = "") -> None:
        """Change the status to what has been found out: at once, and in the store as soon as it can be."""
        try:
            await self.update_pod(pod, change, end=end)
        except UNWRITTEN as exc:
            self._show_pod(pod, change(pod.status))
            self._write_later(pod, end, exc)

    async def update_container(
        self,
        container: Container,
        change: Callable[[ContainerStatus], ContainerStatus],
        begin: Intent | None = None,
        end: str = "",
    ) -> None:
        """Change the status, and begin or end an operation, in one transaction.

        The change must be a move that the transition table allows; a recorded exit stays as it is, whoever asks.
        """

        known, over = container.status, self._over(container)

        def update(tx: apsw.Connection) -> ContainerStatus:
            _intents(tx, container.meta.id, begin, {end, *(over or ())})
            change_known = lambda before: moved(before if over is None else known, change)  # noqa: E731
            return rows.update_container(tx, container.meta.id, change_known)

        def keep(status: ContainerStatus, generation: int) -> None:
            if end == "create" or container.acknowledged:
                self._copies.keep(ContainerCopy(generation, container.meta, status))

        written = await self._store.write(update, keep)
        if self._overtaken(container, known, over):
            self._show_container(container, moved(container.status, change))
        else:
            self._show_container(container, written)
            self._unwritten.pop(container.meta.id, None)
            container.written.set()
        _remember(container.intents, begin, end)
        if end == "create":
            self._events.add(Kind.CREATED, container.pod, container)

    async def learn(
        self, container: Container, change: Callable[[ContainerStatus], ContainerStatus], end: str = ""
    ) -> None:
        """Change the status to what the witnesses prove: at once, and in the store as soon as it can be.

        Until `written` is set the witnesses have to be kept.
        """
        try:
            await self.update_container(container, change, end=end)
        except UNWRITTEN as exc:
            self._show_container(container, moved(container.status, change))
            container.written.clear()
            self._write_later(container, end, exc)

    async def catch_up(self) -> None:
        """Write what is known and could not be written, and delete the copies of what is gone, as soon as that is
        possible. Never ends.
        """
        wait = WRITE_FIRST
        while await self._behind.wait():
            await asyncio.sleep(wait)
            self._behind.clear()  # now: what is learned on the way is for the next time
            if (failed := await self._catch_up()) is None:
                wait = WRITE_FIRST
            else:
                wait = min(wait * 2, WRITE_LONGEST)
                self._behind.set()
                log.debug("what is known of %d objects cannot be written yet: %s", len(self._unwritten), failed)

    async def _catch_up(self) -> Exception | None:
        """Try each; one that cannot be written holds up no other. Returns the last failure."""
        failed: Exception | None = None
        for object_id in list(self._unwritten):
            try:
                await self._write(object_id)
            except HoldfastError as exc:
                failed = exc
        try:
            await in_thread(self._copies.finish)
        except OSError as exc:
            failed = exc
        return failed

    async def write_known(self, owner: Pod | Container) -> None:
        """Write what is known of it and not written yet. Raises ResourceExhausted, Unavailable."""
        if owner.meta.id in self._unwritten:
            await self._write(owner.meta.id)

    @property
    def unwritten(self) -> int:
        """Of how many objects more is known than is written."""
        return len(self._unwritten)

    async def begin(self, owner: Pod | Container, op: str, **data: object) -> None:
        """Record the intent to do `op`; one already recorded is replaced by the newer."""
        intent = Intent(owner.meta.id, op, self.clock.now(), data)
        await self._store.write(lambda tx: rows.put_intent(tx, intent))
        owner.intents[op] = intent

    async def intend(self, owner: Pod | Container, op: str, **data: object) -> None:
        """As `begin`, but it goes on when that cannot be recorded: for what helps a node that has no room left."""
        try:
            await self.begin(owner, op, **data)
        except UNWRITTEN as exc:
            log.warning("cannot record that %s of %s is under way, going on: %s", op, owner.meta.id, exc)
            owner.intents[op] = Intent(owner.meta.id, op, self.clock.now(), data)

    async def amend(self, owner: Pod | Container, op: str, **data: object) -> None:
        """Add to what an intent says; at once, so that of two who do it neither takes back what the other has said."""
        intent = owner.intents[op] = replace(owner.intents[op], data={**owner.intents[op].data, **data})
        try:
            await self._store.write(lambda tx: rows.put_intent(tx, intent))
        except UNWRITTEN as exc:
            log.warning("cannot record how far %s of %s is, going on: %s", op, owner.meta.id, exc)

    async def end(self, owner: Pod | Container, op: str) -> None:
        """Of an operation whose result is no change of the status."""
        if op in owner.intents:
            await self._store.write(lambda tx: rows.clear_intent(tx, owner.meta.id, op))
            owner.intents.pop(op, None)
            self.changes += 1

    def tell(self, kind: Kind, pod: Pod, container: Container | None = None, reason: str = "") -> None:
        """Tell whoever follows events of what is no change of state."""
        self._events.add(kind, pod, container, reason)

    async def delete_pod(self, pod: Pod) -> None:
        """Forget a pod of which nothing is left. Its row, name and intents go at once."""
        id = pod.meta.id
        await self._forget(id, lambda tx: rows.delete_pod(tx, id))
        pod.gone.set()
        self.changes += 1
        if self.pods.pop(pod.meta.id, None) and pod.acknowledged:
            self._events.add(Kind.DELETED, pod)

    async def delete_container(self, container: Container) -> None:
        """Forget a container of which nothing is left. Its row, name and intents go at once."""
        id = container.meta.id
        await self._forget(id, lambda tx: rows.delete_container(tx, id))
        container.gone.set()
        self.changes += 1
        there = self.containers.pop(container.meta.id, None)
        container.pod.containers.pop(container.meta.id, None)
        if there and container.acknowledged:
            self._events.add(Kind.DELETED, container.pod, container)

    async def _forget(self, id: str, delete: Callable[[apsw.Connection], None]) -> None:
        """A row that goes takes its times with it: how far the clock had come by then is kept."""
        last = str(self.clock.last)

        def change(tx: apsw.Connection) -> None:
            delete(tx)
            rows.set_meta(tx, CLOCK, last)

        await self._store.write(change, lambda *_: self._copies.drop(id))
        if self._copies.undropped:
            self._behind.set()

    def _show_pod(self, pod: Pod, status: PodStatus) -> None:
        before, pod.status = pod.state, status
        self.changes += 1
        if pod.state is not before:
            for kind in POD_EVENTS[pod.state]:
                self._events.add(kind, pod)

    def _show_container(self, container: Container, status: ContainerStatus) -> None:
        before, kills = container.state, status.oom_kills - container.status.oom_kills
        container.status = status
        self.changes += 1
        if kills > 0:
            self.oom_kills.add(by=kills)
            self._events.add(Kind.OOM, container.pod, container)
        if container.state is not before and (kind := CONTAINER_EVENTS.get(container.state)) is not None:
            self._events.add(kind, container.pod, container)
        if status.finished_at:
            container.exited.set()

    def _write_later(self, owner: Pod | Container, end: str, why: Exception) -> None:
        log.warning("what is known of %s cannot be written yet: %s", owner.meta.id, why)
        self._unwritten.setdefault(owner.meta.id, set()).add(end)
        owner.intents.pop(end, None)
        self._behind.set()

    async def _write(self, object_id: str) -> None:
        if (pod := self.pods.get(object_id)) is not None:
            await self.update_pod(pod, lambda status: status)
        elif (container := self.containers.get(object_id)) is not None:
            await self.update_container(container, lambda status: status)
        else:
            self._unwritten.pop(object_id, None)

    def _over(self, owner: Pod | Container) -> frozenset[str] | None:
        """Intents that are over and not written to be; None when all that is known of it is written."""
        over = self._unwritten.get(owner.meta.id)
        return None if over is None else frozenset(over)

    def _overtaken(self, owner: Pod | Container, known: object, over: frozenset[str] | None) -> bool:
        """Whether more has been learned of it, and not been written, since a change was handed to the store."""
        now = self._over(owner)
        return now is not None and (now != over or owner.status is not known)

    def _add_pod(self, meta: PodMetadata, status: PodStatus) -> Pod:
        pod = self.pods[meta.id] = Pod(meta, status, pb.PodSandboxConfig.FromString(meta.config))
        self.changes += 1
        self.clock.not_before(meta.created_at)
        return pod

    def _add_container(self, meta: ContainerMetadata, status: ContainerStatus) -> Container:
        pod = self.pods[meta.pod_id]
        container = Container(meta, status, pb.ContainerConfig.FromString(meta.config), pod)
        self.containers[meta.id] = pod.containers[meta.id] = container
        self.changes += 1
        container.written.set()
        self.clock.not_before(max(meta.created_at, status.started_at, status.finished_at))
        if status.finished_at:
            container.exited.set()
        return container


def _find(objects: dict[str, T], wanted: str, what: str) -> T:
    if (found := objects.get(wanted)) is not None:
        return found
    matches = [id for id in objects if wanted and id.startswith(wanted)]
    if len(matches) == 1:
        return objects[matches[0]]
    problem = "does not exist" if not matches else f"is the beginning of {len(matches)} ids"
    raise NotFound(f"cannot find {what} {wanted!r}: it {problem}")


def _intents(tx: apsw.Connection, object_id: str, begin: Intent | None, ends: set[str]) -> None:
    for end in sorted(ends - {""}):
        rows.clear_intent(tx, object_id, end)
    if begin is not None:
        rows.put_intent(tx, begin)


def _remember(intents: dict[str, Intent], begin: Intent | None, end: str) -> None:
    if begin is not None:
        intents[begin.op] = begin
    intents.pop(end, None)
