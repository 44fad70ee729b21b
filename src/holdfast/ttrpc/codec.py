"""ttrpc frames, without I/O: bytes in, frames out. Standard library only.

A frame is a header of ten bytes (length and stream id as big-endian 32-bit numbers, kind, flags) and its payload.
Streams that a client opens have odd ids.
"""

import struct
from dataclasses import dataclass
from typing import Final

HEADER: Final = struct.Struct(">IIBB")
MAX_PAYLOAD: Final = 4 * 1024 * 1024

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3


class ProtocolError(Exception):
    """The peer does not speak ttrpc; the connection is of no further use."""


@dataclass(frozen=True, slots=True)
class Frame:
    stream_id: int
    kind: int
    payload: bytes
    flags: int = 0


def encode(frame: Frame) -> bytes:
    """Raises ProtocolError for a payload that the peer would refuse."""
    if len(frame.payload) > MAX_PAYLOAD:
        raise ProtocolError(f"payload of {len(frame.payload)} bytes is over the limit of {MAX_PAYLOAD}")
    return HEADER.pack(len(frame.payload), frame.stream_id, frame.kind, frame.flags) + frame.payload


class Decoder:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Raises ProtocolError; what follows it cannot be understood."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            length, stream_id, kind, flags = HEADER.unpack_from(self._buffer)
            if length > MAX_PAYLOAD:
                raise ProtocolError(f"frame of {length} bytes is over the limit of {MAX_PAYLOAD}")
            if kind not in (REQUEST, RESPONSE, DATA):
                raise ProtocolError(f"frame of unknown kind {kind}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append(Frame(stream_id, kind, bytes(self._buffer[HEADER.size : end]), flags))
            del self._buffer[:end]
        return frames
