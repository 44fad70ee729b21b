"""The end of a volume with whatever may be in it, and subPaths while somebody swaps links."""

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import disk

from holdfast.agent.volumes import subpath, teardown
from holdfast.agent.volumes.paths import Paths
from holdfast.linux import mount

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL = 0x80086601, 0x40086602, 0x10
UID = "8e1f2a"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with disk.handed_on(tmp_path / "agent") as place:
        yield place


@pytest.fixture
def paths(root: Path) -> Paths:
    return Paths(root)


@pytest.fixture
def volume(paths: Paths) -> Path:
    path = paths.volume(UID, "empty-dir", "work")
    path.mkdir(parents=True)
    return path


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A directory of somebody else's, to be found whole in the end."""
    place = tmp_path / "canary"
    (place / "deep").mkdir(parents=True)
    for number in range(10):
        (place / "deep" / f"file-{number}").write_text(str(number))
    yield place
    assert sorted(os.listdir(place / "deep")) == [f"file-{number}" for number in range(10)]
    assert all((place / "deep" / f"file-{number}").read_text() == str(number) for number in range(10))


def end(paths: Paths, volume: Path) -> teardown.Teardown:
    return teardown.tear_down(volume, paths.discarded(UID, volume.name))


def immutable(path: Path, on: bool) -> None:
    """chattr(1), "i": not every filesystem knows it."""
    with path.open("rb") as file:
        flags = int.from_bytes(fcntl.ioctl(file, FS_IOC_GETFLAGS, b"\0" * 8)[:4], sys.byteorder)
        flags = flags | FS_IMMUTABLE_FL if on else flags & ~FS_IMMUTABLE_FL
        fcntl.ioctl(file, FS_IOC_SETFLAGS, flags.to_bytes(8, sys.byteorder))


def test_all_that_a_pod_may_leave_in_a_volume_goes(paths: Paths, volume: Path, canary: Path) -> None:
    names = os.fsencode(volume)
    os.mkdir(names + b"/\xff\xfe not utf-8")
    os.close(os.open(names + b"/\xff\xfe not utf-8/\x01\n", os.O_CREAT | os.O_CLOEXEC))
    (volume / "to").symlink_to(canary)
    (volume / "loop").symlink_to("loop")
    (volume / "hard").touch()
    os.link(volume / "hard", volume / "link")
    os.mkfifo(volume / "fifo")
    (volume / "sealed").mkdir(0o000)
    (volume / "sealed" / "file").touch()
    deep = volume
    for _ in range(300):
        deep = deep / "d"
        deep.mkdir()
    assert end(paths, volume) == teardown.Teardown()
    assert not volume.exists()
    assert os.listdir(paths.trash) == []
    assert end(paths, volume) == teardown.Teardown(), "what is gone is gone"


def test_what_others_have_mounted_is_detached_and_told_never_entered(paths: Paths, volume: Path, canary: Path) -> None:
    for name in ("bind", "stacked"):
        (volume / "deep" / name).mkdir(parents=True)
        mount.bind(canary, volume / "deep" / name)
    mount.mount("other", volume / "deep/stacked", "tmpfs")
    (volume / "deep/stacked/file").touch()
    (volume / "one").touch()
    mount.bind(canary / "deep/file-1", volume / "one")
    mount.bind(canary, volume)  # upon all of it
    done = end(paths, volume)
    assert done.kept == ""
    names = sorted(Path(one.target).name for one in done.detached)
    assert names == ["bind", "one", "stacked", "stacked", "work"]
    assert not volume.exists()
    assert os.listdir(paths.trash) == []


def test_a_volume_in_memory_is_unmounted(paths: Paths, volume: Path, canary: Path) -> None:
    mount.mount("tmpfs", volume, "tmpfs")
    (volume / "in").mkdir()
    mount.bind(canary, volume / "in")
    with (volume / "busy").open("w"):
        done = end(paths, volume)
    assert (done.kept, [one.target for one in done.detached]) == ("", [f"{volume}/in"])
    assert not volume.exists()
    assert not any(one.target.startswith(str(paths.root / "pods")) for one in mount.mountinfo())


def test_what_cannot_be_deleted_stays_with_the_reason_and_goes_later(paths: Paths, volume: Path) -> None:
    (volume / "kept").mkdir()
    (volume / "kept" / "file").touch()
    (volume / "gone").touch()
    try:
        immutable(volume / "kept/file", True)
    except OSError as exc:
        assert exc.errno == errno.ENOTTY
        pytest.fail("this filesystem knows no immutable files: another one is needed for this test")
    done = end(paths, volume)
    assert not volume.exists()
    (left,) = paths.trash.iterdir()
    assert done.kept == f"{left}/kept/file: immutable, or append-only"
    assert teardown.empty(left).kept
    immutable(left / "kept/file", False)
    assert teardown.empty(left) == teardown.Teardown()
    assert not left.exists()


