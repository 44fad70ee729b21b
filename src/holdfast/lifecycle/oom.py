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
from holdfast.lifecycle.objects import Container
from holdfast.lifecycle.tasks import Background, in_thread
from holdfast.lifecycle.world import World
from holdfast.linux import cgroup, oom, process
from holdfast.model.errors import HoldfastError
from holdfast.model.state import ContainerState
from holdfast.model.witness import InitRecord

log = logging.getLogger(__name__)

PAUSE: Final = 0.05
DYING: Final = 0.1  # who has been sent SIGKILL is seen to die within this time
CALM: Final = 0.5  # between two looks at one container, however often it is killed in


class Ooms:
    """One look at a time for each container that runs."""

    def __init__(self, world: World, background: Background, layout: Layout) -> None:
        self._world = world
        self._background = background
        self._layout = layout
        self._watched: dict[str, tuple[Container, InitRecord]] = {}  # by cgroup
        self._noticed: set[str] = set()
        self._notices: oom.Notices | None = None
        try:
            self._notices = oom.open_notices()
            asyncio.get_running_loop().add_reader(self._notices.fileno(), self._read)
        except OSError as exc:
            log.warning("OOM kills in containers are known only when these have ended: %s", exc)

    def close(self) -> None:
        if self._notices is not None:
            asyncio.get_running_loop().remove_reader(self._notices.fileno())
            self._notices.close()

    def watch(self, container: Container) -> None:
        """From now on, until it has ended."""
        if (notices := self._notices) is not None:
            self._background.see_through(f"oom {container.meta.id}", lambda: self._begin(container, notices))

    async def _begin(self, container: Container, notices: oom.Notices) -> None:
        for path in [path for path, (one, _) in self._watched.items() if one.exited.is_set()]:
            self._forget(path, notices)  # not every kernel gives notice of a cgroup that goes
        bundle = self._layout.bundle(container.pod.meta.id, container.meta.id)
        init = await in_thread(read_init, bundle)
        if init is None or init.boot_id != process.boot_id():
            return
        if self._watched.get(init.cgroup, (container, init)) != (container, init):
            self._forget(init.cgroup, notices)  # the cgroup has been made anew since
        try:
            notices.add(init.cgroup)
        except OSError as exc:
            log.info("OOM kills in container %s are known only when it has ended: %s", container.meta.id, exc)
            return
        self._watched[init.cgroup] = container, init
        await self._look(container, init, notices, 0)
        await self._follow(container, init, notices)

    def _forget(self, path: str, notices: oom.Notices) -> None:
        self._watched.pop(path, None)
        self._noticed.discard(path)
        notices.remove(path)

    def _read(self) -> None:
        assert self._notices is not None
        for path in self._notices.read():
            if path in self._watched:
                container, init = self._watched[path]
                self._noticed.add(path)
                self._background.start(f"oom {container.meta.id}", self._follow(container, init, self._notices))

    async def _follow(self, container: Container, init: InitRecord, notices: oom.Notices) -> None:
        """Look for as long as there are notices. The bundle is not asked again: it may be gone before the cgroup is."""
        while init.cgroup in self._noticed:
            self._noticed.discard(init.cgroup)
            await self._look(container, init, notices, notices.late)
            await asyncio.sleep(CALM)

    async def _look(self, container: Container, init: InitRecord, notices: oom.Notices, seconds: float) -> None:
        """Compare the counter with what is known, for as long as it may take to move."""
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            while (kills := await in_thread(cgroup.oom_kills, init.cgroup) - init.oom_kills) <= _known(container):
                if asyncio.get_running_loop().time() >= deadline:
                    return
                await asyncio.sleep(PAUSE)
        except OSError:
            self._forget(init.cgroup, notices)
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
