"""Containers that are made from a checkpoint: by an archive's path as image, or by an image that holds an archive.

Configuration is the request's alone. Of the archive are taken: CRIU's images, what was changed in the root filesystem,
and the image on which that stands, which has to be here and is named by digest. All of it is read and found to be whole
before anything is done with it, into a directory of our own, so that nobody changes it afterwards. What the request
mounts is held against what was mounted: CRIU brings processes back into their mounts, it does not move them.
"""

import errno
import json
import logging
import os
import re
from pathlib import Path
from typing import Any, Final

from holdfast.checkpoint import layout as parts
from holdfast.checkpoint import rights, sealed
from holdfast.images.service import Images
from holdfast.lifecycle.bundle import Bundles
from holdfast.lifecycle.checkpoints import Checkpoints
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.sandbox_checkpoints import SandboxCheckpoints
from holdfast.lifecycle.tasks import Background, apart, in_thread, within
from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.model.checkpoint import STDIO_FILE, CriuSettings, decode_stdio
from holdfast.model.errors import Damaged, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from holdfast.model.image import Image
from holdfast.oci.capabilities import CAPABILITIES, capability_name
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.unpack import Unpacker
from holdfast.snapshots.overlay import Snapshots
from holdfast.store.space import Minimum

log = logging.getLogger(__name__)

