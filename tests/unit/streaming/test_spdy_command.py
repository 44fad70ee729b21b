"""Exec and attach over SPDY: what a client is told and tells, in each version of the protocol."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.streaming.session import (
    STDERR,
    STDOUT,
    CommandEvent,
    Gone,
    Input,
    InputEnded,
    Outcome,
    ProtocolError,
    Ready,
    Resize,
    Wanted,
)
from holdfast.streaming.spdy import (
    REFUSED_STREAM,
    WINDOW,
    Data,
    Decoder,
    Encoder,
    Frame,
    GoAway,
    Ping,
    Reset,
    Settings,
    SynReply,
    SynStream,
    WindowUpdate,
)
from holdfast.streaming.spdy_command import SpdyCommand

ALL = Wanted(stdin=True, stdout=True, stderr=True, tty=False)
TERMINAL = Wanted(stdin=True, stdout=True, stderr=True, tty=True)


class Client:
    """The other end: frames to the codec, and frames of it."""

    def __init__(self, wanted: Wanted = ALL, version: int = 4) -> None:
        self.codec = SpdyCommand(version, wanted)
        assert list(self.codec.begin()) == []
        self._encoder, self._decoder = Encoder(), Decoder()

    def sends(self, *frames: Frame) -> list[CommandEvent]:
        return list(self.codec.receive(b"".join(map(self._encoder.encode, frames))))

    def opens(self, *kinds: str) -> list[CommandEvent]:
        """Streams 1, 3, 5 and so on; what answers them is read."""
        events = self.sends(*(SynStream(2 * at + 1, {"streamtype": kind}) for at, kind in enumerate(kinds)))
        self.hears()
        return events

    def hears(self) -> list[Frame]:
        return list(self._decoder.receive(self.codec.outgoing()))

    def hears_of(self, stream: int) -> tuple[bytes, bool]:
        """All data of a stream, and whether it has ended."""
        frames = [frame for frame in self.hears() if isinstance(frame, Data) and frame.stream == stream]
        return b"".join(frame.data for frame in frames), any(frame.fin for frame in frames)


def test_a_whole_session() -> None:
    client = Client()
    assert client.sends(SynStream(1, {"streamtype": "error"}), SynStream(3, {"streamtype": "stdout"})) == []
    assert client.hears() == [SynReply(1), SynReply(3)]
    assert client.sends(SynStream(5, {"streamtype": "stderr"}), SynStream(7, {"streamtype": "stdin"})) == [Ready()]
    assert client.hears() == [SynReply(5), SynReply(7)]
    assert client.sends(Data(7, b"ab"), Data(7, b"c", True)) == [Input(b"ab"), Input(b"c"), InputEnded()]
    client.codec.consumed(3)
    assert client.hears() == [WindowUpdate(7, 3), WindowUpdate(0, 3)]
    client.codec.send(STDOUT, b"out")
    client.codec.send(STDERR, b"err")
    assert client.hears() == [Data(3, b"out"), Data(5, b"err")]
    client.codec.finish(Outcome())
    assert client.hears() == [
        Data(1, b'{"metadata":{},"status":"Success"}', True),
        Data(3, b"", True),
        Data(5, b"", True),
        Data(7, b"", True),
        GoAway(7),
    ]
    assert not client.codec.finished
    assert client.sends(Reset(1, 5), Reset(3, 5), Reset(5, 5)) == []
    assert client.codec.finished, "he has nothing open"
    client.codec.send(STDOUT, b"late")
    assert client.hears() == []


@pytest.mark.parametrize("version", [4, 3, 2, 1])
@pytest.mark.parametrize("outcome", [Outcome(), Outcome(137), Outcome(error="no such command: \udcff")])
def test_how_it_ended(version: int, outcome: Outcome) -> None:
    client = Client(version=version)
    client.opens("error", "stdin", "stdout", "stderr")
    client.codec.finish(outcome)
    told, ended = client.hears_of(1)
    assert ended
    if version < 4:
        expected = "" if outcome == Outcome() else "exit code 137" if outcome.code else "no such command: \\udcff"
        assert told.decode().endswith(expected)
        assert bool(told) == bool(expected)
        return
    status = json.loads(told)
    assert status["metadata"] == {}
    assert status["status"] == ("Success" if outcome == Outcome() else "Failure")
    if outcome.code:
        assert status["reason"] == "NonZeroExitCode"
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "137"}]
    if outcome.error:
        assert (status["reason"], status["code"]) == ("InternalError", 500)
        assert "no such command" in status["message"]


@pytest.mark.parametrize(
    ("wanted", "version", "opened"),
    [
        (ALL, 4, ["error", "stdin", "stdout", "stderr"]),
        (Wanted(False, True, False, False), 4, ["stdout", "error"]),
        (TERMINAL, 4, ["error", "stdin", "stdout", "resize"]),
        (TERMINAL, 3, ["resize", "error", "stdin", "stdout"]),
        (TERMINAL, 2, ["error", "stdin", "stdout"]),
        (TERMINAL, 1, ["error", "stdin", "stdout"]),
    ],
)
def test_ready_when_all_that_was_asked_for_is_open(wanted: Wanted, version: int, opened: list[str]) -> None:
    client = Client(wanted, version)
    assert client.opens(*opened[:-1]) == []
    assert client.sends(SynStream(99, {"streamtype": opened[-1]})) == [Ready()]


def test_what_comes_before_all_streams_are_open_waits() -> None:
    client = Client(TERMINAL)
    assert client.opens("stdin", "resize", "error") == []
    assert client.sends(Data(3, b'{"Width":80,'), Data(1, b"a"), Data(3, b'"Height":24}\n'), Data(1, b"b", True)) == []
    assert client.sends(SynStream(9, {"streamtype": "stdout"})) == [Ready(), Resize(80, 24), Input(b"ab"), InputEnded()]
    client = Client()
    client.opens("stdin")
    with pytest.raises(ProtocolError, match="before error, stderr, stdout came"):
        client.sends(*(Data(1, bytes(WINDOW // 2)) for _ in range(3)))
    assert client.hears()[-1] == GoAway(1, 1)


def test_stdin_may_have_ended_as_it_is_opened() -> None:
    client = Client(Wanted(True, False, False, False))
    client.opens("error")
    assert client.sends(SynStream(3, {"streamtype": "stdin"}, fin=True)) == [Ready(), InputEnded()]


@pytest.mark.parametrize("kind", ["stdout", "resize", "", "other"])
def test_streams_that_nobody_asked_for_are_refused(kind: str) -> None:
    """The session goes on."""
    client = Client(Wanted(True, False, False, False))
    assert client.opens("error", "stdin") == [Ready()]
    assert client.sends(SynStream(5, {"streamtype": kind})) == []
    assert client.hears() == [Reset(5, REFUSED_STREAM)]
    assert client.sends(SynStream(7, {"streamtype": "stdin"}), Data(7, b"x"), Data(3, b"y")) == [Input(b"y")]


@pytest.mark.parametrize("numbers", [(2,), (0,), (1, 1), (5, 3)])
def test_numbers_of_streams_are_odd_and_grow(numbers: tuple[int, ...]) -> None:
    client = Client()
    with pytest.raises(ProtocolError, match="can not be opened"):
        client.sends(*(SynStream(number, {"streamtype": "error"}) for number in numbers))


def test_pings_are_answered_and_what_does_not_concern_us_is_passed_over() -> None:
    client = Client()
    assert client.sends(Ping(1), Ping(2), Settings({4: 100}), WindowUpdate(1, 9), Data(55, b"x"), Reset(55, 1)) == []
    assert client.hears() == [Ping(1), WindowUpdate(55, 1), WindowUpdate(0, 1)]


def test_sizes_of_the_terminal() -> None:
    client = Client(TERMINAL)
    client.opens("error", "stdin", "stdout", "resize")
    whole = b'{"Width":80,"Height":24}\n{"height": 5, "width": 6}{"Width":0,"Height":0}{"Width":1e9,"Height":1}'
    events = [event for at in range(len(whole)) for event in client.sends(Data(7, whole[at : at + 1]))]
    assert events == [Resize(80, 24), Resize(6, 5)]
    client.codec.send(STDERR, b"there is none with a terminal")
    assert not any(isinstance(frame, Data) for frame in client.hears())


@pytest.mark.parametrize("size", [b"[1]}", b"}", b"{" * 300, b'{"Width":' + 250 * b"9" + b',"Height":1}', b"\xff}"])
def test_what_is_no_size(size: bytes) -> None:
    client = Client(TERMINAL)
    client.opens("error", "stdin", "stdout", "resize")
    with pytest.raises(ProtocolError, match="size of the terminal"):
        client.sends(Data(7, size))


def test_a_client_that_goes() -> None:
    client = Client()
    client.opens("error", "stdin", "stdout", "stderr")
    assert client.sends(Reset(5, 5)) == [], "one output less"
    client.codec.send(STDOUT, b"x")
    assert client.hears() == []
    assert client.sends(Reset(3, 5)) == [InputEnded()]
    assert client.sends(Reset(1, 5), GoAway(0)) == [Gone()]
    assert list(client.codec.receive(b"")) == []
    client.codec.finish(Outcome(1))
    assert client.codec.finished
    client = Client()
    assert list(client.codec.receive(b"")) == [Gone()], "before he has opened anything"


def test_goodbye_before_the_end_is_no_end() -> None:
    """GOAWAY opens no more streams; those that are open go on (draft 3.1, section 2.6.6)."""
    client = Client()
    client.opens("error", "stdin", "stdout", "stderr")
    assert client.sends(GoAway(0)) == []
    client.codec.send(STDOUT, b"x")
    assert client.hears() == [Data(5, b"x")]
    client.codec.finish(Outcome())
    assert client.codec.finished


@given(st.lists(st.binary(max_size=200_000), max_size=5))
def test_output_arrives_whole_in_frames_that_everybody_takes(pieces: list[bytes]) -> None:
    client = Client()
    client.opens("error", "stdin", "stdout", "stderr")
    for piece in pieces:
        client.codec.send(STDOUT, piece)
    client.codec.finish(Outcome())
    assert client.hears_of(5) == (b"".join(pieces), True)
