"""The rehearsal before shims are forked: it changes where code lies, not what it does, and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.workers.shim import rehearsal


def greet(name: str, *, times: int = 2) -> str:
    return f"hello {name} " * times


def test_functions_are_found_by_being_called_and_do_the_same_with_gathered_code() -> None:
    found = rehearsal.functions_of(lambda: greet("x"))
    assert greet in found
    before = greet.__code__
    rehearsal.gather([greet])
    assert greet.__code__ is not before
    assert greet("you", times=1) == "hello you "
    assert greet.__code__.co_firstlineno == before.co_firstlineno


def test_the_holes_are_filled_within_reason() -> None:
    assert sum(map(len, rehearsal.fill_holes())) < 16 << 20


LIFE = """
import gc, os, signal, sys
from pathlib import Path
from holdfast.workers.shim import rehearsal

stage = Path(sys.argv[1]) / "stage"
before = signal.getsignal(signal.SIGCHLD), sorted(os.listdir("/proc/self/fd"))
rehearsal.rehearse(stage, 1)
gc.collect()
assert not stage.exists()
assert (signal.getsignal(signal.SIGCHLD), sorted(os.listdir("/proc/self/fd"))) == before
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nothing is left")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the shim is root's")
def test_a_whole_life_is_played_and_nothing_is_left(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIFE, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("nothing is left\n", "")
