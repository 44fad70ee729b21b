"""WebSockets: exec, attach and port-forward by channels, the tunnel, and what of RFC 6455 is done for all of them."""

import base64
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import CLIENT, Connection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from holdfast.streaming import spdy
from holdfast.streaming.session import (
    STDERR,
    STDOUT,
    CommandEvent,
    Ended,
    ForwardEvent,
    Gone,
    Input,
    InputEnded,
    Opened,
    Outcome,
    ProtocolError,
    Ready,
    Received,
    Resize,
    Wanted,
)
from holdfast.streaming.websocket_command import WebSocketCommand
from holdfast.streaming.websocket_forward import Tunnel, WebSocketForward

ALL = Wanted(stdin=True, stdout=True, stderr=True, tty=False)
TERMINAL = Wanted(stdin=True, stdout=True, stderr=True, tty=True)
NOTHING_BUT_STDIN = Wanted(stdin=True, stdout=False, stderr=False, tty=False)


class Client:
    def __init__(self, codec: Any) -> None:
        self.codec = codec
        self.first = list(codec.begin())
        self._socket = Connection(CLIENT)

    def sends(self, *events: Event) -> list[CommandEvent | ForwardEvent]:
        return list(self.codec.receive(b"".join(map(self._socket.send, events))))

    def hears(self) -> list[Event]:
        self._socket.receive_data(self.codec.outgoing())
        return list(self._socket.events())

    def hears_messages(self) -> list[bytes]:
        return [event.data for event in self.hears() if isinstance(event, BytesMessage)]


def command(version: int = 5, base64: bool = False, wanted: Wanted = ALL) -> Client:
    return Client(WebSocketCommand(version, base64, wanted))


def text(*messages: str) -> list[Event]:
    return [TextMessage(message) for message in messages]


def binary(*messages: bytes) -> list[Event]:
    return [BytesMessage(message) for message in messages]


