"""The client's end of streams, against a server made of wsproto and of the frames of SPDY."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection, events

from holdfast.streaming import client, spdy
from holdfast.streaming.client import Command, Failed, Forward, Output, Refused, Room, outcome_of
from holdfast.streaming.session import Ended, Outcome, ProtocolError, Received

HOST, TARGET = "127.0.0.1:4321", "/exec/abc"


class Server:
    """The other end: `heard` has whole messages, and pings that came back."""

    def __init__(self, codec: Any, protocol: str | None = "") -> None:
        self.codec = codec
        self._websocket = WSConnection(ConnectionType.SERVER)
        self._websocket.receive_data(codec.outgoing())
        (self.request,) = self._websocket.events()
        assert isinstance(self.request, events.Request)
        protocol = self.request.subprotocols[0] if protocol == "" else protocol
        self.answer = self._websocket.send(events.AcceptConnection(subprotocol=protocol))
        self.heard: list[bytes] = []

    def take(self) -> list[bytes]:
        self._websocket.receive_data(self.codec.outgoing())
        for event in self._websocket.events():
            if isinstance(event, events.BytesMessage):
                self.heard.append(bytes(event.data))
            elif isinstance(event, events.Pong):
                self.heard.append(b"pong " + bytes(event.payload))
        found, self.heard = self.heard, []
        return found

    def say(self, *said: bytes | events.Event) -> list[Any]:
        """What the client makes of it. Bytes are a message."""
        whole = [events.BytesMessage(one) if isinstance(one, bytes) else one for one in said]
        return list(self.codec.receive(b"".join(self._websocket.send(one) for one in whole)))


def command() -> tuple[Command, Server]:
    codec = Command(HOST, TARGET)
    server = Server(codec)
    assert list(codec.receive(server.answer)) == []
    return codec, server


def test_the_request_is_an_upgrade_to_the_newest_protocol() -> None:
    _, server = command()
    assert (server.request.host, server.request.target) == (HOST, TARGET)
    assert server.request.subprotocols == ["v5.channel.k8s.io", "v4.channel.k8s.io"]


def test_an_older_server_is_not_told_of_an_end_of_stdin() -> None:
    codec = Command(HOST, TARGET)
    server = Server(codec, "v4.channel.k8s.io")
    assert list(codec.receive(server.answer)) == []
    codec.send(b"in")
    assert server.take() == [b"\0in"]
    with pytest.raises(ProtocolError, match="the end of stdin cannot be told"):
        codec.end_input()


def test_it_is_open_once_the_server_has_agreed() -> None:
    codec = Command(HOST, TARGET)
    server = Server(codec)
    assert (codec.open, codec.outgoing()) == (False, b"")
    assert list(codec.receive(server.answer)) == []
    assert codec.open
    codec.resize(80, 24)
    assert server.take() == [b'\x04{"Width": 80, "Height": 24}']


def test_input_goes_in_pieces_and_has_an_end() -> None:
    codec, server = command()
    data = bytes(range(256)) * 400
    codec.send(data)
    codec.end_input()
    *pieces, end = server.take()
    assert b"".join(one[1:] for one in pieces) == data
    assert max(map(len, pieces)) == client.LARGEST_PIECE + 1
    assert end == b"\xff\x00"


def test_output_comes_by_stream_and_the_status_ends_it() -> None:
    codec, server = command()
    assert server.say(b"\x01one", b"\x02two", b"\x01", b"\x01three", b"\xff\x01") == [
        Output("stdout", b"one"), Output("stderr", b"two"), Output("stdout", b"three"),
    ]  # fmt: skip
    assert not codec.over
    status = {"status": "Failure", "reason": "NonZeroExitCode"}
    status["details"] = {"causes": [{"reason": "ExitCode", "message": "42"}]}  # type: ignore[assignment]
    assert server.say(b"\x03" + json.dumps(status).encode()) == [Outcome(42)]
    server.say(events.CloseConnection(1000))
    assert codec.over
    assert codec.outgoing(), "a close is answered"


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.integers(1, 40))
def test_messages_may_come_in_frames_and_in_any_pieces(said: list[bytes], length: int) -> None:
    codec, server = command()
    wire = b""
    for one in said:  # a message is two frames
        for part, last in ((b"\x01" + one[:2], False), (one[2:], True)):
            wire += server._websocket.send(events.BytesMessage(part, message_finished=last))
    pieces = [wire[at : at + length] for at in range(0, len(wire), length)]
    found = [event for piece in pieces for event in codec.receive(piece)]
    assert b"".join(one.data for one in found) == b"".join(said)
    assert {one.stream for one in found} <= {"stdout"}


def test_pings_are_answered() -> None:
    _, server = command()
    server.say(events.Ping(b"are you there"))
    assert server.take() == [b"pong are you there"]


def test_an_end_without_a_status_is_no_outcome() -> None:
    codec, server = command()
    server.say(b"\x01abc")
    assert list(codec.receive(b"")) == []
    assert codec.over
    codec.send(b"too late")
    codec.close()


@pytest.mark.parametrize("body", [b"cannot exec: no\nsuch container", b""])
def test_a_refusal_is_told_in_the_servers_words(body: bytes) -> None:
    codec = Command(HOST, TARGET)
    head = f"HTTP/1.1 404 Not Found\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with pytest.raises(Refused) as refused:
        list(codec.receive(head + body))
    assert refused.value.status == 404
    assert str(refused.value) == ("cannot exec: no such container" if body else "HTTP status 404")


def test_a_refusal_that_ends_with_the_connection() -> None:
    codec = Command(HOST, TARGET)
    assert list(codec.receive(b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\n\r\nno")) == []
    with pytest.raises(Refused, match="no"):
        list(codec.receive(b""))


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"])
def test_what_is_no_upgrade_is_an_error(answer: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Command(HOST, TARGET).receive(answer))


def test_what_is_no_frame_is_an_error() -> None:
    codec, _ = command()
    with pytest.raises(ProtocolError, match="frame"):
        list(codec.receive(b"\xff\xff\xff\xff"))


def test_another_protocol_is_an_error() -> None:
    codec = Command(HOST, TARGET)
    server = Server(codec, None)
    with pytest.raises(ProtocolError, match=r"v5\.channel\.k8s\.io"):
        list(codec.receive(server.answer))


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ({"status": "Success", "metadata": {}}, Outcome()),
        ({"status": "Failure", "message": "no such file"}, Outcome(error="no such file")),
        ({"status": "Failure"}, Outcome(error="no reason was told")),
    ],
)
def test_statuses(status: dict[str, Any], outcome: Outcome) -> None:
    assert outcome_of(json.dumps(status).encode()) == outcome


@pytest.mark.parametrize(
    "status",
    [b"", b"{", b"[]", b'{"reason":"NonZeroExitCode"}', b'{"reason":"NonZeroExitCode","details":{"causes":[]}}'],
)
def test_statuses_that_cannot_be_read(status: bytes) -> None:
    with pytest.raises(ProtocolError):
        outcome_of(status)


def test_a_status_without_an_end_is_an_error() -> None:
    _, server = command()
    with pytest.raises(ProtocolError, match="more than"):
        server.say(b"\x03" + b" " * (client.LARGEST_ERROR + 1))


# -- port-forward


class Port(Server):
    """With frames in its messages."""

    def __init__(self, codec: Forward) -> None:
        super().__init__(codec)
        assert list(codec.receive(self.answer)) == []
        self._decoder, self._encoder = spdy.Decoder(), spdy.Encoder()

    def frames(self) -> list[spdy.Frame]:
        return list(self._decoder.receive(b"".join(self.take())))

    def send(self, *frames: spdy.Frame) -> list[Any]:
        return self.say(*(self._encoder.encode(one) for one in frames))


@pytest.fixture
def forward() -> Forward:
    return Forward(HOST, "/portforward/abc")


@pytest.fixture
def port(forward: Forward) -> Port:
    return Port(forward)


def test_each_connection_has_two_streams(forward: Forward, port: Port) -> None:
    assert port.request.subprotocols == ["SPDY/3.1+portforward.k8s.io"]
    first, second = forward.connect(80), forward.connect(443)
    assert first != second
    frames = port.frames()
    begun = [one for one in frames if isinstance(one, spdy.SynStream)]
    assert [(one.stream, one.headers) for one in begun] == [
        (1, {"streamtype": "error", "port": "80", "requestid": "1"}),
        (first, {"streamtype": "data", "port": "80", "requestid": "1"}),
        (5, {"streamtype": "error", "port": "443", "requestid": "5"}),
        (second, {"streamtype": "data", "port": "443", "requestid": "5"}),
    ]
    assert [one.stream for one in frames if isinstance(one, spdy.Data) and one.fin] == [1, 5]


def test_both_directions_end_by_themselves(forward: Forward, port: Port) -> None:
    number = forward.connect(80)
    port.frames()
    forward.send(number, b"question")
    forward.end(number)
    forward.end(number)
    assert port.frames() == [spdy.Data(number, b"question"), spdy.Data(number, b"", fin=True)]
    assert port.send(spdy.Data(number, b"answer")) == [Received(number, b"answer")]
    assert port.send(spdy.Data(number, b"!", fin=True)) == [Received(number, b"!"), Ended(number)]
    forward.drop(number)
    assert port.frames() == [spdy.Reset(number, spdy.CANCEL)]
    assert port.send(spdy.Data(number, b"late")) == []


def test_an_error_ends_its_connection_only(forward: Forward, port: Port) -> None:
    first, second = forward.connect(80), forward.connect(81)
    refused = spdy.Data(first - 2, b"connection refused"), spdy.Data(first - 2, b"", fin=True)
    assert port.send(*refused) == [Failed(first, "connection refused")]
    assert port.send(spdy.Data(second - 2, b"", fin=True)) == [], "no error is none"
    assert port.send(spdy.Data(second, b"x")) == [Received(second, b"x")]
    assert port.send(spdy.Reset(second, spdy.CANCEL)) == [Failed(second, "it was reset")]


def test_windows_in_both_directions(forward: Forward, port: Port) -> None:
    number = forward.connect(80)
    port.frames()
    assert forward.room(number) == spdy.WINDOW
    forward.send(number, bytes(spdy.WINDOW))
    assert forward.room(number) == 0
    assert port.send(spdy.WindowUpdate(number, 1000)) == [Room(number)]
    assert forward.room(number) == 1000
    port.frames()
    forward.consumed(number, 1000)
    assert port.frames() == []
    forward.consumed(number, spdy.WINDOW)
    assert port.frames() == [spdy.WindowUpdate(number, spdy.WINDOW + 1000)]


def test_pings_of_the_server_and_its_goodbye(forward: Forward, port: Port) -> None:
    assert port.send(spdy.Ping(2), spdy.Ping(1), spdy.Settings({4: 100})) == []
    assert port.frames() == [spdy.Ping(2)]
    assert port.send(spdy.GoAway(0)) == []
    assert forward.over
