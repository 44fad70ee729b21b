"""How the shim hears that containers have ended whose init is their sentry, by a runsc that says what a file says."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.linux import process
from holdfast.model.witness import ExitRecord, InitRecord
from holdfast.workers import exits
from holdfast.workers.shim.gvisor import Ends
from holdfast.workers.shim.loop import Lock, Loop
from holdfast.workers.shim.oci import Runtime
from holdfast.workers.shim.stdio import Stdio
from holdfast.workers.shim.task import Process, State, Task

# It waits for a file, says what is in there, and fails where that is nothing.
RUNSC = """#!/bin/sh
echo "$*" >> {0}/asked
while ! test -e {0}/said; do sleep 0.01; done
cat {0}/said
test -s {0}/said
"""


@pytest.fixture
def sentry() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for one; it is reaped by whoever ends it."""
    one = subprocess.Popen(["sleep", "1000"])
    yield one
    one.kill()
    one.wait()


class Heard:
    """A task in a sandbox, and what is concluded of it."""

    def __init__(self, loop: Loop, place: Path, sentry: int, binary: str = "") -> None:
        self.loop, self.place = loop, place
        program = place / "runsc"
        program.write_text(RUNSC.format(place))
        program.chmod(0o755)
        runtime = Runtime("runsc", binary or str(program), str(place), platform="systrap", pod_id="pod")
        self.ends = Ends(loop, runtime, lambda _, record: self.concluded.append(record))
        self.concluded: list[ExitRecord] = []
        started = process.start_time(sentry)
        assert started is not None
        self.record = InitRecord(sentry, started, process.boot_id(), "/none", 0, started=True)
        self.task = self.of("c")

    def of(self, id: str) -> Task:
        bundle = self.place / id
        bundle.mkdir()
        init = Process("", Stdio(self.loop, bundle), ("", "", ""), False, state=State.RUNNING, pid=self.record.pid)
        return Task(id, bundle, init, Lock(self.loop), self.record)

    def asked(self) -> list[str]:
        path = self.place / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def say(self, text: str) -> None:
        (self.place / "new").write_text(text)
        (self.place / "new").rename(self.place / "said")


def turn_until(loop: Loop, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        loop.timers.add(0.02, lambda: None)
        loop.turn()


def test_runsc_says_how(loop: Loop, tmp_path: Path, sentry: subprocess.Popen[bytes]) -> None:
    heard = Heard(loop, tmp_path, sentry.pid)
    heard.ends.await_end(heard.task)
    turn_until(loop, heard.asked)
    assert heard.asked() == [f"--root {tmp_path} wait c"]
    assert not heard.concluded
    heard.say('{"id":"c","exitStatus":143}\n')
    turn_until(loop, lambda: heard.concluded)
    assert [(one.code, one.witness, one.pid) for one in heard.concluded] == [(143, "shim", sentry.pid)]
    assert (heard.task.init.state, heard.task.init.exit_code) == (State.STOPPED, 143)


def test_a_wait_that_is_cut_off_is_begun_again(loop: Loop, tmp_path: Path, sentry: subprocess.Popen[bytes]) -> None:
    heard = Heard(loop, tmp_path, sentry.pid)
    heard.say("")
    heard.ends.await_end(heard.task)
    turn_until(loop, lambda: len(heard.asked()) > 2)
    assert not heard.concluded
    heard.say('{"exitStatus":0}')
    turn_until(loop, lambda: heard.concluded)
    assert heard.concluded[0].code == 0


def test_a_program_that_is_missing_for_a_while_is_looked_for_again(
    loop: Loop, tmp_path: Path, sentry: subprocess.Popen[bytes]
) -> None:
    heard = Heard(loop, tmp_path, sentry.pid, str(tmp_path / "late"))
    heard.say('{"exitStatus":5}')
    heard.ends.await_end(heard.task)
    turn_until(loop, lambda: not heard.asked())
    (tmp_path / "runsc").rename(tmp_path / "late")
    turn_until(loop, lambda: heard.concluded)
    assert heard.concluded[0].code == 5


def test_a_sentry_that_is_gone_took_all_with_it(loop: Loop, tmp_path: Path, sentry: subprocess.Popen[bytes]) -> None:
    heard = Heard(loop, tmp_path, sentry.pid)
    heard.say("")
    sentry.kill()
    sentry.wait()
    heard.ends.await_end(heard.task)
    turn_until(loop, lambda: heard.concluded)
    assert [(one.code, one.signal) for one in heard.concluded] == [(137, signal.SIGKILL)]


def test_what_somebody_else_has_written_down_counts(
    loop: Loop, tmp_path: Path, sentry: subprocess.Popen[bytes]
) -> None:
    heard = Heard(loop, tmp_path, sentry.pid)
    heard.say("")
    sentry.kill()
    sentry.wait()
    kept = exits.describe(heard.record, os.CLD_KILLED, signal.SIGKILL, "keeper")
    exits.write(heard.task.bundle, kept)
    heard.ends.await_end(heard.task)
    turn_until(loop, lambda: heard.concluded)
    assert heard.concluded == [kept]


def test_who_was_first_counts_when_the_sentry_has_ended(
    loop: Loop, tmp_path: Path, sentry: subprocess.Popen[bytes]
) -> None:
    heard = Heard(loop, tmp_path, sentry.pid)
    other = heard.of("d")
    for task in (heard.task, other):
        heard.ends.await_end(task)
    turn_until(loop, lambda: len(heard.asked()) == 2)
    fate = exits.describe(heard.record, os.CLD_EXITED, 0, "shim")
    assert heard.ends.lose(heard.task, fate) and heard.ends.lose(other, fate)
    heard.say('{"exitStatus":7}')  # they had ended by themselves before
    turn_until(loop, lambda: len(heard.concluded) == 2)
    assert [one.code for one in heard.concluded] == [7, 7]


def test_the_sandbox_container_is_told_of_by_the_kernel(
    loop: Loop, tmp_path: Path, sentry: subprocess.Popen[bytes]
) -> None:
    heard = Heard(loop, tmp_path, sentry.pid)
    sandbox = heard.of("pod")
    heard.ends.await_end(sandbox)
    assert not heard.ends.lose(sandbox, exits.describe(heard.record, os.CLD_EXITED, 0, "shim"))
    assert not heard.asked()
