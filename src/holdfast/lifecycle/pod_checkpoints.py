"""Checkpoints of whole pods: every process, every writable layer, every emptyDir and /dev/shm, as of one instant.

What cannot be brought back, and what there is no room for, is said before anything is frozen. Then all containers stand
still at once; CRIU writes their images one after the other while their layers, the volumes and /dev/shm are packed.
A pod that is left running goes on as soon as that is done, and the archive is sealed behind its back; one that is not
stands still until its archive is on disk, and is killed as it stands, so that nothing happens that is not in it.
"""

import asyncio
import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from holdfast.checkpoint import layout as parts
from holdfast.checkpoint.tree import pack_tree
from holdfast.lifecycle.archives import COMPRESSIONS, OP, Archives, Making
from holdfast.lifecycle.checkpoints import Checkpoints
from holdfast.lifecycle.container_checkpoints import ContainerCheckpoints
from holdfast.lifecycle.freezing import Freezer
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container, Pod, container_cgroup
from holdfast.lifecycle.pod_archive import (
    FILE_LIMIT,
    NAME,
    PodArchive,
    PodFile,
    Saved,
    Volume,
    beside,
    volumes_of,
)
from holdfast.lifecycle.sandbox_checkpoints import SandboxCheckpoints
from holdfast.lifecycle.tasks import apart, within
from holdfast.lifecycle.world import World
from holdfast.linux import cgroup, files, ipc, mount, tree
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from holdfast.model.state import ContainerState, PodState
from holdfast.oci.gvisor import Volume as Inner

log = logging.getLogger(__name__)

ENDING: Final = frozenset({OP, "restore", "run", "create", "start", "stop", "remove"})
LOOK_SECONDS: Final = 30.0  # that volumes may take to be looked at
SHM: Final = "shm"
_MEMORY: Final = "tmpfs"


