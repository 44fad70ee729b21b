"""Pods made again from archives: into new ids, with other paths of volumes and another address, here or elsewhere.

What the archive asks for is looked at first: its images have to be here, by digest; what its containers mount beside
the volumes that it brings has to be here too; and for whatever reaches for the host somebody has to answer. Then all
of it is read into a directory of our own, and believed only when its seal is right. The volumes are filled before the
sandbox is brought up, the containers are created with their layers, and started from their images. The intent
"restore" of the pod lasts until all of them run: a restore that fails, or dies with its daemon, leaves no pod.
"""

import logging
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from holdfast.checkpoint import layout as parts
from holdfast.checkpoint import sealed
from holdfast.checkpoint.head import Head
from holdfast.images.service import Images
from holdfast.lifecycle.archives import OP
from holdfast.lifecycle.checkpoints import Checkpoints
from holdfast.lifecycle.containers import Containers
from holdfast.lifecycle.freezing import LEASE_SECONDS, Freezer
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.pod_archive import (
    NAME,
    PodArchive,
    PodFile,
    Volume,
    Wanted,
    container_config,
    lacking,
    pod_config,
    reaches,
)
from holdfast.lifecycle.pods import RESTORE, Pods
from holdfast.lifecycle.storage import Storage
from holdfast.lifecycle.tasks import Background, apart, in_thread, within
from holdfast.lifecycle.world import World
from holdfast.linux import files, memory, mount
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from holdfast.model.state import PodState
from holdfast.runtime.handlers import Handlers
from holdfast.runtime.unpack import Unpacker

log = logging.getLogger(__name__)

READ_SECONDS: Final = 1800.0
LOOK_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """How a pod is to be restored. `places` are where its volumes are, and what else it mounts, by the volume's name or
    the path that it had; what is not named is made. `trusted`: whoever asks answers for what the archive asks for.
    """

    name: str = ""
    handler: str = ""
    places: Mapping[str, str] = field(default_factory=dict)
    trusted: bool = False


