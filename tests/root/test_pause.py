"""runtime.pause: the program really is an init: it reaps what it is left, and ends when it is asked to."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.model.errors import Unimplemented
from holdfast.runtime import pause

SECONDS = 10.0
ORPHAN = "sleep 0.05 & echo $!"  # the shell ends first, so that the init inherits the child


@pytest.fixture
def init(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """unshare(1), and the host's pid of the program that is pid 1 of the namespace it has made."""
    program = tmp_path / "pause"
    program.write_bytes(pause.program())
    program.chmod(0o755)
    parent = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", str(program)])
    pid = 0
    try:
        pid = awaited(lambda: running(parent.pid))
        yield parent, pid
    finally:
        parent.kill()  # and with it goes its child, in a moment
        parent.wait()
        awaited(lambda: not Path(f"/proc/{pid}").exists())


def awaited(found: Callable[[], int]) -> int:
    deadline = time.monotonic() + SECONDS
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.005)
    return value


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{key}:"))


def running(parent: int) -> int:
    """The child once it waits: a signal that is awaited is not shown as blocked, but what it ignores is shown."""
    for pid in children(parent):
        if status(pid, "Name") == "pause" and status(pid, "State")[0] == "S":
            return pid if int(status(pid, "SigIgn"), 16) & 1 << signal.SIGCHLD - 1 else 0
    return 0


def test_what_it_inherits_leaves_no_zombie(init: tuple[subprocess.Popen[bytes], int]) -> None:
    _, pid = init
    for _ in range(3):
        subprocess.run(["nsenter", "-p", "-t", str(pid), "sh", "-c", ORPHAN], check=True, capture_output=True)
    awaited(lambda: not children(pid))
    awaited(lambda: status(pid, "State")[0] == "S")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_with_zero_when_asked(init: tuple[subprocess.Popen[bytes], int], number: signal.Signals) -> None:
    parent, pid = init
    os.kill(pid, number)
    assert parent.wait(SECONDS) == 0


def test_goes_on_waiting_after_an_interruption(init: tuple[subprocess.Popen[bytes], int]) -> None:
    parent, pid = init
    os.kill(pid, signal.SIGSTOP)
    awaited(lambda: status(pid, "State")[0] == "T")
    os.kill(pid, signal.SIGCONT)
    awaited(lambda: status(pid, "State")[0] == "S")
    assert parent.poll() is None


def test_looks_for_all_that_it_is_told(tmp_path: Path) -> None:
    program = tmp_path / "look"
    program.write_bytes(pause.look())
    program.chmod(0o755)
    names = [str(tmp_path / f"name-{number}") for number in range(3)]
    done = subprocess.run(["strace", "-e", "trace=access", program, *names], capture_output=True, text=True, check=True)
    assert [line.split('"')[1] for line in done.stderr.splitlines() if line.startswith("access(")] == names


def test_both_machines_have_one_and_others_are_told() -> None:
    for machine, number, code in (("x86_64", pause.EM_X86_64, 66), ("aarch64", pause.EM_AARCH64, 80)):
        program = pause.program(machine)
        fields = pause.EHDR.unpack_from(program)
        segment = pause.PHDR.unpack_from(program, pause.EHDR.size)
        assert (fields[1], fields[2], fields[4]) == (2, number, segment[3] + pause.HEADERS)
        assert segment[5] == segment[6] == len(program)
        assert program[pause.HEADERS + code :] == pause.ACTION + pause.AWAITED  # where the code looks for them
    with pytest.raises(Unimplemented, match="riscv64"):
        pause.program("riscv64")
