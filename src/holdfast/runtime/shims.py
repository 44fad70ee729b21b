"""The daemon's side of shims: start, connect, probe, end; the one place that knows that a connection was lost."""

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from holdfast.linux import process
from holdfast.linux.patience import patience
from holdfast.linux.threads import in_thread
from holdfast.model.cgroups import unit_of
from holdfast.model.errors import DeadlineExceeded, HoldfastError, NotFound, Unavailable
from holdfast.model.settle import Shim
from holdfast.model.state import ProcessRef
from holdfast.model.witness import SHIM_LOCK
from holdfast.runtime.foreign import ForeignShims
from holdfast.runtime.handlers import Handler
from holdfast.runtime.keeper import Keeper
from holdfast.runtime.task import V2, Status, TaskClient, timed

log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 5.0
END_SECONDS: Final = 2.0


def alive(ref: ProcessRef) -> bool:
    """Whether this very process still runs; a zombie does not."""
    if ref.boot_id != process.boot_id():
        return False
    with process.pin(ref.pid, ref.start_time) as pinned:
        return pinned is not None and pinned.alive()


async def wait_gone(ref: ProcessRef, seconds: float | None = None) -> bool:
    """Wait until this very process has ended, for at most `seconds`. Returns whether it has."""
    if ref.boot_id != process.boot_id():
        return True
    with process.pin(ref.pid, ref.start_time) as pinned:
        return pinned is None or await wait_ended(pinned, seconds)


async def wait_ended(pinned: process.Pinned, seconds: float | None = None) -> bool:
    """The same for a process that is held already."""
    if pinned.alive():
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(pinned.fd, ended.set)  # a pidfd is readable once its process has ended (pidfd_open(2))
        try:
            async with patience(seconds):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(pinned.fd)
    return True


async def _kill(pod_id: str, shim: ProcessRef) -> None:
    with process.pin(shim.pid, shim.start_time) as pinned:
        if pinned is not None:
            pinned.send(signal.SIGKILL)
    if not await wait_gone(shim, END_SECONDS):
        raise DeadlineExceeded(f"cannot end shim of pod {pod_id}: pid {shim.pid} does not die")


