"""Images and snapshots of a root directory, with a real store and a real keeper, as the daemon builds them.

Run as a program it pulls or imports and kills itself at a chosen point: `python -m kit.place ROOT STATE WHAT [POINT]`.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.images.content import Content
from holdfast.images.service import Images
from holdfast.linux import files, mount, process
from holdfast.runtime import keeper as keepers
from holdfast.runtime.keeper import Keeper
from holdfast.runtime.unpack import Unpacker
from holdfast.snapshots.overlay import Snapshots
from holdfast.store.copies import Copies
from holdfast.store.db import Store


@dataclass
class Place:
    """One opening of a root directory."""

    root: Path
    store: Store
    content: Content
    snapshots: Snapshots
    images: Images
    keeper: Keeper

    async def collect(self) -> None:
        """What recovery does with what a crash has left."""
        await self.images.collect()
        for name in os.listdir(self.root / "snapshots"):
            if int(name) not in self.snapshots.directories:
                files.remove_tree(self.root / "snapshots" / name)

    @contextlib.asynccontextmanager
    async def container(self, name: str, key: str = "container") -> AsyncIterator[Path]:
        """A container's root filesystem, mounted."""
        (one,) = await self.snapshots.prepare(key, self.images.snapshot_name(self.images.find(name)))
        target = self.root / f"mnt-{key}"
        target.mkdir()
        mount.mount_one(one, target)
        try:
            yield target
        finally:
            mount.detach(target)
            target.rmdir()
            await self.snapshots.remove(key)

    def leftovers(self) -> list[str]:
        """Everything on disk that belongs to an image, a snapshot or a transfer."""
        return sorted(
            f"{name}/{entry}"
            for name in ("content/sha256", "ingest", "snapshots")
            for entry in os.listdir(self.root / name)
        )


@contextlib.asynccontextmanager
async def place(root: Path, state: Path) -> AsyncIterator[Place]:
    files.make_private(root)
    store = Store.open(root / "holdfast.db", reserve_bytes=0)
    keeper = await Keeper.connect(state)
    try:
        snapshots = Snapshots(store, root / "snapshots")
        await snapshots.load()
        content = Content(root)
        copies = Copies(root / "copies")
        copies.load()
        images = Images(store, copies, content, snapshots, Unpacker(keeper).image_layer, root, frozenset())
        await images.load()
        yield Place(root, store, content, snapshots, images, keeper)
    finally:
        await keeper.aclose()
        store.close()


@contextlib.contextmanager
def running_keeper(state: Path) -> Iterator[None]:
    files.make_private(state)
    keepers.ensure_running(state)
    pid = keepers._ask(state / keepers.SOCKET, "hello")["pid"]  # type: ignore[index]
    try:
        yield
    finally:
        with process.pin(pid, None) as one:
            keepers.shut_down(state)
            if one is not None:
                import select

                assert select.select([one.fd], [], [], 20)[0], "the keeper does not end"


def _with_points(point: int) -> Callable[..., None]:
    """Kill this process at the n-th point: a step of progress, or the moment before or after a commit."""
    count = itertools.count(1)

    def step(*_: Any) -> None:
        if (number := next(count)) == point:
            os.kill(os.getpid(), signal.SIGKILL)
        elif not point:
            print(number)

    write = Store.write

    async def counted(self: Store, *given: Any) -> Any:
        step()
        result = await write(self, *given)
        step()
        return result

    Store.write = counted  # type: ignore[method-assign]
    return step


async def _main(root: Path, state: Path, what: str, point: int) -> None:
    step = _with_points(point)
    async with place(root, state) as one:
        if what.startswith("/"):
            await one.images.import_archive(Path(what), step)
        else:
            await one.images.pull(what, None, step)
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]) if sys.argv[4:] else 0))
