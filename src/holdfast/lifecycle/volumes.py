"""What a container's mounts need on the host: their sources, views of images, and what is staged for the runtime.

A view is a read-only snapshot of an image, made with the container and removed with it; its key begins with the
container's id, so that whoever finds it knows whose it is. Staged mounts are below the bundle, and only from right
before the runtime is told to create the container until it has: what is left of them by a crash goes with the task.
"""

import contextlib
import errno
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from holdfast.images.service import Images
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container
from holdfast.lifecycle.tasks import apart, in_thread
from holdfast.linux import files, mount
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import (
    Damaged,
    FailedPrecondition,
    HoldfastError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from holdfast.model.spec import Mount, volume_key
from holdfast.oci import lsm, mounts
from holdfast.oci.request import HostFacts, Sources
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.features import RuntimeFeatures, binds_from_host
from holdfast.runtime.handlers import Handlers
from holdfast.runtime.pathwork import Mappings, PathError, PathWork, Stage, Wanted
from holdfast.snapshots.overlay import Snapshots, view_of

log = logging.getLogger(__name__)

DIRECTORY: Final = "volumes"  # in the bundle
CONFIG_FILE: Final = "config.json"
CONFIG_LIMIT: Final = 8 * 1024 * 1024
# As kubelets know them (k8s.io/cri-api, pkg/errors).
UNSUPPORTED: Final = "RROUnsupported"
IMAGE_FAILED: Final = "ImageVolumeMountFailed"
_NO_DIRECTORY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG})
_BAD_PATH: Final = frozenset({errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL})


class Volumes:
    """Prepares the mounts of containers, and takes apart what was prepared."""

    def __init__(
        self,
        images: Images,
        snapshots: Snapshots,
        paths: PathWork,
        handlers: Handlers,
        features: RuntimeFeatures,
        layout: Layout,
        facts: HostFacts,
    ) -> None:
        self._facts = facts
        self._images = images
        self._snapshots = snapshots
        self._paths = paths
        self._handlers = handlers
        self._features = features
        self._layout = layout

    async def prepare(self, container: Container) -> Sources:
        """See to it that all that is to be mounted is there. Idempotent.

        Raises InvalidArgument, FailedPrecondition, NotFound, Damaged and DeadlineExceeded that name the field.
        """
        own = await self._recursive_read_only(container)
        sources = {number: await self._view(container, number) for number in mounts.image_volumes(container.config)}
        binds = [(number, one) for number, one in enumerate(container.config.mounts) if number not in sources]
        self._check(container, binds, own)
        wanted = [self._wanted(container, number, one) for number, one in binds]
        try:
            found = await self._paths.find(wanted)
        except PathError as exc:
            raise _named(exc) from exc
        for (number, one), source in zip(binds, found, strict=True):
            mounts.check_propagation(one, _field(number), source.propagation, source.place)
            staged = mounts.is_staged(one, own)
            sources[number] = str(self._place(container, number)) if staged else source.path
        return Sources(tuple(sources[number] for number in sorted(sources)), own)

    @contextlib.asynccontextmanager
    async def staged(self, container: Container) -> AsyncIterator[None]:
        """Within it, what the bundle's spec has from there is mounted below the bundle."""
        if not any(mounts.is_staged(one, False) for one in container.config.mounts):
            yield
            return
        try:
            await self._unstage(container)  # what an attempt that was cut off has left
            await self._stage(container, await in_thread(_staged_in, self._place(container)))
            crashpoint("start.staged")
            yield
        except PathError as exc:
            raise _named(exc) from exc
        finally:
            try:
                await self._unstage(container)
            except OSError as exc:  # it goes with the task then
                log.warning("what was staged for container %s is left for later: %s", container.meta.id, exc)
            crashpoint("start.unstaged")

    async def release(self, container: Container) -> None:
        """Remove the views of images. Idempotent."""
        for key in self._snapshots.starting_with(volume_key(container.meta.id)):
            await self._snapshots.remove(key)
            crashpoint("remove.volume")

    async def _recursive_read_only(self, container: Container) -> bool:
        """Whether the container's OCI runtime makes such mounts itself; not asked where none is wanted."""
        if not any(one.recursive_read_only for one in container.config.mounts):
            return False
        handler = self._handlers.get(container.pod.meta.handler)
        return (await self._features.of(handler)).recursive_read_only_mounts

    async def _view(self, container: Container, number: int) -> str:
        """Make the view of an image volume, and find its sub path in it."""
        asked, field = container.config.mounts[number], _field(number)
        key = volume_key(container.meta.id, number)
        if not self._snapshots.has(key):  # else the bundle was lost and is made again, perhaps without the image
            try:
                image = await self._images.whole(asked.image.image)
                await self._snapshots.view(key, self._images.snapshot_name(image))
            except (NotFound, Damaged) as exc:
                raise type(exc)(f"{field}.image.image: {IMAGE_FAILED}: {exc}") from exc
            crashpoint("create.volume")
        below = ""
        if asked.image_sub_path:
            described = await self._snapshots.mounts(key)
            try:
                below = await in_thread(_resolve, described[0], asked.image_sub_path)
            except OSError as exc:
                if exc.errno not in _NO_DIRECTORY:
                    raise
                why = f"{IMAGE_FAILED}: {asked.image_sub_path!r} is no directory of image {asked.image.image}"
                raise InvalidArgument(f"{field}.image_sub_path: {why}: {exc.strerror}") from exc
        return f"{self._place(container, number)}{below}"

    async def _stage(self, container: Container, numbers: list[int]) -> None:
        """Users' paths by a worker, and so the layers of an image whose ids are mapped; last the views."""
        stages: list[Stage] = []
        views: list[tuple[Mount, Path]] = []
        for number in numbers:
            one, place = container.config.mounts[number], self._place(container, number)
            uids, gids = _mappings(one)
            if not one.HasField("image"):
                field = f"{_field(number)}.host_path"
                stages.append(Stage(one.host_path, field, str(place), one.recursive_read_only, uids, gids))
                continue
            with contextlib.suppress(NotFound, Damaged):  # of an image that is gone the layers may be there
                await self._images.whole(one.image.image)
            view = (await self._snapshots.mounts(volume_key(container.meta.id, number)))[0]
            if uids:
                mapped: list[Path] = []
                for layer in self._snapshots.below(volume_key(container.meta.id, number)):
                    mapped.append(target := place.with_name(f"{number}-{len(mapped)}"))
                    stages.append(Stage(str(layer), f"{_field(number)}.image", str(target), uids=uids, gids=gids))
                view = view_of(mapped)
            views.append((view, place))
        await self._paths.stage(stages)
        for view, place in views:
            await apart(_mount, view, place)

    async def _unstage(self, container: Container) -> None:
        directory = self._place(container)
        if await in_thread(directory.exists):
            await apart(mount.unmount_tree, directory)

    def _check(self, container: Container, binds: list[tuple[int, pb.Mount]], own: bool) -> None:
        """What neither the runtime nor we can do for this handler is refused."""
        if binds_from_host(handler := self._handlers.get(container.pod.meta.handler)):
            return
        for number, one in binds:
            if one.recursive_read_only and not own:
                why = f"{UNSUPPORTED}: runtime handler {handler.name} is not known to do it"
                raise FailedPrecondition(f"{_field(number)}.recursive_read_only: {why}")

    def _wanted(self, container: Container, number: int, one: pb.Mount) -> Wanted:
        pod = container.pod
        of_pod, own = (config.linux.security_context.selinux_options for config in (pod.config, container.config))
        _, label = lsm.labels(self._facts, pod.meta.id, of_pod, own)
        uids, gids = _mappings(one)
        label = label if one.selinux_relabel else ""
        holder = one.propagation != pb.PROPAGATION_PRIVATE
        return Wanted(one.host_path, f"{_field(number)}.host_path", holder, label, uids, gids)

    def _place(self, container: Container, number: int | None = None) -> Path:
        directory = self._layout.bundle(container.pod.meta.id, container.meta.id) / DIRECTORY
        return directory if number is None else directory / str(number)


