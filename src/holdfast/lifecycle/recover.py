"""Recovery at start-up: ordinary code, phases in order, each object under its own deadline. Unknown is not gone.

`load` reads the rows and needs no shim, no disk space and no time; the socket is served right after it. `settle`
brings each object to the state its witnesses prove and finishes or undoes what was under way. `sweep` removes what
no row owns. Running all of it twice changes nothing; being killed in the middle is recovered by the next start.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from holdfast.lifecycle.adopt import Adopter
from holdfast.lifecycle.archives import OP as CHECKPOINT
from holdfast.lifecycle.container_checkpoints import ContainerCheckpoints
from holdfast.lifecycle.containers import Containers
from holdfast.lifecycle.execute import Executor
from holdfast.lifecycle.limits import UPDATE, Limits
from holdfast.lifecycle.monitor import Monitor
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.pod_checkpoints import PodCheckpoints
from holdfast.lifecycle.pods import RESTORE, Pods
from holdfast.lifecycle.sessions import Sessions
from holdfast.lifecycle.stop import Stopper
from holdfast.lifecycle.sweep import Sweeper
from holdfast.lifecycle.tasks import RETRY_LONGEST, Background
from holdfast.lifecycle.world import World
from holdfast.linux import process
from holdfast.linux.inject import crashpoint
from holdfast.linux.patience import patience
from holdfast.model.errors import HoldfastError, Unavailable
from holdfast.model.settle import Action
from holdfast.model.state import REASON_REBOOT, REASON_SHIM, ContainerState, PodState, ProcessRef
from holdfast.runtime.keeper import Keeper
from holdfast.store import pods as rows
from holdfast.store.db import Store

log = logging.getLogger(__name__)

OBJECT_SECONDS: Final = 10.0
EXITED_AT_ONCE: Final = 8  # of one pod
UNDO_LONGEST: Final = 5.0  # between attempts to undo a checkpoint under a shim that does not answer
SWEEP_LONGEST: Final = 300.0  # between attempts to remove an orphan that cannot be removed
SAVE_LONGEST: Final = 10.0  # between attempts to write the report to a disk that is full
EXECS_LONGEST: Final = 3.0  # between attempts to end what is executed under a shim that does not answer


@dataclass(slots=True)
class Finding:
    """What became of one object."""

    kind: str
    id: str
    name: str
    before: str
    after: str
    why: str
    milliseconds: float


@dataclass(slots=True)
class Report:
    """One recovery: what was found, what was settled and why, how long it took."""

    boot_id: str
    started_at: int
    rebooted: bool = False
    pods: int = 0
    containers: int = 0
    load_milliseconds: float = 0.0
    total_milliseconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    swept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps({**_plain(self), "findings": [_plain(one) for one in self.findings]})


class Recovery:
    """Brings the node's objects to their true state."""

    def __init__(
        self,
        store: Store,
        world: World,
        keeper: Keeper,
        monitor: Monitor,
        stopper: Stopper,
        containers: Containers,
        pods: Pods,
        executor: Executor,
        sweeper: Sweeper,
        background: Background,
        adopter: Adopter,
        limits: Limits,
        sessions: Sessions,
        checkpoints: ContainerCheckpoints,
        pod_checkpoints: PodCheckpoints,
        rebuilt: list[str],
    ) -> None:
        self._checkpoints = checkpoints
        self._pod_checkpoints = pod_checkpoints
        self._sessions = sessions
        self._limits = limits
        self._adopter = adopter
        self._store = store
        self._world = world
        self._keeper = keeper
        self._monitor = monitor
        self._stopper = stopper
        self._containers = containers
        self._pods = pods
        self._executor = executor
        self._sweeper = sweeper
        self._background = background
        self._rebuilt = rebuilt
        self.afterwards: Callable[[], Coroutine[Any, Any, None]] | None = None  # when all is settled; nobody waits
        self.report = Report(process.boot_id(), time.time_ns())
        self._began = time.monotonic()
        self.served_after = self.over_after = 0.0  # seconds from the daemon's start; 0 until then

    async def load(self) -> None:
        """Phase 1: the rows, and whether the node was rebooted since they were written."""
        began = time.monotonic()
        await self._world.load()
        before = await self._store.read(lambda tx: rows.get_meta(tx, "boot_id"))
        self.report.problems += dict.fromkeys([*self._store.salvaged, *self._rebuilt])
        aside = await self._store.read(rows.quarantined)
        self.report.problems += [f"row {key} of {table} was set aside: {reason}" for table, key, reason in aside]
        self.report.rebooted = before not in ("", self.report.boot_id)
        self.report.pods, self.report.containers = len(self._world.pods), len(self._world.containers)
        workers = {worker.id: worker for worker in (await self._keeper.holdings())[0] if worker.kind == "shim"}
        for pod in self._world.pods.values():
            if pod.status.shim is None and (worker := workers.get(pod.meta.id)):
                # Forked, but the daemon was gone before it could write that down.
                pod.status = replace(pod.status, shim=ProcessRef(worker.pid, worker.start_time, self.report.boot_id))
        self.report.load_milliseconds = _since(began)
        crashpoint("recover.loaded")

    def living_pods(self) -> frozenset[str]:
        """Ids of pods that are not stopped: whatever is kept for them is needed."""
        return frozenset(id for id, pod in self._world.pods.items() if not pod.status.stopped_at)

    def last_report(self) -> str:
        """The report of this start as JSON; while recovery runs it tells what is known so far."""
        return self.report.to_json()

    async def run(self) -> None:
        """Phases 2 to 5, while the API is served."""
        self._resume("sessions", self._sessions.recover, EXECS_LONGEST)
        async with asyncio.TaskGroup() as group:
            for pod in list(self._world.pods.values()):
                group.create_task(self._with_containers(pod), name=f"recover pod {pod.meta.id} and its containers")
        crashpoint("recover.settled")
        if not self._store.salvaged:
            await self._sweep()
        else:
            await self._regain_trust()
        crashpoint("recover.swept")
        if self.afterwards is not None:
            self._background.start("networks", self.afterwards())
        self.report.total_milliseconds = _since(self._began)
        self.over_after = process.age()
        text = self.report.to_json()
        boot_id = self.report.boot_id

        def save(tx: Any) -> None:
            rows.save_report(tx, text)
            rows.set_meta(tx, "boot_id", boot_id)

        self._background.see_through("save of the recovery report", lambda: self._save(save), SAVE_LONGEST)
        log.info(
            "recovered %d pods and %d containers in %.0f ms, swept %d orphans, %d problems",
            self.report.pods,
            self.report.containers,
            self.report.total_milliseconds,
            len(self.report.swept),
            len(self.report.problems),
        )

    async def _sweep(self) -> None:
        problems: list[str] = []
        self.report.swept += await self._sweeper.sweep(problems)
        self.report.problems += problems
        if problems:
            self._resume("sweep what is left of the orphans", self._sweep_again, SWEEP_LONGEST)

    async def _sweep_again(self) -> None:
        problems: list[str] = []
        await self._sweeper.sweep(problems)
        if problems:
            raise Unavailable("; ".join(problems))

    async def _regain_trust(self) -> None:
        """Rows were lost, and what has none may be what they were lost of: it is swept only if somebody says so."""
        orphans = (await self._sweeper.examine()).orphans
        self.report.problems += [f"{orphan} has no owner and was left: its row may be lost" for orphan in orphans]
        if not orphans:
            await self._store.trust()

    async def _save(self, save: Callable[[Any], None]) -> None:
        await self._store.write(save)
        crashpoint("recover.saved")

    async def _with_containers(self, pod: Pod) -> None:
        """A pod's containers, all at once, and then the pod; other pods do not wait for it.

        Those that have exited, of which there may be thousands, go some at a time: a deadline is for who is sick, not
        for who waits for his turn.
        """
        turns = asyncio.Semaphore(EXITED_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for container in list(pod.containers.values()):
                name = f"recover container {container.meta.id}"
                turn = turns if container.status.finished_at else contextlib.nullcontext()
                group.create_task(self._in_turn(turn, name, container), name=name)
        await self._one(f"recover pod {pod.meta.id}", self._pod(pod))

    async def _in_turn(self, turn: AbstractAsyncContextManager[None], what: str, container: Container) -> None:
        async with turn:
            await self._one(what, self._container(container))

    async def _one(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """One object under its own deadline; whatever goes wrong with it is its own trouble."""
        try:
            async with patience(OBJECT_SECONDS):
                await work
        except Exception as exc:
            reason = f"no end after {OBJECT_SECONDS:g} s" if isinstance(exc, TimeoutError) else str(exc)
            self.report.problems.append(f"cannot {what}: {reason}")
            log.warning("cannot %s: %s", what, reason, exc_info=not isinstance(exc, (OSError, HoldfastError)))

    async def _container(self, container: Container) -> None:
        began, before, doing = time.monotonic(), str(container.state), sorted(container.intents)
        forsaken = self._executor.forsaken(container)
        try:
            after, why = await self._settle(container, forsaken)
        except BaseException:
            # It stays listed with its last durable status until it can be settled, and what was under way is finished.
            self._resume(f"settle {container.meta.id} again", lambda: self._settle_late(container, forsaken))
            raise
        why = f"{' and '.join(doing)} under way: {why}" if doing else why
        name = container.meta.name
        self.report.findings.append(Finding("container", container.meta.id, name, before, after, why, _since(began)))

    async def _settle(self, container: Container, forsaken: list[str]) -> tuple[str, str]:
        """Settle, and go on with what was under way. Returns what became of it, and why."""
        try:
            await self._adopter.ensure(container.pod)
            found = await self._monitor.settle(container)
        finally:
            container.settled.set()
        after = str(container.state)
        if CHECKPOINT in container.intents:
            name = f"undo checkpoint {container.meta.id}"
            self._resume(name, lambda: self._checkpoints.undo(container), UNDO_LONGEST)
        if Action.UNDO_CREATE in found.actions:
            await self._containers.undo_create(container)
            after = "undone"
        elif Action.FINISH_REMOVE in found.actions:
            self._resume(f"remove {container.meta.id}", lambda: self._finish_remove(container))
            after = "removing"
        elif Action.RESUME_STOP in found.actions:
            self._stopper.resume(container)
        elif "stop" in container.intents:
            await self._world.end(container, "stop")
        if UPDATE in container.intents:
            self._limits.see_to(container)
        if forsaken:
            await self._see_to_execs(container, forsaken, answers=Action.PROBE not in found.actions)
        return after, found.why

    async def _see_to_execs(self, container: Container, forsaken: list[str], *, answers: bool) -> None:
        """End them now if that can be; a shim that does not answer, or is just starting one, is asked again."""
        try:
            if answers:
                await self._end_execs(container, forsaken)
                return
        except (OSError, HoldfastError) as exc:
            log.info("cannot end what is executed in %s yet: %s", container.meta.id, exc)
        self._resume(f"end execs {container.meta.id}", lambda: self._end_execs(container, forsaken), EXECS_LONGEST)

    async def _end_execs(self, container: Container, forsaken: list[str]) -> None:
        """What is executed for a client that went with an earlier daemon is ended."""
        while forsaken and container.state is ContainerState.RUNNING:
            await self._executor.end(container, forsaken[0])
            self.report.swept.append(f"exec {forsaken.pop(0)} in container {container.meta.id}")

    async def _settle_late(self, container: Container, forsaken: list[str]) -> None:
        if container.meta.id in self._world.containers:
            await self._settle(container, forsaken)

    async def _finish_remove(self, container: Container) -> None:
        if container.meta.id in self._world.containers:
            await self._containers.finish_remove(container)

    async def _pod(self, pod: Pod) -> None:
        began, before = time.monotonic(), str(pod.state)
        why = "its shim is alive"
        if "run" in pod.intents:
            await self._pods.undo_run(pod)
            self._found(pod, before, "undone", "run under way: it was never acknowledged", began)
            return
        if CHECKPOINT in pod.intents:
            name = f"undo checkpoint {pod.meta.id}"
            self._resume(name, lambda: self._pod_checkpoints.undo(pod), UNDO_LONGEST)
        if self.report.rebooted:
            gone = lambda status: replace(status, ready=False, shim=None, netns=status.netns, reason=REASON_REBOOT)  # noqa: E731
            await self._world.learn_pod(pod, gone)
            why = "the node was rebooted"
        elif not pod.status.stopped_at and not await self._adopter.ensure(pod):
            why = "its shim is gone and could not be replaced"
            if pod.state is PodState.READY:
                lost = lambda status: replace(status, ready=False, reason=REASON_SHIM)  # noqa: E731
                await self._world.learn_pod(pod, lost)
        self._pods.watch(pod)
        after = str(pod.state)
        if "remove" in pod.intents or RESTORE in pod.intents:
            self._resume(f"remove pod {pod.meta.id}", lambda: self._pods.finish_remove(pod))
            why = "remove under way: it is finished" if "remove" in pod.intents else "it was never restored as a whole"
            after = "removing"
        elif "stop" in pod.intents:
            self._resume(f"stop pod {pod.meta.id}", lambda: self._pods.finish_stop(pod))
            after, why = "stopping", "stop under way: it is finished"
        elif UPDATE in pod.intents:
            self._limits.see_to_pod(pod)
            why = f"{why}; an update was under way, and its limits are put back"
        self._found(pod, before, after, why, began)

    def _resume(self, name: str, step: Callable[[], Awaitable[object]], longest: float = RETRY_LONGEST) -> None:
        self._background.see_through(name, step, longest)

    def _found(self, pod: Pod, before: str, after: str, why: str, began: float) -> None:
        self.report.findings.append(Finding("pod", pod.meta.id, pod.meta.name, before, after, why, _since(began)))


def _plain(one: Report | Finding) -> dict[str, Any]:
    """One level of it: dataclasses.asdict copies every string, and of a thousand pods that takes a while."""
    return {field.name: getattr(one, field.name) for field in fields(one)}


def _since(began: float) -> float:
    return round((time.monotonic() - began) * 1000, 2)
