"""Exits: one monitor per running container, and the settling that everything which smells of an exit leads to.

A monitor waits at the shim; where there is none to ask it waits at the kernel. Whatever ended the wait is only a hint:
the witnesses are asked and settled, the result is stored, and only then is anything cleaned up. So it does not matter
how often, in what order or by whom an exit is noticed.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from holdfast.lifecycle.cleanup import Cleanup
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container, container_cgroup
from holdfast.lifecycle.tasks import RETRY_FIRST, Background, in_thread, until_done
from holdfast.lifecycle.world import World
from holdfast.linux import cgroup, files, process
from holdfast.linux.inject import crashpoint
from holdfast.linux.patience import patience
from holdfast.linux.process import Pinned
from holdfast.model.errors import Damaged, HoldfastError
from holdfast.model.settle import Action, Kernel, Settlement, Witnesses, settle
from holdfast.model.settle import Shim as ShimView
from holdfast.model.spec import Intent
from holdfast.model.state import ContainerState, ProcessRef, container_state
from holdfast.model.witness import EXIT_FILE, INIT_FILE, ExitRecord, InitRecord, decode_exit, decode_init
from holdfast.runtime.handlers import Handlers
from holdfast.runtime.shims import PROBE_SECONDS, Shims, alive

log = logging.getLogger(__name__)

T = TypeVar("T")

PROBE_LONGEST: Final = 3.0  # seconds between two questions to a shim that hangs
CLEAN_LONGEST: Final = 30.0
RECORD_LIMIT: Final = 64 * 1024
SHIM_GRACE: Final = 1.0  # after an init's end, for the witness that outlived it to write the exit file
FILE_LOOK: Final = 0.01  # at that file; the grace passes in looks (ADR 50)


class Monitor:
    """Watches containers and settles them."""

    def __init__(
        self,
        world: World,
        shims: Shims,
        handlers: Handlers,
        cleanup: Cleanup,
        background: Background,
        layout: Layout,
        also: Sequence[Callable[[Container], None]] = (),
    ) -> None:
        self._also = also  # what else is watched of a container that runs
        self._world = world
        self._shims = shims
        self._handlers = handlers
        self._cleanup = cleanup
        self._background = background
        self._layout = layout

    def watch(self, container: Container) -> None:
        """See to it that this container's exit is noticed."""
        self._background.start(f"exit-monitor {container.meta.id}", self._watch(container))
        for watch in self._also:
            watch(container)

    async def settle(
        self, container: Container, stopped: tuple[int, int] | None = None, pinned: Pinned | None = None
    ) -> Settlement:
        """Ask the witnesses, store what they prove, begin what remains.

        `stopped` is what a Wait has answered, `pinned` the init if somebody had hold of it.
        """
        witnesses = await self._ask(container, stopped, pinned)
        began = container.intents["start"].since if "start" in container.intents else 0
        found = settle(container.status, witnesses, frozenset(container.intents), self._world.clock.now(), began)
        if found.status != container.status:
            before = container.state
            done = "start" if "start" in container.intents and Action.PROBE not in found.actions else ""
            crashpoint("settle.found")
            await self._world.learn(container, lambda now: replace(found.status, resources=now.resources), end=done)
            log.info("container %s: %s, was %s: %s", container.meta.id, container.state, before, found.why)
        elif "start" in container.intents and Action.PROBE not in found.actions:
            await self._world.end(container, "start")
        if Action.DISCARD_TASK in found.actions:
            await self._cleanup.discard(container)
        self._begin(container, found)
        return found

    def clean(self, container: Container) -> None:
        """Delete the task of an exited container, however often it takes."""
        name = f"task-delete {container.meta.id}"
        self._background.see_through(name, lambda: self._clean(container), CLEAN_LONGEST)

    async def _clean(self, container: Container) -> None:
        """The witnesses of an exit are kept until it is written down."""
        await container.written.wait()
        await self._cleanup.task(container)

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

    def hint(self, container_id: str) -> None:
        """Somebody says that something has happened to it: it is settled, by itself, and nobody waits for that."""
        if (container := self._world.containers.get(container_id)) is not None:
            self._background.start(f"settle {container_id}", self.settle_until_done(container))

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

        await until_done(f"settle {container.meta.id}", once, PROBE_LONGEST)

    async def _watch(self, container: Container) -> None:
        wait = RETRY_FIRST
        while container.state in (ContainerState.RUNNING, ContainerState.UNKNOWN):
            pinned = None
            try:
                pinned = _pin(container.status.process)
                stopped = await self._wait_for_end(container, pinned)
                await self.settle(container, stopped, pinned)
                wait = RETRY_FIRST
            except (HoldfastError, OSError) as exc:
                log.warning("cannot settle container %s, retrying in %g s: %s", container.meta.id, wait, exc)
                await asyncio.sleep(wait)
                wait = min(wait * 2, PROBE_LONGEST)
            finally:
                if pinned is not None:
                    pinned.close()
            if container.state is ContainerState.UNKNOWN:
                await asyncio.sleep(wait)

    async def _wait_for_end(self, container: Container, pinned: Pinned | None) -> tuple[int, int] | None:
        """Wait until the shim or the kernel says that it is over. Any answer is a hint, even none.

        The kernel is listened to because a shim may hang; the shim because it alone knows of an init that nobody
        else can name. Whoever is first, the shim has a moment to say what it knows.
        """
        async with asyncio.TaskGroup() as group:
            told = group.create_task(self._told(container), name="told by its shim")
            gone = group.create_task(_gone(pinned), name="gone")
            await asyncio.wait({told, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                with contextlib.suppress(TimeoutError):
                    async with patience(SHIM_GRACE):
                        await asyncio.wait({told})
            elif told.result() is None or pinned is not None:
                await asyncio.wait({gone}, timeout=RETRY_FIRST)
            answer = told.result() if told.done() else None
            told.cancel()
            gone.cancel()
        return answer

    async def _told(self, container: Container) -> tuple[int, int] | None:
        """What the shim says at the container's end; None at once when it cannot say, or when it is cut off."""
        pod = container.pod
        try:
            if pod.status.shim is None or not alive(pod.status.shim):
                return None
            return await (await self._shims.task(pod.meta.id)).wait(container.meta.id)
        except (HoldfastError, OSError) as exc:
            log.info("wait for container %s was cut off: %s", container.meta.id, exc)
            return None

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
            wait = min(wait * 2, PROBE_LONGEST)

    async def _ask(
        self, container: Container, stopped: tuple[int, int] | None, pinned: Pinned | None = None
    ) -> Witnesses:
        bundle, pod = self._bundle(container), container.pod
        init = await in_thread(read_init, bundle)
        ref = container.status.process or (ProcessRef(init.pid, init.start_time, init.boot_id) if init else None)
        if ref is not None:
            kernel, wait_status = ask_kernel(ref, pinned)
        elif pod.status.shim is not None and pod.status.shim.boot_id != process.boot_id():
            kernel, wait_status = Kernel.REBOOTED, None
        else:
            kernel, wait_status = await in_thread(ask_cgroup, container_cgroup(container)), None
        view, told = ShimView.STOPPED, stopped
        if stopped is None or not await in_thread(read_exit, bundle, ref):
            # Of a death that is proven already, a shim that does not answer at once only delays the news.
            seconds = SHIM_GRACE if kernel is Kernel.DEAD and ref is not None else PROBE_SECONDS
            view, stopped = await self._shims.probe(pod.meta.id, pod.status.shim, container.meta.id, seconds)
            if view is ShimView.GONE and told is not None:  # a Wait names no task, so it counts only as the last word
                view, stopped = ShimView.STOPPED, told
        if view is ShimView.STOPPED and kernel is Kernel.ALIVE and ref is not None:
            kernel, wait_status = ask_kernel(ref, pinned)  # it may have ended in between
            if kernel is Kernel.ALIVE and self._handlers.get(pod.meta.handler).gvisor:
                kernel = Kernel.UNTOLD  # that is the sentry, and it lives on
        # The exit file is read last: whoever wrote it did so before the init could be reaped or reported.
        late = ref is not None and kernel is Kernel.DEAD and view not in (ShimView.STOPPED, ShimView.UNREACHABLE)
        exit_record = await self._exit_file(bundle, ref, SHIM_GRACE if late else 0)
        over = exit_record is None and (stopped is not None or wait_status is not None)
        oom_kills = await in_thread(count_oom_kills, init) if over and init is not None else 0
        started = await in_thread(self._start_was_reached, container, init)
        survived = _survived(container.intents.get("stop"), init)
        return Witnesses(view, kernel, exit_record, stopped, ref, started, wait_status, oom_kills, survived)

    async def _exit_file(self, bundle: Path, ref: ProcessRef | None, seconds: float) -> ExitRecord | None:
        """What the exit file says; whoever reaps the init is given a moment to write it."""
        looks = round(seconds / FILE_LOOK)
        while (found := await in_thread(read_exit, bundle, ref)) is None and looks > 0:
            looks -= 1
            await asyncio.sleep(FILE_LOOK)
        return found

    def _start_was_reached(self, container: Container, init: InitRecord | None) -> bool:
        """An init.json that cannot be read may have said so: nothing is ended on the ground that it did not."""
        if init is None:
            return (self._bundle(container) / INIT_FILE).exists()
        return init.started and not self._handlers.get(container.pod.meta.handler).waits(
            container.meta.id, container.meta.pod_id
        )

    def _bundle(self, container: Container) -> Path:
        return self._layout.bundle(container.pod.meta.id, container.meta.id)


def ask_kernel(ref: ProcessRef, pinned: Pinned | None = None) -> tuple[Kernel, int | None]:
    """Whether this very process lives, and the exit code of one that does not, where the kernel still knows it."""
    if ref.boot_id != process.boot_id():
        return Kernel.REBOOTED, None
    try:
        if pinned is not None:
            return _look_at(pinned, ref)
        with process.pin(ref.pid, ref.start_time) as found:
            return (Kernel.DEAD, None) if found is None else _look_at(found, ref)
    except OSError as exc:
        log.warning("cannot ask the kernel for pid %d: %s", ref.pid, exc)
        return Kernel.UNTOLD, None


def _look_at(pinned: Pinned, ref: ProcessRef) -> tuple[Kernel, int | None]:
    if pinned.alive():
        return Kernel.ALIVE, None
    status = pinned.wait_status(ref.start_time)
    if status is None:
        return Kernel.DEAD, None
    code = os.waitstatus_to_exitcode(status)
    return Kernel.DEAD, code if code >= 0 else 128 - code


def ask_cgroup(path: str) -> Kernel:
    """The kernel's view of a container whose init nobody can name."""
    try:
        return Kernel.ALIVE if cgroup.populated(path) else Kernel.DEAD
    except OSError as exc:
        log.warning("cannot look into cgroup %s: %s", path, exc)
        return Kernel.UNTOLD


def _survived(stop: Intent | None, init: InitRecord | None) -> int:
    """See lifecycle.stop; the counter did not begin with the container."""
    counter = stop.data.get("survived", 0) if stop is not None else 0
    return counter - init.oom_kills if isinstance(counter, int) and counter and init is not None else 0


def count_oom_kills(init: InitRecord) -> int:
    """OOM kills in its cgroup since the init was created; 0 when the cgroup is gone."""
    try:
        return max(0, cgroup.oom_kills(init.cgroup) - init.oom_kills)
    except OSError:
        return 0


def _pin(ref: ProcessRef | None) -> Pinned | None:
    """Hold of the init, so that its end can be waited for; None where there is nothing to hold."""
    return None if ref is None or ref.boot_id != process.boot_id() else process.open_pinned(ref.pid, ref.start_time)


async def _gone(pinned: Pinned | None) -> None:
    """Wait for the end of a process: for ever when nobody has hold of it."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    if pinned is None:
        await ended.wait()
        return
    loop.add_reader(pinned.fd, ended.set)  # a pidfd is readable once its process has ended (pidfd_open(2))
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pinned.fd)


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