@dataclass(frozen=True, slots=True)
class Wish:
    """Where an archive is to be, how it is to be packed, and how large it may be; 0 for what there is room for.

    A pod that is not to be left running is stopped once its archive is on disk.
    """

    location: str
    compress: str = ""
    leave_running: bool = False
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a checkpoint: length of the archive, for how long the pod stood still, what is not in it."""

    bytes: int
    frozen_seconds: float
    left_out: tuple[str, ...]


class PodCheckpoints:
    """Writes archives of pods."""

    def __init__(
        self,
        world: World,
        archives: Archives,
        checkpoints: Checkpoints,
        containers: ContainerCheckpoints,
        sandboxes: SandboxCheckpoints,
        freezer: Freezer,
        layout: Layout,
    ) -> None:
        self._sandboxes = sandboxes
        self._world = world
        self._archives = archives
        self._checkpoints = checkpoints
        self._containers = containers
        self._freezer = freezer
        self._layout = layout

    async def checkpoint(self, pod: Pod, wish: Wish) -> Outcome:
        """Leave an archive of a pod. Nothing of it runs any more on return, unless it is left running.

        Raises InvalidArgument for a place that cannot be one, AlreadyExists for one that is taken, FailedPrecondition
        and ResourceExhausted before anything is frozen. Then nothing is left of it, and the pod goes on.
        """
        what = f"checkpoint pod {pod.meta.id}"
        if wish.compress not in COMPRESSIONS:
            raise InvalidArgument(f"compress: {wish.compress!r} is none of {', '.join(COMPRESSIONS[1:])}")
        target = await self._archives.check(wish.location, what)
        running = _running(pod, what)
        try:
            volumes = await within(LOOK_SECONDS, apart(_volumes, pod, running), f"{what}: look at its volumes")
        except FailedPrecondition as exc:
            raise FailedPrecondition(f"cannot {what}: {exc}") from exc
        whole = self._sandboxes.serves(pod)
        if whole:
            self._sandboxes.refuse(pod)
            volumes = await within(LOOK_SECONDS, apart(_with_inner, volumes, self._sandboxes.inside, pod), what)
        for container in running if not whole else ():
            await self._checkpoints.refuse(container)
        await self._refuse_ipc(pod, what)
        if whole:
            size = await self._sandboxes.size(pod)
        else:
            size = sum([await self._checkpoints.size(one) for one in running])
        for place in (*[Path(one.path) for one in volumes], self._layout.shm(pod.meta.id)):
            size += await within(LOOK_SECONDS, apart(tree.allocated, place), f"{what}: measure {place}")
        if wish.limit and size > wish.limit:
            raise ResourceExhausted(f"cannot {what}: it takes about {size} bytes, and may take {wish.limit}")
        async with self._archives.making(pod, target, size, what) as making:
            return await self._make(making, pod, running, volumes, wish)

    async def over(self, pod: Pod) -> None:
        """Wait until no checkpoint of it is under way; one that a stop has ended is over soon."""
        await self._archives.over(pod)

    async def undo(self, pod: Pod) -> None:
        """What an earlier daemon was at is over: let the pod go on, and leave nothing of it."""
        if OP not in pod.intents:
            return
        for container in list(pod.containers.values()):
            if container.state is ContainerState.RUNNING:
                await self._freezer.let_go(container)
        await self._archives.undo(pod)

    async def _make(
        self, making: Making, pod: Pod, running: Sequence[Container], volumes: Sequence[Volume], wish: Wish
    ) -> Outcome:
        archive = _archive(pod, running, volumes)
        if self._sandboxes.serves(pod):
            await self._sandboxes.prepare(pod)
        async with contextlib.AsyncExitStack() as standing_still:
            window = await standing_still.enter_async_context(self._freezer.frozen(pod, running))
            now = self._world.clock.now()
            left_out = await self._capture(making.directory, pod, running, volumes)
            kept = await within(LOOK_SECONDS, apart(_files, pod, running), f"read the files of pod {pod.meta.id}")
            archive = replace(archive, checkpointed_at=now, files=kept, left_out=(*archive.left_out, *left_out))
            if wish.leave_running:
                await standing_still.aclose()
            for container in running:
                await self._containers.describe(container, self._of(making, container), now)
            archive = replace(archive, frozen_seconds=round(window.elapsed, 3))
            size = await self._archives.seal(making, "pod", archive.encode(), wish.compress)
            if not wish.leave_running:
                window.ended = True
                if self._sandboxes.serves(pod):
                    await self._sandboxes.kill(pod)
                await asyncio.gather(*[apart(cgroup.kill, container_cgroup(one)) for one in running])
                crashpoint("checkpoint.killed")
        log.info(
            "checkpoint of pod %s: %d bytes at %s, frozen for %.3f s",
            pod.meta.id, size, making.target, archive.frozen_seconds,
        )  # fmt: skip
        return Outcome(size, archive.frozen_seconds, archive.left_out)

    async def _capture(
        self, directory: Path, pod: Pod, running: Sequence[Container], volumes: Sequence[Volume]
    ) -> list[str]:
        """Everything that would change as soon as they go on. Returns the sockets that are left out."""
        outer = [one for one in volumes if not one.inside]
        trees = [(one.name, Path(one.path), directory / parts.VOLUMES / f"{one.name}.tar") for one in outer]
        if (shm := self._layout.shm(pod.meta.id)).exists():
            trees.append((SHM, shm, directory / parts.SHM))
        packing = [apart(_pack, source, target) for _, source, target in trees]
        for container in running:
            (directory / parts.CONTAINERS / container.meta.name).mkdir(0o700, parents=True)
        packing += [self._dump(directory, pod, running), self._pack_layers(directory, pod, running)]
        done = await asyncio.gather(*packing, return_exceptions=True)
        left_out = []
        for (name, _, _), sockets in zip([*trees, *[("", shm, shm)] * 2], done, strict=True):
            if isinstance(sockets, BaseException):
                raise sockets
            left_out += [f"{name}/{path}" for path in sockets]
        return left_out

    async def _dump(self, directory: Path, pod: Pod, running: Sequence[Container]) -> list[str]:
        if whole := self._sandboxes.serves(pod):
            await self._sandboxes.dump(pod, directory)
        for container in running if not whole else ():
            await self._checkpoints.dump(container, directory / parts.CONTAINERS / container.meta.name)
        return []

    async def _pack_layers(self, directory: Path, pod: Pod, running: Sequence[Container]) -> list[str]:
        """Of a pod whose images do not have them."""
        for container in running if not self._sandboxes.serves(pod) else ():
            await self._containers.pack_layer(container, directory / parts.CONTAINERS / container.meta.name)
        return []

    async def _refuse_ipc(self, pod: Pod, what: str) -> None:
        """What System V has in the pod's IPC namespace, which is no container's own, is in no image."""
        namespace = self._layout.namespaces(pod.meta.id) / "ipc"
        if namespace.exists() and (kinds := await apart(ipc.in_use, namespace)):
            raise FailedPrecondition(f"cannot {what}: it has {' and '.join(kinds)} of System V, which are not captured")

    def _of(self, making: Making, container: Container) -> Path:
        return making.directory / parts.CONTAINERS / container.meta.name


def _running(pod: Pod, what: str) -> list[Container]:
    """Those of the pod's containers that run. Raises FailedPrecondition; Unavailable while something is under way."""
    if pod.state is not PodState.READY or not pod.acknowledged:
        raise FailedPrecondition(f"cannot {what}: it is not ready")
    owners: list[Pod | Container] = [pod, *pod.containers.values()]
    for one in owners:
        if under_way := sorted(ENDING & one.intents.keys()):
            raise Unavailable(f"cannot {what}: a {under_way[0]} of {one.meta.id} is under way")
    unknown = [one.meta.id for one in pod.containers.values() if one.state is ContainerState.UNKNOWN]
    if unknown:
        raise FailedPrecondition(f"cannot {what}: the state of container {unknown[0]} is not known")
    running = [one for one in pod.containers.values() if one.state is ContainerState.RUNNING]
    if not running:
        raise FailedPrecondition(f"cannot {what}: none of its containers runs")
    if strange := next((one.meta.name for one in running if not NAME.fullmatch(one.meta.name)), ""):
        raise FailedPrecondition(f"cannot {what}: {strange!r} cannot be a name in an archive")
    return running


