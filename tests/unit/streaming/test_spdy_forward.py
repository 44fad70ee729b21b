"""Port-forward over SPDY: pairs of streams, many in one session, in every order in which they may come and go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.streaming.session import Dropped, Ended, ForwardEvent, Gone, Opened, ProtocolError, Received
from holdfast.streaming.spdy import (
    INTERNAL_ERROR,
    REFUSED_STREAM,
    WINDOW,
    Data,
    Decoder,
    Encoder,
    Frame,
    GoAway,
    Reset,
    SynReply,
    SynStream,
    WindowUpdate,
)
from holdfast.streaming.spdy_forward import MOST_PAIRS, SpdyForward


class Client:
    def __init__(self) -> None:
        self.codec = SpdyForward()
        assert list(self.codec.begin()) == []
        self._encoder, self._decoder = Encoder(), Decoder()

    def sends(self, *frames: Frame) -> list[ForwardEvent]:
        return list(self.codec.receive(b"".join(map(self._encoder.encode, frames))))

    def hears(self) -> list[Frame]:
        return list(self._decoder.receive(self.codec.outgoing()))

    def connects(self, request: int, port: int = 80) -> list[ForwardEvent]:
        """By streams 4 n + 1 for the error and 4 n + 3 for the data."""
        events = self.sends(error(4 * request + 1, port, request), data(4 * request + 3, port, request))
        self.hears()
        return events


def error(stream: int, port: object = 80, request: object = 0) -> SynStream:
    return SynStream(stream, {"streamtype": "error", "port": str(port), "requestid": str(request)})


def data(stream: int, port: object = 80, request: object = 0) -> SynStream:
    return SynStream(stream, {"streamtype": "data", "port": str(port), "requestid": str(request)})


def test_a_connection_from_beginning_to_end() -> None:
    client = Client()
    assert client.sends(error(1), Data(1, b"", True), data(3)) == [Opened(1, 80)]
    assert client.hears() == [SynReply(1), SynReply(3)]
    assert client.sends(Data(3, b"question")) == [Received(1, b"question")]
    client.codec.consumed(1, 8)
    client.codec.send(1, b"answer")
    assert client.hears() == [WindowUpdate(3, 8), WindowUpdate(0, 8), Data(3, b"answer")]
    assert client.sends(Data(3, b"", True)) == [Ended(1)]
    client.codec.send(1, b"more")
    client.codec.end(1)
    client.codec.end(1)
    client.codec.send(1, b"late")
    client.codec.fail(1, "late")
    client.codec.consumed(1, 1)
    assert client.hears() == [Data(3, b"more"), Data(3, b"", True), Data(1, b"", True)]
    assert client.sends(Data(3, b"late"), Reset(3, 5)) == []
    assert client.connects(1) == [Opened(2, 80)], "a number is not used again"


def test_the_port_ends_first() -> None:
    """What the client still sends is taken; his last word may be a reset."""
    client = Client()
    client.connects(0)
    client.codec.end(1)
    assert client.hears() == [Data(3, b"", True), Data(1, b"", True)]
    assert client.sends(Data(3, b"x")) == [Received(1, b"x")]
    assert client.sends(Reset(3, 5)) == [Dropped(1)]
    assert client.hears() == []


def test_a_reset_ends_both_directions_and_the_error() -> None:
    """kubectl awaits the end of the error's stream after it."""
    client = Client()
    client.connects(0)
    assert client.sends(Reset(3, 5)) == [Dropped(1)]
    assert client.hears() == [Data(1, b"", True)]


@pytest.mark.parametrize("ended", [False, True])
def test_a_failure_is_told_in_words(ended: bool) -> None:
    client = Client()
    client.connects(0)
    client.connects(1)
    if ended:
        client.sends(Data(3, b"", True))
    client.codec.fail(1, "connection to port 80 refused")
    assert client.hears() == [Data(1, b"connection to port 80 refused", True), Reset(3, INTERNAL_ERROR)]
    assert client.sends(Data(3, b"x"), Data(7, b"y")) == [Received(2, b"y")], "the other goes on"


def test_who_hears_of_a_connection_may_fail_it_at_once() -> None:
    client = Client()
    client.sends(data(1), Data(1, b"early", True))
    encoded = Encoder()
    encoded.encode(data(1))
    heard = []
    for event in client.codec.receive(encoded.encode(error(3))):
        heard.append(event)
        if isinstance(event, Opened):
            client.codec.fail(event.connection, "no")
    assert heard == [Opened(1, 80)]


