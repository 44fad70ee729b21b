"""A disk that is really full: small ext4 and xfs filesystems on loop devices, without a byte or an inode to be had."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from kit import disk

from holdfast.model.errors import ResourceExhausted
from holdfast.model.spec import ContainerMetadata, PodMetadata, new_id
from holdfast.model.state import ContainerStatus, PodStatus, ProcessRef
from holdfast.store import pods
from holdfast.store.db import Store

CONTAINERS = 20
UPDATES = 500


@pytest.fixture(params=disk.KINDS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with disk.small(request.param, tmp_path) as place:
        yield place


def make_rows(tx: apsw.Connection) -> list[str]:
    pod = PodMetadata(new_id(), "pod", "ns", "uid", 0, "crun", b"c" * 500, "/pods", True, 1)
    pods.insert_pod(tx, pod, PodStatus(ready=True))
    made = [
        ContainerMetadata(new_id(), pod.id, f"c{n}", 0, b"c" * 1000, "image", "sha256:1", "key", "/log", "", 2)
        for n in range(CONTAINERS)
    ]
    for meta in made:
        pods.insert_container(tx, meta, ContainerStatus())
    return [meta.id for meta in made]


async def update(store: Store, container_id: str, number: int) -> None:
    """What recording a start or an exit writes."""
    process = ProcessRef(number, number, "b" * 36)
    change = lambda before: replace(before, exit_code=number, message="m" * (number % 200), process=process)  # noqa: E731
    await store.write(lambda tx: pods.update_container(tx, container_id, change))


async def test_status_can_be_written_when_nothing_else_can(small: Path) -> None:
    path = small / "holdfast.db"
    store = Store.open(path)
    ids = await store.write(make_rows)
    disk.fill(small)
    assert disk.is_full(small)
    for number in range(UPDATES):
        await update(store, ids[number % CONTAINERS], number)
    assert (await store.reserve_state()).ballast_bytes > 0  # it was not even needed
    assert disk.is_full(small)
    await asyncio.to_thread(store.close)
    # A clean stop has not given the reserve away: all of it again.
    store = Store.open(path)
    for number in range(UPDATES, 2 * UPDATES):
        await update(store, ids[number % CONTAINERS], number)
    assert disk.is_full(small)
    found = await store.read(pods.load_containers)
    assert sorted(status.exit_code for _, status in found) == list(range(2 * UPDATES - CONTAINERS, 2 * UPDATES))
    await asyncio.to_thread(store.close)


async def test_when_the_pages_are_used_up_the_ballast_goes_and_then_it_is_said(small: Path) -> None:
    store = Store.open(small / "holdfast.db", 2 << 20)
    disk.fill(small)
    kept = 0
    with pytest.raises(ResourceExhausted, match=f"the filesystem of {small} is full"):
        for number in range(100):
            row = (f"big-{number}", "x" * 256 * 1024)
            await store.write(lambda tx, row=row: tx.execute("INSERT INTO meta VALUES (?, ?)", row))
            kept += 1
    assert (await store.reserve_state()).ballast_bytes == 0
    assert kept * 256 * 1024 >= 2 << 20
    count = "SELECT count(*) FROM meta WHERE key LIKE 'big-%'"
    assert await store.read(lambda tx: tx.execute(count).get) == kept
    # With room again it takes writes again, without a restart.
    (small / "hog").unlink()
    await store.write(lambda tx: tx.execute("INSERT INTO meta VALUES ('after', ?)", ("x" * 256 * 1024,)))
    await asyncio.to_thread(store.close)


async def test_the_reserve_comes_back_when_there_is_room_and_not_before(small: Path) -> None:
    store = Store.open(small / "holdfast.db", 2 << 20)
    whole = await store.reserve_state()
    disk.fill(small)
    with pytest.raises(ResourceExhausted):
        for number in range(100):
            row = (f"big-{number}", "x" * 256 * 1024)
            await store.write(lambda tx, row=row: tx.execute("INSERT INTO meta VALUES (?, ?)", row))
    await store.refill()
    assert (await store.reserve_state()).ballast_bytes == 0
    assert await store.read(lambda tx: tx.execute("SELECT count(*) FROM meta WHERE key LIKE 'big-%'").get) > 0
    disk.free(small)
    await store.refill()
    found = await store.reserve_state()
    assert found.ballast_bytes == whole.ballast_bytes
    assert found.free_bytes >= whole.ballast_bytes // 2
    # It serves as the first did.
    ids = await store.write(make_rows)
    disk.fill(small)
    for number in range(UPDATES):
        await update(store, ids[number % CONTAINERS], number)
    assert disk.is_full(small)
    await asyncio.to_thread(store.close)


WRITER = """
import asyncio, sys
from pathlib import Path
from holdfast.store import pods
from holdfast.store.db import Store
from dataclasses import replace

async def main():
    store = Store.open(Path(sys.argv[1]))
    ids = [meta.id for meta, _ in await store.write(pods.load_containers)]
    for number in range(1, 10**9):
        change = lambda before: replace(before, exit_code=number, message=str(number))
        await store.write(lambda tx: pods.update_container(tx, ids[number % len(ids)], change))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_sigkill_on_a_full_disk_loses_nothing_that_was_acknowledged(small: Path) -> None:
    path = small / "holdfast.db"
    store = Store.open(path)
    await store.write(make_rows)
    await asyncio.to_thread(store.close)
    disk.fill(small)
    last = 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            for _ in range(UPDATES // 3):
                last = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            last = max([last, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        store = Store.open(path)
        found = await store.read(pods.load_containers)
        # One update more than was told may have been under way.
        assert max(status.exit_code for _, status in found) in (last, last + 1)
        assert all(status.message == str(status.exit_code) for _, status in found if status.exit_code)
        await asyncio.to_thread(store.close)
    assert disk.is_full(small)
