"""Freezing of what does not hold still by itself."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.loops import open_loop

from holdfast.linux import cgroup, process
from holdfast.model.witness import InitRecord
from holdfast.workers.shim.freezing import Freezing
from holdfast.workers.shim.loop import Lock, Loop
from holdfast.workers.shim.stdio import Stdio
from holdfast.workers.shim.task import Process, State, Task

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TIMES = 80
SECONDS = 20.0
EXECUTES = """
import os, threading, time
while True:
    if (pid := os.fork()) == 0:
        for _ in range(8):
            threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        os.execv("/bin/true", ["true"])
    os.waitpid(pid, 0)
"""


@pytest.fixture
def path() -> Iterator[str]:
    """A cgroup with processes of many threads in it, of which one executes another program, over and over."""
    name = f"/hf-freezing-{os.getpid()}"
    cgroup.create(name)
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", EXECUTES], os.environ)
    cgroup.enter(name, pid)
    yield name
    cgroup.kill(name)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    cgroup.remove(name)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with open_loop() as made:
        yield made


def test_threads_that_are_frozen_before_they_have_ended_hold_up_no_freeze(
    path: str, loop: Loop, tmp_path: Path
) -> None:
    """Who executes a program waits, unfreezable, until his other threads have ended, which the freezer keeps."""
    init = Process("", Stdio(loop, tmp_path), ("", "", ""), False, state=State.RUNNING)
    record = InitRecord(1, 1, process.boot_id(), path, 0, started=True)
    freezing = Freezing(loop, {"a": Task("a", tmp_path, init, Lock(loop), record)})
    for _ in range(TIMES):
        outcome: list[object] = []
        asked = json.dumps({"tasks": ["a"], "seconds": SECONDS})
        loop.start(freezing.freeze(asked), lambda _, error, outcome=outcome: outcome.append(error))  # type: ignore[misc]
        deadline = time.monotonic() + SECONDS
        while not outcome:
            assert time.monotonic() < deadline
            loop.turn()
        assert outcome == [None]
        assert cgroup.frozen(path)
        freezing.thaw("a")
