"""Sessions of a real daemon while those who serve them are killed: an exec, an attach and a port-forward each."""

import itertools
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.hung import slow_exec
from kit.node import Node, node, until
from kit.streams import ERROR, STDIN, Stream, attach_url, exec_url

from holdfast.linux import process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

COUNT = "i=0; while :; do i=$((i+1)); echo n$i; sleep 0.05; done"
WORDS = itertools.count(1)


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node() as one:
        yield one
        until(lambda: streamers(one) == [], "all streamers to be gone")


@pytest.fixture
def pod(life: Node) -> Iterator[str]:
    made = life.run_pod()
    yield made
    life.remove_pod(made)
    until(lambda: not streamers(life), "its streamers to be gone")


def streamers(life: Node) -> list[int]:
    return [worker.pid for worker in keeper.workers(life.state) if worker.kind == "streamer"]


def shim_of(life: Node, pod: str) -> int:
    """Its pid; 0 while it has none."""
    workers = keeper.workers(life.state)
    return next((worker.pid for worker in workers if (worker.kind, worker.id) == ("shim", pod)), 0)


def goes_on(stream: Stream) -> None:
    """What counts counts on."""
    last = stream.until(lambda: numbers(stream), "a number")[-1]
    stream.until_out(f"n{last + 5}")


def numbers(stream: Stream) -> list[int]:
    return [int(number) for number in re.findall(r"n(\d+)\s", stream.out())]


@pytest.mark.parametrize("tty", [False, True])
def test_an_exec_goes_on_without_a_daemon(life: Node, pod: str, tty: bool) -> None:
    container = life.run(pod, "sleep 1000")
    script = f"{COUNT} & read line; kill %1; wait; echo $line; exit 7"
    with Stream(exec_url(life, container, ["/bin/sh", "-c", script], tty=tty)) as stream:
        goes_on(stream)
        life.kill()
        goes_on(stream)
        life.start()
        goes_on(stream)
        stream.type("enough\n")
        assert stream.outcome() == 7
        assert "enough" in stream.out()
        found = numbers(stream)
        assert found == list(range(1, len(found) + 1))


def test_an_attach_outlives_its_shim_and_an_exec_is_ended_with_it(life: Node, pod: str) -> None:
    word = f"4{os.getpid()}{next(WORDS)}"
    container = life.run(pod, COUNT)
    command = ["/bin/sh", "-c", f"echo here; sleep {word}"]
    with (
        Stream(attach_url(life, container, stdin=False)) as attach,
        Stream(exec_url(life, container, command)) as exec_,
    ):
        goes_on(attach)
        exec_.until_out("here")
        killed = until(lambda: shim_of(life, pod), "its shim")
        os.kill(killed, signal.SIGKILL)
        exec_.until(lambda: exec_.ended, "the end")
        assert "its shim, which was killed" in exec_.out(ERROR)
        until(lambda: shim_of(life, pod) not in (0, killed), "another shim")
        goes_on(attach)
        life.remove_pod(pod)
        attach.until(lambda: attach.ended, "the end")
        assert '"Success"' in attach.out(ERROR)


@pytest.mark.parametrize("half", ["monitor", "frames"])
def test_nothing_is_left_of_an_exec_whose_streamer_is_killed(life: Node, pod: str, half: str) -> None:
    word = f"5{os.getpid()}{next(WORDS)}"
    container = life.run(pod, "sleep 1000")
    command = ["/bin/sh", "-c", f"echo here; trap '' HUP; sleep {word} & sleep {word}; wait"]
    with Stream(exec_url(life, container, command)) as stream:
        stream.until_out("here")
        (monitor,) = streamers(life)
        (frames,) = map(int, Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split())
        os.kill(monitor if half == "monitor" else frames, signal.SIGKILL)
        until(lambda: not sleepers(word), "what it has started to be ended")
        until(lambda: process.state(frames) in ("", "Z") and not streamers(life), "both to be gone")
        bundle = life.state / "pods" / pod / container / "exec"
        until(lambda: not bundle.exists() or not os.listdir(bundle), "its directory to be gone")
    assert life.status(container).state == pb.CONTAINER_RUNNING


def sleepers(word: str) -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and word in process.arguments(int(name))]


# -- under a foreign shim, which copies what a process says, and ends when it likes


