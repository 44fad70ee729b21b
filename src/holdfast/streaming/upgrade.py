"""From a client's HTTP request to the codec that speaks what it asks for, and the answer to it. No I/O."""

import binascii
from base64 import b64decode
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from wsproto.utilities import generate_accept_token

from holdfast.streaming.session import FORWARD, Command, Forward, Request, Wanted
from holdfast.streaming.spdy_command import SpdyCommand
from holdfast.streaming.spdy_forward import SpdyForward
from holdfast.streaming.websocket_command import WebSocketCommand
from holdfast.streaming.websocket_forward import MOST_PORTS, Tunnel, WebSocketForward

SPDY: Final = "SPDY/3.1"
VERSION_HEADER: Final = "X-Stream-Protocol-Version"
ACCEPTED_HEADER: Final = "X-Accepted-Stream-Protocol-Versions"

# Names of protocols and their versions; those that begin a list are what is spoken when a client names none.
SPDY_COMMANDS: Final = {
    "channel.k8s.io": 1,
    "v2.channel.k8s.io": 2,
    "v3.channel.k8s.io": 3,
    "v4.channel.k8s.io": 4,
}
SPDY_FORWARDS: Final = ("portforward.k8s.io",)
WEBSOCKET_COMMANDS: Final = {
    "": (1, False),
    "channel.k8s.io": (1, False),
    "base64.channel.k8s.io": (1, True),
    "v4.channel.k8s.io": (4, False),
    "v4.base64.channel.k8s.io": (4, True),
    "v5.channel.k8s.io": (5, False),
}
TUNNEL: Final = "SPDY/3.1+portforward.k8s.io"
WEBSOCKET_FORWARDS: Final = {  # whether in base64
    "": False,
    "portforward.k8s.io": False,
    "v4.channel.k8s.io": False,
    "v4.base64.channel.k8s.io": True,
}


