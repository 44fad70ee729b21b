"""Nothing a test makes may outlive it: processes, mounts, namespaces, cgroups and loop devices are counted."""

import contextlib
import fcntl
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The directories and cgroups of the kits bear the number of their test run; those of a bench are of none.
RUN = re.compile(r"hf[-_](?:bench|[a-z]+[-_](\d+))")
TEMPORARY = re.compile(r"/pytest-of-[^/]+/pytest-\d+/")  # and tests' own directories the one that pytest gives it
SETTLE_SECONDS = 10.0  # the kernel lets go of a loop device a moment after its filesystem was unmounted
REPLACEABLE = ("(holdfastd)", "(hf-keeper)", "(hf-template)")
ROOM, DOOR = Path(__file__), Path(__file__).with_name("e2e") / "conftest.py"  # to be locked by all runs of this tree
MARK = f"HOLDFAST_TESTS={os.getpid()}"
os.environ.update([MARK.split("=")])  # inherited by all that the tests start, but for what runs in containers

# Who is started in the background of a shell without job control ignores SIGINT, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code. A change is judged by the examples that it
# was written with; `make soak` looks for others.
settings.register_profile("new", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("new"), derandomize=True)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that bear no company come last, when nobody waits for them."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests run beside those of other processes, but for those marked `alone`; waiting for that is not of their time.

    Who wants to be alone holds the door while those inside end, lest new ones come in for ever.
    """
    alone = item.get_closest_marker("alone") is not None
    with ROOM.open() as room:
        with DOOR.open() as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # a child that the test has forked may have it still


def processes() -> set[str]:
    """Processes that these tests have started; zombies have ended."""
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                ours = MARK.encode() in Path(entry.path, "environ").read_bytes().split(b"\0")
                name = os.fsdecode(Path(entry.path, "comm").read_bytes().strip())
                state = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()[0]
            except OSError:
                continue
            if ours and state != b"Z" and int(entry.name) != os.getpid():
                found.add(f"process {entry.name} ({name})")
    return found


def mounts() -> set[str]:
    with open("/proc/self/mountinfo", "rb") as file:
        return {f"mount {os.fsdecode(line.split()[4])}" for line in file}


def cgroups() -> set[str]:
    found = set()
    for name in ("memory", "pids", "cpu", "systemd"):
        top = Path("/sys/fs/cgroup", name)
        if top.is_dir():
            found |= {f"cgroup {entry.path}" for entry in os.scandir(top) if entry.is_dir()}
    return found


def loops() -> set[str]:
    """With what is in them, of which the path tells whose they are.

    One that was detached goes with its last user, who may be another run's: a copy of the mounts of this moment is in
    each new mount namespace. That none of ours lives, or mounts it, is seen without it.
    """
    found = set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it goes just now
            if path.with_name("autoclear").read_text() == "1\n":
                continue
            found.add(f"loop device {path.parent.parent.name} of {path.read_text().strip()}")
    return found


def belongings(temporary: Path) -> set[str]:
    """All of it, but for what bears the number of another test run beside this one; `temporary` bears this one's."""

    def is_another_runs(one: str) -> bool:
        if (run := RUN.search(one)) is not None:
            return run[1] != str(os.getpid())
        return TEMPORARY.search(one) is not None and f"{temporary}/" not in one

    return {one for one in processes() | mounts() | cgroups() | loops() if not is_another_runs(one)}


def left_behind(before: set[str], temporary: Path, spared: tuple[str, ...] = ()) -> list[str]:
    """What has come to be and stays, but for what ends in one of these words.

    Some go a moment later: who is killed while he waits for a filesystem, a keeper's template; and what bears no number
    another run may be about to remove.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        left = sorted(one for one in belongings(temporary) - before if not one.endswith(spared))
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_at_the_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = belongings(tmp_path_factory.getbasetemp())
    yield
    left = left_behind(before, tmp_path_factory.getbasetemp())
    assert not left, f"left behind: {left}"


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that touch the kernel end as they began; what is left is named."""
    if not {"root", "e2e"} & set(request.path.parts):
        yield
        return
    before = belongings(tmp_path_factory.getbasetemp())
    yield
    # A daemon that a module shares, or its keeper, may have been replaced; that none is left is checked at the end.
    left = left_behind(before, tmp_path_factory.getbasetemp(), REPLACEABLE)
    assert not left, f"left behind: {left}"