def test_a_mount_made_after_the_check_is_not_entered(
    paths: Paths, volume: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the delete, again and again: it is left then, and said."""
    (volume / "in").mkdir()
    made = []

    def late(point: str) -> None:
        if point == "volume.emptying":
            (place,) = paths.trash.iterdir()
            mount.bind(canary, place / "in")
            made.append(place)

    monkeypatch.setattr(teardown, "crashpoint", late)
    done = end(paths, volume)
    assert done.kept == f"{made[0]}/in: will not delete across the mount"
    assert len(made) == teardown.TRIES
    monkeypatch.undo()
    assert teardown.empty(made[0]).kept == ""


RACE = """
import os, sys, time
from holdfast.linux import mount
directory, canary = os.open(sys.argv[1], os.O_PATH), sys.argv[2]
print("here", flush=True)
number = 0
while True:
    number += 1
    time.sleep(0.0005)
    place = f"/proc/self/fd/{directory}/d{number % 5}"
    try:
        os.mkdir(place)
    except OSError:
        pass
    try:
        mount.bind(canary, place)
        if number % 2:
            mount.detach(place)
    except OSError:
        pass
"""


@contextlib.contextmanager
def somebody_mounts(volume: Path, canary: Path) -> Iterator[None]:
    """A process that mounts and unmounts in the volume all the time, also when that is in the trash already."""
    racer = subprocess.Popen([sys.executable, "-c", RACE, str(volume), str(canary)], stdout=subprocess.PIPE)
    try:
        assert racer.stdout is not None
        assert racer.stdout.readline() == b"here\n"
        yield
    finally:
        racer.kill()
        racer.wait()
        racer.stdout.close()


def race(paths: Paths, canary: Path, seconds: float) -> tuple[int, int]:
    """How often a volume was torn down, and how often it had to be left for later, while somebody mounts in it."""
    until, ended, kept = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until:
        volume = paths.volume(UID, "empty-dir", f"v{ended}")
        volume.mkdir(parents=True)
        (volume / "file").touch()
        with somebody_mounts(volume, canary):
            done = end(paths, volume)
            kept += bool(done.kept)
        for left in paths.trash.iterdir():
            assert teardown.empty(left).kept == ""
        ended += 1
        assert sorted(os.listdir(canary / "deep")) == [f"file-{number}" for number in range(10)]
    return ended, kept


def test_a_race_with_somebody_who_mounts(paths: Paths, canary: Path) -> None:
    ended, kept = race(paths, canary, 3.0)
    print(f"{ended} volumes, {kept} of them kept for later")
    assert ended


@pytest.mark.soak
def test_a_minute_of_races_with_somebody_who_mounts(paths: Paths, canary: Path) -> None:
    ended, kept = race(paths, canary, 60.0)
    print(f"{ended} volumes, {kept} of them kept for later")
    assert ended > 20


# -- subPaths


@contextlib.contextmanager
def bound(volume: Path, path: str, target: Path, **how: bool) -> Iterator[Path]:
    subpath.bind(volume, path, target, **how)
    try:
        yield target
    finally:
        mount.unmount(target)


def test_a_part_of_a_volume(paths: Paths, volume: Path) -> None:
    volume.chmod(0o2775)
    (volume / "file").write_text("content")
    with bound(volume, "a/b", paths.subpath(UID, "work", "main", 0)) as directory:
        (directory / "made").touch()
        assert (volume / "a/b/made").exists()
        assert (volume / "a/b").stat().st_mode & 0o7777 == 0o2775
    with bound(volume, "file", paths.subpath(UID, "work", "main", 1), read_only=True) as file:
        assert file.read_text() == "content"
        with pytest.raises(OSError, match="Read-only"):
            file.write_text("")


def test_links_stay_in_the_volume(paths: Paths, volume: Path, canary: Path) -> None:
    (volume / "in").mkdir()
    (volume / "good").symlink_to("in")
    (volume / "out").symlink_to(canary)
    (volume / "up").symlink_to("../../..")
    (volume / "nowhere").symlink_to("missing")
    target = paths.subpath(UID, "work", "main", 0)
    with bound(volume, "good/new", target):
        assert (volume / "in/new").is_dir()
    for path in ("out", "out/deep", "up", "up/pods"):
        with pytest.raises(OSError) as refused:
            subpath.bind(volume, path, target)
        assert refused.value.errno == errno.EXDEV, path
    with pytest.raises(OSError, match="leads nowhere"):
        subpath.bind(volume, "nowhere", target)
    for path in ("", "/", "/etc", "..", "a/../..", "a\0b"):
        with pytest.raises(ValueError, match="subPath"):
            subpath.bind(volume, path, target)


def test_a_race_with_somebody_who_swaps_links(paths: Paths, volume: Path, canary: Path) -> None:
    """What is bound is in the volume, or nothing is, whatever a name means by then."""
    swap_links(paths, volume, canary, 2.0)


@pytest.mark.soak
def test_a_minute_of_races_with_somebody_who_swaps_links(paths: Paths, volume: Path, canary: Path) -> None:
    swap_links(paths, volume, canary, 60.0)


def swap_links(paths: Paths, volume: Path, canary: Path, seconds: float) -> None:
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                os.rmdir(volume / "a")
            with contextlib.suppress(OSError):
                os.symlink(canary, volume / "a")
            with contextlib.suppress(OSError):
                os.unlink(volume / "a")

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = {"bound": 0, "refused": 0}
    device = volume.stat().st_dev
    target = paths.subpath(UID, "work", "main", 0)
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until or not all(outcomes.values()):
            try:
                subpath.bind(volume, "a/b", target)
            except OSError:
                outcomes["refused"] += 1
                continue
            outcomes["bound"] += 1
            assert target.stat().st_dev == device
            mount.unmount(target)
            os.rmdir(volume / "a/b")
    finally:
        over.set()
        thread.join()
    assert sorted(os.listdir(canary)) == ["deep"], "nothing was made outside"
    print(outcomes)
