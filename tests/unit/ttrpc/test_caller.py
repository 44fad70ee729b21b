"""The client on selectors, against the server on selectors and against who is none, over a real socket."""

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from holdfast.linux import sockets
from holdfast.proto import task_pb2
from holdfast.ttrpc.caller import Caller
from holdfast.ttrpc.server import NOT_FOUND, Call, CallError, Server

SECONDS = 10.0
Answers = list[tuple[bytes, Exception | None]]


class Both:
    """One selector for both ends. `calls` are those that the server was asked for and has not answered."""

    def __init__(self, path: Path) -> None:
        self.selector = selectors.DefaultSelector()
        self.calls: list[Call] = []
        self.server = Server(self.selector, sockets.listen(path), self.calls.append)
        self.caller = Caller(self.selector, path)

    def ask(self, name: str, seconds: float | None = None) -> Answers:
        got: Answers = []
        request = task_pb2.StateRequest(id=name)
        self.caller.call("service", "State", request, lambda *answer: got.append(answer), seconds)
        return got

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            for key, events in self.selector.select(0.05):
                key.data(events)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    made = Both(tmp_path / "s")
    yield made
    made.caller.close()
    for key in list(made.selector.get_map().values()):
        assert isinstance(key.fileobj, socket.socket)
        key.fileobj.close()
    made.selector.close()


def test_answers_come_to_whom_they_belong(both: Both) -> None:
    first, second = both.ask("first"), both.ask("second")
    both.until(lambda: len(both.calls) == 2)
    for call in reversed(both.calls):
        call.answer(task_pb2.StateResponse(id=task_pb2.StateRequest.FromString(call.payload).id))
    both.until(lambda: first and second)
    found = [task_pb2.StateResponse.FromString(payload).id for payload, error in first + second if error is None]
    assert found == ["first", "second"]


def test_the_servers_own_word(both: Both) -> None:
    got = both.ask("x")
    both.until(lambda: both.calls)
    both.calls[0].fail(NOT_FOUND, "there is none")
    both.until(lambda: got)
    ((_, error),) = got
    assert isinstance(error, CallError)
    assert (error.code, str(error)) == (NOT_FOUND, "there is none")


def test_one_that_is_not_answered_in_time(both: Both) -> None:
    got = both.ask("x", 0.05)
    both.until(lambda: both.calls)
    assert both.calls[0].deadline is not None
    at = both.caller.next_deadline()
    assert at is not None
    while time.monotonic() < at:
        time.sleep(0.01)
    both.caller.expire()
    ((_, error),) = got
    assert isinstance(error, TimeoutError)
    assert both.caller.next_deadline() is None
    both.calls[0].answer(Empty())  # is late, and nobody's
    later = both.ask("y")
    both.until(lambda: len(both.calls) == 2)
    both.calls[1].answer(Empty())
    both.until(lambda: later)
    assert (got, later) == ([(b"", error)], [(b"", None)])


def test_a_large_request_goes_in_parts(both: Both) -> None:
    got = both.ask("x" * 3_000_000)
    both.until(lambda: both.calls)
    assert len(both.calls[0].payload) > 3_000_000
    both.calls[0].answer(Empty())
    both.until(lambda: got)


def test_all_who_wait_hear_that_the_server_has_gone(both: Both, tmp_path: Path) -> None:
    got = [both.ask("x"), both.ask("y", 60)]
    both.until(lambda: len(both.calls) == 2)
    both.server.forget(both.calls[0]._connection)
    both.calls[0]._connection.close()
    both.until(lambda: all(got))
    assert [isinstance(error, ConnectionError) for ((_, error),) in got] == [True, True]
    assert both.caller.closed
    ((_, error),) = both.ask("z")
    assert isinstance(error, ConnectionError)


@pytest.mark.parametrize("said", [b"\xff" * 64, b"\0\0\0\0" + b"\0\0\0\1" + b"\7\0", b""])
def test_who_speaks_no_ttrpc(tmp_path: Path, said: bytes) -> None:
    with sockets.listen(tmp_path / "s") as listener, selectors.DefaultSelector() as selector:

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.send(said)
                peer.recv(100)

        thread = threading.Thread(target=serve)
        thread.start()
        caller = Caller(selector, tmp_path / "s")
        got: Answers = []
        caller.call("s", "m", Empty(), lambda *answer: got.append(answer))
        while not got:
            for key, events in selector.select(SECONDS):
                key.data(events)
        thread.join()
        assert isinstance(got[0][1], ConnectionError)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Caller(selectors.DefaultSelector(), tmp_path / "s")
