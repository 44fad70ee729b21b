"""OOM kills as they happen, told apart: those that a container's init outlives are no reason for its end.

The daemon listens at the cgroups itself, so that it is the same for every kind of shim, and looks once when it begins,
so that nothing is missed while it was down. What the init has outlived is written into the status; an exit counts only
what came after. How many were killed by then is read by whoever writes the exit down, before the cgroup goes.
"""

import asyncio
import logging
from dataclasses import replace
from typing import Final

from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.monitor import read_init
from holdfast.lifecycle.tasks import Background, in_thread
from holdfast.lifecycle.world import Container, World
from holdfast.linux import cgroup, oom, process
from holdfast.model.errors import HoldfastError
from holdfast.model.state import ContainerState
from holdfast.model.witness import InitRecord

log = logging.getLogger(__name__)

COUNTED_SECONDS: Final = 1.0  # within which a kill that was announced is counted
PAUSE: Final = 0.05
DYING: Final = 0.1  # who has been sent SIGKILL is seen to die within this time
CALM: Final = 0.5  # between two looks at one container, however often it is killed in


class Ooms:
    """One look at a time for each container that runs."""

    def __init__(self, world: World, background: Background, layout: Layout) -> None:
        self._world = world
        self._background = background
        self._layout = layout
        self._notices = oom.open_notices()
        self._watched: dict[str, Container] = {}  # by cgroup
        self._noticed: set[str] = set()
        asyncio.get_running_loop().add_reader(self._notices.fileno(), self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._notices.fileno())
        self._notices.close()

    def watch(self, container: Container) -> None:
        """From now on, until its cgroup is gone."""
        self._background.start(f"oom {container.meta.id}", self._begin(container))

    async def _begin(self, container: Container) -> None:
        bundle = self._layout.bundle(container.pod.meta.id, container.meta.id)
        init = await in_thread(read_init, bundle)
        if init is None or init.boot_id != process.boot_id():
            return
        try:
            self._notices.add(init.cgroup)
        except OSError as exc:
            log.info("OOM kills in container %s are known only when it has ended: %s", container.meta.id, exc)
            return
        self._watched[init.cgroup] = container
        await self._look(container, init, noticed=False)
        while init.cgroup in self._noticed:
            self._noticed.discard(init.cgroup)
            await self._look(container, init, noticed=True)
            await asyncio.sleep(CALM)

    def _read(self) -> None:
        for path in self._notices.read():
            if (container := self._watched.get(path)) is not None:
                self._noticed.add(path)
                self.watch(container)

    async def _look(self, container: Container, init: InitRecord, *, noticed: bool) -> None:
        deadline = asyncio.get_running_loop().time() + (COUNTED_SECONDS if noticed else 0)
        try:
            while (kills := await in_thread(cgroup.oom_kills, init.cgroup) - init.oom_kills) <= _known(container):
                if asyncio.get_running_loop().time() >= deadline:
                    return
                await asyncio.sleep(PAUSE)
        except OSError:
            self._notices.remove(init.cgroup)
            self._watched.pop(init.cgroup, None)
            return
        for _ in range(2):
            if await in_thread(process.is_dying, init.pid, init.start_time):
                return  # its exit will tell
            await asyncio.sleep(DYING / 2)
        if container.state is not ContainerState.RUNNING:
            return
        try:
            await self._world.learn(container, lambda now: replace(now, oom_kills=max(kills, now.oom_kills)))
            log.info("container %s: %d of its processes were OOM-killed, its init lives", container.meta.id, kills)
        except HoldfastError as exc:
            log.warning("cannot write down OOM kills of container %s: %s", container.meta.id, exc)


def _known(container: Container) -> int:
    return container.status.oom_kills
