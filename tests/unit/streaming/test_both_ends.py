"""Both ends of streams: what goes in at one comes out at the other, however it is cut on the way."""

from collections.abc import Iterator
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.streaming import client, upgrade
from holdfast.streaming.client import Command, Failed, Forward, Output
from holdfast.streaming.session import (
    ATTACH,
    EXEC,
    FORWARD,
    STDERR,
    STDOUT,
    Dropped,
    Ended,
    Input,
    InputEnded,
    Opened,
    Outcome,
    Ready,
    Received,
    Request,
    Resize,
    Wanted,
)  # fmt: skip

ALL = Wanted(stdin=True, stdout=True, stderr=True, tty=False)
TTY = Wanted(stdin=True, stdout=True, stderr=False, tty=True)
CUT = st.integers(1, 70_000)


def request_of(head: bytes) -> Request:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    headers = [(name.decode(), value.decode()) for name, value in event.headers]
    return Request(event.method.decode(), event.target.decode(), headers)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


class Pair:
    """Both ends; bytes go between them in pieces of a size."""

    def __init__(self, made: type[Command] | type[Forward], session: str, wanted: Wanted | None, size: int) -> None:
        self.client: Any = made("127.0.0.1:1", "/x/token")
        self.size = size
        self.server: Any
        self.server, self._answer = upgrade.accept(request_of(self.client.outgoing()), session, wanted)
        self.begun = list(self.server.begin())

    def up(self) -> list[Any]:
        """What the server makes of what the client has said."""
        return [event for piece in cut(self.client.outgoing(), self.size) for event in self.server.receive(piece)]

    def down(self) -> list[Any]:
        data, self._answer = self._answer + self.server.outgoing(), b""
        return [event for piece in cut(data, self.size) for event in self.client.receive(piece)]


def joined(events: list[Any], kind: type[Any], **fields: Any) -> bytes:
    found = (one for one in events if isinstance(one, kind) and all(getattr(one, k) == v for k, v in fields.items()))
    return b"".join(one.data for one in found)


@given(CUT, st.binary(max_size=200_000), st.binary(max_size=100_000), st.binary(max_size=999), st.integers(0, 255))
def test_a_command(size: int, typed: bytes, out: bytes, err: bytes, code: int) -> None:
    pair = Pair(Command, EXEC, ALL, size)
    assert pair.begun == [Ready()]
    assert pair.down() == []
    assert pair.client.open
    pair.client.send(typed)
    pair.client.end_input()
    heard = pair.up()
    assert (joined(heard, Input), heard[-1]) == (typed, InputEnded())
    pair.server.send(STDOUT, out)
    pair.server.send(STDERR, err)
    pair.server.finish(Outcome(code))
    seen = pair.down()
    assert (joined(seen, Output, stream=STDOUT), joined(seen, Output, stream=STDERR)) == (out, err)
    assert (seen[-1], pair.client.over) == (Outcome(code), True)
    pair.up()
    assert pair.server.finished


@pytest.mark.parametrize("session", [EXEC, ATTACH])
def test_a_terminal(session: str) -> None:
    pair = Pair(Command, session, TTY, 7)
    pair.down()
    pair.client.resize(80, 24)
    pair.client.resize(132, 43)
    assert pair.up() == [Resize(80, 24), Resize(132, 43)]


def test_an_error_in_words() -> None:
    pair = Pair(Command, EXEC, ALL, 1000)
    pair.server.finish(Outcome(error="there is no /bin/zsh"))
    assert pair.down() == [Outcome(error="there is no /bin/zsh")]


@given(CUT, st.lists(st.tuples(st.binary(max_size=150_000), st.binary(max_size=150_000)), min_size=1, max_size=4))
def test_forwarded_connections(size: int, said: list[tuple[bytes, bytes]]) -> None:
    pair = Pair(Forward, FORWARD, None, size)
    pair.down()
    numbers = [pair.client.connect(8000 + at) for at in range(len(said))]
    opened = pair.up()
    assert [one.port for one in opened] == [8000 + at for at in range(len(said))]
    assert all(isinstance(one, Opened) for one in opened)
    for number, one, (up, down) in zip(numbers, opened, said, strict=True):
        heard: list[Any] = []
        while up:  # no more than the server takes
            room = pair.client.room(number)
            assert room > 0
            pair.client.send(number, up[:room])
            up = up[room:]
            more = pair.up()
            heard += more
            pair.server.consumed(one.connection, len(joined(more, Received)))
            pair.down()
        pair.client.end(number)
        heard += pair.up()
        assert (joined(heard, Received, connection=one.connection), heard[-1]) == (
            said[numbers.index(number)][0], Ended(one.connection),
        )  # fmt: skip
        pair.server.send(one.connection, down)
        pair.server.end(one.connection)
        seen = pair.down()
        assert (joined(seen, Received, connection=number), seen[-1]) == (down, Ended(number))
        pair.client.drop(number)
        assert pair.up() == []


def test_connections_that_fail_and_that_are_given_up() -> None:
    pair = Pair(Forward, FORWARD, None, 100)
    pair.down()
    first, second = pair.client.connect(1), pair.client.connect(2)
    refused, open_ = pair.up()
    pair.server.fail(refused.connection, "connection refused")
    assert pair.down() == [Failed(first, "connection refused")]
    pair.client.drop(second)
    assert pair.up() == [Dropped(open_.connection)]
    pair.server.finish()
    assert pair.down() == []
    assert pair.client.over


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_whatever_a_server_says_a_client_understands_it_or_ends(said: list[bytes]) -> None:
    for made, session in ((Command, EXEC), (Forward, FORWARD)):
        pair = Pair(made, session, ALL, 1000)
        pair.down()
        try:
            for piece in said:
                list(pair.client.receive(piece))
            list(pair.client.receive(b""))
        except (client.ProtocolError, client.Refused):
            continue
        assert pair.client.over
