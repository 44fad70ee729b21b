"""What a streamer's halves say to each other, and what waits for a client."""

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from holdfast.streaming.session import CommandEvent, ForwardEvent, Outcome, Wanted
from holdfast.streaming.websocket_command import WebSocketCommand
from holdfast.workers.outbox import Outbox
from holdfast.workers.shim.loop import Loop
from holdfast.workers.streamer import client as clients
from holdfast.workers.streamer import line as lines
from holdfast.workers.streamer.client import Client
from holdfast.workers.streamer.wish import Wish

SECONDS = 10.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


# -- the line


@pytest.mark.parametrize(
    ("event", "more"),
    [("ready", {}), ("input ended", {}), ("resize", {"width": 80, "height": 24}), ("words", {"text": "oh"})],
)
def test_what_is_said_is_heard(pair: tuple[socket.socket, socket.socket], event: str, more: dict[str, object]) -> None:
    lines.tell(pair[0], event, **more)
    assert lines.hear(pair[1]) == lines.Said(event, **more)  # type: ignore[arg-type]


def test_orders_are_heard(pair: tuple[socket.socket, socket.socket]) -> None:
    lines.tell_begun(pair[0])
    lines.tell_outcome(pair[0], Outcome(7, "why"))
    pair[0].close()
    assert [lines.hear_order(pair[1]) for _ in range(3)] == [True, Outcome(7, "why"), False]


HOSTILE = [
    b"", b"\0", b"{", b"null", b"[]", b"7", b'"ready"', b"{}", b'{"event": {}, "width": []}',
    b'{"event": 1, "width": "x"}',
    b'{"event": "resize", "width": 1e999}', b'{"event": "resize", "width": NaN}', b"[" * 60_000, b"\xff" * 100,
]  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE)
def test_what_is_no_message_is_the_end(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    pair[0].send(data)
    assert lines.hear(pair[1]) is None


def test_whatever_frames_says_is_a_message_or_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    chance = random.Random(7)
    names, values = ("event", "width", "height", "text"), [None, True, -1, 1 << 70, 1.5, "x" * 9000, [], {}, "ready"]
    for _ in range(5000):
        message = {name: chance.choice(values) for name in names if chance.random() < 0.8}
        pair[0].send(json.dumps(message).encode())
        said = lines.hear(pair[1])
        if said is not None:
            assert 0 <= said.width <= 0xFFFF
            assert 0 <= said.height <= 0xFFFF
            assert len(said.text) <= lines.WORDS


# -- what waits


def test_an_outbox_keeps_the_order_whatever_is_taken() -> None:
    chance = random.Random(8)
    outbox, taken, put = Outbox(), bytearray(), bytearray()

    def write(part: memoryview) -> int:
        if chance.random() < 0.3:
            raise BlockingIOError
        size = chance.randint(0, len(part))
        taken.extend(part[:size])
        return size

    for _ in range(500):
        data = chance.randbytes(chance.randint(0, 100))
        outbox.put(data)
        put += data
        outbox.drain(write)
        assert outbox.size == len(put) - len(taken)
    outbox.drain(lambda part: taken.extend(part) or len(part))  # type: ignore[func-returns-value]
    assert (taken, outbox.size) == (put, 0)


class Talk:
    """A client at the other end of a socket pair, over a WebSocket."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        ours, self.peer = socket.socketpair()
        self.codec = WebSocketCommand(5, False, Wanted(stdin=True, stdout=True, stderr=False, tty=False))
        self.events: list[CommandEvent | ForwardEvent] = []
        self.gone: list[str] = []
        self.client = Client(self.loop, ours, self.codec, self.events.append, lambda: None, self.gone.append)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            timer = self.loop.timers.add(0.05, lambda: None)
            self.loop.turn()
            timer.cancel()

    def close(self) -> None:
        self.client.end("")
        self.peer.close()


@pytest.fixture
def talk(loop: Loop) -> Iterator[Talk]:
    made = Talk(loop)
    yield made
    made.close()


def test_a_client_that_does_not_read_is_full(talk: Talk) -> None:
    talk.client.begin(b"", b"")
    for _ in range(100):
        if not talk.client.full:
            talk.codec.send("stdout", bytes(1 << 16))
            talk.client.flush()
    assert talk.client.full
    got = 0
    while talk.client.full:
        got += len(talk.peer.recv(1 << 20))
        talk.loop.turn()
    assert got > 0


def test_it_is_noticed_that_a_client_goes_who_is_not_read_from(talk: Talk) -> None:
    talk.client.begin(b"", b"")
    talk.client.hold(True)
    talk.peer.send(b"nobody reads this")
    talk.peer.close()
    talk.until(lambda: talk.gone)
    assert talk.gone == [""]


def test_garbage_is_answered_in_the_protocols_words(talk: Talk) -> None:
    talk.client.begin(b"101", b"")
    talk.peer.send(b"\xff" * 2000)
    talk.until(lambda: talk.gone)
    assert "protocol" in talk.gone[0]
    talk.peer.settimeout(SECONDS)
    answer = b""
    with contextlib.suppress(ConnectionError):
        while data := talk.peer.recv(4096):
            answer += data
    assert answer[:3] == b"101"
    assert b"\x88" in answer  # a close


def test_who_has_been_told_all_and_says_nothing_is_left(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "LINGER_SECONDS", 0.1)
    talk.client.begin(b"", b"")
    talk.codec.finish(Outcome(3))
    talk.client.hang_up()
    talk.until(lambda: talk.gone)
    assert b"NonZeroExitCode" in talk.peer.recv(4096)


def test_who_takes_nothing_of_what_is_left_for_him_is_left(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "STALL_SECONDS", 0.1)
    talk.client.begin(b"", b"")
    while not talk.client.full:
        talk.codec.send("stdout", bytes(1 << 16))
        talk.client.flush()
    talk.codec.finish(Outcome())
    talk.client.hang_up()
    talk.until(lambda: talk.gone)


def test_what_the_client_still_sends_at_the_end_takes_nothing_from_him(talk: Talk) -> None:
    talk.client.begin(b"", b"")
    talk.codec.finish(Outcome(3))
    talk.peer.send(b"\x82\x82\0\0\0\0\0x" * 1000)  # stdin
    talk.client.hang_up()
    talk.until(lambda: b"NonZeroExitCode" in talk.peer.recv(1 << 16, socket.MSG_PEEK))
    talk.peer.shutdown(socket.SHUT_WR)
    talk.until(lambda: talk.gone)
    assert talk.peer.recv(1 << 16)[-2:]


# -- what the daemon asks for


def test_a_wish_that_is_none_is_refused() -> None:
    with pytest.raises(KeyError):
        Wish.from_args({"session": "exec"})
    asked = {"session": "exec", "request": {"method": "GET", "target": "/", "headers": [["a", "b"]]}}
    wish = Wish.from_args(asked | {"wanted": {"stdin": True, "stdout": True, "stderr": True, "tty": True}})
    assert wish.outputs == ["stdout"]
    assert wish.request.headers == [("a", "b")]
    assert Wish.from_args(asked).outputs == []