class PodRestores:
    """Makes pods of archives."""

    def __init__(
        self,
        world: World,
        pods: Pods,
        containers: Containers,
        checkpoints: Checkpoints,
        images: Images,
        unpacker: Unpacker,
        storage: Storage,
        background: Background,
        layout: Layout,
        handlers: Handlers,
        freezer: Freezer,
        log_root: Path,
        enabled: bool,
    ) -> None:
        self._handlers = handlers
        self._freezer = freezer
        self._enabled = enabled
        self._world = world
        self._pods = pods
        self._containers = containers
        self._checkpoints = checkpoints
        self._images = images
        self._unpacker = unpacker
        self._storage = storage
        self._background = background
        self._layout = layout
        self._log_root = log_root

    async def restore(self, location: str, asked: Asked) -> Pod:
        """Make a pod of an archive; all its containers run on return.

        Raises InvalidArgument for an archive that is not as it should be, NotFound for what is not on this node,
        AlreadyExists for a name that another pod goes by, FailedPrecondition, ResourceExhausted; then nothing of it is
        there.
        """
        source, what = Path(location), f"restore {location}"
        if not source.is_absolute() or "\0" in location:
            raise InvalidArgument(f"location: {location!r} is not an absolute path")
        try:
            head = await within(LOOK_SECONDS, apart(sealed.read_head, source), what)
        except FileNotFoundError as exc:
            raise NotFound(f"location: there is no {location}") from exc
        if head.kind != "pod":
            raise InvalidArgument(f"location: {location} is the archive of a {head.kind}, not of a pod")
        archive = PodArchive.decode(head.about)
        if missing := lacking(archive, {part.name for part in head.parts}):
            raise InvalidArgument(f"location: {location} has no {missing[0]}, and says that it has")
        named = archive.config.metadata
        self._require_name(named.namespace, asked.name or named.name, what)
        handler = asked.handler or archive.handler
        self._check_handler(handler, head, what)
        own_kernel = self._handlers.get(handler).gvisor
        if not asked.trusted and (found := reaches(archive, own_kernel)):
            hint = "say that it is trusted if you answer for whoever made it"
            raise FailedPrecondition(
                f"cannot {what}: it asks for more than a confined pod has: {'; '.join(found)}; {hint}"
            )
        await self._require_images(archive, what)
        places = await within(LOOK_SECONDS, apart(_places, archive, dict(asked.places)), f"{what}: look at its mounts")
        wanted = Wanted(asked.name, str(uuid.uuid4()), str(self._log_root))
        config = pod_config(archive, wanted)
        await self._storage.require_room({self._layout.root: 2 * head.bytes}, what)
        await apart(_require_memory, archive, head, places, what)

        async def prepare(pod: Pod) -> None:
            places.update(await self._prepare(pod, source, head, archive, places))

        pod = await self._pods.run(config, handler, prepare)
        try:
            await self._fill(pod, archive, places)
        except BaseException:
            await self._undo(pod)
            raise
        log.info("restored pod %s from %s", pod.meta.id, location)
        return pod

    def _require_name(self, namespace: str, name: str, what: str) -> None:
        """Raises AlreadyExists for one that a pod goes by which runs, Unavailable while that begins or ends."""
        if not NAME.fullmatch(name):
            raise InvalidArgument(f"name: {name!r} cannot be a pod's")
        for pod in self._world.pods.values():
            if (pod.meta.namespace, pod.meta.name) != (namespace, name):
                continue
            if under_way := sorted(pod.intents.keys() - {OP}):
                raise Unavailable(f"cannot {what}: a {under_way[0]} of pod {namespace}/{name} is under way")
            if pod.state is PodState.READY:
                why = f"pod {namespace}/{name} is there and runs; give this one another name"
                raise AlreadyExists(f"cannot {what}: {why}", pod.meta.id)

    def _check_handler(self, name: str, head: Head, what: str) -> None:
        """Raises FailedPrecondition for one that cannot take these images, or should not: see config.checkpoints."""
        handler = self._handlers.usable(name)
        of_sandbox = any(part.name.startswith(f"{parts.SANDBOX}/") for part in head.parts)
        whose = "gVisor's" if of_sandbox else "CRIU's"
        if of_sandbox != handler.gvisor:
            raise FailedPrecondition(
                f"cannot {what}: its images are {whose}, and not for runtime handler {handler.name}"
            )
        if not self._enabled:
            raise FailedPrecondition(f"cannot {what}: {whose} images are trusted, and `checkpoints` is not set here")
        if not handler.gvisor and (why := self._checkpoints.handler_problem(handler)):
            raise FailedPrecondition(f"cannot {what}: {why}")

    async def _require_images(self, archive: PodArchive, what: str) -> None:
        """Raises NotFound for an image that is not here: one of that name elsewhere may be another one."""
        for one in archive.containers:
            try:
                await self._images.whole(one.image)
            except NotFound as exc:
                name = one.config.image.user_specified_image or one.config.image.image
                raise NotFound(f"cannot {what}: image {one.image} ({name}) is not here; pull it first") from exc

    async def _prepare(
        self, pod: Pod, source: Path, head: Head, archive: PodArchive, places: dict[str, str]
    ) -> dict[str, str]:
        """Read the archive, and fill the volumes. Returns where those are that were made, by where they were."""
        staged = self._layout.restore(pod.meta.id)
        await in_thread(files.make_private, staged.parent)
        read = await within(READ_SECONDS, apart(sealed.unpack, source, staged, "pod", head.bytes), f"read {source}")
        if PodArchive.decode(read.about) != archive:
            raise InvalidArgument(f"location: {source} was exchanged while it was being read")
        crashpoint("restore.read")
        made, top = {}, self._layout.volumes(pod.meta.id)
        for number, one in enumerate(archive.files):
            if one.path not in places:
                place = top / _directory(pod.meta.uid) / "files" / str(number)
                await apart(_write, top, place, one)
                made[one.path] = str(place)
        for volume in archive.volumes:
            if volume.path not in places:
                place = top / _directory(pod.meta.uid) / "volumes" / "kubernetes.io~empty-dir" / volume.name
                await apart(_make, top, place, volume)
                made[volume.path] = str(place)
            place = Path(places.get(volume.path) or made[volume.path])
            if volume.inside:
                continue
            await self._unpacker.volume(staged / parts.VOLUMES / f"{volume.name}.tar", place)
            crashpoint("restore.volume")
        return made

    async def _fill(self, pod: Pod, archive: PodArchive, places: dict[str, str]) -> None:
        staged = self._layout.restore(pod.meta.id)
        if (staged / parts.SHM).exists() and (shm := self._layout.shm(pod.meta.id)).exists():
            await self._unpacker.volume(staged / parts.SHM, shm)
        crashpoint("restore.shm")
        made = []
        for one in archive.containers:
            config = container_config(one, pod.config, places)
            made.append(await self._containers.create(pod.meta.id, config, staged / parts.CONTAINERS / one.name))
        crashpoint("restore.created")
        await self._start(pod, made)
        await apart(files.remove_tree, staged)
        await self._world.end(pod, RESTORE)
        crashpoint("restore.done")

    async def _start(self, pod: Pod, made: list[Container]) -> None:
        """None of them goes on before all are there: CRIU takes no file that another one has changed meanwhile.

        One alone waits for nobody; and what is gVisor's goes on all at once by itself.
        """
        seconds = LEASE_SECONDS if len(made) > 1 and not self._handlers.get(pod.meta.handler).gvisor else 0.0
        async with self._freezer.held(pod) as held:
            for container in made:
                await self._containers.start(container.meta.id, seconds)
                if seconds:
                    held.append(container)
                crashpoint("restore.started")

    async def _undo(self, pod: Pod) -> None:
        """Remove the pod, whoever waits for that, until it is gone."""
        name = f"undo restore {pod.meta.id}"
        self._background.see_through(name, lambda: self._pods.finish_remove(pod))
        await pod.gone.wait()


