"""Where clients come with a token for their session. Reads the head of one HTTP request, and no byte of what follows.

A connection is nobody's until it brings a token: it has ten seconds and 16 KiB for that, there are at most so many of
them, and when there are more the one that has waited longest gives way. With a token it is given to a streamer. An
unknown token, a used one, one that is too old and one of another kind have the same answer.

Neither Host nor Origin is looked at: the API server and the kubelet pass on what their own client has sent (ADR 33).
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11

from holdfast.lifecycle.sessions import Caller, Session, Sessions
from holdfast.model import errors
from holdfast.streaming.tokens import Tokens

log = logging.getLogger(__name__)

HEAD_BYTES: Final = 16 * 1024
HEAD_SECONDS: Final = 10.0
READ_BYTES: Final = 4096  # what is read beyond the head goes to the streamer in a message of bounded size
STRANGERS: Final = 128  # connections that have not brought a token yet
SHAKING: Final = 4  # of those, for how many TLS is being set up at the same time
FAREWELL_SECONDS: Final = 1.0  # for a client to take an error
FAREWELL_BYTES: Final = 64 * 1024
PAUSE_SECONDS: Final = 0.2  # when no connection can be had, for want of descriptors
CLOSE_SECONDS: Final = 5.0
BACKLOG: Final = 128
KEEPALIVE: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # two minutes after a host has vanished
HANDSHAKE: Final = b"\x16"  # the type of the first record of TLS (RFC 8446, 5.1)

STATUS: Final[dict[type[Exception], HTTPStatus]] = {
    errors.InvalidArgument: HTTPStatus.BAD_REQUEST,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.FailedPrecondition: HTTPStatus.CONFLICT,
    errors.ResourceExhausted: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
}


class Refused(Exception):
    """What a client is told instead of being served. The codecs' own would have the daemon load all codecs."""

    def __init__(self, status: int, why: str, *headers: str) -> None:
        super().__init__(why)
        self.status = HTTPStatus(status)
        self._headers = headers

    def answer(self) -> bytes:
        body = f"{self}\n".encode()
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *self._headers,
        )
        return "".join(f"{line}\r\n" for line in (*head, "")).encode() + body


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 is any. With a certificate and its key, files both, TLS is spoken."""

    host: str
    port: int
    certificate: str = ""
    key: str = ""

    @property
    def tls(self) -> bool:
        return bool(self.certificate)


class Server:
    """Listens, and hands out URLs that lead to sessions, each once."""

    def __init__(self, sessions: Sessions, address: Address) -> None:
        self._sessions = sessions
        self._address = address
        self._tokens = Tokens[Session]()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._strangers: dict[asyncio.Task[None], None] = {}  # the one that has waited longest first
        self._served: set[asyncio.Task[None]] = set()
        self._shaking = asyncio.Semaphore(SHAKING)

    def offer(self, session: Session) -> str:
        """A URL that leads to it once, for a minute. Raises Unavailable."""
        return f"{self.base()}{self._tokens.issue(session.kind, session)}"

    def base(self) -> str:
        """The beginning of all URLs. Raises Unavailable while nobody listens."""
        if self._listener is None:
            raise errors.Unavailable(f"cannot stream: nobody listens at {self._address.host}:{self._address.port} yet")
        host = self._address.host
        with contextlib.suppress(ValueError):  # a name is what the certificate may be for
            address = ipaddress.ip_address(host)
            if address.is_unspecified:  # whoever is told a URL is on this node
                address = ipaddress.ip_address("::1" if address.version == 6 else "127.0.0.1")
            host = f"[{address}]" if address.version == 6 else str(address)
        return f"http{'s' if self._address.tls else ''}://{host}:{self._listener.getsockname()[1]}"

    def warning(self) -> str:
        """What is to be thought of where it listens; "" if nothing."""
        if self._address.tls or self._listener is None:
            return ""
        bound = self._listener.getsockname()[0].partition("%")[0]
        if ipaddress.ip_address(bound).is_loopback:
            return ""
        return (
            f"sessions are streamed at {bound} without TLS: whoever can listen on that network can read what is typed, "
            "and take over a session before its client does"
        )

    async def listen(self) -> None:
        """Idempotent. Raises Unavailable."""
        if self._listener is not None:
            return
        where = f"{self._address.host}:{self._address.port}"
        try:
            self._check_certificate()
            self._listener = await _listening(self._address)
        except OSError as exc:  # ssl.SSLError is one
            raise errors.Unavailable(f"cannot stream at {where}: {exc.strerror or exc}") from exc
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._listener), name="stream server")
        log.info("sessions are streamed at %s", self.base())
        if text := self.warning():
            log.warning("%s", text)

    async def close(self) -> None:
        """Nobody is served any more who has not been given to a streamer; whoever is about to be, is."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for task in list(self._strangers):
            task.cancel()
        if self._served:
            await asyncio.wait(self._served, timeout=CLOSE_SECONDS)

    def _check_certificate(self) -> None:
        if self._address.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._address.certificate, self._address.key)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as exc:
                log.warning("cannot take a connection for a stream: %s", exc)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if len(self._strangers) >= STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                oldest.cancel()
            task = loop.create_task(self._serve(connection), name="stream connection")
            self._strangers[task] = None
            self._served.add(task)
            task.add_done_callback(self._served.discard)

    async def _serve(self, connection: socket.socket) -> None:
        me = asyncio.current_task()
        assert me is not None
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(connection)
            try:
                _tune(connection)
                async with asyncio.timeout(HEAD_SECONDS):
                    if self._address.tls:
                        plain = stack.enter_context(await self._behind_tls(connection))
                    caller = await _hear(plain)
                    session = self._admit(caller)
                self._strangers.pop(me, None)
                await self._begin(session, caller)
            except Refused as exc:
                log.info("a client of the stream server is refused with %d: %s", exc.status, exc)
                await _say_farewell(plain, exc)
            except (OSError, errors.HoldfastError) as exc:  # TimeoutError is one
                log.info("a connection to the stream server came to nothing: %s", exc or "no request in time")
            finally:
                self._strangers.pop(me, None)

    async def _behind_tls(self, connection: socket.socket) -> socket.socket:
        """What is in the TLS that is spoken on a connection, which is a worker's from now on. Raises Refused, OSError.

        Nobody is forked for a client who has nothing to say.
        """
        await _readable(connection)
        if connection.recv(1, socket.MSG_PEEK) not in (HANDSHAKE, b""):
            raise Refused(HTTPStatus.BAD_REQUEST, "TLS is spoken here")
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                ours.setblocking(False)
                certificate, key = self._address.certificate, self._address.key
                async with self._shaking:
                    await self._sessions.protect(connection.fileno(), theirs.fileno(), certificate, key)
            connection.close()
        except BaseException:
            ours.close()
            raise
        return ours

    def _admit(self, caller: Caller) -> Session:
        """The session that a request has the token for, which is used up then. Raises Refused."""
        if caller.method not in ("GET", "POST"):
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "sessions are begun by GET or POST", "Allow: GET, POST")
        if not any(name == "upgrade" for name, _ in caller.headers):
            why = "an upgrade to SPDY or WebSocket is needed"
            raise Refused(HTTPStatus.UPGRADE_REQUIRED, why, "Upgrade: websocket, SPDY/3.1")
        session = self._tokens.take(caller.target.partition("?")[0])
        if session is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such session, or it was begun, or not in time")
        return session

    async def _begin(self, session: Session, caller: Caller) -> None:
        """Raises Refused."""
        try:
            await self._sessions.begin(session, caller)
        except (errors.HoldfastError, OSError) as exc:
            raise Refused(STATUS.get(type(exc), HTTPStatus.INTERNAL_SERVER_ERROR), str(exc)) from exc


