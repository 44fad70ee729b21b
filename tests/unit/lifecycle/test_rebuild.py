"""What is brought back from copies, and what is not."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from holdfast.lifecycle.rebuild import rebuild, reconcile
from holdfast.model.spec import ContainerMetadata, Intent, PodMetadata
from holdfast.model.state import ContainerStatus, PodStatus, ProcessRef
from holdfast.snapshots import witness
from holdfast.store import images, pods
from holdfast.store.copies import ContainerCopy, Copies, Copy, ImageCopy, PodCopy
from holdfast.store.db import Store
from holdfast.store.images import ImageRow, SnapshotRow

POD = PodMetadata("a" * 64, "web", "default", "uid", 0, "crun", b"", "/holdfast/pod", True, 1)
CONTAINER = ContainerMetadata("b" * 64, POD.id, "main", 0, b"", "busybox", "sha256:1", "b" * 64, "/log", "", 2)
READY = PodStatus(ready=True, netns="/ns", shim=ProcessRef(7, 8, "boot"))
RUNNING = ContainerStatus(started_at=3, process=ProcessRef(9, 10, "boot"))
EXITED = replace(RUNNING, finished_at=4, exit_code=42, reason="Error", process=None)
IMAGE = ImageRow("sha256:" + "c" * 64, b'{"rootfs": {"diff_ids": []}}', 5, ("test/a:1",))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store.open(tmp_path / "holdfast.db", 64 * 1024)
    yield opened
    opened.close()


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    made = Copies(tmp_path / "copies")
    made.load()
    return made


def insert(tx: apsw.Connection, status: ContainerStatus = RUNNING) -> None:
    pods.insert_pod(tx, POD, READY)
    pods.insert_container(tx, CONTAINER, status)


def rows(tx: apsw.Connection) -> list[object]:
    return [*pods.load_pods(tx), *pods.load_containers(tx)]


def test_a_copy_is_read_as_it_was_written(copies: Copies) -> None:
    written: list[Copy] = [
        PodCopy(5, replace(POD, config=b"\x00\xff"), READY),
        ContainerCopy(6, CONTAINER, replace(RUNNING, resources=b"\x01")),
        ImageCopy(7, IMAGE, {"sha256:1": 9}),
    ]
    for copy in written:
        copies.keep(copy)
    assert copies.load() == (written, [])
    copies.drop(POD.id)
    copies.drop(POD.id)
    assert copies.load() == (written[1:], [])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"", "it is empty"),
        (lambda data: data[:-1], "its checksum is wrong"),
        (lambda data: data.replace(b"web", b"wob"), "its checksum is wrong"),
    ],
)
def test_a_copy_that_cannot_be_read_is_set_aside(copies: Copies, tmp_path: Path, damage, why: str) -> None:  # type: ignore[no-untyped-def]
    copies.keep(PodCopy(5, POD, READY))
    path = tmp_path / "copies" / POD.id
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    assert copies.load(only_look=True)[1] == copies.load()[1] == [
        f"the copy of {POD.id} cannot be read and was set aside: {why}"
    ]  # fmt: skip
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert aside.read_bytes() == damaged
    assert copies.load() == ([], [])


def test_a_copy_under_another_name_or_of_a_newer_release_is_set_aside(copies: Copies, tmp_path: Path) -> None:
    copies.keep(PodCopy(5, POD, READY))
    (tmp_path / "copies" / POD.id).rename(tmp_path / "copies" / CONTAINER.id)
    (line,) = copies.load()[1]
    assert f"it is the copy of {POD.id}" in line


async def test_what_was_removed_stays_removed(store: Store, copies: Copies) -> None:
    """Killed between the commit and the deletion of the copy."""
    await store.write(insert)
    copies.keep(PodCopy(store.generation, POD, READY))
    copies.keep(ContainerCopy(store.generation, CONTAINER, RUNNING))
    await store.write(lambda tx: (pods.delete_container(tx, CONTAINER.id), pods.delete_pod(tx, POD.id)))
    assert await rebuild(store, copies, Path("/none")) == []
    assert await store.read(rows) == []
    assert copies.load() == ([], [])
    assert not store.salvaged


async def test_rows_of_lost_commits_are_brought_back(store: Store, copies: Copies) -> None:
    copies.keep(PodCopy(store.generation + 1, POD, READY))
    copies.keep(ContainerCopy(store.generation + 2, CONTAINER, EXITED))
    copies.keep(ImageCopy(store.generation + 3, IMAGE, {"sha256:1": 9}))
    last = store.generation + 3
    told = await rebuild(store, copies, Path("/none"))
    assert [line.partition(" (")[0] for line in told[:3]] == [
        "the row of pod web",
        "the row of container main",
        "the row of image test/a:1",
    ]
    assert await store.read(rows) == [(POD, READY), (CONTAINER, EXITED)]
    assert await store.read(images.load_images) == [IMAGE]
    assert await store.read(images.load_blobs) == {"sha256:1": 9}
    assert store.salvaged
    assert store.generation > last  # no number is used twice
    assert await rebuild(store, copies, Path("/none")) == told[3:]  # a snapshot of which nothing is left


@pytest.mark.parametrize(
    ("row", "copy", "after"),
    [(RUNNING, EXITED, EXITED), (ContainerStatus(), RUNNING, RUNNING), (EXITED, RUNNING, EXITED)],
)
async def test_a_lost_change_is_brought_back_but_an_exit_stays(
    store: Store, row: ContainerStatus, copy: ContainerStatus, after: ContainerStatus
) -> None:
    await store.write(lambda tx: insert(tx, row))
    await store.write(lambda tx: pods.put_intent(tx, Intent(CONTAINER.id, "create", 1, {})))
    found = [ContainerCopy(store.generation + 1, CONTAINER, copy)]
    await store.write(lambda tx: reconcile(tx, found, store.generation))
    assert await store.read(pods.load_containers) == [(CONTAINER, after)]
    assert await store.read(pods.load_intents) == []  # it was acknowledged


async def test_a_row_is_newer_than_a_copy_that_could_not_be_written(store: Store) -> None:
    await store.write(lambda tx: insert(tx, EXITED))
    found = [ContainerCopy(store.generation - 1, CONTAINER, RUNNING), PodCopy(0, POD, PodStatus())]
    assert (await store.write(lambda tx: reconcile(tx, found, store.generation))).told == []
    assert await store.read(rows) == [(POD, READY), (CONTAINER, EXITED)]


@pytest.mark.parametrize(
    "damage",
    ["config = x'ff'", "network = '{'", "network = '{\"ips\": 1}'", 'network = \'{"ips": [], "attachments": [7]}\''],
)
async def test_a_row_that_cannot_be_read_is_replaced(store: Store, copies: Copies, damage: str) -> None:
    await store.write(insert)
    copies.keep(PodCopy(store.generation, POD, READY))
    copies.keep(ContainerCopy(store.generation, CONTAINER, RUNNING))
    await store.write(lambda tx: tx.execute(f"UPDATE pods SET {damage}"))
    told = await rebuild(store, copies, Path("/none"))
    assert [line.partition(" (")[0] for line in told[:2]] == ["the row of pod web", "the row of container main"]
    assert await store.read(rows) == [(POD, READY), (CONTAINER, RUNNING)]
    assert await store.read(pods.quarantined) == []


async def test_a_name_that_somebody_else_has_is_nobodys_conflict(store: Store, copies: Copies) -> None:
    await store.write(insert)
    other = replace(POD, id="d" * 64)
    copies.keep(PodCopy(store.generation + 1, other, READY))
    (line,) = [line for line in await rebuild(store, copies, Path("/none")) if "pod web" in line]
    assert "cannot be brought back" in line
    assert await store.read(rows) == [(POD, READY), (CONTAINER, RUNNING)]
    assert [key for _, key, _ in await store.read(pods.quarantined)] == [other.id]


async def test_copies_that_ought_to_be_there_are_written(store: Store, copies: Copies) -> None:
    await store.write(insert)
    await store.write(lambda tx: pods.put_intent(tx, Intent(CONTAINER.id, "create", 1, {})))
    await rebuild(store, copies, Path("/none"))
    assert [copy.id for copy in copies.load()[0]] == [POD.id]  # the other was never acknowledged


async def test_snapshots_are_brought_back_with_what_they_stand_on(store: Store, copies: Copies, tmp_path: Path) -> None:
    await store.write(insert)
    directory = tmp_path / "snapshots"
    found = [
        SnapshotRow("base", "committed", None, 1, 10, 2),
        SnapshotRow("top", "committed", "base", 2, 10, 2),
        SnapshotRow(CONTAINER.snapshot_key, "active", "top", 3),
        SnapshotRow("nobody's", "active", "top", 4),
    ]
    for row in found:
        (directory / str(row.directory)).mkdir(parents=True)
        witness.write(directory / str(row.directory), row)
    told = await rebuild(store, copies, directory)
    assert len(told) == 3
    assert await store.read(images.load_snapshots) == found[:3]
    assert await rebuild(store, copies, directory) == []
