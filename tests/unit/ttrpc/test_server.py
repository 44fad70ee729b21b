"""The server on a selector, its clients being plain sockets."""

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.proto import task_pb2, ttrpc_pb2
from holdfast.ttrpc import server as under_test
from holdfast.ttrpc.codec import REMOTE_OPEN, REQUEST, RESPONSE, Decoder, Frame, encode
from holdfast.ttrpc.server import Call, Server


class Bench:
    """A server whose loop the test turns itself."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.calls: list[Call] = []
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.server = Server(self.selector, self.listener, self.calls.append)
        self.peers: list[socket.socket] = []

    def connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(self.path)
        peer.setblocking(False)
        self.peers.append(peer)
        return peer

    def turn(self, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + 5
        while not until():
            assert time.monotonic() < deadline
            for key, events in self.selector.select(0.05):
                key.data(events)

    def answers(self, peer: socket.socket, count: int) -> list[tuple[int, ttrpc_pb2.Response]]:
        decoder, found = Decoder(), []

        def enough() -> bool:
            try:
                for frame in decoder.feed(peer.recv(1 << 20)):
                    assert frame.kind == RESPONSE
                    found.append((frame.stream_id, ttrpc_pb2.Response.FromString(frame.payload)))
            except BlockingIOError:
                pass
            return len(found) >= count

        self.turn(enough)
        return found

    def hung_up(self, peer: socket.socket) -> None:
        def gone() -> bool:
            try:
                return peer.recv(1 << 16) == b""
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

        self.turn(gone)

    def close(self) -> None:
        for one in (*self.peers, self.listener):
            one.close()
        for key in list(self.selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self.selector.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "s")
    yield made
    made.close()


def request(stream: int, method: str = "M", flags: int = 0, **more: object) -> bytes:
    envelope = ttrpc_pb2.Request(service="S", method=method, payload=b"p", **more)
    return encode(Frame(stream, REQUEST, envelope.SerializeToString(), flags))


def test_calls_of_many_clients_answered_in_any_order(bench: Bench) -> None:
    one, two = bench.connect(), bench.connect()
    one.send(request(1, "a") + request(3, "b"))
    two.send(request(1, "c", metadata=[ttrpc_pb2.KeyValue(key="k", value="v")]))
    bench.turn(lambda: len(bench.calls) == 3)
    by_method = {call.method: call for call in bench.calls}
    assert by_method["c"].metadata == [("k", "v")]
    assert by_method["a"].payload == b"p"
    assert by_method["a"].deadline is None
    for method in "bca":
        by_method[method].answer(task_pb2.StateResponse(id=method))
        assert not by_method[method].open
    found = [(stream, task_pb2.StateResponse.FromString(r.payload).id) for stream, r in bench.answers(one, 2)]
    assert found == [(3, "b"), (1, "a")]
    ((stream, response),) = bench.answers(two, 1)
    assert (stream, task_pb2.StateResponse.FromString(response.payload).id) == (1, "c")


def test_the_first_answer_counts(bench: Bench) -> None:
    peer = bench.connect()
    peer.send(request(1) + request(3))
    bench.turn(lambda: len(bench.calls) == 2)
    bench.calls[0].fail(9, "not now")
    bench.calls[0].answer(task_pb2.StateResponse(id="late"))
    bench.calls[1].answer(task_pb2.StateResponse(id="other"))
    (first, refused), (second, _) = bench.answers(peer, 2)
    assert (first, refused.status.code, refused.status.message, second) == (1, 9, "not now", 3)


def test_a_deadline_is_answered_when_it_has_come(bench: Bench) -> None:
    peer = bench.connect()
    peer.send(request(1, timeout_nano=20_000_000) + request(3, timeout_nano=10_000_000_000))
    bench.turn(lambda: len(bench.calls) == 2)
    bench.server.expire()
    deadline = bench.server.next_deadline()
    assert deadline is not None
    assert bench.calls[0].open or deadline > time.monotonic()
    bench.turn(lambda: time.monotonic() > deadline)
    bench.server.expire()
    ((stream, response),) = bench.answers(peer, 1)
    assert (stream, response.status.code) == (1, under_test.DEADLINE_EXCEEDED)
    bench.calls[1].answer(task_pb2.StateResponse())
    assert bench.server.next_deadline() is None


def test_a_client_that_went_is_not_missed(bench: Bench) -> None:
    peer = bench.connect()
    peer.send(request(1))
    bench.turn(lambda: bench.calls)
    peer.close()
    bench.turn(lambda: not bench.calls[0].open)
    bench.calls[0].answer(task_pb2.StateResponse())


def test_a_large_answer_to_a_slow_reader(bench: Bench) -> None:
    slow, quick = bench.connect(), bench.connect()
    slow.send(request(1))
    bench.turn(lambda: len(bench.calls) == 1)
    bench.calls[0].answer(task_pb2.StateResponse(bundle="x" * 3_000_000))
    quick.send(request(1))
    bench.turn(lambda: len(bench.calls) == 2)
    bench.calls[1].answer(task_pb2.StateResponse())
    bench.answers(quick, 1)
    ((_, response),) = bench.answers(slow, 1)
    assert len(response.payload) > 3_000_000


def test_a_client_that_never_reads_is_dropped(bench: Bench) -> None:
    peer = bench.connect()
    for number in range(5):
        peer.send(request(2 * number + 1))
    bench.turn(lambda: len(bench.calls) == 5)
    for call in bench.calls:
        call.answer(task_pb2.StateResponse(bundle="x" * 3_000_000))
    assert not bench.calls[0].open
    assert len(bench.selector.get_map()) == 1


def test_streams_are_not_served(bench: Bench) -> None:
    peer = bench.connect()
    peer.send(request(1, flags=REMOTE_OPEN))
    ((_, response),) = bench.answers(peer, 1)
    assert response.status.code == under_test.UNIMPLEMENTED
    assert not bench.calls


@pytest.mark.parametrize(
    "hostile",
    [
        request(2),
        request(1) + request(1),
        encode(Frame(1, RESPONSE, b"")),
        encode(Frame(1, REQUEST, b"\xff\xff\xff")),
        b"\xff" * 10,
    ],
)
def test_who_breaks_the_protocol_is_hung_up_on(bench: Bench, hostile: bytes) -> None:
    good, bad = bench.connect(), bench.connect()
    bad.send(hostile)
    bench.hung_up(bad)
    bench.calls.clear()
    good.send(request(1))
    bench.turn(lambda: bench.calls)
    bench.calls[0].answer(task_pb2.StateResponse())
    bench.answers(good, 1)


def test_more_clients_than_it_takes_wait_their_turn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "CONNECTIONS", 2)
    peers = [bench.connect() for _ in range(3)]
    for peer in peers:
        peer.send(request(1))
    bench.turn(lambda: len(bench.calls) == 2)
    assert bench.listener.fileno() not in bench.selector.get_map()
    peers[0].close()
    bench.turn(lambda: len(bench.calls) == 3)
