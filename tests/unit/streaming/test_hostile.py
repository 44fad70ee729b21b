"""100,000 hostile frames: no codec answers anything but ProtocolError, and none keeps more than it should.

Frames are well-formed ones in senseless order, such with bytes changed, cut off, doubled or put in, what real clients
have sent after the same treatment, noise, lengths that lie, and blocks that are small until they are decompressed.
"""

import itertools
import random
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kit.standin import captured

from holdfast.streaming import spdy
from holdfast.streaming.session import (
    STDERR,
    STDOUT,
    CommandEvent,
    Ended,
    ForwardEvent,
    Gone,
    Input,
    Opened,
    Outcome,
    ProtocolError,
    Ready,
    Received,
    Wanted,
)  # fmt: skip
from holdfast.streaming.spdy import Data, Encoder, GoAway, Headers, Reset, Settings, SynReply, SynStream
from holdfast.streaming.spdy import Ping as SpdyPing
from holdfast.streaming.spdy_command import SpdyCommand
from holdfast.streaming.spdy_forward import SpdyForward
from holdfast.streaming.websocket_command import WebSocketCommand
from holdfast.streaming.websocket_forward import Tunnel, WebSocketForward

FRAMES = 100_000
MOST_MEMORY = 3 * 1024 * 1024  # bytes at any time, with what is just received and answered
MOST_KEPT = 512 * 1024  # bytes after thousands of sessions, which is what Python's caches take
MOST_OF_A_SESSION = 60  # frames
TERMINAL = Wanted(stdin=True, stdout=True, stderr=False, tty=True)
KINDS = ["error", "stdin", "stdout", "stderr", "resize", "data", "", "x" * 300]

Make = Callable[[random.Random], Iterator[bytes]]


# -- what is sent


