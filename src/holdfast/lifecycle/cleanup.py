"""Taking things apart: each step idempotent, none of them a reason to forget the object.

Used alike by undo, stop, remove and recovery. A step that cannot be finished raises, its row stays, and the caller
(or the next recovery) comes back.
"""

import logging
import signal
import time
from pathlib import Path
from typing import Final

from holdfast.lifecycle import target
from holdfast.lifecycle.adopt import Adopter
from holdfast.lifecycle.cgroups import Cgroups
from holdfast.lifecycle.events import Kind
from holdfast.lifecycle.foreign import Foreign
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.networks import Networks
from holdfast.lifecycle.objects import Container, Pod, container_cgroup, init_cgroup, network_cgroup
from holdfast.lifecycle.sandbox import Sandboxes
from holdfast.lifecycle.tasks import apart, in_thread
from holdfast.lifecycle.volumes import Volumes
from holdfast.lifecycle.world import World
from holdfast.linux import cgroup, files, mount, namespace, process
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import FailedPrecondition, NotFound
from holdfast.model.state import ContainerState
from holdfast.model.witness import EXIT_FILE, INIT_FILE
from holdfast.runtime import command
from holdfast.runtime.handlers import Handlers
from holdfast.runtime.shims import Shims
from holdfast.runtime.streamers import Streamers
from holdfast.snapshots.overlay import Snapshots

log = logging.getLogger(__name__)

STEP_SECONDS: Final = 30.0
SIGNAL_SECONDS: Final = 5.0
HEARD_SECONDS: Final = 5  # within which a shim has heard of an end, by far
NS: Final = 1_000_000_000
DELETE_SECONDS: Final = 10.0  # that a shim may take before it is asked again; it goes on, and says so then


