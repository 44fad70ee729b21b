"""A ttrpc client on selectors, for single-threaded workers: many calls at once, each answered by a callback.

It registers with its owner's selector as `data(events)` callbacks, and is a clock of it, as the server is.
"""

import heapq
import itertools
import os
import selectors
import time
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError, Message

from holdfast.linux import sockets
from holdfast.proto import ttrpc_pb2
from holdfast.ttrpc.codec import REQUEST, RESPONSE, Decoder, Frame, ProtocolError, encode
from holdfast.ttrpc.server import INTERNAL, CallError

CHUNK: Final = 64 * 1024
NS: Final = 1_000_000_000
LAST_STREAM: Final = 0xFFFF_FFFF

Answer = Callable[[bytes, Exception | None], None]


class Caller:
    """One connection; it ends with `close`, or when the server hangs up."""

    def __init__(self, selector: selectors.BaseSelector, path: str | os.PathLike[str]) -> None:
        """Raises OSError when nobody listens there; EAGAIN when the backlog is full."""
        self._selector = selector
        self._peer = sockets.connect(path, timeout=0)
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._streams = itertools.count(1, 2)
        self._waiting: dict[int, Answer] = {}
        self._deadlines: list[tuple[float, int]] = []
        self.closed = False
        selector.register(self._peer, selectors.EVENT_READ, self._ready)

    def call(self, service: str, method: str, request: Message, answer: Answer, seconds: float | None = None) -> None:
        """One call. `answer(payload, None)` or, once, `answer(b"", error)`: CallError is the server's own word,
        TimeoutError that it has not answered in time (it is told the deadline, too), ConnectionError that the
        connection has ended and what became of the call is not known.
        """
        stream = next(self._streams)
        if self.closed or stream > LAST_STREAM:
            answer(b"", ConnectionError("not connected"))
            return
        envelope = ttrpc_pb2.Request(service=service, method=method, payload=request.SerializeToString())
        if seconds is not None:
            envelope.timeout_nano = max(1, int(seconds * NS))
            heapq.heappush(self._deadlines, (time.monotonic() + seconds, stream))
        self._waiting[stream] = answer
        self._unsent += encode(Frame(stream, REQUEST, envelope.SerializeToString()))
        self._flush()

    def close(self, why: str = "closed") -> None:
        if self.closed:
            return
        self.closed = True
        self._selector.unregister(self._peer)
        self._peer.close()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer(b"", ConnectionError(why))

    # -- a clock

    def next_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            answer = self._waiting.pop(heapq.heappop(self._deadlines)[1], None)
            if answer is not None:
                answer(b"", TimeoutError("no answer in time"))

    # -- bytes

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if self.closed or not events & selectors.EVENT_READ:
            return
        try:
            data = self._peer.recv(CHUNK)
            if not data:
                self.close("the server has hung up")
                return
            for frame in self._decoder.feed(data):
                if frame.kind == RESPONSE and (answer := self._waiting.pop(frame.stream_id, None)) is not None:
                    _hand_over(frame.payload, answer)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError) as exc:
            self.close(str(exc))

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._peer.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as exc:
            self.close(str(exc))
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if self._selector.get_key(self._peer).events != wanted:
            self._selector.modify(self._peer, wanted, self._ready)


def _hand_over(payload: bytes, answer: Answer) -> None:
    try:
        response = ttrpc_pb2.Response.FromString(payload)
    except DecodeError as exc:
        answer(b"", CallError(INTERNAL, f"cannot read the answer: {exc}"))
        return
    if response.status.code:
        answer(b"", CallError(response.status.code, response.status.message))
    else:
        answer(response.payload, None)
