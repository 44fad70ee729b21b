"""Exits: one monitor per running container, and the settling that everything which smells of an exit leads to.

A monitor waits at the shim; where there is none to ask it waits at the kernel. Whatever ended the wait is only a hint:
the witnesses are asked and settled, the result is stored, and only then is anything cleaned up. So it does not matter
how often, in what order or by whom an exit is noticed.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from holdfast.lifecycle.cleanup import Cleanup
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.tasks import RETRY_FIRST, RETRY_LONGEST, Background, in_thread, until_done
from holdfast.lifecycle.world import Container, World
from holdfast.linux import cgroup, files, process
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import Damaged, HoldfastError, NotFound
from holdfast.model.settle import Action, Kernel, Settlement, Witnesses, settle
from holdfast.model.settle import Shim as ShimView
from holdfast.model.state import ContainerState, ProcessRef, container_state
from holdfast.model.witness import EXIT_FILE, INIT_FILE, ExitRecord, InitRecord, decode_exit, decode_init
from holdfast.runtime.shims import Shims, alive, wait_ended

log = logging.getLogger(__name__)

T = TypeVar("T")

RECORD_LIMIT: Final = 64 * 1024
SHIM_GRACE: Final = 1.0  # after an init's end, for the witness that outlived it to write the exit file


class Monitor:
    """Watches containers and settles them."""

    def __init__(self, world: World, shims: Shims, cleanup: Cleanup, background: Background, layout: Layout) -> None:
        self._world = world
        self._shims = shims
        self._cleanup = cleanup
        self._background = background
        self._layout = layout
        self._statuses: dict[str, int | None] = {}  # wait statuses of inits that have ended without another witness

    def watch(self, container: Container) -> None:
        """See to it that this container's exit is noticed."""
        self._background.start(f"exit-monitor {container.meta.id}", self._watch(container))

    async def settle(self, container: Container, stopped: tuple[int, int] | None = None) -> Settlement:
        """Ask the witnesses, store what they prove, begin what remains. `stopped` is what a Wait has answered."""
        witnesses = await self._ask(container, stopped)
        began = container.intents["start"].since if "start" in container.intents else 0
        found = settle(container.status, witnesses, frozenset(container.intents), self._world.clock.now(), began)
        if found.status != container.status:
            before = container.state
            done = "start" if "start" in container.intents and Action.PROBE not in found.actions else ""
            crashpoint("settle.found")
            await self._world.update_container(
                container, lambda now: replace(found.status, resources=now.resources), end=done
            )
            log.info("container %s: %s, was %s: %s", container.meta.id, container.state, before, found.why)
        elif "start" in container.intents and Action.PROBE not in found.actions:
            await self._world.end(container, "start")
        if Action.DISCARD_TASK in found.actions:
            await self._cleanup.discard(container)
        self._begin(container, found)
        return found

    def clean(self, container: Container) -> None:
        """Delete the task of an exited container, however often it takes."""
        self._background.see_through(f"task-delete {container.meta.id}", lambda: self._cleanup.task(container))

    def _begin(self, container: Container, found: Settlement) -> None:
        actions = found.actions
        if Action.MONITOR in actions:
            self.watch(container)
        elif Action.PROBE in actions:
            self._background.start(f"probe {container.meta.id}", self._probe_again(container))
        if Action.KILL_REST in actions:
            self._background.see_through(f"kill-rest {container.meta.id}", lambda: self._cleanup.kill(container))
        if Action.DELETE_TASK in actions:
            self.clean(container)
        elif container_state(found.status) is not ContainerState.RUNNING and Action.PROBE not in actions:
            container.cleaned.set()

    async def settle_soon(self, container: Container) -> None:
        """Settle now if that is possible, else as soon as it is."""
        try:
            await self.settle(container)
        except (HoldfastError, OSError):
            self._background.start(f"settle {container.meta.id}", self.settle_until_done(container))

    async def settle_until_done(self, container: Container) -> None:
        """Settle a container that could not be settled in its time."""

        async def once() -> None:
            await self.settle(container)

        await until_done(f"settle {container.meta.id}", once)

    async def _watch(self, container: Container) -> None:
        wait = RETRY_FIRST
        while not container.exited.is_set():
            try:
                stopped = await self._wait_for_end(container)
                await self.settle(container, stopped)
                wait = RETRY_FIRST
            except (HoldfastError, OSError) as exc:
                log.warning("cannot settle container %s, retrying in %g s: %s", container.meta.id, wait, exc)
                await asyncio.sleep(wait)
                wait = min(wait * 2, RETRY_LONGEST)
            if container.state is ContainerState.UNKNOWN:
                await asyncio.sleep(wait)

    async def _wait_for_end(self, container: Container) -> tuple[int, int] | None:
        """Wait at the shim, or at the kernel where the shim cannot tell. Any answer is a hint, even none."""
        pod, ref = container.pod, container.status.process
        if pod.status.shim is not None and alive(pod.status.shim):
            try:
                return await (await self._shims.task(pod.meta.id)).wait(container.meta.id)
            except NotFound:
                pass  # the shim does not know the task (any more): the kernel may
            except HoldfastError as exc:
                log.info("wait for container %s was cut off: %s", container.meta.id, exc)
        if ref is None or ref.boot_id != process.boot_id():
            return None
        with process.pin(ref.pid, ref.start_time) as pinned:
            if pinned is None or await wait_ended(pinned, RETRY_FIRST):
                await self._await_exit_file(container, ref)
            if pinned is not None and not pinned.alive():
                self._statuses[container.meta.id] = pinned.exit_status()
        return None

    async def _await_exit_file(self, container: Container, ref: ProcessRef) -> None:
        """Give the witness that reaps the init a moment to write down how it ended."""
        deadline = asyncio.get_running_loop().time() + SHIM_GRACE
        while asyncio.get_running_loop().time() < deadline:
            if await in_thread(read_exit, self._bundle(container), ref) is not None:
                return
            await asyncio.sleep(0.01)

    async def _probe_again(self, container: Container) -> None:
        """Ask until somebody can tell. A container that has been given a monitor needs no more probing."""
        wait = RETRY_FIRST
        while True:
            await asyncio.sleep(wait)
            try:
                found = await self.settle(container)
            except (HoldfastError, OSError) as exc:
                log.warning("cannot settle container %s, retrying: %s", container.meta.id, exc)
                continue
            if Action.PROBE not in found.actions or Action.MONITOR in found.actions:
                return
            wait = min(wait * 2, RETRY_LONGEST)

    async def _ask(self, container: Container, stopped: tuple[int, int] | None) -> Witnesses:
        bundle = self._bundle(container)
        init = await in_thread(read_init, bundle)
        ref = container.status.process or (ProcessRef(init.pid, init.start_time, init.boot_id) if init else None)
        if stopped is not None:
            view = ShimView.STOPPED
        else:
            view, stopped = await self._shims.probe(container.pod.meta.id, container.pod.status.shim, container.meta.id)
        kernel, wait_status = ask_kernel(ref)
        # The exit file is read last: whoever wrote it did so before the init could be reaped or reported.
        exit_record = await in_thread(read_exit, bundle, ref)
        status = self._statuses.pop(container.meta.id, None)
        if exit_record is None and status is not None and init is not None and kernel is Kernel.DEAD:
            exit_record = await in_thread(from_kernel, init, status, self._world.clock.now())
        started = init is not None and init.started
        return Witnesses(view, kernel, exit_record, stopped, ref, started, wait_status)

    def _bundle(self, container: Container) -> Path:
        return self._layout.bundle(container.pod.meta.id, container.meta.id)