class Cleanup:
    """What remains of containers and pods, removed."""

    def __init__(
        self,
        world: World,
        shims: Shims,
        handlers: Handlers,
        snapshots: Snapshots,
        networks: Networks,
        layout: Layout,
        cgroups: Cgroups,
        adopter: Adopter,
        foreign: Foreign,
        sandboxes: Sandboxes,
        volumes: Volumes,
        streamers: Streamers,
    ) -> None:
        self._volumes = volumes
        self._streamers = streamers
        self._foreign = foreign
        self._sandboxes = sandboxes
        self._world = world
        self._shims = shims
        self._adopter = adopter
        self._handlers = handlers
        self._snapshots = snapshots
        self._networks = networks
        self._layout = layout
        self._cgroups = cgroups

    async def kill(self, container: Container) -> None:
        """End every process of a container through its cgroup; of gVisor's, which are not there, through runsc."""
        if await self.signal(container, signal.SIGKILL, everything=True):
            return
        path = container_cgroup(container)
        if await in_thread(cgroup.exists, path):
            await apart(cgroup.kill, path)

    async def signal(self, container: Container, number: int, *, everything: bool = False) -> bool:
        """Signal a container whose processes are not the host's. Whether it is one."""
        handler = self._handlers.get(container.pod.meta.handler)
        if handler.gvisor and await in_thread(self._runtime_state(container).exists):
            words = ("--all",) if everything else ()
            await command.run(handler, "kill", *words, container.meta.id, str(number), seconds=SIGNAL_SECONDS)
        return handler.gvisor

    async def task(self, container: Container) -> None:
        """Delete the container's task: runtime state, mounts, cgroup. What is already gone is fine."""
        bundle, there = self._bundle(container), await in_thread(self._runtime_state(container).exists)
        if not await self._deleted_by_shim(container):
            await self.kill(container)
            await self._runtime_delete(container)
        if await in_thread(bundle.exists):
            await apart(mount.unmount_tree, bundle)  # its rootfs, and what was staged for a start that was cut off
        await self._foreign.finish(container)
        crashpoint("task.deleted")
        await self._cgroups.remove(container_cgroup(container))
        crashpoint("task.cgroup")
        container.cleaned.set()
        if there and container.state is ContainerState.EXITED:
            self._world.tell(Kind.CLEANED, container.pod, container)

    async def clear_cgroup(self, container: Container) -> None:
        """See to it that nobody is in the container's cgroup before it starts.

        What is left of an attempt that was cut off is ended. Raises FailedPrecondition for anybody else's processes.
        """
        path = container_cgroup(container)
        if not await in_thread(cgroup.populated, path):
            return
        if not await in_thread(self._has_task, container):
            why = f"its cgroup {path} has processes that are not its own"
            raise FailedPrecondition(f"cannot start container {container.meta.id}: {why}")
        await self.discard(container)

    async def discard(self, container: Container) -> None:
        """Delete a task that was created but never started, with every sign that it ever was."""
        await self.task(container)
        for name in (INIT_FILE, EXIT_FILE):
            await in_thread(files.unlink, self._bundle(container) / name)

    async def container(self, container: Container) -> None:
        """Remove every trace of a container: what its task has left, bundle, snapshot, and last its row."""
        bundle = self._bundle(container)
        await self._streamers.end(container.pod.meta.id, [container.meta.id])
        if await in_thread(self._has_task, container):
            await self.task(container)
        await self._cgroups.remove(container_cgroup(container))  # while somebody else is in it, the row stays
        if await in_thread(bundle.exists):
            await apart(_remove_bundle, bundle)
        for left in (self._layout.restore(container.meta.id), self._layout.checkpoint(container.meta.id)):
            if await in_thread(left.exists):
                await apart(files.remove_tree, left)
        crashpoint("remove.bundle")
        await self._snapshots.remove(container.meta.snapshot_key)
        crashpoint("remove.snapshot")
        await self._volumes.release(container)
        await self._world.delete_container(container)

    async def sandbox(self, pod: Pod) -> None:
        """End what a sandbox is made of: network, shim, namespaces, shared memory, cgroup. Its containers are over."""
        pod_id = pod.meta.id
        await self._streamers.end(pod_id, [pod_id, *pod.containers])
        crashpoint("sandbox.sessions")
        if pod.status.netns:
            await self._networks.detach(pod)
        crashpoint("sandbox.network")
        await self._adopter.release(pod)
        handler = self._handlers.get(pod.meta.handler)
        if handler.shim or handler.sandbox:
            await self._sandboxes.end(pod, handler)
        await self._shims.end(pod_id, pod.status.shim)
        crashpoint("sandbox.shim")
        for path in (network_cgroup(pod.meta), init_cgroup(pod.meta)):
            await self._cgroups.remove(path, kill=True)
        crashpoint("sandbox.init")
        await apart(self._unpin, pod_id)
        crashpoint("sandbox.unpinned")
        others = [one for one in self._world.pods.values() if one is not pod]
        living = [one.meta for one in others if not one.status.stopped_at and not one.released]
        await self._cgroups.remove_pod(pod.meta, [one.meta for one in others], living)

    async def pod(self, pod: Pod) -> None:
        """Remove every trace of a stopped pod without containers, and last its row."""
        id = pod.meta.id
        await apart(mount.unmount_tree, self._layout.volumes(id))
        for left in (self._layout.volumes(id), self._layout.restore(id), self._layout.pod(id)):
            if await in_thread(left.exists):
                await apart(files.remove_tree, left)
        crashpoint("rmp.directory")
        await self._world.delete_pod(pod)
        crashpoint("rmp.row")

    async def _deleted_by_shim(self, container: Container) -> bool:
        """Whether the pod's shim sees to it; not so when it does not know a task that the runtime does know."""
        if not await self._adopter.ensure(container.pod):
            return False
        try:
            await (await self._shims.task(container.pod.meta.id)).delete(container.meta.id, seconds=DELETE_SECONDS)
        except NotFound:
            return not await in_thread(self._runtime_state(container).exists)
        except FailedPrecondition:
            await self.kill(container)  # it is over as far as the record goes, and yet it runs
            if await in_thread(_has_long_been_gone, container):
                why = f"container {container.meta.id} is gone, and it takes it for alive"
                await self._adopter.replace(container.pod, why)
            raise
        return True

    def _has_task(self, container: Container) -> bool:
        """Whether anything of a task is there: daemon and shim may have died while one was being made."""
        return bool(mount.mounts_below(self._bundle(container))) or self._runtime_state(container).exists()

    def _runtime_state(self, container: Container) -> Path:
        return self._handlers.get(container.pod.meta.handler).state(container.meta.id, container.meta.pod_id)

    def _unpin(self, pod_id: str) -> None:
        if not self._layout.pod(pod_id).exists():
            return
        for name in ("net", "ipc", "uts", "pid", "user"):
            namespace.unpin(self._layout.namespaces(pod_id) / name)
        if self._layout.shm(pod_id).exists():
            mount.unmount_tree(self._layout.shm(pod_id))

    async def _runtime_delete(self, container: Container) -> None:
        """What the shim would do, for a shim that is dead."""
        handler = self._handlers.get(container.pod.meta.handler)
        left = self._runtime_state(container)
        if handler.shim and self._bundle(container).exists():
            await self._foreign.delete(container)
        if not left.exists():
            return
        await command.run(handler, "delete", "--force", container.meta.id, seconds=STEP_SECONDS)
        if left.exists():
            # The runtime could not (crun refuses some hosts); its processes are dead, so its notes may go.
            await apart(handler.forget, container.meta.id, container.meta.pod_id)

    def _bundle(self, container: Container) -> Path:
        return self._layout.bundle(container.pod.meta.id, container.meta.id)


def _has_long_been_gone(container: Container) -> bool:
    """Whether a shim that does not know of its end will never hear of it. In gVisor a container's init is the pod's."""
    init, since = container.status.process, time.time_ns() - container.status.finished_at
    if init is None or not container.status.finished_at or since < HEARD_SECONDS * NS:
        return False
    return process.start_time(init.pid) != init.start_time or init.boot_id != process.boot_id()


def _remove_bundle(bundle: Path) -> None:
    """With what was held for a start that was cut off."""
    namespace.unpin(bundle / target.PIN)
    files.remove_tree(bundle)
