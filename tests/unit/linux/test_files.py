"""linux.files without privileges: atomic writes, bounded reads, look-ups below a root, trees."""

import contextlib
import errno
import gc
import math
import os
import resource
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.linux import files


def open_fds() -> set[str]:
    gc.collect()  # what an earlier test has left may have some open
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


def test_write_atomic_replaces_and_leaves_no_other_name(tmp_path: Path) -> None:
    target = tmp_path / "record"
    files.write_atomic(target, b"one")
    files.write_atomic(target, b"two", mode=0o644)
    assert target.read_bytes() == b"two"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["record"]


@pytest.mark.parametrize(
    ("made", "now", "age"), [(5.0, 5.0, 0.0), (5.0, 8.5, 3.5), (5.0, 4.9, math.inf), (0.0, 1e6, 1e6)]
)
def test_a_temporary_name_tells_its_age(made: float, now: float, age: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the boot-time clock is asked; what was made later than now was made before the last boot."""
    clock = {time.CLOCK_BOOTTIME: made}
    monkeypatch.setattr(time, "clock_gettime_ns", lambda which: int(clock[which] * 1e9))
    name = files.temporary_name("config.json")
    assert name != files.temporary_name("config.json")
    clock[time.CLOCK_BOOTTIME] = now
    assert files.temporary_age(name) == age


@pytest.mark.parametrize("name", ["hosts", ".hosts", ".hosts.0a1b2c3d", "exit.json", f"hosts.{'0' * 24}"])
def test_a_name_that_is_not_temporary_has_no_age(name: str) -> None:
    assert files.temporary_age(name) is None


def test_write_atomic_into_nowhere_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        files.write_atomic(tmp_path / "no" / "record", b"x")
    assert str(tmp_path / "no") in str(caught.value.filename)


def test_write_atomic_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    target.mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_atomic(target, b"x")
    assert os.listdir(tmp_path) == ["directory"]


def test_read_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert files.read_bounded(path, 5) == b"12345"
    with pytest.raises(OSError) as caught:
        files.read_bounded(path, 4)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))


def test_read_bounded_never_waits_for_a_pipe(tmp_path: Path) -> None:
    files.fifo(tmp_path / "pipe")
    with pytest.raises(OSError) as caught:
        files.read_bounded(tmp_path / "pipe", 10)
    assert caught.value.errno == errno.EINVAL


def test_fifo_has_its_mode_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        files.fifo(tmp_path / "pipe", 0o622)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "pipe").stat().st_mode) == 0o622


def test_make_private(tmp_path: Path) -> None:
    files.make_private(tmp_path / "a" / "b")
    os.chmod(tmp_path / "a" / "b", 0o755)
    files.make_private(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_lock_is_held_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    held = files.lock(tmp_path / "lock")
    assert not os.get_inheritable(held)
    with pytest.raises(BlockingIOError):
        files.lock(tmp_path / "lock")
    os.close(held)
    os.close(files.lock(tmp_path / "lock"))


@pytest.fixture
def jail(tmp_path: Path) -> Iterator[int]:
    """A directory with links that lead out of it, and beside it a file called `secret`."""
    (tmp_path / "secret").write_text("outside")
    root = tmp_path / "jail"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").write_text("inside")
    (root / "secret").write_text("inside")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "climbing").symlink_to("../../../../../secret")
    (root / "proc").symlink_to("/proc/self/cwd")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("path", ["absolute", "climbing", "../secret", "/etc/passwd", "etc/../../secret"])
def test_nothing_leads_out_from_beneath(jail: int, path: str) -> None:
    with pytest.raises(OSError) as caught:
        files.open_beneath(jail, path, os.O_RDONLY)
    assert caught.value.errno == errno.EXDEV
    assert caught.value.filename == path


@pytest.mark.parametrize("path", ["absolute", "climbing", "../secret", "/etc/passwd", "etc/../../secret"])
def test_in_root_links_and_dots_stay_inside(jail: int, path: str) -> None:
    with os.fdopen(files.open_beneath(jail, path, os.O_RDONLY, in_root=True)) as file:
        assert file.read() == "inside"


def test_magic_links_are_refused(tmp_path: Path) -> None:
    proc = os.open("/proc/self", os.O_PATH)
    try:
        with pytest.raises(OSError) as caught:
            files.open_beneath(proc, "cwd", os.O_RDONLY, in_root=True)
    finally:
        os.close(proc)
    assert caught.value.errno in (errno.ELOOP, errno.EXDEV)


def test_a_path_with_a_nul_is_refused_rather_than_cut(jail: int) -> None:
    with pytest.raises(ValueError, match="null byte"):
        files.open_beneath(jail, "secret\0.txt", os.O_RDONLY)


# -- remove_tree


def test_remove_tree_removes_everything_but_what_links_lead_to(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    os.link(precious / "data", tree / "a" / "hard link")
    (tree / "to file").symlink_to(precious / "data")
    (tree / "to directory").symlink_to(precious)
    (tree / "a" / "dangling").symlink_to("/no/where")
    os.mkfifo(tree / "pipe")
    os.mkdir(os.fsencode(tree) + b"/not \xff utf-8 \n")
    with open(os.fsencode(tree) + b"/not \xff utf-8 \n/\xfe", "w"):
        pass
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
    files.remove_tree(tree)
    assert not tree.exists()
    assert (precious / "data").read_text() == "x"


def test_remove_tree_in_which_somebody_still_writes(tmp_path: Path) -> None:
    """Until he has written what he had to, or finds that it is gone."""
    script = 'i=0; while [ $i -lt 500 ] && : > "$0/$((i = i + 1))"; do :; done'
    for number in range(20):
        tree = tmp_path / str(number)
        tree.mkdir()
        with subprocess.Popen(["sh", "-c", script, str(tree)], stderr=subprocess.DEVNULL) as writer:
            while not os.listdir(tree):
                time.sleep(0.001)
            files.remove_tree(tree)
            writer.wait(10)
        assert not tree.exists()


def test_remove_tree_of_a_file_a_link_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file", "nothing", "no/where/at all"):
        files.remove_tree(tmp_path / name)
    assert os.listdir(tmp_path) == ["kept"]


def make_deep(top: Path, depth: int) -> None:
    """A chain of directories much longer than a path may be, with a file at every level."""
    os.mkdir(top)
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_remove_tree_is_not_limited_by_depth_or_descriptors(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 5000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        files.remove_tree(tmp_path / "deep")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_remove_tree_with_many_directories_beside_each_other_takes_no_quadratic_time(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / "wide" / str(number)).mkdir(parents=True)
    files.remove_tree(tmp_path / "wide")
    assert os.listdir(tmp_path) == []


def test_remove_tree_while_somebody_swaps_directories_for_links(tmp_path: Path) -> None:
    """Whatever the race does, what is outside stays, and what was inside can be removed in the end."""
    precious = tmp_path / "precious"
    (precious / "sub").mkdir(parents=True)
    (precious / "sub" / "canary").write_text("alive")
    tree = tmp_path / "tree"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                os.rename(tree / "victim", tree / "aside")
                os.symlink(precious, tree / "victim")
                os.unlink(tree / "victim")
                os.rename(tree / "aside", tree / "victim")
            except OSError:
                continue

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(150):
            with contextlib.suppress(OSError):  # swapped away just now; there is something to remove anyway
                for number in range(5):
                    (tree / "victim" / "sub" / str(number)).mkdir(parents=True, exist_ok=True)
            try:
                files.remove_tree(tree)
            except OSError as exc:
                assert exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENOTEMPTY)
            assert (precious / "sub" / "canary").read_text() == "alive"
    finally:
        stop.set()
        thread.join()
    files.remove_tree(tree)
    assert not tree.exists()


def test_remove_tree_that_is_moved_away_in_its_depth_stops_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the upper directories' descriptors given back, ".." must lead to where it came from or nowhere."""
    monkeypatch.setattr(files, "_OPEN_LEVELS", 2)
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    (tree / "1" / "2" / "3" / "4").mkdir(parents=True)
    (elsewhere / "canary").mkdir(parents=True)
    real = os.rmdir

    def move_then_rmdir(name: str, *, dir_fd: int) -> None:
        if name == "3":
            os.rename(tree / "1" / "2", elsewhere / "2")
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", move_then_rmdir)
    with pytest.raises(OSError) as caught:
        files.remove_tree(tree)
    assert caught.value.errno == errno.ESTALE
    assert sorted(os.listdir(elsewhere)) == ["2", "canary"]


def test_filesystem(tmp_path: Path) -> None:
    found = files.filesystem(tmp_path)
    assert found.device == tmp_path.stat().st_dev
    assert 0 < found.free_bytes <= found.total_bytes


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/"), ("/", "/"), ("/a/./b//c/", "/a/b/c"), ("/../../etc", "/etc"), ("/there/../x", "/x"),
        ("/absolute", "/proc/self/fd/7"), ("/absolute/../8", "/proc/self/fd/8"), ("/there/relative/y", "/up/y"),
        ("/chain", "/proc/self/fd/7"), ("/file/x", "/file/x"), ("/there/out", "/etc"),
    ],
)  # fmt: skip
def test_where_a_path_leads_in_a_root(tmp_path: Path, path: str, expected: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    for name, link in [
        ("absolute", "/proc/self/fd/7"), ("chain", "./absolute"), ("there/relative", "../up"),
        ("there/out", "../../../../etc"), ("loop", "loop"),
    ]:  # fmt: skip
        (tmp_path / name).symlink_to(link)
    root = os.open(tmp_path, os.O_PATH)
    try:
        assert files.follow(root, path) == expected
        with pytest.raises(OSError, match="Too many levels"):
            files.follow(root, "/loop")
    finally:
        os.close(root)
