"""linux.cgroup on whatever hierarchies this host has."""

import concurrent.futures
import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.node import until

from holdfast.linux import cgroup, descriptors, mount, oom, process


@pytest.fixture
def path() -> Iterator[str]:
    name = f"/hf-cgroup-{os.getpid()}"
    yield name
    if cgroup.exists(name):
        cgroup.kill(name)
        cgroup.remove(name)


def in_it(path: str, code: str = "input()") -> subprocess.Popen[bytes]:
    """A process that is in the cgroup before it runs any of `code`."""
    code = f"input(); print(flush=True)\n{code}"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    cgroup.enter(path, child.pid)
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(b"\n")
    child.stdin.flush()
    child.stdout.readline()
    return child


def test_mode_and_hierarchies_agree() -> None:
    found = cgroup.hierarchies()
    assert cgroup.mode() == ("v2" if set(found) == {""} else "hybrid" if "" in found else "v1")
    assert all((top / "cgroup.procs").exists() for top in found.values())


def test_whatever_else_is_mounted_is_called_anything(tmp_path: Path) -> None:
    place = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(place)
    mount.mount("none", place, "tmpfs")
    try:
        assert cgroup.hierarchies.__wrapped__() == cgroup.hierarchies()
        assert descriptors.mounts_of(os.getpid())
    finally:
        mount.unmount(place)


def test_create_and_remove_are_idempotent_and_cover_every_hierarchy(path: str) -> None:
    for _ in range(2):
        cgroup.create(f"{path}/pod/container")
    for top in cgroup.hierarchies().values():
        assert (top / path.strip("/") / "pod" / "container").is_dir()
    assert cgroup.exists(path)
    assert cgroup.children(path) == {"pod"}
    assert not cgroup.populated(path)
    for _ in range(2):
        cgroup.remove(path)
    assert not cgroup.exists(path)


def test_a_parent_that_is_removed_for_being_empty_is_no_hindrance(path: str) -> None:
    over = threading.Event()

    def remove() -> None:
        while not over.wait(0.0002):
            cgroup.remove_if_empty(path)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        remover = pool.submit(remove)
        try:
            for number in range(200):
                cgroup.create(f"{path}/pod-{number}")
                cgroup.remove(f"{path}/pod-{number}")
        finally:
            over.set()
        remover.result()
    assert not cgroup.children(path)


@pytest.mark.parametrize("wrong", ["", "/", "/../x", "/a/../../b"])
def test_the_root_and_what_climbs_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a path below the root"):
        cgroup.remove(wrong)


