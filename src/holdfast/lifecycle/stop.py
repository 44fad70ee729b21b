"""Stopping a container is a durable intent: signal, deadline and sent-at survive a restart.

A deadline only ever shortens. A client that goes away changes nothing. SIGKILL is sent once, at the deadline.
Times are in ns on the boot-time clock, which neither jumps nor stops while the machine is suspended. The intent has

    boot_id, deadline, signal   the stop signal's number; written before anything is sent
    sent_at, killed_at          when the stop signal and SIGKILL were sent; written right after
    survived                    the cgroup's OOM counter right before SIGKILL: what it says is not the init's end

After, because a signal that is on record but was never sent would be lost, and with it the container's time to end
well. So a daemon that dies between the two sends it again, and in no other case.
"""

import asyncio
import contextlib
import logging
import signal
import time
from typing import Final

from holdfast.lifecycle.cleanup import Cleanup
from holdfast.lifecycle.objects import Container, container_cgroup
from holdfast.lifecycle.tasks import Background, in_thread
from holdfast.lifecycle.world import World
from holdfast.linux import cgroup, process
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import DeadlineExceeded
from holdfast.model.spec import Intent
from holdfast.model.state import ContainerState, ProcessRef
from holdfast.oci.signals import signal_number

log = logging.getLogger(__name__)

KILL_SECONDS: Final = 10.0  # how long a client waits after SIGKILL before it is told that the process does not die
NS: Final = 1_000_000_000


class Stopper:
    """Sends what a stop needs, one background task per container being stopped."""

    def __init__(self, world: World, cleanup: Cleanup, background: Background) -> None:
        self._world = world
        self._cleanup = cleanup
        self._background = background
        self._sooner: dict[str, asyncio.Event] = {}

    async def stop(self, container: Container, seconds: float) -> None:
        """Stop within `seconds`, then kill; returns when the exit is known. What does not run is stopped already.

        Raises DeadlineExceeded when the process outlives even SIGKILL; the stop goes on.
        """
        if container.state not in (ContainerState.RUNNING, ContainerState.UNKNOWN):
            return
        deadline = _now() + int(max(seconds, 0) * NS)
        before = container.intents.get("stop")
        if before is None:
            number = signal_number(container.meta.stop_signal)
            await self._world.intend(container, "stop", deadline=deadline, boot_id=process.boot_id(), signal=number)
            crashpoint("stop.recorded")
        elif deadline < _deadline(before):
            await self._world.amend(container, "stop", deadline=deadline)
        self.resume(container)
        if event := self._sooner.get(container.meta.id):
            event.set()
        await self._wait_exited(container, max(seconds, 0) + KILL_SECONDS)

    def resume(self, container: Container) -> None:
        """See to it that somebody carries out the recorded intent."""
        self._background.see_through(f"stop {container.meta.id}", lambda: self._carry_out(container))

    async def _wait_exited(self, container: Container, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await container.exited.wait()
        except TimeoutError as exc:
            pid = container.status.process.pid if container.status.process else 0
            why = f"pid {pid} is in state {process.state(pid)!r} after SIGKILL" if pid else "its process is not known"
            stuck = await in_thread(_stuck, container)
            raise DeadlineExceeded(f"cannot stop container {container.meta.id} yet: {stuck or why}") from exc

    async def held_up(self, container: Container) -> str:
        """Why a container does not end that was sent SIGKILL; "" when that is not known, or not so."""
        stop = container.intents.get("stop")
        if stop is None or not stop.data.get("killed_at") or container.exited.is_set():
            return ""
        stuck = await in_thread(_stuck, container)
        return f"it was sent SIGKILL, but {stuck}" if stuck else ""

    async def _carry_out(self, container: Container) -> None:
        sooner = self._sooner[container.meta.id] = asyncio.Event()
        try:
            intent = container.intents["stop"]
            if not intent.data.get("sent_at") and _deadline(intent) > _now():
                await self._send(container, signal_number(container.meta.stop_signal))
                crashpoint("stop.signalled")
                await self._world.amend(container, "stop", sent_at=_now())
                crashpoint("stop.noted")
            while not container.exited.is_set() and (left := _deadline(container.intents["stop"]) - _now()) > 0:
                sooner.clear()
                await _first(container.exited, sooner, left / NS)
            if not container.exited.is_set() and not container.intents["stop"].data.get("killed_at"):
                if (survived := await in_thread(_survived, container.status.process)) > 0:
                    await self._world.amend(container, "stop", survived=survived)
                await self._send(container, signal.SIGKILL)
                crashpoint("stop.killed")
                await in_thread(_let_die, container)
                if container.status.process is None:
                    await self._cleanup.kill(container)
                await self._world.amend(container, "stop", killed_at=_now())
            await container.exited.wait()
            crashpoint("stop.exited")
            await self._world.end(container, "stop")
        finally:
            self._sooner.pop(container.meta.id, None)

    async def _send(self, container: Container, number: int) -> None:
        """Signal the init through a descriptor that was checked to be that very process; nothing when it is gone."""
        if await self._cleanup.signal(container, number):
            return
        ref = container.status.process
        if ref is None or ref.boot_id != process.boot_id():
            return
        with process.pin(ref.pid, ref.start_time) as pinned:
            if pinned is not None:
                pinned.send(number)
                log.info("sent signal %d to container %s", number, container.meta.id)


def _stuck(container: Container) -> str:
    """The first process of a container that no signal reaches, and where in the kernel it waits; "" for none."""
    init = container.status.process
    pids = [init.pid] if init is not None and init.boot_id == process.boot_id() else []
    with contextlib.suppress(OSError):
        pids += cgroup.pids(container_cgroup(container))
    for pid in pids:
        if where := process.stuck(pid):
            return f"process {pid} is in state D, waiting in {where}"
    return ""


def _let_die(container: Container) -> None:
    """Whoever was killed while he was frozen, for a copy or until the rest of his pod is restored, ends when thawed."""
    with contextlib.suppress(OSError):
        cgroup.thaw(container_cgroup(container))


def _survived(init: ProcessRef | None) -> int:
    """The OOM counter of a container's cgroup as it stood while its init lived: those kills were of others."""
    if init is None or init.boot_id != process.boot_id():
        return 0
    with process.pin(init.pid, init.start_time) as pinned:
        if pinned is None:
            return 0
        try:
            count = cgroup.oom_kills(cgroup.of_process(init.pid))
        except OSError:
            return 0
        return 0 if process.is_dying(init.pid, init.start_time) else count


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _deadline(intent: Intent) -> int:
    """On this boot's clock; a deadline of an earlier boot is over."""
    if intent.data.get("boot_id") != process.boot_id():
        return 0
    deadline = intent.data.get("deadline")
    return deadline if isinstance(deadline, int) else 0


async def _first(one: asyncio.Event, other: asyncio.Event, seconds: float) -> None:
    """Return when either event is set or the time is over."""
    async with asyncio.TaskGroup() as group:
        waits = {group.create_task(one.wait(), name="exited"), group.create_task(other.wait(), name="sooner")}
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()