READ_SECONDS: Final = 600.0
TEXT_LIMIT: Final = 16 * 1024 * 1024
BEGUN: Final = "begun"  # in the directory of what was read, once a start has begun
FIELD: Final = "config.image.image"
# How podman, CRI-O and containerd mark an image that holds a checkpoint.
MARKS: Final = ("org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name")
_NO_FILE: Final = frozenset({errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
_FIXED: Final = re.compile(r"([^@\s]+@)?(sha256:)?[0-9a-f]{64}")


class Restores:
    """Reads archives for containers that are created; does nothing unless it is `enabled`."""

    def __init__(
        self,
        images: Images,
        snapshots: Snapshots,
        unpacker: Unpacker,
        bundles: Bundles,
        checkpoints: Checkpoints,
        sandboxes: SandboxCheckpoints,
        background: Background,
        layout: Layout,
        minimum: Minimum,
        enabled: bool,
    ) -> None:
        self._images = images
        self._snapshots = snapshots
        self._unpacker = unpacker
        self._bundles = bundles
        self._checkpoints = checkpoints
        self._sandboxes = sandboxes
        self._background = background
        self._layout = layout
        self._minimum = minimum
        self._enabled = enabled
        self.reading: set[str] = set()  # ids of containers that have no row yet

    async def read(
        self, container_id: str, pod: Pod, config: pb.ContainerConfig, saved: Path | None = None
    ) -> Image | None:
        """If the container's image is a checkpoint, read that, and return the image that it stands on; else None.

        With `saved`, a directory, that was done already, and it is taken from there. What was read is there for
        `container_id`, until it is discarded. Raises InvalidArgument, NotFound, FailedPrecondition.
        """
        source = saved or await self._source(config.image.image)
        if source is None:
            return None
        of_pod = saved is not None and self._sandboxes.serves(pod)
        if not of_pod and (why := await self._checkpoints.problem(pod, config)):
            raise FailedPrecondition(f"cannot restore container {config.metadata.name}: {why}")
        self.reading.add(container_id)
        place = self._layout.restore(container_id)
        await in_thread(files.make_private, place.parent)
        if saved is not None:
            await in_thread(files.rename, saved, place)
            return await self._images.whole(config.image.image)
        room = (await in_thread(files.filesystem, place.parent)).free_bytes - self._minimum.bytes
        try:
            read = apart(sealed.unpack, source, place, "container", max(room, 0))
            await within(READ_SECONDS, read, f"read {source}")
        except FileNotFoundError as exc:
            raise NotFound(f"{FIELD}: there is no {source}") from exc
        except OSError as exc:
            if exc.errno not in _NO_FILE:
                raise
            raise InvalidArgument(f"{FIELD}: cannot read {source}: {exc.strerror}") from exc
        except InvalidArgument as exc:
            raise InvalidArgument(f"{FIELD}: {exc}") from exc
        except ResourceExhausted as exc:
            raise ResourceExhausted(f"{FIELD}: {exc}: the filesystem of {place.parent} has no more") from exc
        crashpoint("restore.read")
        return await self._image(place)

    async def fill(self, container: Container) -> None:
        """Put into the new container's layer what its checkpoint has kept of the old one's."""
        if not container.meta.checkpoint:
            return
        place, key = self._layout.restore(container.meta.id), container.meta.snapshot_key
        changed, deleted = place / parts.ROOTFS_DIFF, place / parts.DELETED_FILES
        if not changed.exists():
            return
        lowers = self._snapshots.layers(self._snapshots.parent(key))
        if not deleted.exists():  # it may be left out where nothing was deleted
            await in_thread(deleted.write_bytes, b"[]")
        try:
            await self._unpacker.writable_layer(changed, deleted, self._snapshots.place(key).parent, lowers)
        except InvalidArgument as exc:
            raise InvalidArgument(f"{FIELD}: {exc}") from exc
        crashpoint("restore.filled")

    async def check(self, container: Container) -> None:
        """Raise InvalidArgument unless the request has what the processes will look for: mounts, streams, terminal."""
        if not container.meta.checkpoint:
            return
        place = self._layout.restore(container.meta.id)
        spec = await in_thread(self._bundles.load, container)
        await in_thread(compare, place, spec, container.config)

    async def begin(self, container: Container, held: float = 0.0) -> tuple[Path, CriuSettings] | None:
        """Where the images are from which a container is to be started, if it is to be restored; see CriuSettings.

        What an attempt that was cut off has written to its layer is taken back: in the images nobody has written it.
        Raises FailedPrecondition when they are lost.
        """
        if not container.meta.checkpoint:
            return None
        if self._sandboxes.serves(container.pod):
            return self._sandboxes.require_origin(container)
        place = self._layout.restore(container.meta.id)
        if not (place / parts.IMAGES).is_dir():
            raise FailedPrecondition(f"cannot restore container {container.meta.id}: {place} is gone")
        if (place / BEGUN).exists():
            await self._fill_anew(container)
        await in_thread(files.write_atomic, place / BEGUN, b"")
        crashpoint("restore.begun")
        return place / parts.IMAGES, self._checkpoints.settings(container, place, held)

    async def _fill_anew(self, container: Container) -> None:
        key = container.meta.snapshot_key
        if self._snapshots.has(key):
            below = self._snapshots.parent(key)
        else:  # one that has got this far, and no further
            below = self._images.snapshot_name(self._images.find(container.meta.image_id))
        await self._snapshots.remove(key)
        crashpoint("restore.emptied")
        await self._snapshots.prepare(key, below)
        await self.fill(container)

    async def discard(self, container_id: str) -> None:
        """What was read is needed no more. Idempotent."""
        await apart(files.remove_tree, self._layout.restore(container_id))
        self.reading.discard(container_id)

    def known(self, container_id: str) -> None:
        """It has a row now, by which what was read is owned."""
        self.reading.discard(container_id)

    def discard_later(self, container: Container) -> None:
        """The same, of one that runs; nobody waits for it."""
        if container.meta.checkpoint:
            id = container.meta.id
            self._background.see_through(f"discard checkpoint of {id}", lambda: self.discard(id))

    async def _source(self, wanted: str) -> Path | None:
        """The file that holds the archive; None for a plain image."""
        if wanted.startswith("/"):
            if not self._enabled:
                raise FailedPrecondition(f"{FIELD}: {wanted} is a path, and `checkpoints` is not set here")
            if "\0" in wanted or ".." in Path(wanted).parts:
                raise InvalidArgument(f"{FIELD}: {wanted!r} is not an absolute path of a file")
            return Path(wanted)
        if not self._enabled:
            return None
        image = self._images.find(wanted)
        return await self._images.only_layer(image, MARKS)

    async def _image(self, place: Path) -> Image:
        """The image that an archive stands on. A name that may be another one's by now is not taken."""
        try:
            found = json.loads(files.read_bounded(place / parts.CONFIG_DUMP, TEXT_LIMIT))
            reference = found["rootfsImageRef"]
            if not isinstance(reference, str) or not _FIXED.fullmatch(reference):
                raise ValueError(f"its image {reference!r} is not named by digest")
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as exc:
            raise InvalidArgument(f"{FIELD}: cannot read {parts.CONFIG_DUMP} of the checkpoint: {exc}") from exc
        try:
            return await self._images.whole(reference)
        except NotFound as exc:
            raise NotFound(f"{FIELD}: the checkpoint stands on {reference}, which is not here; pull it first") from exc


def compare(place: Path, spec: dict[str, Any], config: pb.ContainerConfig) -> None:
    """Hold the spec of the new container against that of the old one."""
    try:
        before = json.loads(files.read_bounded(place / parts.SPEC_DUMP, TEXT_LIMIT))
        mounted, terminal = _mounted(before), bool(before["process"].get("terminal", False))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise InvalidArgument(f"{FIELD}: cannot read {parts.SPEC_DUMP} of the checkpoint: {exc}") from exc
    wanted = _mounted(spec)
    if missing := sorted(mounted - wanted):
        raise InvalidArgument(f"config.mounts: the checkpoint has something mounted at {missing[0]}, the request not")
    if more := sorted(wanted - mounted):
        raise InvalidArgument(f"config.mounts: the checkpoint has nothing mounted at {more[0]}, the request has")
    if terminal != config.tty:
        raise InvalidArgument(f"config.tty: the checkpoint was made {'with' if terminal else 'without'} a terminal")
    streams = place / parts.IMAGES / STDIO_FILE
    try:
        known = decode_stdio(files.read_bounded(streams, TEXT_LIMIT)) if streams.exists() else None
    except Damaged as exc:
        raise InvalidArgument(f"{FIELD}: {exc}") from exc
    try:
        excess = rights.excess(place / parts.IMAGES, _allowed(spec))
    except ValueError as exc:
        raise InvalidArgument(f"{FIELD}: cannot read CRIU's images: {exc}") from exc
    if excess:
        raise InvalidArgument(f"{FIELD}: the checkpoint wants more than the request gives: {excess}")
    if known is not None and not config.tty and ("stdin" in known) != config.stdin:
        raise InvalidArgument(f"config.stdin: the checkpoint was made {'with' if 'stdin' in known else 'without'} it")


def _allowed(spec: dict[str, Any]) -> rights.Allowed:
    """What a spec gives, in CRIU's terms."""
    names = spec["process"].get("capabilities", {}).get("bounding", [])
    return rights.Allowed(
        frozenset(CAPABILITIES.index(capability_name(name)) for name in names),
        bool(spec["process"].get("noNewPrivileges", False)),
        "seccomp" in spec["linux"],
        frozenset(os.path.normpath(one["destination"]) for one in spec["mounts"])
        | frozenset(spec["linux"].get("maskedPaths", [])),
    )


def _mounted(spec: dict[str, Any]) -> set[str]:
    """Where something is mounted that is not made anew for each container."""
    return {os.path.normpath(one["destination"]) for one in spec["mounts"] if one.get("type") in ("bind", None)}