def test_streams_are_paired_by_request_in_any_order() -> None:
    client = Client()
    assert client.sends(data(1, 80, "b"), error(3, 81, "a"), Data(1, b"early"), Data(1, b"", True)) == []
    assert client.sends(data(5, 81, "a")) == [Opened(1, 81)]
    assert client.sends(error(7, 80, "b")) == [Opened(2, 80), Received(2, b"early"), Ended(2)]
    client.codec.send(1, b"x")
    client.codec.send(2, b"y")
    assert client.hears()[-2:] == [Data(5, b"x"), Data(1, b"y")]


def test_streams_of_old_clients_are_paired_by_number() -> None:
    client = Client()
    plain = [
        SynStream(number, {"streamtype": kind, "port": "80"})
        for number, kind in ((1, "error"), (3, "data"), (5, "error"), (7, "data"))
    ]
    assert client.sends(*plain) == [Opened(1, 80), Opened(2, 80)]
    client.codec.send(2, b"x")
    assert client.hears()[-1] == Data(7, b"x")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"streamtype": "data"},
        {"streamtype": "stdin", "port": "80"},
        *({"streamtype": "data", "port": port} for port in ("", "0", "65536", "-1", "+1", "x", "1 ", "²", "9" * 5000)),
        {"streamtype": "data", "port": "80", "requestid": "x" * 101},
    ],
)
def test_streams_that_make_no_sense_are_refused(headers: dict[str, str]) -> None:
    client = Client()
    assert client.sends(SynStream(1, headers)) == []
    assert client.hears() == [Reset(1, REFUSED_STREAM)]
    assert client.connects(1) == [Opened(1, 80)], "the session goes on"


def test_a_second_stream_of_a_kind_and_another_port_are_refused() -> None:
    client = Client()
    assert client.sends(error(1), error(3), data(5, 81), data(7), data(9)) == [Opened(1, 80)]
    assert client.hears() == [SynReply(1), Reset(3, REFUSED_STREAM), Reset(5, REFUSED_STREAM), SynReply(7), Reset(9, 3)]


def test_streams_are_bounded() -> None:
    """Also those of which the other never comes; what is over makes room."""
    client = Client()
    events = client.sends(*(error(2 * at + 1, 80, at) for at in range(MOST_PAIRS + 5)))
    assert events == []
    assert client.hears()[-5:] == [Reset(2 * at + 1, REFUSED_STREAM) for at in range(MOST_PAIRS, MOST_PAIRS + 5)]
    assert client.sends(Reset(1, 5), error(3001, 80, "new"), data(3003, 80, "new")) == [Opened(1, 80)]


def test_a_stream_that_is_given_up_before_its_pair() -> None:
    client = Client()
    assert client.sends(data(1), Reset(1, 5), error(3), Reset(3, 5), error(5), data(7)) == [Opened(1, 80)]


def test_what_comes_too_early_is_bounded() -> None:
    client = Client()
    with pytest.raises(ProtocolError, match="port 80 before the stream for its error"):
        client.sends(data(1), *(Data(1, bytes(WINDOW // 2)) for _ in range(3)))
    assert client.hears()[-1] == GoAway(1, 1)


def test_the_error_stream_alone_may_be_given_up() -> None:
    client = Client()
    client.connects(0)
    assert client.sends(Reset(1, 5)) == []
    client.codec.send(1, b"x")
    client.codec.fail(1, "nobody hears it")
    assert client.hears() == [Data(3, b"x"), Reset(3, INTERNAL_ERROR)]


def test_the_end_of_the_session() -> None:
    client = Client()
    client.connects(0)
    client.codec.finish()
    assert client.hears() == [GoAway(3)]
    assert client.sends(error(5, 80, 5)) == []
    assert client.hears() == [Reset(5, REFUSED_STREAM)]
    assert not client.codec.finished
    assert client.sends(Data(3, b"x")) == [Received(1, b"x")]
    assert list(client.codec.receive(b"")) == [Gone()]
    assert list(client.codec.receive(b"")) == []
    assert client.codec.finished


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=50)), min_size=1, max_size=40))
def test_connections_do_not_mix(sent: list[tuple[int, bytes]]) -> None:
    client = Client()
    for at in range(4):
        client.connects(at)
    events = client.sends(*(Data(4 * at + 3, piece) for at, piece in sent))
    assert events == [Received(at + 1, piece) for at, piece in sent]
    for at, piece in sent:
        client.codec.send(at + 1, piece)
    assert client.hears() == [Data(4 * at + 3, piece) for at, piece in sent]
