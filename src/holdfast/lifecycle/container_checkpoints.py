"""CheckpointContainer: one container, which runs on, as an archive that others can read too.

    refuse     what CRIU cannot do, and what there is no room for, before anything is touched
    intent     "checkpoint" of the container, with the place of the archive
    freeze     on a lease: images by CRIU, the writable layer as a tar; thaw
    seal       the archive under a temporary name beside the place, synced, renamed
    clear      what was written on the way is removed, and the intent with it

Whoever dies in between: what is frozen is thawed by the shim or the next one, and the next daemon removes the rest. So
an archive is there as a whole, or not at all.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Final

from holdfast.checkpoint import layout as parts
from holdfast.checkpoint import sealed
from holdfast.checkpoint.layer import pack_layer
from holdfast.images.service import Images
from holdfast.lifecycle.bundle import Bundles
from holdfast.lifecycle.checkpoints import Checkpoints
from holdfast.lifecycle.freezing import Freezer
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container
from holdfast.lifecycle.storage import Storage
from holdfast.lifecycle.tasks import Background, apart, in_thread, within
from holdfast.lifecycle.world import World
from holdfast.linux import files, mount
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    HoldfastError,
    InvalidArgument,
)
from holdfast.model.spec import Mount
from holdfast.model.state import ContainerState
from holdfast.runtime.handlers import Handlers
from holdfast.snapshots.overlay import Snapshots, view_of

log = logging.getLogger(__name__)

OP: Final = "checkpoint"
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
        storage: Storage,
        background: Background,
        layout: Layout,
    ) -> None:
        self._world = world
        self._checkpoints = checkpoints
        self._freezer = freezer
        self._snapshots = snapshots
        self._images = images
        self._bundles = bundles
        self._handlers = handlers
        self._storage = storage
        self._background = background
        self._layout = layout
        self._writing: dict[str, asyncio.Task[int]] = {}  # archives, by container
        self._over: dict[str, asyncio.Event] = {}  # of those under way, by container

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
                await self._checkpoint(container, _checked(location), what)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"cannot {what}: no end after {seconds:g} s") from exc

    async def _checkpoint(self, container: Container, target: Path, what: str) -> None:
        if container.state is not ContainerState.RUNNING:
            raise FailedPrecondition(f"cannot {what}: it is {container.state}")
        if container.intents.keys() & {OP, "stop", "remove"}:
            raise FailedPrecondition(f"cannot {what}: a {min(container.intents)} of it is under way")
        await self._checkpoints.refuse(container)
        await within(LOOK_SECONDS, apart(_look_at, target), f"use location {target}")
        size = await self._checkpoints.size(container)
        await self._storage.require_room({self._layout.root: size, target.parent: size}, what)
        await self._world.begin(container, OP, location=str(target))
        crashpoint("checkpoint.recorded")
        self._over[container.meta.id] = asyncio.Event()
        try:
            with self._storage.named(what):
                await self._write(container, target)
        finally:
            await self._end(container, target)

    async def _write(self, container: Container, target: Path) -> None:
        directory = self._layout.checkpoint(container.meta.id)
        await in_thread(_make_anew, directory)
        crashpoint("checkpoint.staged")
        async with self._freezer.frozen(container.pod, [container]) as window:
            await self._checkpoints.dump(container, directory)
            await self.pack_layer(container, directory)
        now = self._world.clock.now()
        await self.describe(container, directory, now)
        about = {"container": container.meta.name, "checkpointed_at": now, "frozen_seconds": round(window.seconds, 3)}
        write = apart(sealed.write, target, directory, "container", about)
        self._writing[container.meta.id] = asyncio.get_running_loop().create_task(write, name=f"seal {target}")
        size = await asyncio.shield(self._writing[container.meta.id])
        del self._writing[container.meta.id]
        crashpoint("checkpoint.sealed")
        log.info(
            "checkpoint of container %s: %d bytes at %s, frozen for %.3f s",
            container.meta.id, size, target, window.seconds,
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
            parts.STATUS_DUMP: _status(container, status.started_at),
        }
        for name, text in texts.items():
            await in_thread((directory / name).write_bytes, text)
        await within(LOOK_SECONDS, apart(_copy_log, meta.log_path, directory), "copy the log")

    async def over(self, container: Container) -> None:
        """Wait until no checkpoint of it is under way; one that a stop has ended is over soon."""
        if (event := self._over.get(container.meta.id)) is not None:
            await event.wait()

    async def undo(self, container: Container) -> None:
        """What an earlier daemon was at is over: let the container go on, and leave nothing of it."""
        if OP not in container.intents:
            return
        with contextlib.suppress(HoldfastError):  # then the shim does that when nobody has asked it for longer not to
            await self._freezer.let_go(container)
        location = Path(str(container.intents[OP].data.get("location", "")))
        await within(LOOK_SECONDS, apart(_remove_temporaries, location), f"look at {location.parent}")
        await self._clear(container)

    async def _end(self, container: Container, target: Path) -> None:
        """Whatever came of it. A write that nobody waits for any more cannot be stopped: what it makes is removed."""
        writing, name = self._writing.pop(container.meta.id, None), f"clear checkpoint {container.meta.id}"
        if writing is not None and not writing.done():
            self._background.see_through(name, lambda: self._unmake(container, writing, target))
            return
        try:
            await self._clear(container)
        except (HoldfastError, OSError) as exc:
            log.warning("cannot clear what a checkpoint of container %s has left: %s", container.meta.id, exc)
            self._background.see_through(name, lambda: self._clear(container))

    async def _unmake(self, container: Container, writing: asyncio.Task[int], target: Path) -> None:
        await asyncio.wait({writing})
        if writing.exception() is None:
            await apart(files.unlink, target)
        await self._clear(container)

    async def _clear(self, container: Container) -> None:
        await in_thread(files.remove_tree, self._layout.checkpoint(container.meta.id))
        crashpoint("checkpoint.cleared")
        await self._world.end(container, OP)
        if (event := self._over.pop(container.meta.id, None)) is not None:
            event.set()


def _checked(location: str) -> Path:
    path = Path(location)
    if not path.is_absolute() or "\0" in location or ".." in path.parts or not path.name:
        raise InvalidArgument(f"location: {location!r} is not an absolute path of a file")
    return path


def _look_at(target: Path) -> None:
    if os.path.lexists(target):
        raise AlreadyExists(f"location: {target} exists")
    if not target.parent.is_dir():
        raise InvalidArgument(f"location: {target.parent} is not a directory")


def _make_anew(directory: Path) -> None:
    """Empty, whatever an attempt that was cut off has left there."""
    files.make_private(directory.parent)
    files.remove_tree(directory)
    files.make_private(directory)


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


def _status(container: Container, started_at: int) -> bytes:
    """As containerd's status.dump has it, as far as it means anything elsewhere."""
    ref = container.status.process
    found: dict[str, Any] = {
        "CreatedAt": container.meta.created_at,
        "StartedAt": started_at,
        "FinishedAt": 0,
        "ExitCode": 0,
        "Pid": ref.pid if ref is not None else 0,
    }
    return json.dumps(found).encode()


def _remove_temporaries(location: Path) -> None:
    """What a daemon that died was writing in order to rename it to this."""
    try:
        names = os.listdir(location.parent)
    except OSError:
        return
    for name in names:
        if name.startswith(f".{location.name}.") and files.temporary_age(name) is not None:
            files.unlink(location.parent / name)