def test_processes_are_found_and_killed_at_any_depth(path: str) -> None:
    for name in ("a", "b/c"):
        cgroup.create(f"{path}/{name}")
    fork = "import os, signal\nos.fork(); os.fork()\nsignal.signal(15, signal.SIG_IGN)\nwhile True: signal.pause()"
    with in_it(f"{path}/a", fork) as one, in_it(f"{path}/b/c") as two:
        assert {one.pid, two.pid} <= cgroup.pids(path)
        assert cgroup.populated(f"{path}/b")
        assert cgroup.of_process(two.pid) == f"{path}/b/c"
        with pytest.raises(OSError) as caught:
            cgroup.remove(path)
        assert caught.value.errno == errno.EBUSY
        cgroup.kill(path)
        assert (one.wait(), two.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
    assert not cgroup.populated(path)
    cgroup.kill(path)


@contextlib.contextmanager
def frozen(path: str) -> Iterator[None]:
    """In the v1 freezer, with which SIGKILL has no effect until it is thawed."""
    if "freezer" not in cgroup.hierarchies():
        pytest.skip("no v1 freezer")
    cgroup.freeze(path)
    try:
        until(lambda: cgroup.frozen(path), "it to be frozen")
        yield
    finally:
        cgroup.thaw(path)


def test_a_process_that_cannot_be_killed_is_named_when_time_is_up(path: str) -> None:
    """What is frozen with all that is around it cannot be thawed by itself."""
    inner = f"{path}/inner"
    cgroup.create(inner)
    with in_it(inner) as one:
        with frozen(path):
            until(lambda: cgroup.frozen(inner), "it to be frozen")
            with pytest.raises(OSError, match=str(one.pid)) as caught:
                cgroup.kill(inner, seconds=0.1)
            assert caught.value.errno == errno.EBUSY
        assert one.wait() == -signal.SIGKILL


def test_who_is_late_himself_looks_again_before_he_complains(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if cgroup.mode() == "v2":
        pytest.skip("the kernel kills them all at once")
    cgroup.create(path)
    kill_each = cgroup._kill_each

    def slowly(path: str, found: list[int]) -> None:
        kill_each(path, found)
        until(lambda: all(process.state(pid) in ("Z", "X", "") for pid in found), "them to die")

    monkeypatch.setattr(cgroup, "_kill_each", slowly)
    with in_it(path) as one:
        cgroup.kill(path, seconds=0.0)
        assert one.wait() == -signal.SIGKILL


@pytest.mark.parametrize("below", ["", "/a", "/a/b"])
def test_what_is_frozen_is_thawed_for_its_end(path: str, below: str) -> None:
    cgroup.create(f"{path}/a/b")
    with in_it(f"{path}/a/b") as one, frozen(f"{path}{below}"):
        cgroup.kill(path)
        assert one.wait() == -signal.SIGKILL


def test_oom_kills_are_counted(path: str) -> None:
    cgroup.create(path)
    found = cgroup.hierarchies()
    name, top = ("memory.limit_in_bytes", found["memory"]) if "memory" in found else ("memory.max", found[""])
    limit = top / path.strip("/") / name
    if not limit.exists():
        pytest.skip("no memory controller")
    limit.write_text(str(32 * 1024 * 1024))
    assert cgroup.oom_kills(path) == 0
    with in_it(path, "x = bytearray(256 * 1024 * 1024)") as hungry:
        assert hungry.wait() == -signal.SIGKILL
    assert cgroup.oom_kills(path) == 1
    cgroup.remove(path)
    with pytest.raises(FileNotFoundError):
        cgroup.oom_kills(path)


def test_oom_kills_are_noticed_and_so_is_the_cgroups_end(path: str) -> None:
    """On v1, where each is an eventfd; the files of v2 are in tests/unit."""
    if "memory" not in cgroup.hierarchies():
        pytest.skip("no v1 memory controller")
    notices = oom.open_notices()

    def noticed(seconds: float) -> list[str]:
        return notices.read() if select.select([notices], [], [], seconds)[0] else []

    with pytest.raises(FileNotFoundError):
        notices.add(path)
    cgroup.create(path)
    (cgroup.hierarchies()["memory"] / path.strip("/") / "memory.limit_in_bytes").write_text(str(32 * 1024 * 1024))
    notices.add(path)
    assert noticed(0) == []
    with in_it(path, "x = bytearray(256 * 1024 * 1024)") as hungry:
        assert hungry.wait() == -signal.SIGKILL
    assert noticed(10) == [path]
    assert noticed(0) == []
    cgroup.remove(path)
    assert noticed(10) == [path]
    notices.remove(path)
    assert noticed(0) == []
    notices.close()


def test_zombies_do_not_hold_up_a_kill(path: str) -> None:
    cgroup.create(path)
    with in_it(path) as one:
        one.kill()
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        assert process.state(one.pid) == "Z"
        cgroup.kill(path, seconds=0.5)


def test_whoever_looks_may_look_into_a_cgroup_whatever_our_umask_is(path: str) -> None:
    before = os.umask(0o077)
    try:
        cgroup.create(f"{path}/pod/container")
    finally:
        os.umask(before)
    for top in cgroup.hierarchies().values():
        for one in (path, f"{path}/pod", f"{path}/pod/container"):
            assert (top / one.strip("/")).stat().st_mode & 0o777 == 0o755