def ask_kernel(ref: ProcessRef | None) -> tuple[Kernel, int | None]:
    """Whether this very process lives, and its exit code where the kernel kept it."""
    if ref is None:
        return Kernel.UNTOLD, None
    if ref.boot_id != process.boot_id():
        return Kernel.REBOOTED, None
    try:
        with process.pin(ref.pid, ref.start_time) as pinned:
            if pinned is None:
                return Kernel.DEAD, None
            return (Kernel.ALIVE, None) if pinned.alive() else (Kernel.DEAD, None)
    except OSError as exc:
        log.warning("cannot ask the kernel for pid %d: %s", ref.pid, exc)
        return Kernel.UNTOLD, None


def from_kernel(init: InitRecord, status: int, now: int) -> ExitRecord:
    """The exit that only the kernel has kept; with the OOM counter of the cgroup, while that is there."""
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    try:
        kills = cgroup.oom_kills(init.cgroup) - init.oom_kills
    except OSError:
        kills = 0
    code = 128 + number if number else os.WEXITSTATUS(status)
    oom_killed = number == signal.SIGKILL and kills > 0
    return ExitRecord(init.pid, init.start_time, code, number, oom_killed, kills, now, "kernel")


def read_init(bundle: Path) -> InitRecord | None:
    return _read(bundle / INIT_FILE, decode_init)


def read_exit(bundle: Path, ref: ProcessRef | None) -> ExitRecord | None:
    """The exit file, when it tells of this very process."""
    record = _read(bundle / EXIT_FILE, decode_exit)
    if record is None or (ref is not None and (record.pid, record.start_time) != (ref.pid, ref.start_time)):
        return None
    return record


def _read(path: Path, decode: Callable[[bytes], T]) -> T | None:
    try:
        return decode(files.read_bounded(path, RECORD_LIMIT))
    except FileNotFoundError:
        return None
    except Damaged as exc:
        log.warning("%s is damaged and no witness: %s", path, exc)
        return None