def _volumes(pod: Pod, running: Sequence[Container]) -> list[Volume]:
    """The pod's emptyDirs. Raises FailedPrecondition for one that cannot be brought back."""
    mounted = {one.target: one for one in mount.mountinfo()}
    found = []
    for name, path in volumes_of(pod.meta.uid, [one.config for one in running]).items():
        if not NAME.fullmatch(name):
            raise FailedPrecondition(f"{name!r} cannot be the name of a volume in an archive")
        fstype = entry.fstype if (entry := mounted.get(os.path.realpath(path))) is not None else ""
        if fstype == "hugetlbfs":
            raise FailedPrecondition(f"volume {name} is huge pages, which are not captured")
        if fstype == _MEMORY:
            found.append(Volume(name, path, memory=True, size=files.filesystem(path).total_bytes))
        else:
            found.append(Volume(name, path))
    return found


def _with_inner(volumes: Sequence[Volume], inside: Callable[[Pod], list[Inner]], pod: Pod) -> list[Volume]:
    """With those that are in the images of the pod's sandbox, whether or not a container that runs mounts them."""
    found = {one.name: one for one in volumes}
    for one in inside(pod):
        known = found.get(one.name)
        found[one.name] = replace(known, inside=True) if known else Volume(one.name, one.source, inside=True)
    return list(found.values())


def _files(pod: Pod, running: Sequence[Container]) -> tuple[PodFile, ...]:
    """Those of the pod beside its volumes. What is no file, or a large one, is not the pod's alone."""
    found = []
    for path in beside(pod.meta.uid, [one.config for one in running]):
        try:
            data, status = files.read_bounded(path, FILE_LIMIT), os.stat(path)
        except OSError:
            continue
        found.append(PodFile(path, data, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid))
    return tuple(found)


def _archive(pod: Pod, running: Sequence[Container], volumes: Sequence[Volume]) -> PodArchive:
    others = [one for one in pod.containers.values() if one not in running]
    return PodArchive(
        config=pod.config,
        handler=pod.meta.handler,
        containers=tuple(Saved(one.config, one.meta.image_id) for one in running),
        volumes=tuple(volumes),
        left_out=tuple(f"container {one.meta.name}, which is {one.state}" for one in others),
    )


def _pack(source: Path, target: Path) -> list[str]:
    """Raises OSError that names the file, FailedPrecondition for what could not be brought back."""
    target.parent.mkdir(0o700, exist_ok=True)
    descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(target, "wb") as out:
            sockets = pack_tree(descriptor, out)
    except OSError as exc:
        if exc.errno not in (errno.ENOTSUP, errno.EXDEV, errno.ENAMETOOLONG):
            raise
        raise FailedPrecondition(f"cannot checkpoint {source}: {exc.filename} {exc.strerror}") from exc
    finally:
        os.close(descriptor)
    crashpoint("checkpoint.volume")
    return sockets