class Refused(Exception):
    """What is to be answered instead of an upgrade."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, tuple(headers)

    def answer(self) -> bytes:
        """The whole HTTP response; the connection ends with it."""
        body = f"{self.message}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *self.headers,
        ]
        return _head(self.status, headers) + body


def accept(
    request: Request, session: str, wanted: Wanted | None, ports: Sequence[int] = ()
) -> tuple[Command | Forward, bytes]:
    """The codec, and the bytes of the 101 answer. Raises Refused.

    `wanted` is for exec and attach. `ports` is for WebSocket port-forwards, which are told them beforehand; where there
    are none, they are those of the URL's query.
    """
    if {"0", *_values(request, "content-length")} != {"0"} or _values(request, "transfer-encoding"):
        raise Refused(HTTPStatus.BAD_REQUEST, "unable to upgrade: a body (Content-Length, Transfer-Encoding)")
    asked = {one.lower() for one in _tokens(request, "upgrade")}
    if "upgrade" not in {one.lower() for one in _tokens(request, "connection")} or not asked:
        raise Refused(
            HTTPStatus.UPGRADE_REQUIRED,
            "unable to upgrade: the headers Connection: Upgrade and Upgrade: websocket (or SPDY/3.1) are missing",
            [("Upgrade", f"websocket, {SPDY}")],
        )
    if "websocket" in asked:
        return _accept_websocket(request, session, wanted, ports)
    if SPDY.lower() in asked:
        return _accept_spdy(request, session, wanted)
    raise Refused(
        HTTPStatus.BAD_REQUEST,
        f"unable to upgrade: the header Upgrade asks for {', '.join(sorted(asked))!r}, not for websocket or {SPDY}",
    )


def _accept_spdy(request: Request, session: str, wanted: Wanted | None) -> tuple[Command | Forward, bytes]:
    if request.method not in ("GET", "POST"):
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.method} is not GET or POST", [("Allow", "GET, POST")])
    spoken = list(SPDY_FORWARDS if session == FORWARD else SPDY_COMMANDS)
    offered = _tokens(request, VERSION_HEADER)
    chosen = next((one for one in offered or spoken if one in spoken), None)
    if chosen is None:
        raise Refused(
            HTTPStatus.FORBIDDEN,
            f"unable to upgrade: {VERSION_HEADER} has {', '.join(offered)!r}; here {', '.join(spoken)} are spoken",
            [(ACCEPTED_HEADER, one) for one in spoken],
        )
    headers = [("Connection", "Upgrade"), ("Upgrade", SPDY)]
    if offered:
        headers.append((VERSION_HEADER, chosen))
    if session == FORWARD:
        return SpdyForward(), _head(HTTPStatus.SWITCHING_PROTOCOLS, headers)
    assert wanted is not None
    return SpdyCommand(SPDY_COMMANDS[chosen], wanted), _head(HTTPStatus.SWITCHING_PROTOCOLS, headers)


def _accept_websocket(
    request: Request, session: str, wanted: Wanted | None, ports: Sequence[int]
) -> tuple[Command | Forward, bytes]:
    if request.method != "GET":
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.method} is not GET", [("Allow", "GET")])
    if _values(request, "sec-websocket-version") != ["13"]:
        raise Refused(
            HTTPStatus.UPGRADE_REQUIRED,
            "unable to upgrade: Sec-WebSocket-Version is not 13",
            [("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")],
        )
    key = _key(request)
    spoken = [*WEBSOCKET_FORWARDS, TUNNEL] if session == FORWARD else list(WEBSOCKET_COMMANDS)
    offered = _tokens(request, "sec-websocket-protocol")
    chosen = next((one for one in offered or [""] if one in spoken), None)
    if chosen is None:
        raise Refused(
            HTTPStatus.FORBIDDEN,
            f"unable to upgrade: Sec-WebSocket-Protocol has {', '.join(offered)!r}; here"
            f" {', '.join(filter(None, spoken))} are spoken",
        )
    codec: Command | Forward
    if chosen == TUNNEL:
        codec = Tunnel()
    elif session == FORWARD:
        codec = WebSocketForward(WEBSOCKET_FORWARDS[chosen], _ports(request, ports))
    else:
        assert wanted is not None
        codec = WebSocketCommand(*WEBSOCKET_COMMANDS[chosen], wanted)
    headers = [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Accept", key)]
    if chosen:
        headers.append(("Sec-WebSocket-Protocol", chosen))
    return codec, _head(HTTPStatus.SWITCHING_PROTOCOLS, headers)


def _key(request: Request) -> str:
    """What proves that a client's key was read (RFC 6455, section 4.2.2)."""
    keys = _values(request, "sec-websocket-key")
    try:
        good = len(keys) == 1 and len(b64decode(keys[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise Refused(HTTPStatus.BAD_REQUEST, "unable to upgrade: Sec-WebSocket-Key is not 16 bytes in base64")
    return generate_accept_token(keys[0].encode()).decode()


def _ports(request: Request, given: Sequence[int]) -> list[int]:
    """Those that are given, or else those of the query: port=80,81 or port=80&port=81."""
    try:
        query = parse_qsl(urlsplit(request.target).query, max_num_fields=MOST_PORTS)
    except ValueError:
        query = []
    texts = [text for name, value in query if name == "port" for text in value.split(",")]
    ports = list(given) or [
        int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else 0 for text in texts
    ]
    if not ports or len(ports) > MOST_PORTS or not all(0 < port <= 0xFFFF for port in ports):
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            f"unable to upgrade: 1 to {MOST_PORTS} ports must be named beforehand, in the query as port=",
        )
    return ports


def _values(request: Request, name: str) -> list[str]:
    return [value.strip() for given, value in request.headers if given.lower() == name.lower()]


def _tokens(request: Request, name: str) -> list[str]:
    """What a header lists, over all lines of that name, in order."""
    return [token.strip() for value in _values(request, name) for token in value.split(",") if token.strip()]


def _head(status: int, headers: Sequence[tuple[str, str]]) -> bytes:
    lines: Iterator[str] = (f"{name}: {_printable(value)}\r\n" for name, value in headers)
    return f"HTTP/1.1 {int(status)} {HTTPStatus(status).phrase}\r\n{''.join(lines)}\r\n".encode("latin-1")


def _printable(value: str) -> str:
    """No line ends in a header, whatever it was made from."""
    return "".join(char for char in value if " " <= char <= "~")
