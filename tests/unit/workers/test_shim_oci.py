"""OCI runtime commands: what they inherit, what their logs say, how long they may take."""

import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.workers.shim import oci
from holdfast.workers.shim.loop import Loop, Pause
from holdfast.workers.shim.oci import Runtime, RuntimeFailed, error_text
from holdfast.workers.shim.spawn import spawn


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = signal.getsignal(signal.SIGCHLD)
    made = Loop(lambda pid, code, status: os.waitpid(pid, 0))
    yield made
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, before)
    made.close()


def run(loop: Loop, coroutine: Coroutine[Pause, Any, Any]) -> Any:
    outcome: list[Any] = []
    loop.start(coroutine, lambda result, error: outcome.append(error or result))
    while not outcome:
        loop.turn()
    return outcome[0]


def runtime(tmp_path: Path, script: str) -> Runtime:
    """A runtime that is a shell script. $4 is its log, as --root ROOT --log LOG come first."""
    binary = tmp_path / "runtime"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return Runtime("fake", str(binary), "/the/root")


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (b"", ""),
        (b'{"level":"error","msg":"first"}\n{"level":"error","msg":"last"}\n{"level":"info","msg":"x"}\n', "last"),
        (b'{"msg":"read-only", "level":"fatal"}\nnot json\n[]\n"text"\n{"level":"error"}', "read-only"),
        (b"\xff\xfe", ""),
    ],
)
def test_the_last_error_of_a_log(log: bytes, text: str) -> None:
    assert error_text(log) == text


def test_a_command_and_its_arguments(loop: Loop, tmp_path: Path) -> None:
    fake = runtime(
        tmp_path,
        f'echo "$1 $2 $3 $5 $6 $7 $8" > {tmp_path}/seen; test ! -t 0 && readlink /proc/$$/fd/0 >> {tmp_path}/seen',
    )
    assert run(loop, fake.run(loop, "start", "c")) is None
    assert (tmp_path / "seen").read_text() == "--root /the/root --log --log-format json start c\n/dev/null\n"


def test_a_command_that_fails_says_why(loop: Loop, tmp_path: Path) -> None:
    fake = runtime(tmp_path, """echo '{"level":"error","msg":"no such container"}' >> "$4"; exit 1""")
    failure = run(loop, fake.run(loop, "start", "c"))
    assert isinstance(failure, RuntimeFailed)
    assert str(failure) == "no such container"
    failure = run(loop, runtime(tmp_path, "exit 3").run(loop, "start", "c"))
    assert str(failure) == "fake start ended with status 3"


def test_a_binary_that_is_not_there(loop: Loop, tmp_path: Path) -> None:
    failure = run(loop, Runtime("x", str(tmp_path / "none"), "/").run(loop, "start"))
    assert str(failure) == f"cannot run {tmp_path}/none: No such file or directory"


def test_a_command_that_hangs_is_killed(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci, "COMMAND_SECONDS", 0.05)
    failure = run(loop, runtime(tmp_path, "sleep 1000; exit 1").run(loop, "pause", "c"))
    assert str(failure) == "fake pause did not end within 0.05 s and was killed"


def test_nothing_is_inherited_but_what_was_given(tmp_path: Path) -> None:
    fds = {number: os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for number, name in enumerate(("in", "out", "err"))}
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    pid = spawn(["/bin/ls", "-1", "/proc/self/fd"], env={}, fds=fds)
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (other, *fds.values()):
        os.close(fd)
    inherited = set((tmp_path / "out").read_text().split())
    assert {"0", "1", "2"} <= inherited
    assert not {str(other), *map(str, fds.values())} & inherited


def test_a_child_has_default_signals_and_its_own_session(tmp_path: Path) -> None:
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    null = os.open("/dev/null", os.O_RDWR)
    script = "grep -E '^Sig(Ign|Blk)' /proc/self/status | cut -f2; cut -d' ' -f6 /proc/$$/stat; echo $$"
    pid = spawn(["/bin/sh", "-c", script], env={"PATH": "/bin:/usr/bin"}, fds={0: null, 1: out, 2: null})
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (out, null):
        os.close(fd)
    ignored, blocked, session, leader = sorted((tmp_path / "out").read_text().split(), key=len, reverse=True)
    standard = (1 << 31) - 1  # those above are the C library's own
    assert int(ignored, 16) & standard == int(blocked, 16) & standard == 0
    assert session == leader == str(pid)


def test_a_program_under_another_name(tmp_path: Path) -> None:
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    null = os.open("/dev/null", os.O_RDWR)
    pid = spawn(["name", "-c", "echo $0"], env={}, fds={0: null, 1: out, 2: null}, executable="/bin/sh")
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (out, null):
        os.close(fd)
    assert (tmp_path / "out").read_text() == "name\n"
