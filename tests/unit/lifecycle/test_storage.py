"""The condition of the disks, and what is said when it changes."""

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.lifecycle import storage
from holdfast.lifecycle.events import Events, Notice
from holdfast.lifecycle.storage import Storage
from holdfast.linux import files
from holdfast.model.clock import Clock
from holdfast.model.errors import NotFound, ResourceExhausted, Unavailable
from holdfast.store.db import Store
from holdfast.store.space import Minimum


class Disks:
    """Root and state on filesystems that are as they are told to be."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.state, self.logs = base / "root", base / "state", base / "logs"
        self.free = dict.fromkeys((self.root, self.state, self.logs), (1 << 30, 1000))
        self.read_only: set[Path] = set()
        self.refuses: dict[Path, int] = {}
        self.hangs = threading.Event()
        self.hangs.set()
        monkeypatch.setattr(files, "filesystem", self.filesystem)
        monkeypatch.setattr(files, "probe_write", self.probe_write)
        monkeypatch.setattr(storage, "FRESH_SECONDS", 0.0)
        monkeypatch.setattr(storage, "LOOK_SECONDS", 0.2)

    def filesystem(self, path: Path) -> files.Filesystem:
        self.hangs.wait(30)
        device = [self.root, self.state, self.logs].index(Path(path))
        return files.Filesystem(device, 1 << 31, *self.free[Path(path)][:1], 1000, self.free[Path(path)][1],
                                Path(path) in self.read_only)  # fmt: skip

    def probe_write(self, path: Path) -> None:
        if (number := self.refuses.get(Path(path))) is not None:
            raise OSError(number, "refused")


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disks:
    return Disks(tmp_path, monkeypatch)


@pytest.fixture
def events() -> Events:
    return Events(Clock())


@pytest.fixture
async def node(disks: Disks, events: Events, tmp_path: Path) -> AsyncIterator[Storage]:
    store = Store.open(tmp_path / "holdfast.db", 64 * 1024)
    yield Storage(store, disks.root, disks.state, lambda: [str(disks.logs)], Minimum(1 << 20, 100), events)
    disks.hangs.set()
    store.close()


async def test_healthy(node: Storage) -> None:
    assert await node.condition(0) == (True, "", "")
    assert [disk.use for disk in node.found] == ["root", "state", "logs"]
    await node.require("run a pod")


async def test_what_is_known_and_not_written(node: Storage) -> None:
    assert await node.condition(2) == (
        False,
        "RecordsUnwritten",
        "more is known of 2 pods and containers than could be written yet",
    )


async def test_each_reason_and_the_worst_first(node: Storage, disks: Disks) -> None:
    disks.free[disks.root] = (1 << 20, 1000)
    assert await node.condition(0) == (
        False,
        "StorageFull",
        f"root {disks.root} is full: 1.0 MiB free, more than 1.0 MiB needed",
    )
    disks.free[disks.root] = (1 << 30, 100)
    assert (await node.condition(0))[1] == "InodesExhausted"
    disks.refuses[disks.state] = errno.EIO
    assert (await node.condition(0))[1] == "StorageFailed"
    disks.read_only.add(disks.logs)
    healthy, reason, message = await node.condition(0)
    assert (healthy, reason) == (False, "StorageReadOnly")
    assert message.startswith(f"logs {disks.logs} is read-only; state {disks.state} cannot be written to")


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.EROFS, "StorageReadOnly"), (errno.ENOSPC, "StorageFull"), (errno.EDQUOT, "StorageFull")],
)
async def test_a_disk_that_does_not_say_what_it_is(node: Storage, disks: Disks, number: int, reason: str) -> None:
    disks.refuses[disks.root] = number
    assert (await node.condition(0))[1] == reason


async def test_logs_have_no_minimum_of_ours(node: Storage, disks: Disks) -> None:
    disks.free[disks.logs] = (1 << 19, 1000)
    assert (await node.condition(0))[0]


async def test_a_disk_that_hangs_holds_nobody_up(node: Storage, disks: Disks) -> None:
    disks.hangs.clear()
    healthy, reason, message = await asyncio.wait_for(node.condition(0), 10)
    assert (healthy, reason) == (False, "StorageFailed")
    assert "do not answer" in message


async def test_a_machine_that_stands_still_makes_no_disk_sick(node: Storage, disks: Disks) -> None:
    def stand_still() -> None:
        time.sleep(2 * storage.LOOK_SECONDS)
        disks.hangs.set()

    disks.hangs.clear()
    asyncio.get_running_loop().call_later(0.001, stand_still)
    assert await node.condition(0) == (True, "", "")


async def test_changes_are_told_once(node: Storage, disks: Disks, events: Events) -> None:
    seen = events.last
    for _ in range(2):
        await node.disks()
    disks.read_only.add(disks.root)
    for _ in range(2):
        await node.disks()
    disks.read_only.clear()
    for _ in range(2):
        await node.disks()
    told = [one async for one in events.follow(seen, wait=False)]
    assert [(one.use, one.path, one.reason) for one in told if isinstance(one, Notice)] == [
        ("root", str(disks.root), "StorageReadOnly"),
        ("root", str(disks.root), ""),
    ]


async def test_require(node: Storage, disks: Disks) -> None:
    disks.free[disks.state] = (1 << 30, 7)
    with pytest.raises(ResourceExhausted, match=f"cannot run a pod: the filesystem of {disks.state} is out of inodes"):
        await node.require("run a pod")


async def test_a_failure_is_blamed_on_the_disk_that_takes_nothing(node: Storage, disks: Disks) -> None:
    with pytest.raises(NotFound):
        async with node.blamed("start"):
            raise NotFound("cannot start: no such file")
    disks.refuses[disks.state] = errno.ENOSPC
    with pytest.raises(ResourceExhausted, match="start"):
        async with node.blamed("start"):
            raise NotFound("cannot start: no such file")
    disks.refuses[disks.state] = errno.EROFS
    with pytest.raises(Unavailable, match="read-only"):
        async with node.blamed("start"):
            raise NotFound("cannot start: no such file")
