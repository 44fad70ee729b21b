"""CheckpointContainer: one container, which runs on, as an archive that others can read too.

    refuse     what CRIU cannot do, and what there is no room for, before anything is touched
    freeze     on a lease: images by CRIU, the writable layer as a tar; thaw
    seal       see Archives, for what is recorded and left as well

Whoever dies in between: what is frozen is thawed by the shim or the next one.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Final

from holdfast.checkpoint import layout as parts
from holdfast.checkpoint.layer import pack_layer
from holdfast.images.service import Images
from holdfast.lifecycle.archives import Archives, Making
from holdfast.lifecycle.bundle import Bundles
from holdfast.lifecycle.checkpoints import Checkpoints
from holdfast.lifecycle.freezing import Freezer
from holdfast.lifecycle.objects import Container
from holdfast.lifecycle.tasks import apart, in_thread, within
from holdfast.lifecycle.world import World
from holdfast.linux import mount
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    HoldfastError,
    InvalidArgument,
    Unavailable,
)
from holdfast.model.spec import Mount
from holdfast.model.state import ContainerState
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handlers
from holdfast.snapshots.overlay import Snapshots, view_of

log = logging.getLogger(__name__)

LOG_BYTES: Final = 16 * 1024 * 1024  # of the container's log, its end
LOOK_SECONDS: Final = 10.0  # that the place of an archive may take to be looked at


class ContainerCheckpoints:
    """Writes archives of containers."""

    def __init__(
        self,
        world: World,
        checkpoints: Checkpoints,
        freezer: Freezer,
        snapshots: Snapshots,
        images: Images,
        bundles: Bundles,
        handlers: Handlers,
        archives: Archives,
    ) -> None:
        self._world = world
        self._checkpoints = checkpoints
        self._freezer = freezer
        self._snapshots = snapshots
        self._images = images
        self._bundles = bundles
        self._handlers = handlers
        self._archives = archives

    async def checkpoint(self, container: Container, location: str, seconds: float) -> None:
        """Leave an archive of a container that runs at `location`, within `seconds` if that is not 0.

        Raises InvalidArgument for a place that cannot be one, AlreadyExists for one that is taken, FailedPrecondition
        and ResourceExhausted before anything is frozen, DeadlineExceeded. Then nothing is left of it.
        """
        what = f"checkpoint container {container.meta.id}"
        if seconds < 0:
            raise InvalidArgument(f"timeout: {seconds:g} is negative")
        try:
            async with asyncio.timeout(seconds or None):
                await self._checkpoint(container, location, what)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"cannot {what}: no end after {seconds:g} s") from exc

    async def _checkpoint(self, container: Container, location: str, what: str) -> None:
        target = await self._archives.check(location, what)
        if container.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"cannot {what}: it is {container.state}")
        if under_way := sorted(container.intents):
            raise Unavailable(f"cannot {what}: a {under_way[0]} of it is under way")
        await self._checkpoints.refuse(container)
        size = await self._checkpoints.size(container)
        async with self._archives.making(container, target, size, what) as making:
            await self._make(making, container)

    async def _make(self, making: Making, container: Container) -> None:
        async with self._freezer.frozen(container.pod, [container]) as window:
            copies = (
                self._checkpoints.dump(container, making.directory),
                self.pack_layer(container, making.directory),
            )
            for done in await asyncio.gather(*copies, return_exceptions=True):
                if done is not None:
                    raise done
        now = self._world.clock.now()
        await self.describe(container, making.directory, now)
        about = {"container": container.meta.name, "checkpointed_at": now, "frozen_seconds": round(window.seconds, 3)}
        size = await self._archives.seal(making, "container", about)
        log.info(
            "checkpoint of container %s: %d bytes at %s, frozen for %.3f s",
            container.meta.id, size, making.target, window.seconds,
        )  # fmt: skip

    async def pack_layer(self, container: Container, directory: Path) -> None:
        """What a container that stands still has changed in its root, as a tar and a list of what it has deleted."""
        key = container.meta.snapshot_key
        lowers = self._snapshots.layers(self._snapshots.parent(key))
        await apart(_pack, self._snapshots.place(key), view_of(lowers) if lowers else None, directory)
        crashpoint("checkpoint.packed")

    async def describe(self, container: Container, directory: Path, now: int) -> None:
        """Everything else that an archive says of a container; `now` is when it stood still, in ns since the epoch."""
        meta, status = container.meta, container.status
        runtime = self._handlers.get(container.pod.meta.handler).name
        reference = meta.image_id
        with contextlib.suppress(HoldfastError):  # the image may be gone under it; then its id has to do
            image = self._images.find(meta.image_id)
            reference = image.digests[0] if image.digests else image.id
        spec = await in_thread(self._bundles.load, container)
        addresses = json.loads(container.pod.status.network or "{}").get("ips", [])
        texts = {
            parts.CONFIG_DUMP: parts.config_dump(
                meta.id, meta.name, meta.image_ref, reference, runtime, meta.created_at, now
            ),
            parts.SPEC_DUMP: json.dumps(spec).encode(),
            parts.NETWORK_STATUS: parts.network_status(addresses),
            parts.STATUS_DUMP: _status_dump(container),
            parts.STATUS: parts.status(meta.created_at, status.started_at, status.process.pid if status.process else 0),
        }
        for name, text in texts.items():
            await in_thread((directory / name).write_bytes, text)
        await within(LOOK_SECONDS, apart(_copy_log, meta.log_path, directory), "copy the log")

    async def over(self, container: Container) -> None:
        """Wait until no checkpoint of it is under way; one that a stop has ended is over soon."""
        await self._archives.over(container)

    async def undo(self, container: Container) -> None:
        """What an earlier daemon was at is over: let the container go on, and leave nothing of it."""
        with contextlib.suppress(HoldfastError):  # then the shim does that when nobody has asked it for longer not to
            await self._freezer.let_go(container)
        await self._archives.undo(container)


def _pack(upper: Path, lower: Mount | None, directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        changed = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, changed)
        below = None
        if lower is not None:
            below = mount.open_detached(lower)
            stack.callback(os.close, below)
        out = stack.enter_context(open(directory / parts.ROOTFS_DIFF, "wb"))
        deleted, sockets = pack_layer(changed, below, out)
    (directory / parts.DELETED_FILES).write_bytes(parts.deleted_files(deleted))
    if sockets:
        log.info("sockets are not in %s: %s", directory / parts.ROOTFS_DIFF, ", ".join(sockets))


def _copy_log(path: str, directory: Path) -> None:
    """The end of it, from a whole line on. One that is not there, or not to be read, is no reason to fail."""
    if not path:
        return
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        log.warning("log %s is not in the checkpoint: %s", path, exc)
        return
    with os.fdopen(source, "rb") as file, open(directory / parts.LOG, "wb") as copy:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_BYTES))
        if size > LOG_BYTES:
            file.readline()
        shutil.copyfileobj(file, copy, LOG_BYTES)


def _status_dump(container: Container) -> bytes:
    """What ContainerStatus answers of it, as JSON in the CRI's names with numbers for numbers."""
    meta, config = container.meta, container.config
    found = {
        "id": meta.id,
        "metadata": {"name": meta.name, "attempt": meta.attempt},
        "state": int(pb.CONTAINER_RUNNING),
        "created_at": meta.created_at,
        "started_at": container.status.started_at,
        "image": {"image": meta.image_ref},
        "image_ref": meta.image_id,
        "labels": dict(config.labels),
        "annotations": dict(config.annotations),
        "log_path": meta.log_path,
    }
    return json.dumps(found).encode()
