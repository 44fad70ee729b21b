"""Forwarding events to containerd over ttrpc, one after the other. Never waits, and never gives up an order.

containerd may be away, or be another one by the next time: what it has not acknowledged is sent again to the next that
listens. The queue is bounded, and what had to be left out is said in the log: containerd's clients that were away have
to ask for the state anyway.
"""

import collections
import contextlib
import itertools
import selectors
import socket
import sys
import time
from typing import Final

from google.protobuf.message import DecodeError

from holdfast.linux import sockets
from holdfast.proto import ttrpc_pb2
from holdfast.ttrpc.codec import REQUEST, RESPONSE, Decoder, Frame, ProtocolError, encode
from holdfast.workers.shim.loop import Loop, Timer

SERVICE: Final = "containerd.services.events.ttrpc.v1.Events"
METHOD: Final = "Forward"
QUEUE: Final = 4096
ANSWER_SECONDS: Final = 5.0
PAUSE: Final = 0.05
PAUSE_LONGEST: Final = 1.0
CHUNK: Final = 64 * 1024


class Forwarder:
    """One line to containerd's event service, made when there is something to say."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._path = path
        self._queue: collections.deque[bytes] = collections.deque()
        self._dropped = 0
        self._peer: socket.socket | None = None
        self._decoder = Decoder()
        self._streams = itertools.count(1, 2)
        self._stream = 0  # of the event that waits for its answer; 0 when none does
        self._unsent = b""
        self._pause = PAUSE
        self._timer: Timer | None = None

    @property
    def pending(self) -> int:
        """How many events have not been acknowledged."""
        return len(self._queue)

    def put(self, request: bytes) -> None:
        """Forward one ForwardRequest after those that are there already."""
        if not self._path:
            return
        if len(self._queue) >= QUEUE:
            del self._queue[1 if self._stream else 0]  # the oldest that is not on its way
            self._dropped += 1
        self._queue.append(request)
        if not self._stream:  # whatever has brought this about, containerd may be back
            self._stop_timer()
            self._next()

    def drain(self, seconds: float) -> None:
        """Run the loop until all is acknowledged, for at most `seconds`."""
        deadline = time.monotonic() + seconds
        while self._queue and (left := deadline - time.monotonic()) > 0:
            timer = self._loop.timers.add(left, _nothing)
            self._loop.turn()
            timer.cancel()
        self._hang_up()

    def _next(self) -> None:
        """Send the first event, if nothing is under way."""
        if self._stream or not self._queue:
            return
        try:
            if self._peer is None:
                self._peer = sockets.connect(self._path, timeout=0)
                self._decoder = Decoder()
                self._loop.selector.register(self._peer, selectors.EVENT_READ, self._ready)
            self._stream = next(self._streams) & 0xFFFF_FFFF
            envelope = ttrpc_pb2.Request(service=SERVICE, method=METHOD, payload=self._queue[0])
            envelope.timeout_nano = int(ANSWER_SECONDS * 1e9)
            self._unsent = encode(Frame(self._stream, REQUEST, envelope.SerializeToString()))
            self._timer = self._loop.timers.add(ANSWER_SECONDS, self._again)
            self._flush()
        except (OSError, ProtocolError):
            self._again()

    def _again(self) -> None:
        """The line is of no use, or there is none: try anew in a while, from the event that was not acknowledged."""
        self._hang_up()
        self._timer = self._loop.timers.add(self._pause, self._resume)
        self._pause = min(self._pause * 2, PAUSE_LONGEST)

    def _resume(self) -> None:
        self._timer = None
        self._next()

    def _hang_up(self) -> None:
        self._stop_timer()
        self._stream = 0
        self._unsent = b""
        if self._peer is not None:
            self._loop.selector.unregister(self._peer)
            self._peer.close()
            self._peer = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ready(self, events: int) -> None:
        assert self._peer is not None
        try:
            if events & selectors.EVENT_WRITE:
                self._flush()
            if events & selectors.EVENT_READ:
                self._hear(self._peer.recv(CHUNK))
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError, DecodeError):
            self._again()

    def _flush(self) -> None:
        assert self._peer is not None
        with contextlib.suppress(BlockingIOError, InterruptedError):
            self._unsent = self._unsent[self._peer.send(self._unsent) :] if self._unsent else b""
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if self._loop.selector.get_key(self._peer).events != wanted:
            self._loop.selector.modify(self._peer, wanted, self._ready)

    def _hear(self, data: bytes) -> None:
        """Raises OSError when containerd has hung up, ProtocolError or DecodeError for what it would not send."""
        if not data:
            raise ConnectionResetError
        for frame in self._decoder.feed(data):
            if frame.kind == RESPONSE and self._stream and frame.stream_id == self._stream:
                self._acknowledged(ttrpc_pb2.Response.FromString(frame.payload))

    def _acknowledged(self, response: ttrpc_pb2.Response) -> None:
        if response.status.code:  # it was heard and is not wanted: it would not be the next time either
            print(f"containerd refuses an event: {response.status.message}", file=sys.stderr)  # noqa: T201
        if self._dropped:
            print(f"{self._dropped} events were left out while containerd was away", file=sys.stderr)  # noqa: T201
            self._dropped = 0
        self._queue.popleft()
        self._stream = 0
        self._pause = PAUSE
        self._stop_timer()
        self._next()


def _nothing() -> None:
    pass