class Shims:
    """The shims of all pods, by pod id. Foreign ones tell at the socket `events` of what happens."""

    def __init__(self, pods: Path, keeper: Keeper, events: Path) -> None:
        self.foreign = ForeignShims(pods, keeper, events)
        self._pods = pods
        self._keeper = keeper
        self.calls = timed()
        self._clients: dict[str, TaskClient] = {}
        self._connecting: dict[str, asyncio.Lock] = {}
        self._programs: dict[str, tuple[tuple[int, int], int]] = {}

    async def start(
        self,
        pod_id: str,
        handler: Handler,
        pid_namespace: bool,
        init_cgroup: str,
        *,
        owner: tuple[int, int] | None = None,
        inits: Mapping[str, ProcessRef] | None = None,
    ) -> ProcessRef:
        """Have the keeper fork this pod's shim; it is ready when this returns. Raises Unavailable.

        `owner` is whose the streams of its processes are before the OCI runtime gives them away. A foreign one is
        started from the pod's sandbox bundle. With `inits`, of the containers that are known to run, ours takes over
        what a dead shim has left.
        """
        if handler.shim:
            return await self._start_foreign(pod_id, handler)
        args = {
            "adopt": inits is not None,
            "inits": {id: (init.pid, init.start_time, init.boot_id) for id, init in (inits or {}).items()},
            "id": pod_id,
            "directory": str(self._pods / pod_id),
            "runtime": {**handler.to_args(), "systemd": bool(unit_of(init_cgroup)), "pod_id": pod_id},
            "pid_namespace": pid_namespace,
            "init_cgroup": init_cgroup,
            "owner": owner,
        }
        program = None if handler.gvisor else self._program(handler.binary)
        fds = [program] if program is not None else []
        return await self._keeper.fork("shim", pod_id, args, listen=self._socket(pod_id), fds=fds)

    async def _start_foreign(self, pod_id: str, handler: Handler) -> ProcessRef:
        found = await self.foreign.start(pod_id, handler)
        if (shim := await self._unrecorded(pod_id)) is None:
            raise Unavailable(f"cannot start shim {handler.shim} of pod {pod_id}: it does not answer at {found.path}")
        return shim

    async def adopt(
        self,
        pod_id: str,
        handler: Handler,
        pid_namespace: bool,
        init_cgroup: str,
        inits: Mapping[str, ProcessRef],
        owner: tuple[int, int] | None = None,
    ) -> ProcessRef:
        """Replace a shim that is dead, unless that was done and nobody has written it down. Raises Unavailable."""
        self._hang_up(pod_id)
        if (found := await self._unrecorded(pod_id)) is not None:
            return found
        return await self.start(pod_id, handler, pid_namespace, init_cgroup, owner=owner, inits=inits)

    def address(self, pod_id: str) -> tuple[Path, str]:
        """Where the pod's shim listens, and the name of its Task service."""
        foreign = self.foreign.find(pod_id)
        return (Path(foreign.path), foreign.service) if foreign else (self._socket(pod_id), V2)

    async def task(self, pod_id: str) -> TaskClient:
        """A connected client, made anew when the last one was lost. Raises Unavailable."""
        async with self._connecting.setdefault(pod_id, asyncio.Lock()):
            client = self._clients.get(pod_id)
            if client is None or client.closed:
                try:
                    client = self._clients[pod_id] = await TaskClient.connect(*self.address(pod_id), self.calls)
                except OSError as exc:
                    raise Unavailable(f"cannot reach shim of pod {pod_id}: {exc.strerror or exc}") from exc
            return client

    async def probe(
        self, pod_id: str, shim: ProcessRef | None, container_id: str, seconds: float = PROBE_SECONDS
    ) -> tuple[Shim, tuple[int, int] | None]:
        """What the shim says of a task, and its (exit code, finished_at) when that is over.

        GONE is said only of a process proven dead. The socket proves nothing: the keeper keeps it open. A shim that
        tells of another task has said nothing about this one.
        """
        if shim is None or not alive(shim):
            return Shim.GONE, None
        try:
            async with patience(seconds):
                state = await (await self.task(pod_id)).state(container_id)
        except NotFound:
            return Shim.ABSENT, None
        except (HoldfastError, TimeoutError) as exc:
            log.info("shim of pod %s does not answer: %s", pod_id, exc)
            return (Shim.UNREACHABLE if alive(shim) else Shim.GONE), None
        if state.status is Status.STOPPED:
            return Shim.STOPPED, (state.exit_status, state.exited_at)
        return (Shim.CREATED if state.status is Status.CREATED else Shim.RUNNING), None

    async def answers(self, pod_id: str, shim: ProcessRef | None) -> bool:
        """Whether the pod's shim lives and answers."""
        if shim is None or not alive(shim):
            return False
        try:
            async with patience(END_SECONDS):
                await (await self.task(pod_id)).shim_pid()
        except (HoldfastError, TimeoutError):
            return False
        return True

    async def end(self, pod_id: str, shim: ProcessRef | None) -> None:
        """Ask the shim to end, then make sure that it is dead. Raises DeadlineExceeded when it cannot be killed."""
        shim = shim or await self._unrecorded(pod_id)
        if shim is not None and alive(shim):
            await self._ask_to_end(pod_id)
            if not await wait_gone(shim, END_SECONDS):
                await _kill(pod_id, shim)
        elif shim is None:
            for unanswering in await in_thread(self.foreign.search, pod_id):
                await _kill(pod_id, unanswering)
        self.forget(pod_id)
        self.foreign.forget(pod_id)

    async def kill(self, pod_id: str, shim: ProcessRef) -> None:
        """SIGKILL; it is dead when this returns. Raises DeadlineExceeded when it does not die."""
        await _kill(pod_id, shim)
        self._hang_up(pod_id)

    def forget(self, pod_id: str) -> None:
        self._connecting.pop(pod_id, None)
        self._hang_up(pod_id)

    def _hang_up(self, pod_id: str) -> None:
        if (client := self._clients.pop(pod_id, None)) is not None:
            client.close()

    def connected(self) -> list[str]:
        return sorted(pod_id for pod_id, client in self._clients.copy().items() if not client.closed)

    def _program(self, binary: str) -> int | None:
        """The OCI runtime's binary in sealed memory, copied once; anew when it was replaced on disk.

        None for a script, which has to be run by its path, and for one that is missing where it should be: a shim that
        adopts a pod gets by without, until it has to run something. Raises Unavailable when nobody knows where that is.
        """
        known = self._programs.get(binary)
        try:
            found = os.stat(binary)
            with open(binary, "rb") as file:
                if file.read(2) == b"#!":
                    return None
        except FileNotFoundError:
            if not os.path.isabs(binary):
                raise Unavailable(f"cannot start a shim: there is no program {binary}") from None
            return known[1] if known is not None else None
        version = (found.st_ino, found.st_mtime_ns)
        if known is None or known[0] != version:
            self._programs[binary] = (version, process.sealed_copy(binary))
            if known is not None:
                os.close(known[1])
        return self._programs[binary][1]

    def close(self) -> None:
        for pod_id in list(self._clients):
            self.forget(pod_id)
        for _, descriptor in self._programs.values():
            os.close(descriptor)
        self._programs.clear()

    async def _unrecorded(self, pod_id: str) -> ProcessRef | None:
        """A shim that answers at the pod's socket though no record names it: keeper or daemon died while it began.

        Whoever answers is believed to be the pod's shim only if it has the pod's lock open or, a foreign one, if it was
        started as that.
        """
        try:
            async with patience(END_SECONDS):
                pid = await (await self.task(pod_id)).shim_pid()
        except (HoldfastError, TimeoutError):
            self._hang_up(pod_id)
            return None
        ref = ProcessRef(pid, process.start_time(pid) or 0, process.boot_id())
        if not (process.has_open(pid, self._pods / pod_id / SHIM_LOCK) or self.foreign.is_shim(pid, pod_id)):
            log.warning("whoever answers at the socket of pod %s says to be %d, which is not its shim", pod_id, pid)
            self._hang_up(pod_id)
            return None
        return ref

    async def _ask_to_end(self, pod_id: str) -> None:
        try:
            async with patience(END_SECONDS):
                await (await self.task(pod_id)).shutdown(pod_id, now=True)
        except (HoldfastError, TimeoutError) as exc:
            log.info("shim of pod %s did not take the request to end: %s", pod_id, exc)

    def _socket(self, pod_id: str) -> Path:
        return self._pods / pod_id / "shim.sock"
