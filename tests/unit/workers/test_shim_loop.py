"""The shim's event loop: timers, children, locks, threads, and callbacks that fail."""

import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.loops import open_loop

from holdfast.linux import files, process
from holdfast.workers.shim.criu import to_the_end
from holdfast.workers.shim.loop import Clock, Failed, Lock, Loop, Pause

SECONDS = 30.0  # for what comes at once, unless the machine stands still


@pytest.fixture
def orphans() -> list[tuple[int, int, int]]:
    return []


@pytest.fixture
def loop(orphans: list[tuple[int, int, int]]) -> Iterator[Loop]:
    def reap(pid: int, code: int, status: int) -> None:
        orphans.append((pid, code, status))
        process.reap(pid)

    with open_loop(reap) as made:
        yield made


def turn_until(loop: Loop, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        look_again = loop.timers.add(0.02, lambda: None)  # it may be of nobody who tells the loop
        loop.turn()
        look_again.cancel()


def run(loop: Loop, coroutine: Coroutine[Pause, Any, Any]) -> Any:
    """Its result, or its exception."""
    outcome: list[Any] = []
    loop.start(coroutine, lambda result, error: outcome.append(error or result))
    turn_until(loop, lambda: outcome)
    return outcome[0]


def spawn(*argv: str) -> int:
    return os.posix_spawnp(argv[0], argv, os.environ)


def test_children_and_how_they_ended(loop: Loop) -> None:
    async def ends() -> list[int | None]:
        return [
            await loop.exited(spawn("true"), SECONDS),
            await loop.exited(spawn("sh", "-c", "exit 7"), SECONDS),
            await loop.exited(spawn("sh", "-c", "kill -KILL $$"), SECONDS),
        ]

    assert run(loop, ends()) == [0, 7, 137]


def test_a_child_that_takes_too_long_is_still_reaped(loop: Loop, orphans: list[tuple[int, int, int]]) -> None:
    pid = spawn("sleep", "1000")

    async def impatient() -> int | None:
        return await loop.exited(pid, 0.01)

    assert run(loop, impatient()) is None
    os.kill(pid, signal.SIGKILL)
    turn_until(loop, lambda: process.start_time(pid) is None)
    assert orphans == []


def test_a_child_that_nobody_waits_for(loop: Loop, orphans: list[tuple[int, int, int]]) -> None:
    pid = spawn("sh", "-c", "exit 3")
    turn_until(loop, lambda: orphans)
    assert orphans == [(pid, os.CLD_EXITED, 3)]


def test_timers_in_their_order(loop: Loop) -> None:
    seen: list[str] = []
    loop.timers.add(0.02, lambda: seen.append("second"))
    loop.timers.add(0.01, lambda: seen.append("first"))
    cancelled = loop.timers.add(0.001, lambda: seen.append("never"))
    assert cancelled.pending
    cancelled.cancel()
    turn_until(loop, lambda: len(seen) == 2)
    assert seen == ["first", "second"]


def test_a_lock_lets_one_pass_at_a_time_in_order(loop: Loop) -> None:
    lock, seen = Lock(loop), []

    async def enter(name: int) -> None:
        async with lock:
            seen.append(name)
            await loop.sleep(0.001)
            seen.append(name)

    for name in range(300):  # far more than the interpreter's stack would take if each resumed the next
        loop.start(enter(name), lambda result, error: None)
    turn_until(loop, lambda: len(seen) == 600)
    assert seen == [name for name in range(300) for _ in (0, 1)]


def test_a_lock_is_free_after_a_failure(loop: Loop) -> None:
    lock = Lock(loop)

    async def fail() -> None:
        async with lock:
            raise ValueError("no")

    async def succeed() -> str:
        async with lock:
            return "yes"

    assert isinstance(run(loop, fail()), ValueError)
    assert run(loop, succeed()) == "yes"


def test_what_blocks_goes_to_a_child_and_the_loop_goes_on(loop: Loop, tmp_path: Path) -> None:
    seen: list[str] = []

    def work() -> str:
        while not (tmp_path / "meanwhile").exists():
            time.sleep(0.005)
        seen.append("in the child's memory only")
        return "done"

    loop.timers.add(0.01, (tmp_path / "meanwhile").touch)
    assert run(loop, loop.in_child(work, SECONDS)) == "done"
    assert seen == []


def test_how_a_child_fails(loop: Loop, capfd: pytest.CaptureFixture[str]) -> None:
    def impossible() -> str:
        os.rmdir("/no/such/directory")
        return "never"

    def wrong() -> str:
        return [""][1]

    def killed() -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"

    for work, text in (
        (impossible, "No such file or directory: /no/such/directory"),
        (wrong, "the child that was to do it ended with status 1"),
        (killed, "the child that was to do it ended with status 137"),
    ):
        failure = run(loop, loop.in_child(work, SECONDS))
        assert isinstance(failure, Failed)
        assert str(failure) == text
    assert "IndexError" in capfd.readouterr().err


class Held:
    """A clock whose timers wait for a file, however long that takes."""

    def __init__(self, clock: Clock, file: Path) -> None:
        self.clock, self.file = clock, file

    def next_deadline(self) -> float:
        return time.monotonic() + 0.005

    def expire(self) -> None:
        if self.file.exists():
            self.clock.expire()


def test_a_child_that_hangs_is_killed_with_those_it_has_made(loop: Loop, tmp_path: Path) -> None:
    def hang() -> str:
        pid = spawn("sleep", "1000")
        files.write_atomic(tmp_path / "pid", str(pid).encode(), sync=False)
        os.waitpid(pid, 0)
        return "never"

    loop.clocks[:] = [Held(loop.timers, tmp_path / "pid")]
    failure = run(loop, loop.in_child(hang, 0.2))
    assert str(failure) == "no end after 0.2 s"
    pid = int((tmp_path / "pid").read_text())
    turn_until(loop, lambda: process.state(pid) in ("", "Z"))


def test_a_callback_that_fails_stops_nothing(loop: Loop, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    loop.soon(lambda: [][0])
    loop.soon(lambda: seen.append("next"))
    turn_until(loop, lambda: seen)
    assert "IndexError" in capsys.readouterr().err


@pytest.mark.parametrize(("takes", "patience", "ends"), [(0.3, SECONDS, True), (1000, 0.0, False)])
def test_what_a_child_leaves_that_somebody_has_killed(
    loop: Loop, tmp_path: Path, takes: float, patience: float, ends: bool
) -> None:
    """It may come to its end for a while, and is killed then: nothing of it goes on behind who has asked for it."""

    def killed() -> str:
        pid = spawn("sh", "-c", f"echo > {tmp_path}/begun; sleep {takes}; echo > {tmp_path}/over")
        (tmp_path / "pid").write_text(str(pid))
        while not (tmp_path / "begun").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)
        return "never"

    failure = run(loop, loop.in_child(killed, SECONDS, patience))
    assert isinstance(failure, Failed)
    pid = int((tmp_path / "pid").read_text())
    turn_until(loop, lambda: process.state(pid) in ("", "Z"))
    assert (tmp_path / "over").exists() is ends


def test_a_command_outlives_the_shim_for_a_moment(tmp_path: Path) -> None:
    """The shim is killed over it: who runs it waits for its end, rather than to take it along."""
    reading, writing = os.pipe()
    if (shim := os.fork()) == 0:  # pragma: no cover (another process)
        made = Loop(lambda pid, *_: process.reap(pid))

        def work() -> str:
            with to_the_end("/nobody"):
                spawn("sh", "-c", f"echo > {tmp_path}/begun; sleep 0.3; echo > {tmp_path}/over")
            os.write(writing, b"1")
            return ""

        made.start(made.in_child(work, SECONDS), lambda *_: None)
        made.run()
    os.close(writing)
    try:
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(shim, signal.SIGKILL)
        os.waitpid(shim, 0)
    with os.fdopen(reading, "rb") as told:
        assert told.read() == b"1"
    assert (tmp_path / "over").exists()
