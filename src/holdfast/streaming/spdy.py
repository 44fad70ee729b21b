"""SPDY/3.1 as the streams of Kubernetes use it: bytes in, frames out, and the other way round. No I/O.

Source: the SPDY protocol, draft 3.1, sections 2.2 (frames), 2.6 (control frames) and 2.6.10 (names and values). Whoever
speaks to us is not trusted: every length is bounded before anything of it is kept, names and values also once they are
decompressed.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from holdfast.streaming.session import ProtocolError

VERSION: Final = 3
CONTROL: Final = 0x8000
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN: Final = 0x01
UNIDIRECTIONAL: Final = 0x02
STREAM_MASK: Final = 0x7FFFFFFF

PROTOCOL_ERROR, INVALID_STREAM, REFUSED_STREAM, UNSUPPORTED_VERSION, CANCEL, INTERNAL_ERROR = 1, 2, 3, 4, 5, 6

WINDOW: Final = 64 * 1024  # bytes that may be under way in a stream before its reader has said that it took them
LARGEST_CONTROL: Final = 64 * 1024
LARGEST_DATA: Final = (1 << 24) - 1  # what the length has room for
PIECE: Final = 64 * 1024  # data of a frame that is made here
LARGEST_BLOCK: Final = 64 * 1024  # names and values of one frame, decompressed
MOST_HEADERS: Final = 200

_WORDS: Final = (
    "options", "head", "post", "put", "delete", "trace", "accept", "accept-charset", "accept-encoding",
    "accept-language", "accept-ranges", "age", "allow", "authorization", "cache-control", "connection",
    "content-base", "content-encoding", "content-language", "content-length", "content-location", "content-md5",
    "content-range", "content-type", "date", "etag", "expect", "expires", "from", "host", "if-match",
    "if-modified-since", "if-none-match", "if-range", "if-unmodified-since", "last-modified", "location",
    "max-forwards", "pragma", "proxy-authenticate", "proxy-authorization", "range", "referer", "retry-after",
    "server", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "warning",
    "www-authenticate", "method", "get", "status", "200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie",
    "keep-alive", "origin",
)  # fmt: skip
_TAIL: Final = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
# What both sides' compression begins with (section 2.6.10.1): names with their lengths, then words without.
DICTIONARY: Final = b"".join(len(word).to_bytes(4) + word.encode() for word in _WORDS) + _TAIL.encode()


@dataclass(frozen=True, slots=True)
class SynStream:
    stream: int
    headers: dict[str, str] = field(default_factory=dict)
    fin: bool = False
    unidirectional: bool = False


@dataclass(frozen=True, slots=True)
class SynReply:
    stream: int
    headers: dict[str, str] = field(default_factory=dict)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Headers:
    stream: int
    headers: dict[str, str] = field(default_factory=dict)
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class Settings:
    values: dict[int, int]


@dataclass(frozen=True, slots=True)
class Ping:
    number: int


@dataclass(frozen=True, slots=True)
class GoAway:
    last_stream: int
    status: int = 0


@dataclass(frozen=True, slots=True)
class WindowUpdate:
    stream: int
    more: int


@dataclass(frozen=True, slots=True)
class Data:
    stream: int
    data: bytes
    fin: bool = False


Frame = SynStream | SynReply | Headers | Reset | Settings | Ping | GoAway | WindowUpdate | Data


class Decoder:
    """Frames of one direction of a connection. Compression has a memory: none may be left out."""

    def __init__(self) -> None:
        self._waiting = bytearray()  # less than a frame
        self._stream, self._left, self._fin = 0, 0, False  # the data frame of which so many bytes are still to come
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def receive(self, data: bytes) -> Iterator[Frame]:
        """What is there by now; frames that are not known are passed over. Raises ProtocolError.

        Control frames come when they are whole, data as it arrives: a frame of 16 MiB takes no room here. To be read
        to its end before more is given.
        """
        waiting, at = self._waiting + data, 0
        while True:
            if self._left:
                body = bytes(waiting[at : at + self._left])
                if not body:
                    break
                at += len(body)
                self._left -= len(body)
                yield Data(self._stream, body, self._fin and not self._left)
            elif len(waiting) - at < 8:
                break
            else:
                head, flags, length = int.from_bytes(waiting[at : at + 4]), waiting[at + 4], _length(waiting, at)
                if not head >> 31:
                    at += 8
                    self._stream, self._left, self._fin = head, length, bool(flags & FIN)
                    if not length:
                        yield Data(head, b"", self._fin)
                    continue
                if (version := (head >> 16) & 0x7FFF) != VERSION:
                    raise ProtocolError(f"version {version} of SPDY is not spoken here")
                if length > LARGEST_CONTROL:
                    raise ProtocolError(f"a frame of {length} bytes is too large")
                if len(waiting) - at < 8 + length:
                    break
                body = bytes(waiting[at + 8 : at + 8 + length])
                at += 8 + length
                if (frame := self._control(head & 0xFFFF, flags, body)) is not None:
                    yield frame
        self._waiting = waiting[at:]

    def _control(self, kind: int, flags: int, body: bytes) -> Frame | None:
        fin = bool(flags & FIN)
        if kind == SYN_STREAM:
            headers = self._headers(_tail(body, 10))
            return SynStream(_number(body, 0) & STREAM_MASK, headers, fin, bool(flags & UNIDIRECTIONAL))
        if kind in (SYN_REPLY, HEADERS):
            made = SynReply if kind == SYN_REPLY else Headers
            return made(_number(body, 0) & STREAM_MASK, self._headers(_tail(body, 4)), fin)
        if kind == RST_STREAM:
            return Reset(_number(body, 0) & STREAM_MASK, _number(body, 4))
        if kind == SETTINGS:
            count = _number(body, 0)
            if len(body) != 4 + 8 * count:
                raise ProtocolError("settings do not have the length that they say")
            return Settings({_number(body, at) & 0xFFFFFF: _number(body, at + 4) for at in range(4, len(body), 8)})
        if kind == PING:
            return Ping(_number(body, 0))
        if kind == GOAWAY:
            return GoAway(_number(body, 0) & STREAM_MASK, _number(body, 4))
        if kind == WINDOW_UPDATE:
            return WindowUpdate(_number(body, 0) & STREAM_MASK, _number(body, 4) & STREAM_MASK)
        return None

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            text = self._inflate.decompress(block, LARGEST_BLOCK + 1)
        except zlib.error as exc:
            raise ProtocolError(f"names and values cannot be decompressed: {exc}") from exc
        if len(text) > LARGEST_BLOCK or self._inflate.eof:
            raise ProtocolError(f"names and values of more than {LARGEST_BLOCK} bytes, or without an end")
        count, at = _number(text, 0), 4
        if count > MOST_HEADERS:
            raise ProtocolError(f"{count} names are too many")
        found: dict[str, str] = {}
        for _ in range(count):
            name, at = _word(text, at)
            value, at = _word(text, at)
            if not name or name in found:
                raise ProtocolError(f"the name {name[:40]!r} is empty, or comes twice")
            found[name] = value
        return found


class Encoder:
    """Bytes of one direction of a connection, in the order in which the frames are given."""

    def __init__(self) -> None:
        # Names and values from here are few: a window that holds the dictionary does, in 9 KiB instead of 256.
        self._deflate = zlib.compressobj(wbits=11, memLevel=1, zdict=DICTIONARY)

    def encode(self, frame: Frame) -> bytes:
        """Raises ValueError for data that no frame has room for."""
        match frame:
            case Data():
                if len(frame.data) > LARGEST_DATA:
                    raise ValueError(f"{len(frame.data)} bytes are too many for one frame")
                head = frame.stream.to_bytes(4) + bytes([FIN if frame.fin else 0]) + len(frame.data).to_bytes(3)
                return head + frame.data
            case SynStream():
                flags = (FIN if frame.fin else 0) | (UNIDIRECTIONAL if frame.unidirectional else 0)
                body = frame.stream.to_bytes(4) + bytes(6) + self._block(frame.headers)
                return _control_frame(SYN_STREAM, flags, body)
            case SynReply() | Headers():
                kind = SYN_REPLY if isinstance(frame, SynReply) else HEADERS
                body = frame.stream.to_bytes(4) + self._block(frame.headers)
                return _control_frame(kind, FIN if frame.fin else 0, body)
            case Reset():
                return _control_frame(RST_STREAM, 0, frame.stream.to_bytes(4) + frame.status.to_bytes(4))
            case Settings():
                pairs = b"".join(key.to_bytes(4) + value.to_bytes(4) for key, value in frame.values.items())
                return _control_frame(SETTINGS, 0, len(frame.values).to_bytes(4) + pairs)
            case Ping():
                return _control_frame(PING, 0, frame.number.to_bytes(4))
            case GoAway():
                return _control_frame(GOAWAY, 0, frame.last_stream.to_bytes(4) + frame.status.to_bytes(4))
            case WindowUpdate():
                return _control_frame(WINDOW_UPDATE, 0, frame.stream.to_bytes(4) + frame.more.to_bytes(4))

    def _block(self, headers: dict[str, str]) -> bytes:
        words = [word.encode("latin-1") for pair in headers.items() for word in pair]
        text = len(headers).to_bytes(4) + b"".join(len(word).to_bytes(4) + word for word in words)
        return self._deflate.compress(text) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def _control_frame(kind: int, flags: int, body: bytes) -> bytes:
    return (CONTROL | VERSION).to_bytes(2) + kind.to_bytes(2) + bytes([flags]) + len(body).to_bytes(3) + body


def _length(data: bytearray, at: int) -> int:
    return int.from_bytes(data[at + 5 : at + 8])


def _number(data: bytes, at: int) -> int:
    if len(data) < at + 4:
        raise ProtocolError("a frame is too short for what it is")
    return int.from_bytes(data[at : at + 4])


def _tail(data: bytes, at: int) -> bytes:
    if len(data) < at:
        raise ProtocolError("a frame is too short for what it is")
    return data[at:]


def _word(data: bytes, at: int) -> tuple[str, int]:
    length = _number(data, at)
    if len(data) < at + 4 + length:
        raise ProtocolError("a name or value is longer than all of them")
    return data[at + 4 : at + 4 + length].decode("latin-1"), at + 4 + length
