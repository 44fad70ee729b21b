"""The probes of one pod: a task for each probe of each run, which ends with the run."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Final

from holdfast.agent.plan.observed import Observed, Run, State
from holdfast.agent.plan.probes import Health, Kind, probe_of
from holdfast.agent.pod.containers import Container, Probe
from holdfast.agent.pod.env import Missing
from holdfast.agent.pod.spec import Pod
from holdfast.agent.sync import hooks
from holdfast.agent.sync.runtime import Runtime
from holdfast.model.errors import HoldfastError

log = logging.getLogger(__name__)

NS: Final = 1_000_000_000
NONE: Final[Mapping[str, int]] = MappingProxyType({})

Told = Callable[[Container, Run, Kind, str], None]  # "" for a success, else why it is none


class Prober:
    """Tells each result; what it means is plan.probes' to say. A probe that nobody can perform has no result."""

    def __init__(self, runtime: Runtime, group: asyncio.TaskGroup, told: Told, clock: Callable[[], int]) -> None:
        self._runtime = runtime
        self._group = group
        self._told = told
        self._clock = clock
        self._tasks: dict[tuple[str, Kind], asyncio.Task[None]] = {}
        self._pauses = 0
        self._asking = 0
        self._idle = asyncio.Event()

    def follow(
        self,
        pod: Pod,
        there: Observed,
        health: Callable[[str], Health],
        address: str,
        *,
        hooks: Mapping[str, int] = NONE,
        ending: bool = False,
    ) -> None:
        """Begin with what runs, and end with what does not; of a pod that is `ending` only readiness is asked.

        `hooks` has the attempts by container whose postStart hook is not through: they are not asked yet.
        """
        wanted: dict[tuple[str, Kind], tuple[Container, Run, Probe]] = {}
        for container in (*pod.spec.init_containers, *pod.spec.containers):
            run = there.latest(container.name)
            if run is None or run.state is not State.RUNNING or hooks.get(container.name) == run.attempt:
                continue
            for kind in (Kind.READINESS,) if ending else tuple(Kind):
                if (probe := probe_of(container, kind)) is not None:
                    wanted[run.id, kind] = (container, run, probe)
        for key in self._tasks.keys() - wanted.keys():
            self._tasks.pop(key).cancel()
        for key in wanted.keys() - self._tasks.keys():
            container, run, probe = wanted[key]
            work = self._repeat(container, run, key[1], probe, health, address)
            self._tasks[key] = self._group.create_task(work, name=f"{key[1].value} probe of {run.id[:13]}")

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Within it nothing is asked; it begins when nobody is waiting for an answer any more."""
        self._pauses += 1
        try:
            while self._asking:
                self._idle.clear()
                await self._idle.wait()
            yield
        finally:
            self._pauses -= 1

    def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _repeat(
        self,
        container: Container,
        run: Run,
        kind: Kind,
        probe: Probe,
        health: Callable[[str], Health],
        address: str,
    ) -> None:
        since = (self._clock() - run.started_at) / NS
        await asyncio.sleep(max(probe.initial_delay_seconds - max(since, 0), 0))
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            if kind in health(run.id).asked(container) and not self._pauses:
                self._asking += 1
                try:
                    await self._once(container, run, kind, probe, address)
                finally:
                    self._asking -= 1
                    self._idle.set()
            await asyncio.sleep(max(began + probe.period_seconds - loop.time(), 0))

    async def _once(self, container: Container, run: Run, kind: Kind, probe: Probe, address: str) -> None:
        try:
            why = await hooks.perform(probe, container, run.id, address, self._runtime, probe.timeout_seconds)
        except Missing as exc:
            why = str(exc)
        except HoldfastError as exc:
            log.info("cannot tell what the %s probe of %s says: %s", kind.value, run.id[:13], exc)
            return
        self._told(container, run, kind, why)
