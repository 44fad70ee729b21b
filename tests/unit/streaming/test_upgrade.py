"""Which codec answers which request, and in what words requests are refused."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.streaming import upgrade
from holdfast.streaming.session import ATTACH, EXEC, FORWARD, Opened, Request, Wanted
from holdfast.streaming.spdy_command import SpdyCommand
from holdfast.streaming.spdy_forward import SpdyForward
from holdfast.streaming.websocket_command import WebSocketCommand
from holdfast.streaming.websocket_forward import Tunnel, WebSocketForward

WANTED = Wanted(True, True, True, False)
SPDY = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]
KEY = base64.b64encode(bytes(range(16))).decode()
WEBSOCKET = [
    ("connection", "keep-alive, Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", KEY),
]


def asks(headers: list[tuple[str, str]], session: str = EXEC, method: str = "GET", target: str = "/exec/t") -> object:
    return upgrade.accept(Request(method, target, headers), session, None if session == FORWARD else WANTED)


def answered(headers: list[tuple[str, str]], session: str = EXEC, method: str = "GET") -> dict[str, str]:
    """The headers of the 101."""
    _, answer = upgrade.accept(Request(method, "/", headers), session, None if session == FORWARD else WANTED, [80])
    head, _, rest = answer.decode().partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    assert (first, rest) == ("HTTP/1.1 101 Switching Protocols", "")
    return dict(line.split(": ") for line in lines)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("session", [EXEC, ATTACH])
def test_spdy(method: str, session: str) -> None:
    """The client's first choice that is spoken here, whether he names them in one line or several."""
    versions = [
        ("x-stream-protocol-version", "v5.channel.k8s.io"),
        ("x-stream-protocol-version", "v4.channel.k8s.io, x"),
    ]
    assert answered([*SPDY, *versions, ("content-length", "0")], session, method) == {
        "Connection": "Upgrade",
        "Upgrade": "SPDY/3.1",
        "X-Stream-Protocol-Version": "v4.channel.k8s.io",
    }
    assert "X-Stream-Protocol-Version" not in answered(SPDY, session, method), "version 1 has no name for itself"
    codec, _ = upgrade.accept(Request(method, "/", SPDY), session, WANTED)
    assert isinstance(codec, SpdyCommand)


def test_spdy_forward() -> None:
    version = ("x-stream-protocol-version", "portforward.k8s.io")
    assert answered([*SPDY, version], FORWARD, "POST")["X-Stream-Protocol-Version"] == "portforward.k8s.io"
    codec, _ = upgrade.accept(Request("POST", "/", SPDY), FORWARD, None)
    assert isinstance(codec, SpdyForward)


def test_the_example_of_the_rfc() -> None:
    """RFC 6455, section 1.3."""
    headers = [*WEBSOCKET[:3], ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]
    assert answered(headers)["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize(
    ("session", "offered", "chosen", "kind"),
    [
        (EXEC, "v5.channel.k8s.io", "v5.channel.k8s.io", WebSocketCommand),
        (ATTACH, "unknown,v4.channel.k8s.io", "v4.channel.k8s.io", WebSocketCommand),
        (EXEC, "base64url.bearer.authorization.k8s.io.dG9rZW4, base64.channel.k8s.io", "base64.channel.k8s.io", None),
        (EXEC, "v4.base64.channel.k8s.io", "v4.base64.channel.k8s.io", WebSocketCommand),
        (EXEC, "channel.k8s.io", "channel.k8s.io", WebSocketCommand),
        (EXEC, "", None, WebSocketCommand),
        (FORWARD, "SPDY/3.1+portforward.k8s.io", "SPDY/3.1+portforward.k8s.io", Tunnel),
        (FORWARD, "v5.channel.k8s.io,v4.channel.k8s.io", "v4.channel.k8s.io", WebSocketForward),
        (FORWARD, "v4.base64.channel.k8s.io", "v4.base64.channel.k8s.io", WebSocketForward),
        (FORWARD, "portforward.k8s.io", "portforward.k8s.io", WebSocketForward),
        (FORWARD, "", None, WebSocketForward),
    ],
)
def test_websocket(session: str, offered: str, chosen: str | None, kind: type | None) -> None:
    headers = [*WEBSOCKET, ("sec-websocket-protocol", offered)]
    found = answered(headers, session)
    assert (found["Upgrade"], found["Connection"]) == ("websocket", "Upgrade")
    assert found.get("Sec-WebSocket-Protocol") == chosen
    codec, _ = upgrade.accept(Request("GET", "/", headers), session, None if session == FORWARD else WANTED, [80])
    assert isinstance(codec, kind or WebSocketCommand)


def test_ports_of_the_query() -> None:
    def opened(target: str, *ports: int) -> list[object]:
        codec, _ = upgrade.accept(Request("GET", target, WEBSOCKET), FORWARD, None, ports)
        assert isinstance(codec, WebSocketForward)
        return list(codec.begin())

    assert opened("/portforward/t?port=80,81&port=82") == [Opened(1, 80), Opened(2, 81), Opened(3, 82)]
    assert opened("/portforward/t?port=80", 90) == [Opened(1, 90)], "those of the CRI's request come first"


