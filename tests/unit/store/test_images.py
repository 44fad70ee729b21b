"""Rows of images and snapshots in a real database."""

from collections.abc import Iterator

import apsw
import pytest

from holdfast.store import images as rows
from holdfast.store.images import ImageRow, SnapshotRow


@pytest.fixture
def tx() -> Iterator[apsw.Connection]:
    connection = apsw.Connection(":memory:")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(rows.SCHEMA)
    yield connection
    connection.close()


A = ImageRow("sha256:a", b"{}", 30, ("r:1", "r@sha256:m"))
B = ImageRow("sha256:b", b"{}", 50, ("r:2",))


def test_images(tx: apsw.Connection) -> None:
    rows.put_image(tx, A, {"x": 10, "y": 20})
    rows.put_image(tx, B, {"y": 20, "z": 30})
    rows.put_image(tx, B, {"y": 20, "z": 30})
    assert sorted(rows.load_images(tx), key=lambda row: row.id) == [A, B]
    assert rows.load_blobs(tx) == {"x": 10, "y": 20, "z": 30}
    rows.delete_image(tx, A.id)
    assert rows.unused_blobs(tx) == ["x"]
    assert rows.load_images(tx) == [B]
    assert rows.load_blobs(tx) == {"x": 10, "y": 20, "z": 30}, "it says what is still to be deleted"
    rows.forget_blobs(tx, ["x", "y"])
    assert rows.load_blobs(tx) == {"y": 20, "z": 30}, "what an image refers to stays"
    rows.delete_image(tx, B.id)
    assert sorted(rows.unused_blobs(tx)) == ["y", "z"]
    rows.forget_blobs(tx, ["y", "z"])
    assert rows.load_blobs(tx) == {}
    assert tx.execute("SELECT count(*) FROM image_names").fetchone() == (0,)


def test_a_name_moves_to_the_newer_image(tx: apsw.Connection) -> None:
    rows.put_image(tx, A, {"x": 10})
    rows.put_image(tx, ImageRow(B.id, b"{}", 5, ("r:1",)), {"y": 10})
    found = {row.id: row.names for row in rows.load_images(tx)}
    assert found == {A.id: ("r@sha256:m",), B.id: ("r:1",)}


def test_snapshots(tx: apsw.Connection) -> None:
    base, top = SnapshotRow("base", "active", None, 1), SnapshotRow("top", "active", "chain", 2)
    rows.insert_snapshot(tx, base)
    rows.commit_snapshot(tx, "base", SnapshotRow("chain", "committed", None, 1, 100, 5))
    rows.insert_snapshot(tx, top)
    assert rows.load_snapshots(tx) == [SnapshotRow("chain", "committed", None, 1, 100, 5), top]
    with pytest.raises(apsw.ConstraintError):
        rows.delete_snapshot(tx, "chain")
    rows.delete_snapshot(tx, "top")
    rows.delete_snapshot(tx, "chain")
    assert rows.load_snapshots(tx) == []


@pytest.mark.parametrize(
    "row",
    [SnapshotRow("a", "active", None, 9), SnapshotRow("b", "active", None, 1), SnapshotRow("b", "view", "none", 9)],
)
def test_snapshots_are_one_of_each_and_stand_on_something(tx: apsw.Connection, row: SnapshotRow) -> None:
    rows.insert_snapshot(tx, SnapshotRow("a", "active", None, 1))
    with pytest.raises(apsw.ConstraintError):
        rows.insert_snapshot(tx, row)