def _directory(uid: str) -> Path:
    """As a kubelet names it, so that a checkpoint of the restored pod finds its volumes in its turn."""
    return Path("pods", uid)


def _write(top: Path, place: Path, one: PodFile) -> None:
    files.make_private(top)
    place.parent.mkdir(0o755, parents=True, exist_ok=True)
    files.write_atomic(place, one.data, one.mode)
    os.chown(place, one.uid, one.gid)


def _make(top: Path, place: Path, volume: Volume) -> None:
    """Make an empty volume; who owns it is told by what it is filled with."""
    files.make_private(top)
    place.mkdir(0o755, parents=True)
    if volume.memory:
        size = min(volume.size or memory.total(), memory.total())
        mount.mount("tmpfs", place, "tmpfs", mount.MS_NOSUID | mount.MS_NODEV, f"mode=0777,size={size}")
    crashpoint("restore.made")


def _require_memory(archive: PodArchive, head: Head, places: Mapping[str, str], what: str) -> None:
    """Raises ResourceExhausted for volumes in memory that would take more of it than the machine can spare."""
    made = {f"{parts.VOLUMES}/{one.name}.tar" for one in archive.volumes if one.memory and one.path not in places}
    size, spare = sum(part.bytes for part in head.parts if part.name in made), memory.available()
    if size > spare:
        raise ResourceExhausted(f"cannot {what}: its volumes in memory have {size} bytes, and {spare} are to be had")


def _places(archive: PodArchive, given: dict[str, str]) -> dict[str, str]:
    """Where what the containers mount is now, by where it was: as somebody says, or the same place.

    Raises NotFound for what is not there, InvalidArgument for what is given and not mounted.
    """
    volumes = {volume.path: volume.name for volume in archive.volumes}
    ours = {*volumes, *(one.path for one in archive.files)}
    found, asked = {}, dict(given)
    for one in archive.containers:
        for each in one.config.mounts:
            path = each.host_path.rstrip("/")
            if each.HasField("image") or path in found:
                continue
            place = asked.pop(volumes.get(path, path), "")
            if not place and path in ours:
                continue
            place = place or path
            if not os.path.exists(place):
                raise NotFound(
                    f"container {one.name} mounts {path}, and there is no {place} here; say what is to be there"
                )
            if path in volumes and (not os.path.isdir(place) or os.listdir(place)):
                raise FailedPrecondition(f"volume {volumes[path]} is to be at {place}, which is no empty directory")
            found[path] = place
    if asked:
        raise InvalidArgument(f"volumes: no container mounts {', '.join(sorted(asked))}")
    return found
