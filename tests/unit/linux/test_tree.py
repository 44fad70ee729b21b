import os
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.linux.tree import allocated, measure_at


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    (place / "a" / "b").mkdir(parents=True)
    (place / "a" / "b" / "file").write_bytes(b"x" * 10_000)
    (place / "link").symlink_to("a/b")
    os.link(place / "a" / "b" / "file", place / "again")
    return place


def test_what_a_tree_takes(place: Path) -> None:
    found = measure_at(place)
    assert found.inodes == 4  # a, b, file, link
    assert found.bytes >= 10_000


def test_the_shape_does_not_depend_on_place_time_or_order(place: Path, tmp_path: Path) -> None:
    before = measure_at(place).shape
    other = tmp_path / "other"
    other.mkdir()
    (other / "link").symlink_to("a/b")
    (other / "again").write_bytes(b"y" * 10_000)
    (other / "a" / "b").mkdir(parents=True)
    os.link(other / "again", other / "a" / "b" / "file")
    os.utime(other / "again", (1, 1))
    assert measure_at(other).shape == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: os.truncate(place / "again", 0),
        lambda place: (place / "again").unlink(),
        lambda place: (place / "a" / "more").touch(),
        lambda place: (place / "a" / "b").chmod(0o700),
        lambda place: (place / "link").rename(place / "lost"),
    ],
)
def test_damage_changes_the_shape(place: Path, damage: Callable[[Path], None]) -> None:
    (place / "a" / "b").chmod(0o755)
    before = measure_at(place).shape
    damage(place)
    assert measure_at(place).shape != before


def test_what_is_allocated_needs_no_tree_that_stands_still(place: Path) -> None:
    assert 10_000 <= allocated(place) < 100_000
    (place / "hole").touch()
    os.truncate(place / "hole", 1 << 30)
    assert allocated(place) < 100_000
    assert allocated(place / "gone") == 0