def spdy_frames(rng: random.Random) -> Iterator[bytes]:
    encoder = Encoder()
    while True:
        stream = rng.choice([1, 3, 5, 7, 9, rng.randrange(1 << 31)])
        headers = {"streamtype": rng.choice(KINDS), "port": rng.choice(["80", "0", "x"]), "requestid": str(stream // 4)}
        choice = rng.randrange(100)
        if choice < 30:
            yield encoder.encode(SynStream(stream, headers, fin=rng.random() < 0.1))
        elif choice < 70:
            body = rng.choice([b"", b"x", b'{"Width":1,"Height":2}', rng.randbytes(rng.randrange(3000))])
            yield encoder.encode(Data(stream, body, rng.random() < 0.1))
        elif choice < 95:
            yield encoder.encode(
                rng.choice(
                    [
                        SynReply(stream, headers),
                        Headers(stream, headers),
                        Reset(stream, rng.randrange(9)),
                        Settings({n: n for n in range(rng.randrange(9))}),
                        SpdyPing(rng.randrange(1 << 32)),
                        GoAway(stream),
                        spdy.WindowUpdate(stream, rng.randrange(1 << 31)),
                    ]
                )
            )
        elif choice < 98:
            yield lying_frame(rng)
        else:
            yield rng.choice(BOMBS)


def lying_frame(rng: random.Random) -> bytes:
    """Of a kind that there may be, of which the length, the flags or the body are made up."""
    body = rng.randbytes(rng.randrange(60))
    length = rng.choice([len(body), 0, 0xFFFFFF, rng.randrange(1 << 24), 4, 8])
    head = rng.choice([b"\x80\3", b"\x80\2", b"\0\0"]) + rng.randrange(11).to_bytes(2) + rng.randbytes(1)
    return head + length.to_bytes(3) + body


def _bomb(count: int, size: int) -> bytes:
    """Names and values that are much larger than what they are sent in, or say that they are."""
    deflate = zlib.compressobj(zdict=spdy.DICTIONARY)
    block = deflate.compress(count.to_bytes(4) + size.to_bytes(4) + bytes(size)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    body = bytes([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + block
    return b"\x80\3\0\1\0" + len(body).to_bytes(3) + body


BOMBS = [_bomb(count, size) for count in (1, 1000, 1 << 31) for size in (60_000, 100_000, 50_000_000)]


def websocket_frame(rng: random.Random, opcode: int, body: bytes, fin: bool = True) -> bytes:
    length = bytes([0x80 | len(body)]) if len(body) < 126 else b"\xfe" + len(body).to_bytes(2)
    mask = rng.randbytes(4)
    masked = int.from_bytes(body) ^ int.from_bytes((mask * (len(body) // 4 + 1))[: len(body)])
    return bytes([opcode | fin << 7]) + length + mask + masked.to_bytes(len(body))


def websocket_frames(rng: random.Random) -> Iterator[bytes]:
    open_message = False
    while True:
        body = bytes([rng.choice([0, 0, 1, 2, 3, 4, 5, 48, 49, 52, 255])])
        body += rng.choice([b"", b"\0", b'{"Width":1,"Height":2}', b"aGVsbG8=", rng.randbytes(rng.randrange(3000))])
        choice = rng.randrange(60)
        if choice < 45:
            fin = rng.random() < 0.8
            yield websocket_frame(rng, 0 if open_message else rng.choice([1, 2, 2, 2]), body, fin)
            open_message = not fin
        elif choice < 55:
            yield websocket_frame(rng, rng.choice([9, 10]), body[:125])
        elif choice == 55:
            yield websocket_frame(rng, 8, rng.choice([b"", b"\3\xe8bye", body[:125]]))
        else:
            lengths = [bytes([0x80 | rng.randrange(126)]), b"\xfe" + rng.randbytes(2), b"\xff" + rng.randbytes(8)]
            yield rng.randbytes(1) + rng.choice(lengths) + rng.randbytes(rng.randrange(60))


def tunnelled(rng: random.Random) -> Iterator[bytes]:
    """SPDY in messages, and now and then what is neither."""
    for frame in spdy_frames(rng):
        yield websocket_frame(rng, 2, frame[:60_000]) if rng.random() < 0.97 else rng.randbytes(20)


def recorded(kind: str) -> Make:
    """A real client's bytes, of which a few are changed, in pieces. `kind` is what its file's name has."""
    all_sent = [captured(path)[1] for path in sorted((Path(__file__).parent / "captures").glob(f"{kind}.txt"))]
    assert all_sent

    def made(rng: random.Random) -> Iterator[bytes]:
        data = mutated(rng, rng.choice(all_sent), rng.choice([0, 1, 1, 2, 9]))
        at = 0
        while at < len(data):
            size = rng.randrange(1, 60)
            yield data[at : at + size]
            at += size

    return made


def mutated(rng: random.Random, data: bytes, times: int) -> bytes:
    changed = bytearray(data)
    for _ in range(times):
        at = rng.randrange(len(changed) or 1)
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                del changed[at : at + rng.randrange(1, 9)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                changed[at:at] = changed[max(0, at - rng.randrange(30)) : at]
            case _:
                if at < len(changed):
                    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


# -- to whom


SPDY_EXECS, SPDY_FORWARDS = recorded("kubectl-1.2*-exec*"), recorded("kubectl-1.2*-forward")
SOCKET_EXECS, SOCKET_FORWARDS = recorded("python-*-exec*"), recorded("python-*-forward")
TUNNELS = recorded("kubectl-1.33*-forward")


def session(rng: random.Random) -> tuple[Any, Iterator[bytes]]:
    """A codec, and what is sent to it."""
    base64 = rng.random() < 0.5
    match rng.randrange(5):
        case 0:
            return SpdyCommand(rng.randrange(1, 5), TERMINAL), rng.choice([spdy_frames, SPDY_EXECS])(rng)
        case 1:
            return SpdyForward(), rng.choice([spdy_frames, SPDY_FORWARDS])(rng)
        case 2:
            codec = WebSocketCommand(rng.choice([1, 4, 5]), base64, TERMINAL)
            return codec, rng.choice([websocket_frames, SOCKET_EXECS])(rng)
        case 3:
            return WebSocketForward(base64, [80, 81]), rng.choice([websocket_frames, SOCKET_FORWARDS])(rng)
        case _:
            return Tunnel(), rng.choice([tunnelled, TUNNELS])(rng)


def act(rng: random.Random, codec: Any, event: CommandEvent | ForwardEvent) -> None:
    """What a worker may do on hearing of it."""
    match event:
        case Ready() if rng.random() < 0.3:
            codec.finish(Outcome(rng.randrange(3), rng.choice(["", "no"])))
        case Input(data):
            codec.consumed(len(data))
            codec.send(rng.choice([STDOUT, STDERR]), data)
        case Opened(connection) if rng.random() < 0.3:
            codec.fail(connection, "refused")
        case Received(connection, data):
            codec.consumed(connection, len(data))
            codec.send(connection, data)
        case Ended(connection):
            codec.end(connection)
        case _:
            pass


def attack(rng: random.Random) -> tuple[str, int, bool]:
    """One session: the codec's name, how many frames it was sent, and whether one of them was an error."""
    codec, frames = session(rng)
    count, gone = 0, False
    try:
        for event in codec.begin():
            act(rng, codec, event)
        for frame in itertools.islice(frames, MOST_OF_A_SESSION):
            count += 1
            sent = frame if rng.random() < 0.95 else mutated(rng, frame, 1)
            for event in codec.receive(sent) if sent else ():
                assert not gone, f"{event} after Gone"
                gone = isinstance(event, Gone)
                act(rng, codec, event)
            assert len(codec.outgoing()) < 9 * len(sent) + 4096, "answers are in proportion"
        assert gone or list(codec.receive(b""))[-1:] == [Gone()]
        assert list(codec.receive(b"")) == []
    except ProtocolError as exc:
        assert str(exc)
        return type(codec).__name__, count, True
    return type(codec).__name__, count, False


def attacks(seed: int, frames: int) -> str:
    """So many frames in all, over all codecs. How it went."""
    rng = random.Random(seed)
    total, sessions, refused = 0, 0, 0
    sent: Counter[str] = Counter()
    while total < frames:
        name, count, error = attack(rng)
        total, sessions, refused, sent[name] = total + count, sessions + 1, refused + error, sent[name] + count
    assert len(sent) == 5
    assert min(sent.values()) > frames / 50, "each codec had its share"
    assert sessions / 10 < refused < sessions, "some were let through, and some were not"
    return f"{sessions} sessions, {refused} of them refused, frames: {dict(sent)}"


def test_hostile_frames() -> None:
    print(attacks(seed=11, frames=FRAMES))


def test_hostile_frames_take_no_memory() -> None:
    """Fewer, as it is slow when every allocation is watched: at no moment was there more than a few frames' worth."""
    attacks(seed=1, frames=500)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        attacks(seed=12, frames=FRAMES // 20)
        after, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most - before < MOST_MEMORY, f"{most - before} bytes"
    assert after - before < MOST_KEPT, f"{after - before} bytes"
