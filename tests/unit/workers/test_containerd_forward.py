"""Events for containerd: their order, whatever becomes of it in between, and an end to how many are kept."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from kit.loops import open_loop

from holdfast.linux import sockets
from holdfast.ttrpc.server import Call, Server
from holdfast.workers.containerd import forward
from holdfast.workers.containerd.forward import Forwarder
from holdfast.workers.shim.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    with open_loop() as made:
        yield made
        for one in sockets_of(made):
            one.close()


def sockets_of(loop: Loop) -> list[socket.socket]:
    return [key.fileobj for key in loop.selector.get_map().values() if isinstance(key.fileobj, socket.socket)]


class Containerd:
    """The other end, on the same loop. With `silent` it answers nothing."""

    def __init__(self, loop: Loop, path: Path) -> None:
        self._loop = loop
        self._path = str(path)
        self._server = Server(loop.selector, sockets.listen(path), self._take)
        loop.clocks.append(self._server)
        self.heard: list[bytes] = []
        self.silent = False
        self.refuses = False
        self.calls: list[Call] = []

    def _take(self, call: Call) -> None:
        assert (call.service, call.method) == (forward.SERVICE, forward.METHOD)
        self.calls.append(call)
        if self.silent:
            return
        self.heard.append(call.payload)
        if self.refuses:
            call.fail(3, "no")
        else:
            call.answer(Empty())

    def die(self) -> None:
        self._loop.clocks.remove(self._server)
        for one in sockets_of(self._loop):
            if one.getsockname() == self._path:
                self._loop.selector.unregister(one)
                one.close()


def turn_until(loop: Loop, condition: Callable[[], object]) -> None:
    turns = 0
    while not condition():
        loop.timers.add(0.05, lambda: None)
        loop.turn()
        turns += 1
        assert turns < 1000


def numbered(first: int, last: int) -> list[bytes]:
    return [str(number).encode() for number in range(first, last)]


def test_they_arrive_in_order(loop: Loop, tmp_path: Path) -> None:
    containerd = Containerd(loop, tmp_path / "s")
    forwarder = Forwarder(loop, str(tmp_path / "s"))
    for one in numbered(0, 200):
        forwarder.put(one)
    turn_until(loop, lambda: not forwarder.pending)
    assert containerd.heard == numbered(0, 200)


def test_one_that_comes_later_is_told_everything(loop: Loop, tmp_path: Path) -> None:
    forwarder = Forwarder(loop, str(tmp_path / "s"))
    for one in numbered(0, 5):
        forwarder.put(one)
    assert forwarder.pending == 5
    containerd = Containerd(loop, tmp_path / "s")
    turn_until(loop, lambda: not forwarder.pending)
    assert containerd.heard == numbered(0, 5)


def test_what_was_not_acknowledged_is_told_again_to_the_next(loop: Loop, tmp_path: Path) -> None:
    first = Containerd(loop, tmp_path / "s")
    first.silent = True
    forwarder = Forwarder(loop, str(tmp_path / "s"))
    for one in numbered(0, 5):
        forwarder.put(one)
    turn_until(loop, lambda: first.calls)
    first.die()
    second = Containerd(loop, tmp_path / "s")
    turn_until(loop, lambda: not forwarder.pending)
    assert second.heard == numbered(0, 5)


def test_one_that_does_not_answer_is_left_for_another_try(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "ANSWER_SECONDS", 0.1)
    containerd = Containerd(loop, tmp_path / "s")
    containerd.silent = True
    forwarder = Forwarder(loop, str(tmp_path / "s"))
    forwarder.put(b"one")
    turn_until(loop, lambda: len(containerd.calls) >= 2)
    monkeypatch.undo()  # what is answered now is heard in time
    containerd.silent = False
    turn_until(loop, lambda: not forwarder.pending)
    assert containerd.heard == [b"one"]


def test_what_is_refused_is_not_repeated(loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    containerd = Containerd(loop, tmp_path / "s")
    containerd.refuses = True
    forwarder = Forwarder(loop, str(tmp_path / "s"))
    for one in numbered(0, 3):
        forwarder.put(one)
    turn_until(loop, lambda: not forwarder.pending)
    assert containerd.heard == numbered(0, 3)
    assert capsys.readouterr().err.count("refuses an event: no") == 3


def test_only_so_many_are_kept_and_the_log_says_how_many_are_not(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forward, "QUEUE", 10)
    forwarder = Forwarder(loop, str(tmp_path / "s"))
    for one in numbered(0, 25):
        forwarder.put(one)
    assert forwarder.pending == 10
    containerd = Containerd(loop, tmp_path / "s")
    turn_until(loop, lambda: not forwarder.pending)
    assert containerd.heard == numbered(15, 25)
    assert "15 events were left out" in capsys.readouterr().err


def test_a_farewell_waits_for_what_can_be_told_and_not_for_ever(loop: Loop, tmp_path: Path) -> None:
    forwarder = Forwarder(loop, str(tmp_path / "s"))
    forwarder.put(b"one")
    forwarder.drain(0.2)
    assert forwarder.pending == 1
    containerd = Containerd(loop, tmp_path / "s")
    forwarder.put(b"two")
    forwarder.drain(5)
    assert (forwarder.pending, containerd.heard) == (0, [b"one", b"two"])


def test_without_an_address_nothing_is_kept(loop: Loop) -> None:
    forwarder = Forwarder(loop, "")
    forwarder.put(b"one")
    assert forwarder.pending == 0
