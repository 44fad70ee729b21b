"""Room on a disk, in words that name it."""

import errno
from pathlib import Path

import pytest

from holdfast.linux import files
from holdfast.linux.files import Filesystem
from holdfast.model.errors import ResourceExhausted, Unavailable
from holdfast.store.space import Minimum, amount, lacking, named, require, translate, wanting

MIB = 1 << 20


def disk(free_bytes: int, free_inodes: int, total_inodes: int = 1000) -> Filesystem:
    return Filesystem(1, 100 * MIB, free_bytes, total_inodes, free_inodes)


@pytest.mark.parametrize(
    ("found", "minimum", "why"),
    [
        (disk(50 * MIB, 500), Minimum(16 * MIB, 256), None),
        (disk(16 * MIB, 500), Minimum(16 * MIB, 256), "is full: 16.0 MiB free, more than 16.0 MiB needed"),
        (disk(0, 500), Minimum(), "is full: 0 bytes free, more than 0 bytes needed"),
        (disk(50 * MIB, 256), Minimum(16 * MIB, 256), "is out of inodes: 256 free, more than 256 needed"),
        (disk(50 * MIB, 0, 0), Minimum(16 * MIB, 256), None),  # a filesystem that does not count them
    ],
)
def test_what_there_is_too_little_of(found: Filesystem, minimum: Minimum, why: str | None) -> None:
    assert lacking(found, minimum) == why


def test_require_names_what_and_where(tmp_path: Path) -> None:
    require(tmp_path, Minimum(), "pull an image")
    with pytest.raises(
        ResourceExhausted, match=f"cannot pull an image: the filesystem of {tmp_path} is full: .* needed"
    ):
        require(tmp_path, Minimum(bytes=1 << 62), "pull an image")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_resource_exhausted(tmp_path: Path, number: int) -> None:
    with pytest.raises(ResourceExhausted, match="cannot create x: the "), named(tmp_path, "create x"):
        raise OSError(number, "no", str(tmp_path / "a" / "b"))


def test_read_only_is_unavailable(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match=f"cannot create x: the filesystem of {tmp_path} is read-only"),
        named(Path("/"), "create x"),
    ):
        raise OSError(errno.EROFS, "no", str(tmp_path / "missing" / "file"))


def test_other_errors_are_nobodys_room(tmp_path: Path) -> None:
    assert translate(OSError(errno.EIO, "no"), tmp_path, "create x") is None
    with pytest.raises(OSError, match="no"), named(tmp_path, "create x"):
        raise OSError(errno.EIO, "no")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (disk(0, 500), "is full: 0 bytes, 500 inodes free"),
        (disk(50 * MIB, 0), "is out of inodes: 50.0 MiB, 0 inodes free"),
        (disk(0, 0, 0), "is full: 0 bytes, 0 inodes free"),
    ],
)
def test_what_is_wanting(monkeypatch: pytest.MonkeyPatch, found: Filesystem, words: str) -> None:
    monkeypatch.setattr(files, "filesystem", lambda path: found)
    assert wanting(Path("/d")) == f"the filesystem of /d {words}"
    assert wanting(Path("/d"), errno.EDQUOT) == "the quota of the filesystem of /d is used up"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 * MIB, "3.0 MiB"), (1 << 31, "2.0 GiB")],
)
def test_amounts(count: int, words: str) -> None:
    assert amount(count) == words
