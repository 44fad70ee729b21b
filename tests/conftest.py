"""Nothing a test makes may outlive it: processes, mounts, namespaces, cgroups and loop devices are counted."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

RUN = re.compile(r"hf[-_][a-z]+[-_](\d+)")  # the directories and cgroups of the kits bear the number of their test run
TEMPORARY = re.compile(r"/pytest-of-[^/]+/pytest-\d+/")  # and tests' own directories the one that pytest gives it
SETTLE_SECONDS = 10.0  # the kernel lets go of a loop device a moment after its filesystem was unmounted
REPLACEABLE = ("(holdfastd)", "(hf-keeper)", "(hf-template)")
MARK = f"HOLDFAST_TESTS={os.getpid()}"
os.environ.update([MARK.split("=")])  # inherited by all that the tests start, but for what runs in containers

# Who is started in the background of a shell without job control ignores SIGINT, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the machine than about the code.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")


def processes() -> set[str]:
    """Processes that these tests have started; zombies have ended."""
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                ours = MARK.encode() in Path(entry.path, "environ").read_bytes().split(b"\0")
                name = Path(entry.path, "comm").read_text().strip()
                state = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if ours and state != "Z" and int(entry.name) != os.getpid():
                found.add(f"process {entry.name} ({name})")
    return found


def mounts() -> set[str]:
    with open("/proc/self/mountinfo") as file:
        return {f"mount {line.split()[4]}" for line in file}


def cgroups() -> set[str]:
    found = set()
    for name in ("memory", "pids", "cpu", "systemd"):
        top = Path("/sys/fs/cgroup", name)
        if top.is_dir():
            found |= {f"cgroup {entry.path}" for entry in os.scandir(top) if entry.is_dir()}
    return found


def loops() -> set[str]:
    """With what is in them, of which the path tells whose they are."""
    found = set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it goes just now
            found.add(f"loop device {path.parent.parent.name} of {path.read_text().strip()}")
    return found


def belongings(temporary: Path) -> set[str]:
    """All of it, but for what bears the number of another test run beside this one; `temporary` bears this one's."""

    def is_another_runs(one: str) -> bool:
        if (run := RUN.search(one)) is not None:
            return run[1] != str(os.getpid())
        return TEMPORARY.search(one) is not None and f"{temporary}/" not in one

    return {one for one in processes() | mounts() | cgroups() | loops() if not is_another_runs(one)}


def left_behind(before: set[str], temporary: Path) -> list[str]:
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        left = sorted(belongings(temporary) - before)
        if not any(one.startswith("loop device") for one in left) or time.monotonic() > deadline:
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
    left = [one for one in left_behind(before, tmp_path_factory.getbasetemp()) if not one.endswith(REPLACEABLE)]
    assert not left, f"left behind: {left}"
