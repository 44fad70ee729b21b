"""Archives being made, of a container or a pod: where they go, the room they need, and what is left of them.

    intent     "checkpoint" of the pod or container, with the place of the archive
    staged     root/checkpoints/<id>: everything that will be in it, as files
    sealed     the archive under a temporary name beside the place, synced, renamed
    cleared    what was staged is removed, and the intent with it

Whoever dies in between, the next daemon removes the rest. So an archive is there as a whole, or not at all.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from holdfast.checkpoint import sealed
from holdfast.checkpoint.layout import Kind
from holdfast.lifecycle.layout import Layout
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.storage import Storage
from holdfast.lifecycle.tasks import Background, apart, in_thread, within
from holdfast.lifecycle.world import World
from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import AlreadyExists, HoldfastError, InvalidArgument

log = logging.getLogger(__name__)

OP: Final = "checkpoint"
LOOK_SECONDS: Final = 10.0  # that the place of an archive may take to be looked at
COMPRESSIONS: Final = ("", "zstd")


@dataclass(frozen=True, slots=True)
class Making:
    """An archive that is being made: what will be in it is below `directory`, and it will be at `target`."""

    owner: Pod | Container
    directory: Path
    target: Path


class Archives:
    """Those that this daemon is making; of one pod or container one at a time."""

    def __init__(self, world: World, storage: Storage, background: Background, layout: Layout) -> None:
        self._world = world
        self._storage = storage
        self._background = background
        self._layout = layout
        self._writing: dict[str, asyncio.Task[int]] = {}  # by pod or container
        self._over: dict[str, asyncio.Event] = {}  # the same

    async def check(self, location: str, what: str) -> Path:
        """Raises InvalidArgument for a place that cannot be an archive's, AlreadyExists for one that is taken."""
        target = Path(location)
        if not target.is_absolute() or "\0" in location or ".." in target.parts or not target.name:
            raise InvalidArgument(f"location: {location!r} is not an absolute path of a file")
        await within(LOOK_SECONDS, apart(_look_at, target), f"{what}: use location {target}")
        return target

    @contextlib.asynccontextmanager
    async def making(self, owner: Pod | Container, target: Path, size: int, what: str) -> AsyncIterator[Making]:
        """Within it an archive of about `size` bytes is made; afterwards nothing is left but the archive, if any.

        Raises ResourceExhausted before anything is done, and for a disk that is full all the same.
        """
        await self._storage.require_room({self._layout.root: size, target.parent: size}, what)
        await self._world.begin(owner, OP, location=str(target))
        crashpoint("checkpoint.recorded")
        self._over[owner.meta.id] = asyncio.Event()
        making = Making(owner, self._layout.checkpoint(owner.meta.id), target)
        try:
            async with self._storage.blamed(what):
                await in_thread(_make_anew, making.directory)
                crashpoint("checkpoint.staged")
                yield making
        finally:
            await self._end(making)

    async def seal(self, making: Making, kind: Kind, about: dict[str, Any], compress: str = "") -> int:
        """Make the archive of what is staged. Returns its length in bytes."""
        write = apart(sealed.write, making.target, making.directory, kind, about, compress)
        id = making.owner.meta.id
        self._writing[id] = asyncio.get_running_loop().create_task(write, name=f"seal {making.target}")
        size = await asyncio.shield(self._writing[id])
        del self._writing[id]
        crashpoint("checkpoint.sealed")
        return size

    async def over(self, owner: Pod | Container) -> None:
        """Wait until none of it is being made; one that a stop has ended is over soon."""
        if (event := self._over.get(owner.meta.id)) is not None:
            await event.wait()

    async def undo(self, owner: Pod | Container) -> None:
        """Leave nothing of what an earlier daemon was making."""
        if OP not in owner.intents:
            return
        location = Path(str(owner.intents[OP].data.get("location", "")))
        await within(LOOK_SECONDS, apart(_remove_temporaries, location), f"look at {location.parent}")
        await self._clear(owner)

    async def _end(self, making: Making) -> None:
        """Whatever came of it. A write that nobody waits for any more cannot be stopped: what it makes is removed."""
        owner, writing = making.owner, self._writing.pop(making.owner.meta.id, None)
        name = f"clear checkpoint {owner.meta.id}"
        if writing is not None and not writing.done():
            self._background.see_through(name, lambda: self._unmake(making, writing))
            return
        try:
            await self._clear(owner)
        except (HoldfastError, OSError) as exc:
            log.warning("cannot clear what a checkpoint of %s has left: %s", owner.meta.id, exc)
            self._background.see_through(name, lambda: self._clear(owner))

    async def _unmake(self, making: Making, writing: asyncio.Task[int]) -> None:
        await asyncio.wait({writing})
        if writing.exception() is None:
            await apart(files.unlink, making.target)
        await self._clear(making.owner)

    async def _clear(self, owner: Pod | Container) -> None:
        await apart(files.remove_tree, self._layout.checkpoint(owner.meta.id))
        crashpoint("checkpoint.cleared")
        await self._world.end(owner, OP)
        if (event := self._over.pop(owner.meta.id, None)) is not None:
            event.set()


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


def _remove_temporaries(location: Path) -> None:
    """What a daemon that died was writing in order to rename it to this."""
    try:
        names = os.listdir(location.parent)
    except OSError:
        return
    for name in names:
        if name.startswith(f".{location.name}.") and files.temporary_age(name) is not None:
            files.unlink(location.parent / name)
