"""Volumes of files on a disk: switched to at once, and repaired from whatever was left of them."""

import os
import stat
from pathlib import Path

import pytest

from holdfast.agent.pod.volumes import HostPath
from holdfast.agent.volumes import files, hostpath
from holdfast.agent.volumes.payload import File, Payload

ONE: Payload = (File("a", b"1", 0o644), File("dir/b", b"2", 0o400), File("dir/deep/c", b"", 0o755))
TWO: Payload = (File("a", b"one", 0o600), File("new", b"3", 0o644))


def shown(directory: Path) -> dict[str, tuple[bytes, int]]:
    """What a container sees: names at the top, and files by way of them."""
    found = {}
    for name in os.listdir(directory):
        if not name.startswith(".."):
            for path in [directory / name, *(directory / name).rglob("*")]:
                if path.is_file():
                    mode = stat.S_IMODE(path.stat().st_mode)
                    found[str(path.relative_to(directory))] = (path.read_bytes(), mode)
    return found


def expected(payload: Payload) -> dict[str, tuple[bytes, int]]:
    return {one.path: (one.content, one.mode) for one in payload}


def versions(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith("..2")]


def test_files_are_shown_as_a_kubelet_shows_them(tmp_path: Path) -> None:
    assert files.write(tmp_path, ONE)
    assert shown(tmp_path) == expected(ONE)
    (version,) = versions(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([version, "..data", "a", "dir"])
    assert os.readlink(tmp_path / "..data") == version
    assert os.readlink(tmp_path / "a") == "..data/a"
    assert os.readlink(tmp_path / "dir") == "..data/dir"
    assert stat.S_IMODE((tmp_path / version).stat().st_mode) == 0o755


def test_nothing_is_done_when_nothing_has_changed(tmp_path: Path) -> None:
    files.write(tmp_path, ONE)
    before = versions(tmp_path)
    assert not files.write(tmp_path, ONE)
    assert versions(tmp_path) == before


def test_an_update_is_one_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(tmp_path, ONE)
    seen = []

    def look(point: str) -> None:
        seen.append((point, (tmp_path / "..data" / "a").read_bytes(), len(versions(tmp_path))))

    monkeypatch.setattr(files, "crashpoint", look)
    assert files.write(tmp_path, TWO)
    assert seen == [("volume.files-written", b"1", 2), ("volume.files-switched", b"one", 2)]
    assert shown(tmp_path) == expected(TWO)
    assert len(versions(tmp_path)) == 1
    assert not os.path.lexists(tmp_path / "dir")


def test_no_files_are_files_too(tmp_path: Path) -> None:
    assert files.write(tmp_path, ())
    assert not files.write(tmp_path, ())
    assert shown(tmp_path) == {}
    files.write(tmp_path, ONE)
    files.write(tmp_path, ())
    assert shown(tmp_path) == {}


def test_what_was_damaged_or_left_half_done_is_repaired(tmp_path: Path) -> None:
    files.write(tmp_path, ONE)

    def truncated() -> None:  # as after a power cut
        (tmp_path / "a").write_bytes(b"")

    def another_mode() -> None:
        (tmp_path / "a").chmod(0o777)

    def one_too_many() -> None:
        (tmp_path / "..data" / "more").touch()

    def missing() -> None:
        (tmp_path / "..data" / "a").unlink()

    def a_link_instead() -> None:
        missing()
        (tmp_path / "..data" / "a").symlink_to("dir/b")

    for damage in (truncated, another_mode, one_too_many, missing, a_link_instead):
        damage()
        assert files.write(tmp_path, ONE), damage
        assert shown(tmp_path) == expected(ONE), damage
    (tmp_path / "..2020_half").mkdir()
    (tmp_path / "..data_tmp").symlink_to("x")
    (tmp_path / "stale").symlink_to("..data/stale")
    (tmp_path / "a").unlink()
    assert not files.write(tmp_path, ONE)
    assert shown(tmp_path) == expected(ONE)
    assert len(os.listdir(tmp_path)) == 4
    (tmp_path / "dir").unlink()
    (tmp_path / "dir/for-a-subpath").mkdir(parents=True)
    assert not files.write(tmp_path, ONE)
    assert shown(tmp_path) == expected(ONE)
    (tmp_path / "..data").unlink()
    assert files.write(tmp_path, ONE)
    assert shown(tmp_path) == expected(ONE)


# -- hostPath


def check(path: Path, kind: str) -> str:
    return hostpath.check(HostPath(str(path), kind))  # type: ignore[arg-type]


def test_a_path_of_the_host_is_of_its_type(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    right = {
        "Directory": [tmp_path],
        "File": [tmp_path / "file", tmp_path / "link"],
        "CharDevice": [Path("/dev/null")],
        "": [tmp_path / "nothing", tmp_path / "fifo"],
    }
    for kind, paths in right.items():
        assert [check(path, kind) for path in paths] == [str(path) for path in paths]
    wrong = {
        "Directory": tmp_path / "file",
        "DirectoryOrCreate": tmp_path / "file",
        "File": tmp_path,
        "FileOrCreate": tmp_path / "fifo",
        "Socket": tmp_path / "fifo",
        "CharDevice": tmp_path / "file",
        "BlockDevice": Path("/dev/null"),
    }
    for kind, path in wrong.items():
        with pytest.raises(ValueError, match=f"hostPath {path} is no "):
            check(path, kind)
    for kind in ("Directory", "File", "Socket", "CharDevice", "BlockDevice"):
        with pytest.raises(FileNotFoundError):
            check(tmp_path / "nothing", kind)


def test_a_path_of_the_host_is_made_if_that_is_asked_for(tmp_path: Path) -> None:
    check(tmp_path / "a/b", "DirectoryOrCreate")
    check(tmp_path / "a/b", "DirectoryOrCreate")
    assert (tmp_path / "a/b").is_dir()
    check(tmp_path / "a/file", "FileOrCreate")
    check(tmp_path / "a/file", "FileOrCreate")
    assert stat.S_IMODE((tmp_path / "a/file").stat().st_mode) & 0o777 == 0o644
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "none/file", "FileOrCreate")