def _field(number: int) -> str:
    return f"config.mounts[{number}]"


def _mappings(one: pb.Mount) -> tuple[Mappings, Mappings]:
    """For the kernel: of an id on the disk it is told the one that is seen, through the host's."""
    uids, gids = (
        tuple((mapping.container_id, mapping.host_id, mapping.length) for mapping in mappings)
        for mappings in (one.uidMappings, one.gidMappings)
    )
    return uids, gids


def _named(error: PathError) -> HoldfastError:
    """As an error that names the field."""
    if error.of_ids:
        field = f"{error.field.rpartition('.')[0]}.uidMappings"
        why = f"ids cannot be mapped on the filesystem of {error.filename}: {error.strerror}"
        return FailedPrecondition(f"{field}: {why}")
    kind: type[HoldfastError] = InvalidArgument if error.errno in _BAD_PATH else FailedPrecondition
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = ResourceExhausted
    return kind(f"{error.field}: cannot use {error.filename}: {error.strerror}")


def _staged_in(directory: Path) -> list[int]:
    """Which mounts the spec has from this directory of the bundle: it was written with what the runtime could then."""
    spec = json.loads(files.read_bounded(directory.parent / CONFIG_FILE, CONFIG_LIMIT))
    sources = [Path(one["source"]) for one in spec["mounts"]]
    return [int(path.relative_to(directory).parts[0]) for path in sources if path.is_relative_to(directory)]


def _resolve(view: Mount, path: str) -> str:
    """Where a directory is below the root of what is mounted, "/..." without links. Raises OSError."""
    root = mount.open_detached(view)
    try:
        found = files.open_beneath(root, path, os.O_PATH | os.O_DIRECTORY, in_root=True)
        try:
            return os.readlink(f"/proc/self/fd/{found}").rstrip("/")
        finally:
            os.close(found)
    finally:
        os.close(root)


def _mount(one: Mount, target: Path) -> None:
    files.make_private(target.parent)
    files.mkdir(target, 0o700, exist_ok=True)
    mount.mount_one(one, target)
