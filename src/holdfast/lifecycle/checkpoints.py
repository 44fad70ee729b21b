"""What CRIU can do to a container under runc, and what it cannot: said before anything is frozen."""

import os
import stat
from pathlib import Path
from typing import Final

from holdfast.lifecycle.objects import Container, Pod, container_cgroup
from holdfast.lifecycle.tasks import apart, in_thread, within
from holdfast.lifecycle.tools import criu_problem, find_criu, problem
from holdfast.linux import cgroup, descriptors, process, tree
from holdfast.linux.inject import crashpoint
from holdfast.model.checkpoint import IMAGES, CriuSettings
from holdfast.model.errors import FailedPrecondition
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handler, Handlers, fingerprint
from holdfast.runtime.shims import Shims
from holdfast.snapshots.overlay import Snapshots

TCP: Final = "dev.holdfast.checkpoint.tcp"  # annotation of a container or its pod
ESTABLISHED: Final = "established"  # its value: connections are kept in the images
RUNC: Final = "runc"
LOOK_SECONDS: Final = 10.0
_SHARED: Final = {pb.POD: "that of its pod", pb.NODE: "the host's", pb.TARGET: "that of another container"}


class Checkpoints:
    """For containers under runc."""

    def __init__(self, handlers: Handlers, shims: Shims, snapshots: Snapshots, criu_path: str) -> None:
        self._handlers = handlers
        self._shims = shims
        self._snapshots = snapshots
        self._criu_path = criu_path
        self._good = ""  # the CRIU that was looked at last and does

    async def refuse(self, container: Container) -> None:
        """Raise FailedPrecondition that says why this container, which runs, cannot be checkpointed."""
        why = await self.problem(container.pod, container.config)
        if not why:
            look = apart(_of_its_processes, container, established(container.config, container.pod.config))
            why = await within(LOOK_SECONDS, look, f"look at the processes of container {container.meta.id}")
        if why:
            raise FailedPrecondition(f"cannot checkpoint container {container.meta.id}: {why}")

    async def problem(self, pod: Pod, config: pb.ContainerConfig) -> str:
        """Why containers of this kind can be neither checkpointed nor restored; "" when they can."""
        return self._of_its_kind(pod, config) or await self._of_criu()

    async def size(self, container: Container) -> int:
        """How many bytes the images and the changed files will take, about."""
        upper = self._snapshots.place(container.meta.snapshot_key)
        return await in_thread(_memory, container) + await apart(tree.allocated, upper)

    async def dump(self, container: Container, directory: Path) -> None:
        """Have the images of a frozen container made below a directory, with CRIU's log; it stays frozen, and lives."""
        images = directory / IMAGES
        await in_thread(images.mkdir, 0o700)
        task = await self._shims.task(container.pod.meta.id)
        await task.checkpoint(container.meta.id, images, self.settings(container, directory))
        crashpoint("checkpoint.dumped")

    def settings(self, container: Container, work: Path, held: float = 0.0) -> CriuSettings:
        """What CRIU is to be told, of a dump or a restore."""
        tcp = established(container.config, container.pod.config)
        return CriuSettings(os.path.abspath(find_criu(self._criu_path)), str(work), tcp, held)

    def handler_problem(self, handler: Handler) -> str:
        """Why containers under a handler can be neither checkpointed nor restored by CRIU; "" when they can."""
        if handler.shim:
            return f"runtime handler {handler.name} has a shim of its own, which is not asked for that"
        if handler.gvisor or Path(handler.binary).name != RUNC:
            return f"runtime handler {handler.name} cannot do it; runc can (default_runtime, checkpoints)"
        return ""

    def _of_its_kind(self, pod: Pod, config: pb.ContainerConfig) -> str:
        if why := self.handler_problem(self._handlers.get(pod.meta.handler)):
            return why
        if pod.users is not None:
            return "its pod has users of its own, which CRIU was not tried with"
        shared = config.linux.security_context.namespace_options.pid
        if shared != pb.CONTAINER:
            return f"its pid namespace is {_SHARED[shared]}, in which its process ids may be taken at a restore"
        for one in config.mounts:
            if one.propagation == pb.PROPAGATION_BIDIRECTIONAL:
                return f"what is mounted at {one.container_path} is shared with the host both ways, which would be lost"
        return ""

    async def _of_criu(self) -> str:
        """One that does is not asked again."""
        binary = find_criu(self._criu_path)
        try:
            known = fingerprint(binary)
        except OSError as exc:
            return f"there is no program {binary}: {exc.strerror}"
        if known == self._good:
            return ""
        if why := await problem("criu", binary, criu_problem):
            return f"{binary} does not do: {why}"
        self._good = known
        return ""


def established(container: pb.ContainerConfig, pod: pb.PodSandboxConfig) -> bool:
    """Whether connections are to be kept; what the container says comes before what its pod says."""
    said = container.annotations.get(TCP) or pod.annotations.get(TCP)
    return said == ESTABLISHED


def _of_its_processes(container: Container, keeps_tcp: bool) -> str:
    """What its processes have, or are, that cannot be brought back; "" when nothing was seen."""
    init = container.status.process
    if init is None:
        return "its process is not known"
    pids = sorted(pid for pid in cgroup.pids(container_cgroup(container)) if process.state(pid) not in ("Z", "X", ""))
    for pid in pids:
        if not _descends(pid, init.pid):
            return f"process {pid} was executed in it and runs"
        if process.is_stopped(pid):
            return f"process {pid} was stopped by a signal (SIGSTOP, or like a job of a shell); SIGCONT has it go on"
        if not process.may_see_limits(pid):
            return f"process {pid} is another user's or group's, whose limits CRIU may not see without CAP_SYS_RESOURCE"
        if why := _of_its_files(pid):
            return why
    if not keeps_tcp:
        for pid, connection in descriptors.connections(pids):
            return f"process {pid} has a TCP connection ({connection}); annotation {TCP}={ESTABLISHED} would keep it"
    return ""


def _descends(pid: int, init: int) -> bool:
    """As far as can be seen while they come and go; once they are frozen the shim looks again."""
    while pid not in (init, 0, 1):
        pid = process.parent(pid)
    return pid != 1


def _of_its_files(pid: int) -> str:
    mounts = descriptors.mounts_of(pid)
    for one in descriptors.of(pid):
        if one.link.startswith("/SYSV"):
            return f"process {pid} has shared memory {one.link} of System V"
        if mounts and one.named and one.mount not in mounts and one.kind not in (stat.S_IFIFO, stat.S_IFCHR):
            return f"descriptor {one.number} of process {pid} is {one.link}, a file outside the container"
    return ""


def _memory(container: Container) -> int:
    """What has to be written of its processes: all that they have in memory but what is a file's."""
    return sum(process.own_memory(pid) for pid in cgroup.pids(container_cgroup(container)))