def test_a_whole_session() -> None:
    client = command()
    assert client.first == [Ready()]
    assert client.hears() == []
    assert client.sends(*binary(b"\0ab", b"\0", b"\0c", b"\xff\0", b"\0late")) == [
        Input(b"ab"),
        Input(b"c"),
        InputEnded(),
    ]
    client.codec.consumed(3)
    client.codec.send(STDOUT, b"out")
    client.codec.send(STDERR, b"err")
    client.codec.finish(Outcome(3))
    *messages, status, end = client.hears()
    assert messages == binary(b"\1out", b"\2err")
    assert isinstance(status, BytesMessage)
    assert status.data[0] == 3
    assert json.loads(status.data[1:])["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    assert isinstance(end, CloseConnection)
    assert end.code == 1000
    assert not client.codec.finished
    assert client.sends(end.response()) == [Gone()]
    assert client.codec.finished
    assert list(client.codec.receive(b"")) == []


@pytest.mark.parametrize("version", [1, 4])
def test_older_clients_are_told_that_it_begins(version: int) -> None:
    """On the lowest channel that they read; and their stdin has no end."""
    assert command(version).hears() == binary(b"\1")
    assert command(version, wanted=Wanted(True, False, True, False)).hears() == binary(b"\2")
    assert command(version, wanted=NOTHING_BUT_STDIN).hears() == binary(b"\3")
    assert command(version, base64=True).hears() == text("1")
    assert command(version).sends(*binary(b"\xff\0", b"\0x")) == [Input(b"x")]


def test_how_it_ended() -> None:
    for version in (4, 5):
        client = command(version)
        client.codec.finish(Outcome())
        assert client.hears_messages()[-1] == b'\3{"metadata":{},"status":"Success"}'
    client = command(1)
    client.codec.finish(Outcome())
    assert client.hears_messages() == [b"\1"]
    client = command(1)
    client.codec.finish(Outcome(error="no such command"))
    assert client.hears_messages()[-1] == b"\3no such command"


def test_base64() -> None:
    client = command(4, base64=True)
    client.hears()
    assert client.sends(*text("0aGVsbG8=", "0", "0aGVsbG8h")) == [Input(b"hello"), Input(b"hello!")]
    client.codec.send(STDOUT, b"\xff\0")
    assert client.hears() == text("1/wA=")
    with pytest.raises(ProtocolError, match="base64"):
        client.sends(*text("0aGVsbG8"))
    (end,) = client.hears()
    assert isinstance(end, CloseConnection)
    assert end.code == 1002


@pytest.mark.parametrize("message", ["0a", "0!!!!", "0aGVsbG8==", "0====", "0aGV\nsbG8="])
def test_what_is_not_base64_is_refused(message: str) -> None:
    with pytest.raises(ProtocolError, match="base64"):
        command(4, base64=True).sends(*text(message))


@pytest.mark.parametrize("encoded", [False, True])
@given(body=st.binary(min_size=1, max_size=300), cuts=st.lists(st.integers(0, 50), max_size=20))
def test_messages_may_come_in_fragments(encoded: bool, body: bytes, cuts: list[int]) -> None:
    """Also in empty ones, with a ping between them, and the channel's number in one of its own."""
    client = command(4, base64=encoded)
    message = b"0" + base64.b64encode(body) if encoded else b"\0" + body
    events: list[Event] = []
    for cut in cuts:
        events += [BytesMessage(message[:cut], message_finished=False), Ping(b"still there?")]
        message = message[cut:]
    heard = client.sends(*events, BytesMessage(message))
    assert b"".join(event.data for event in heard if isinstance(event, Input)) == body
    assert [event for event in client.hears() if isinstance(event, Pong)] == len(cuts) * [Pong(b"still there?")]


def test_text_carries_bytes_as_well() -> None:
    """The Python client sends text as text."""
    assert command().sends(*text("\0möre")) == [Input("möre".encode())]


def test_what_is_on_other_channels_is_passed_over() -> None:
    client = command()
    others = [b"", b"\1x", b"\2x", b"\3x", b"\4{", b"\5x", b"\xfex", b"\xff\3", b"\xff", b"\xff\1\0"]
    assert client.sends(*binary(*others, b"\0x")) == [Input(b"x")]
    assert command(wanted=Wanted(False, True, False, False)).sends(*binary(b"\0x", b"\xff\0")) == []


def test_sizes_of_the_terminal() -> None:
    client = command(wanted=TERMINAL)
    assert client.sends(*binary(b'\4{"Width":80,"Height":24}', b'\4{"Width":', b'\4 9,"Height":8}\n')) == [
        Resize(80, 24),
        Resize(9, 8),
    ]
    client.codec.send(STDERR, b"there is none with a terminal")
    assert client.hears() == []
    with pytest.raises(ProtocolError, match="size of the terminal"):
        client.sends(*binary(b"\4nonsense}"))


def test_the_client_closes_first() -> None:
    client = command()
    assert client.sends(CloseConnection(1001, "bye")) == [Gone()]
    (end,) = client.hears()
    assert isinstance(end, CloseConnection)
    client.codec.send(STDOUT, b"late")
    client.codec.finish(Outcome())
    assert client.codec.outgoing() == b""
    assert client.codec.finished
    client = command()
    assert list(client.codec.receive(b"")) == [Gone()]


@pytest.mark.parametrize(
    "frame",
    [
        "83 80 00000000",  # no such opcode
        "82 00",  # not masked
        "c2 80 00000000",  # a reserved bit
        "02 80 00000000 82 80 00000000",  # a message in a message
        "80 80 00000000",  # the rest of none
        "89 fe 0080",  # a long ping
        "09 80 00000000",  # a ping in fragments
        "82 fe 0001 00000000",  # a length that is too long written
        "82 ff 8000000000000000 00000000",  # a length of more than 63 bits
        "81 82 00000000 c328",  # no UTF-8
        "88 81 00000000 03",  # half a code
        "88 82 00000000 03ed",  # a code that is never sent
    ],
)
def test_what_is_not_a_websocket_is_refused(frame: str) -> None:
    client = command()
    with pytest.raises(ProtocolError, match="not a WebSocket's frame"):
        list(client.codec.receive(bytes.fromhex(frame)))
    (end,) = client.hears()
    assert isinstance(end, CloseConnection)
    assert end.code == 1002


def test_a_message_of_any_length_takes_no_room() -> None:
    """A frame that says it has 2^62 bytes, in pieces of what has arrived."""
    client = command()
    head = bytes.fromhex("82 ff 4000000000000000 00000000")
    piece = bytes(50_000)
    assert list(client.codec.receive(head + b"\0x")) == [Input(b"x")]
    tracemalloc.start()
    try:
        for _ in range(200):
            assert list(client.codec.receive(piece)) == [Input(piece)]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoded", [False, True])
@given(pieces=st.lists(st.binary(min_size=1, max_size=150_000), max_size=4))
def test_output_arrives_whole(encoded: bool, pieces: list[bytes]) -> None:
    client = command(4, base64=encoded)
    client.hears()
    for piece in pieces:
        client.codec.send(STDOUT, piece)
    out = b""
    for event in whole(client.hears()):
        assert event[:1] == (b"1" if encoded else b"\1")
        out += base64.b64decode(event[1:]) if encoded else event[1:]
    assert out == b"".join(pieces)


def whole(events: list[Event]) -> Iterator[bytes]:
    """Messages in one piece."""
    message = b""
    for event in events:
        assert isinstance(event, BytesMessage | TextMessage)
        message += event.data.encode() if isinstance(event, TextMessage) else event.data
        if event.message_finished:
            yield message
            message = b""


# -- port-forward by channels


def test_ports_are_named_first_and_opened_at_once() -> None:
    client = Client(WebSocketForward(False, [80, 8080]))
    assert client.first == [Opened(1, 80), Opened(2, 8080)]
    assert client.hears() == binary(b"\0\x50\0", b"\1\x50\0", b"\2\x90\x1f", b"\3\x90\x1f")
    assert client.sends(*binary(b"\0a", b"\2b", b"\1x", b"\4x", b"\xffx")) == [Received(1, b"a"), Received(2, b"b")]
    client.codec.consumed(1, 1)
    client.codec.send(2, b"answer")
    assert client.hears() == binary(b"\2answer")
    client.codec.fail(1, "refused")
    assert client.hears() == binary(b"\1refused")
    client.codec.send(1, b"late")
    client.codec.fail(1, "late")
    client.codec.send(2, b"still there")
    assert client.hears() == binary(b"\2still there")
    assert client.sends(*binary(b"\0late")) == []
    client.codec.end(2)
    (end,) = client.hears()
    assert isinstance(end, CloseConnection), "when the last is over"
    assert not client.codec.finished
    assert client.sends(end.response()) == [Gone()]
    assert client.codec.finished


def test_ports_in_base64() -> None:
    client = Client(WebSocketForward(True, [80]))
    assert client.hears() == text("0UAA=", "1UAA=")
    assert client.sends(*text("0aGVsbG8=")) == [Received(1, b"hello")]


# -- the tunnel


def test_a_tunnel_carries_spdy_however_it_is_cut() -> None:
    client = Client(Tunnel())
    encoder, decoder = spdy.Encoder(), spdy.Decoder()
    headers = {"port": "80", "requestid": "0"}
    sent = b"".join(
        map(
            encoder.encode,
            (
                spdy.SynStream(1, {"streamtype": "error", **headers}),
                spdy.SynStream(3, {"streamtype": "data", **headers}),
                spdy.Data(3, b"question", True),
            ),
        )
    )
    events = [event for at in range(0, len(sent), 5) for event in client.sends(BytesMessage(sent[at : at + 5]))]
    assert b"".join(event.data for event in events if isinstance(event, Received)) == b"question"
    assert [event for event in events if not isinstance(event, Received)] == [Opened(1, 80), Ended(1)]
    client.codec.send(1, b"answer")
    client.codec.end(1)
    frames = list(decoder.receive(b"".join(client.hears_messages())))
    assert frames[-3:] == [spdy.Data(3, b"answer"), spdy.Data(3, b"", True), spdy.Data(1, b"", True)]
    client.codec.finish()
    *_, goaway, end = client.hears()
    assert isinstance(goaway, BytesMessage)
    assert list(decoder.receive(goaway.data)) == [spdy.GoAway(3)]
    assert isinstance(end, CloseConnection)
    assert client.sends(end.response()) == [Gone()]
    assert client.codec.finished


@pytest.mark.parametrize(
    ("event", "said"), [(TextMessage("x"), "a text"), (BytesMessage(b"\x80\2" + bytes(6)), "version 2")]
)
def test_what_is_not_spdy_in_a_tunnel(event: Event, said: str) -> None:
    client = Client(Tunnel())
    with pytest.raises(ProtocolError, match=said):
        client.sends(event)
    assert isinstance(client.hears()[-1], CloseConnection)
