"""gVisor pods in checkpoints: one set of images has all containers, their layers, /dev/shm, and volumes on disk.

They are written to `sandbox/checkpoint` of the pod's archive. A pod that is restored has them from before its sandbox
is brought up, which begins from them then as its containers do, until the last of them runs.
"""

import logging
from pathlib import Path

from holdfast.checkpoint import layout as parts
from holdfast.lifecycle.gvisor import GvisorVolumes
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container, Pod, init_cgroup
from holdfast.lifecycle.tasks import apart, in_thread
from holdfast.linux import cgroup, tree, usage
from holdfast.linux.inject import crashpoint
from holdfast.model.checkpoint import CriuSettings
from holdfast.model.errors import FailedPrecondition, HoldfastError
from holdfast.oci.gvisor import Volume
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handlers
from holdfast.runtime.shims import Shims

log = logging.getLogger(__name__)


class SandboxCheckpoints:
    """For pods whose handler is gVisor's."""

    def __init__(self, handlers: Handlers, shims: Shims, layout: Layout, volumes: GvisorVolumes) -> None:
        self._handlers = handlers
        self._shims = shims
        self._layout = layout
        self._volumes = volumes

    def serves(self, pod: Pod) -> bool:
        return self._handlers.get(pod.meta.handler).gvisor

    def refuse(self, pod: Pod) -> None:
        """Raise FailedPrecondition that says why this pod cannot be checkpointed."""
        if pod.config.linux.security_context.namespace_options.network == pb.NODE:
            why = "it is on the host's network, whose sockets gVisor cannot take along"
            raise FailedPrecondition(f"cannot checkpoint pod {pod.meta.id}: {why}")
        for container in pod.containers.values():
            if container.exited.is_set() and not container.cleaned.is_set():
                why = f"what container {container.meta.name} has left is not cleaned up yet"
                raise FailedPrecondition(f"cannot checkpoint pod {pod.meta.id}: {why}")

    async def size(self, pod: Pod) -> int:
        """How many bytes the images will take, at most."""
        found = await in_thread(usage.of_cgroup, init_cgroup(pod.meta))
        size = (found.memory if found is not None else None) or 0
        for one in await in_thread(self.inside, pod):
            size += await apart(tree.allocated, Path(one.source))
        return size

    def inside(self, pod: Pod) -> list[Volume]:
        """Volumes whose content is in the images. Blocks. Raises FailedPrecondition."""
        return self._volumes.placed(pod) if self.serves(pod) else []

    async def prepare(self, pod: Pod) -> None:
        """Before it is frozen: leave less to be written. If that fails the pod stands still for longer."""
        try:
            await (await self._shims.task(pod.meta.id)).forget(pod.meta.id)
        except HoldfastError as exc:
            log.warning("cannot have pod %s forget what has ended in it: %s", pod.meta.id, exc)

    async def dump(self, pod: Pod, directory: Path) -> None:
        """Have the images made of a pod that stands still, and goes on standing still."""
        images = directory / parts.SANDBOX / parts.IMAGES
        await in_thread(images.mkdir, 0o700, parents=True)
        await (await self._shims.task(pod.meta.id)).checkpoint(pod.meta.id, images, _settings(images))
        crashpoint("checkpoint.dumped")

    async def kill(self, pod: Pod) -> None:
        """As it stands: nothing of it runs any more."""
        await apart(cgroup.kill, init_cgroup(pod.meta))

    def origin(self, pod: Pod) -> tuple[Path, CriuSettings] | None:
        """What sandbox and containers are to be restored from; None for a pod that began by itself."""
        images = self._layout.restore(pod.meta.id) / parts.SANDBOX / parts.IMAGES
        return (images, _settings(images)) if self.serves(pod) and images.is_dir() else None

    def require_origin(self, container: Container) -> tuple[Path, CriuSettings]:
        """Of a container that is restored. Raises FailedPrecondition when the images are gone."""
        if (found := self.origin(container.pod)) is None:
            raise FailedPrecondition(f"cannot restore container {container.meta.id}: the images of its pod are gone")
        return found


def _settings(images: Path) -> CriuSettings:
    return CriuSettings("", str(images.parent))
