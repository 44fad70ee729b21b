"""What real clients have sent, byte for byte, is understood however it is cut. kit.standin says how it was taken."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kit.standin import captured

from holdfast.streaming import upgrade
from holdfast.streaming.session import (
    EXEC,
    FORWARD,
    CommandEvent,
    Ended,
    ForwardEvent,
    Gone,
    Input,
    InputEnded,
    Opened,
    Outcome,
    Ready,
    Received,
    Wanted,
)
from holdfast.streaming.spdy import CANCEL, Data, Decoder, GoAway, Reset, SynStream

CAPTURES = sorted((Path(__file__).parent / "captures").glob("*.txt"))
EXECS = [path for path in CAPTURES if "-exec" in path.stem]
FORWARDS = [path for path in CAPTURES if "-forward" in path.stem]
WANTED = Wanted(stdin=True, stdout=True, stderr=True, tty=False)
CUTS = [1, 2, 3, 7, 29, 1 << 20]


def codec(path: Path) -> tuple[Any, bytes]:
    request, sent = captured(path)
    made, answer = upgrade.accept(
        request, FORWARD if path in FORWARDS else EXEC, None if path in FORWARDS else WANTED, [80, 81]
    )
    assert answer.startswith(b"HTTP/1.1 101 ")
    return made, sent


def heard(path: Path, cut: int) -> Sequence[CommandEvent | ForwardEvent]:
    """Every event of a capture that comes in pieces, with an end after it; what is for one reader in one piece."""
    made, sent = codec(path)
    events = list(made.begin())
    for at in range(0, len(sent), cut):
        events += made.receive(sent[at : at + cut])
    events += made.receive(b"")
    joined: list[CommandEvent | ForwardEvent] = []
    for event in events:
        match joined[-1:], event:
            case [Input(before)], Input(data):
                joined[-1] = Input(before + data)
            case [Received(one, before)], Received(other, data) if one == other:
                joined[-1] = Received(one, before + data)
            case _:
                joined.append(event)
    return joined


def test_all_kinds_of_clients_were_captured() -> None:
    assert {type(codec(path)[0]).__name__ for path in EXECS} == {"SpdyCommand", "WebSocketCommand"}
    assert {type(codec(path)[0]).__name__ for path in FORWARDS} == {"SpdyForward", "Tunnel", "WebSocketForward"}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("path", EXECS, ids=lambda path: path.stem)
def test_exec(path: Path, cut: int) -> None:
    """The older do not tell the end of what they send but by leaving."""
    events = heard(path, cut)
    assert events[:2] == [Ready(), Input(b"hello\n")]
    assert [event for event in events[2:] if event != InputEnded()] == [Gone()]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("path", FORWARDS, ids=lambda path: path.stem)
def test_forward(path: Path, cut: int) -> None:
    events = heard(path, cut)
    assert [event for event in events if isinstance(event, Opened)] == [Opened(1, 80), Opened(2, 81)]
    assert [event for event in events if isinstance(event, Received)] == [Received(1, b"hello"), Received(2, b"hello")]
    assert [event for event in events if isinstance(event, Ended)] == (
        [] if "python" in path.stem else [Ended(1), Ended(2)]
    )
    assert events[-1] == Gone()


def test_frames_of_kubectl() -> None:
    """Names in lower case, compressed with the dictionary and each other; what is not over is reset in the end."""
    _, sent = captured(next(path for path in EXECS if path.stem == "kubectl-1.20.2-exec"))
    frames = list(Decoder().receive(sent))
    assert frames[:6] == [
        SynStream(1, {"streamtype": "error"}),
        SynStream(3, {"streamtype": "stdin"}),
        SynStream(5, {"streamtype": "stdout"}),
        SynStream(7, {"streamtype": "stderr"}),
        Data(3, b"hello\n"),
        Data(3, b"", True),
    ]
    assert set(frames[6:]) == {*(Reset(stream, CANCEL) for stream in (1, 5, 7)), GoAway(0)}


def test_frames_of_a_forwarding_kubectl() -> None:
    _, sent = captured(next(path for path in FORWARDS if path.stem == "kubectl-1.20.2-forward"))
    assert list(Decoder().receive(sent))[:5] == [
        SynStream(1, {"streamtype": "error", "port": "80", "requestid": "0"}),
        Data(1, b"", True),
        SynStream(3, {"streamtype": "data", "port": "80", "requestid": "0"}),
        Data(3, b"hello"),
        Data(3, b"", True),
    ]


@pytest.mark.parametrize("path", EXECS, ids=lambda path: path.stem)
def test_a_client_that_has_left_ends_the_session(path: Path) -> None:
    made, sent = codec(path)
    list(made.begin())
    list(made.receive(sent))
    assert not made.finished
    made.finish(Outcome(3))
    list(made.receive(b""))
    assert made.finished