@pytest.mark.parametrize(
    ("headers", "session", "method", "status", "named"),
    [
        ([], EXEC, "GET", 426, "Upgrade"),
        ([("upgrade", "websocket")], EXEC, "GET", 426, "Connection"),
        ([("connection", "upgrade")], EXEC, "GET", 426, "Upgrade"),
        ([("connection", "upgrade"), ("upgrade", "h2c")], EXEC, "GET", 400, "h2c"),
        ([*SPDY, ("content-length", "3")], EXEC, "POST", 400, "Content-Length"),
        ([*SPDY, ("transfer-encoding", "chunked")], EXEC, "POST", 400, "Transfer-Encoding"),
        (SPDY, EXEC, "PUT", 405, "PUT"),
        ([*SPDY, ("x-stream-protocol-version", "v9")], EXEC, "POST", 403, "X-Stream-Protocol-Version"),
        ([*SPDY, ("x-stream-protocol-version", "v4.channel.k8s.io")], FORWARD, "POST", 403, "portforward.k8s.io"),
        (WEBSOCKET, EXEC, "POST", 405, "POST"),
        (WEBSOCKET[:2], EXEC, "GET", 426, "Sec-WebSocket-Version"),
        ([*WEBSOCKET[:2], ("sec-websocket-version", "8"), WEBSOCKET[3]], EXEC, "GET", 426, "Sec-WebSocket-Version"),
        (WEBSOCKET[:3], EXEC, "GET", 400, "Sec-WebSocket-Key"),
        ([*WEBSOCKET[:3], ("sec-websocket-key", "short")], EXEC, "GET", 400, "Sec-WebSocket-Key"),
        ([*WEBSOCKET[:3], ("sec-websocket-key", "ü" * 24)], EXEC, "GET", 400, "Sec-WebSocket-Key"),
        ([*WEBSOCKET, WEBSOCKET[3]], EXEC, "GET", 400, "Sec-WebSocket-Key"),
        ([*WEBSOCKET, ("sec-websocket-protocol", "v9, v8")], EXEC, "GET", 403, "Sec-WebSocket-Protocol"),
        ([*WEBSOCKET, ("sec-websocket-protocol", "v5.channel.k8s.io")], FORWARD, "GET", 403, "Sec-WebSocket-Protocol"),
        (WEBSOCKET, FORWARD, "GET", 400, "port="),
    ],
)  # fmt: skip
def test_what_is_refused(headers: list[tuple[str, str]], session: str, method: str, status: int, named: str) -> None:
    with pytest.raises(upgrade.Refused) as refused:
        asks(headers, session, method)
    assert refused.value.status == status
    assert named in refused.value.message
    head, _, body = refused.value.answer().decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert f"Content-Length: {len(body)}\r\n" in head
    assert "Connection: close" in head
    assert body == refused.value.message + "\n"
    if status == 405:
        assert "\r\nAllow: GET" in head
    if status == 426:
        assert "\r\nUpgrade: websocket" in head
    if named == "X-Stream-Protocol-Version":
        assert head.count("X-Accepted-Stream-Protocol-Versions: ") == 4


@pytest.mark.parametrize(
    "query", ["port=0", "port=x", "port=80,", "port=70000", "port=²", ",".join(["port=1"] * 200), "&" * 999]
)
def test_ports_that_are_none(query: str) -> None:
    with pytest.raises(upgrade.Refused, match="port="):
        asks(WEBSOCKET, FORWARD, "GET", f"/?{query}")


def test_no_more_ports_than_channels() -> None:
    request = Request("GET", "/", WEBSOCKET)
    codec, _ = upgrade.accept(request, FORWARD, None, range(1, 128))
    assert len(list(codec.begin())) == 127
    for ports in (range(1, 129), [0], [65536]):
        with pytest.raises(upgrade.Refused, match="1 to 127 ports"):
            upgrade.accept(request, FORWARD, None, ports)


NAMES = st.sampled_from(
    [name for name, _ in [*SPDY, *WEBSOCKET]] + ["sec-websocket-protocol", "x-stream-protocol-version"]
)
VALUES = st.one_of(st.sampled_from([value for _, value in [*SPDY, *WEBSOCKET]]), st.text(max_size=30))


@given(st.lists(st.tuples(NAMES, VALUES), max_size=10), st.sampled_from([EXEC, FORWARD]), st.text(max_size=20))
def test_whatever_is_asked_is_answered_in_one_head(headers: list[tuple[str, str]], session: str, target: str) -> None:
    """Nothing of a request becomes a header line of its own."""
    try:
        _, answer = upgrade.accept(Request("GET", target, headers), session, None if session == FORWARD else WANTED)
    except upgrade.Refused as refused:
        answer = refused.answer()
    head, _, _ = answer.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n")[1:]:
        assert line.partition(b": ")[0].decode() in {
            "Allow", "Connection", "Content-Length", "Content-Type", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol",
            "Sec-WebSocket-Version", "Upgrade", "X-Accepted-Stream-Protocol-Versions", "X-Content-Type-Options",
            "X-Stream-Protocol-Version",
        }  # fmt: skip
