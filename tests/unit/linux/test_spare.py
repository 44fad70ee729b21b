"""Files that are written anew without new room."""

import errno
import os
from pathlib import Path

import pytest

from holdfast.linux import files, spare


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing can be made any more, while this is not empty."""
    taken: list[str] = []
    make = files.write_atomic

    def write_atomic(path: files.Path_, data: bytes, mode: int = 0o600, *, sync: bool = True) -> None:
        if taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        make(path, data, mode, sync=sync)

    monkeypatch.setattr(files, "write_atomic", write_atomic)
    return taken


def content(path: Path) -> bytes:
    return path.read_bytes().rstrip(b"\n")


def test_what_does_not_outgrow_its_room_takes_none(tmp_path: Path, full: list[str]) -> None:
    path = tmp_path / "f"
    spare.write(path, b"one")
    full.append("full")
    inodes = {one.name: one.stat().st_ino for one in tmp_path.iterdir()}
    for data in (b"two", b"3" * spare.MORE, b""):
        spare.write(path, data)
        assert content(path) == data
    assert sorted(inodes.values()) == sorted(one.stat().st_ino for one in tmp_path.iterdir())
    with pytest.raises(OSError, match="No space"):
        spare.write(path, b"x" * 100_000)
    assert content(path) == b"", "it is as it was"
    full.clear()
    spare.write(path, b"x" * 100_000)
    assert content(path) == b"x" * 100_000
    spare.remove(path)
    spare.remove(path)
    assert not list(tmp_path.iterdir())


def test_a_spare_that_cannot_be_had_is_made_later(
    tmp_path: Path, full: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"of an earlier version")
    spare.write(path, b"one")
    (tmp_path / ".f.spare").unlink()
    full.append("full")
    with pytest.raises(OSError, match="No space"):
        spare.write(path, b"two")
    assert content(path) == b"one"
    full.clear()
    spare.write(path, b"two")
    full.append("full")
    spare.write(path, b"three")
    assert content(path) == b"three"


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_what_fails_has_changed_nothing(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    spare.write(path, b"one")

    def fault(what: str, path: object = None) -> None:
        if what == call:
            raise OSError(errno.EIO, call)

    with monkeypatch.context() as broken:
        broken.setattr(files, "fault", fault)
        broken.setattr(spare, "fault", fault)
        with pytest.raises(OSError, match=call):
            spare.write(path, b"two")
    assert content(path) == b"one"
    spare.write(path, b"three")
    assert content(path) == b"three"
