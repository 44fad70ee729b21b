"""ttrpc frames, without I/O: bytes in, frames out. Standard library only.

A frame is a header of ten bytes and its payload (containerd/ttrpc, PROTOCOL.md):

    payload length   uint32, big-endian, at most 4 MiB
    stream id        uint32, big-endian; odd for streams that the client opens
    kind             uint8: 1 request, 2 response, 3 data
    flags            uint8: 1 remote closed, 2 remote open, 4 no data
"""

import struct
from dataclasses import dataclass
from typing import Final

HEADER: Final = struct.Struct(">IIBB")
MAX_PAYLOAD: Final = 4 * 1024 * 1024

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

REMOTE_CLOSED: Final = 1
REMOTE_OPEN: Final = 2


class ProtocolError(Exception):
    """The peer does not speak ttrpc; the connection is of no further use."""


@dataclass(frozen=True, slots=True)
class Frame:
    stream_id: int
    kind: int
    payload: bytes
    flags: int = 0


def encode(frame: Frame) -> bytes:
    """The frame as sent. Raises ProtocolError for a payload that the peer would refuse."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ProtocolError(f"payload of {len(frame.payload)} bytes is over the limit of {MAX_PAYLOAD}")
    return HEADER.pack(len(frame.payload), frame.stream_id, frame.kind, frame.flags) + frame.payload


class Decoder:
    """Cuts a byte stream, in whatever pieces it comes, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Raises ProtocolError; nothing after that can be understood."""
        self._buffer += data
        frames = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            length, stream_id, kind, flags = HEADER.unpack_from(self._buffer, start)
            # Both are checked before the payload is there, so that nobody makes us keep what we shall refuse.
            if length > MAX_PAYLOAD:
                raise ProtocolError(f"frame of {length} bytes is over the limit of {MAX_PAYLOAD}")
            if kind not in (REQUEST, RESPONSE, DATA):
                raise ProtocolError(f"frame of unknown kind {kind}")
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append(Frame(stream_id, kind, bytes(self._buffer[start + HEADER.size : end]), flags))
            start = end
        del self._buffer[:start]
        return frames