@pytest.fixture(scope="module")
def foreign() -> Iterator[Node]:
    with node("runc-v2", runtimes={"runc-v2": {"shim": "/usr/bin/containerd-shim-runc-v2"}}) as one:
        yield one
        until(lambda: streamers(one) == [], "all streamers to be gone")


@pytest.fixture
def container(foreign: Node) -> Iterator[str]:
    pod = foreign.run_pod()
    yield foreign.run(pod, "while read line; do echo got $line; done; exit 3", stdin=True, stdin_once=True)
    foreign.remove_pod(pod)


def test_foreign_output_comes_before_the_end(foreign: Node, container: str) -> None:
    for code in (0, 9):
        with Stream(exec_url(foreign, container, ["/bin/sh", "-c", f"seq 100000; exit {code}"])) as stream:
            assert stream.outcome() == code
            assert stream.out() == "".join(f"{number}\n" for number in range(1, 100_001))


def test_a_foreign_childs_output_is_not_waited_for(foreign: Node, container: str) -> None:
    with Stream(exec_url(foreign, container, ["/bin/sh", "-c", "sleep 1000 & echo said; exit 4"])) as stream:
        assert stream.outcome() == 4
        assert stream.out() == "said\n"


def test_foreign_stdin_and_its_end(foreign: Node, container: str) -> None:
    with Stream(exec_url(foreign, container, ["/bin/wc", "-c"])) as stream:
        stream.send(STDIN, b"x" * 200_000)
        stream.end_input()
        assert stream.outcome() == 0
        assert stream.out().split() == ["200000"]


def test_a_foreign_terminal(foreign: Node, container: str) -> None:
    with Stream(exec_url(foreign, container, ["/bin/sh"], tty=True)) as stream:
        stream.resize(91, 17)
        stream.type("until [ \"$(stty size)\" = '17 91' ]; do sleep 0.1; done; echo fi''ts; exit 6\n")
        assert stream.outcome() == 6
        assert "fits" in stream.out()


def test_a_foreign_command_that_is_not_there(foreign: Node, container: str) -> None:
    with Stream(exec_url(foreign, container, ["/nowhere"])) as stream:
        stream.until(lambda: stream.ended, "the end")
        assert "nowhere" in stream.out(ERROR)


def test_a_foreign_exec_ends_with_its_client(foreign: Node, container: str) -> None:
    word = f"6{os.getpid()}{next(WORDS)}"
    with Stream(exec_url(foreign, container, ["/bin/sh", "-c", f"exec sleep {word}"])):
        until(lambda: len(sleepers(word)) == 1, "it to be only that")
    until(lambda: not sleepers(word), "it to be ended")


def test_a_foreign_exec_whose_client_goes_while_it_starts(tmp_path: Path) -> None:
    """Its shim opens what it writes to once the command is there, and would wait for somebody who reads."""
    slow = slow_exec(tmp_path, "runc")
    hold, asked, executed = (tmp_path / name for name in ("hold", "asked", "executed"))
    shim = "/usr/bin/containerd-shim-runc-v2"
    with node("slow", runtimes={"slow": {"shim": shim, "options": {"binary_name": str(slow)}}}) as one:
        container, word = one.run(one.run_pod(), "sleep 1000"), f"7{os.getpid()}{next(WORDS)}"
        hold.touch()
        with Stream(exec_url(one, container, ["/bin/sleep", word])):
            until(asked.exists, "it to be started")
            (monitor,) = streamers(one)
            (frames,) = map(int, Path(f"/proc/{monitor}/task/{monitor}/children").read_text().split())
        until(lambda: process.state(frames) in ("", "Z"), "it to be known that the client has gone")
        hold.unlink()
        until(executed.exists, "it to be there")
        until(lambda: not sleepers(word), "it to be ended")
        until(lambda: not streamers(one), "its streamer to be gone")


def test_a_foreign_container_is_attached_to(foreign: Node, container: str) -> None:
    with Stream(attach_url(foreign, container)) as stream:
        stream.type("one\n")
        stream.until_out("got one\n")
        stream.end_input()
        stream.until(lambda: stream.ended, "the end")
        assert '"Success"' in stream.out(ERROR)
    assert foreign.exited(container).exit_code == 3