async def _hear(connection: socket.socket) -> Caller:
    """The head of the request, and what has come with it. Raises Refused, OSError."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    read = 0
    while (event := _next(parser)) is h11.NEED_DATA:
        if read == HEAD_BYTES:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {HEAD_BYTES} bytes of headers")
        size = min(READ_BYTES, HEAD_BYTES - read)
        if not (data := await asyncio.get_running_loop().sock_recv(connection, size)):
            raise ConnectionError("it has ended before its request has")
        parser.receive_data(data)
        read += len(data)
    assert isinstance(event, h11.Request)
    if not isinstance(_next(parser), h11.EndOfMessage):
        raise Refused(HTTPStatus.BAD_REQUEST, "a request with a body cannot be upgraded")
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
    rest = parser.trailing_data[0]
    return Caller(connection.fileno(), event.method.decode(), event.target.decode("latin-1"), headers, rest)


def _next(parser: h11.Connection) -> object:
    """Raises Refused for what is not HTTP."""
    try:
        return parser.next_event()
    except h11.RemoteProtocolError as exc:
        raise Refused(exc.error_status_hint, str(exc)) from exc


async def _say_farewell(connection: socket.socket, refused: Refused) -> None:
    """Answer, and read on for a moment: a connection that is closed with bytes unread takes its answer with it."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, ValueError):  # TimeoutError is one; ValueError: a worker has the connection
        async with asyncio.timeout(FAREWELL_SECONDS):
            await loop.sock_sendall(connection, refused.answer())
            connection.shutdown(socket.SHUT_WR)
            read = 0
            while read < FAREWELL_BYTES and (data := await loop.sock_recv(connection, READ_BYTES)):
                read += len(data)


async def _readable(connection: socket.socket) -> None:
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)


def _tune(connection: socket.socket) -> None:
    """Keys that are typed are sent at once, and a host that has vanished is noticed."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _listening(address: Address) -> socket.socket:
    """Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, *_, where = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
