"""One connection's TLS, ended here: what the client sends encrypted goes on in clear over a socket pair, and back.

A worker of its own, so that a session outlives the daemon. It reads certificate and key, and then has no rights any
more: bytes of strangers are only parsed by nobody. TLS 1.2 and later.

    args   certificate, key: paths, PEM; the certificate's file has its chain
    fds    the client's connection, and one end of the pair: whoever has the other is as if connected to the client
"""

import contextlib
import selectors
import socket
import ssl
from typing import Final

from holdfast.linux import process, sockets
from holdfast.workers import jail
from holdfast.workers.context import Context
from holdfast.workers.outbox import Outbox
from holdfast.workers.shim.loop import Loop, watch

CHUNK: Final = 64 * 1024
WAITING_BYTES: Final = 256 * 1024  # in each direction; then no more is read
HANDSHAKE_SECONDS: Final = 10.0
STALL_SECONDS: Final = 60.0  # at the end, for a client that takes nothing of what is left for him
LINGER_SECONDS: Final = 5.0  # and for one that has all, to hang up
FILES: Final = 64
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE


class Terminator:
    """Copies both ways. The end of one direction is handed on as such: close_notify here, EOF there."""

    def __init__(self, loop: Loop, context: ssl.SSLContext, client: socket.socket, inner: socket.socket) -> None:
        self._loop = loop
        self._client, self._inner = client, inner
        self._for_client, self._for_inner = Outbox(), Outbox()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._agreed = False  # the handshake is done
        self._client_ended = False  # in TLS's words; then
        self._client_hung_up = False  # in TCP's
        self._inner_ended = False
        self._passed_on: set[str] = set()  # whose end was
        self._timer = loop.timers.add(HANDSHAKE_SECONDS, self._stop)
        for one in (client, inner):
            one.setblocking(False)
        sockets.keep_alive(client)
        self._hangups = sockets.hangups(client)
        self._watch()

    def _stop(self) -> None:
        self._loop.running = False

    def _on_client(self, events: int) -> None:
        try:
            if events & _READ and (data := _received(self._client)) is not None:
                self._client_hung_up = not data
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            self._advance()
        except OSError:  # SSLError is one, too: what it has to tell the client is sent if it can be
            with contextlib.suppress(OSError):
                self._client.send(self._outgoing.read())
            self._stop()

    def _on_inner(self, events: int) -> None:
        if events & _READ:
            try:
                data = _received(self._inner)
            except OSError:
                data = b""
            if data:
                self._tls.write(data)  # takes all of it: what comes out of it waits in memory
            self._inner_ended = data == b""
        self._on_client(0)

    def _advance(self) -> None:
        """All that can go on now. Raises OSError when the client is no more, or does not keep to the protocol."""
        if not self._agreed:
            self._shake_hands()
        if self._agreed:
            self._decrypt()
            self._pass_ends_on()
        self._for_client.put(self._outgoing.read())
        sent = self._for_client.drain(self._client.send)
        if self._inner_ended and self._agreed:
            self._see_off(sent)
        self._watch()

    def _shake_hands(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
            self._agreed = True
            self._timer.cancel()

    def _decrypt(self) -> None:
        """As long as there is room; what the inner side does not want any more is dropped."""
        while not self._client_ended and self._for_inner.size < WAITING_BYTES:
            try:
                data = self._tls.read(CHUNK)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            self._client_ended = not data
            self._for_inner.put(data)
            self._write_inner()
        self._write_inner()

    def _write_inner(self) -> None:
        try:
            self._for_inner.drain(self._inner.send)
        except OSError:
            self._for_inner.clear()
            self._inner_ended = True

    def _pass_ends_on(self) -> None:
        if self._client_ended and not self._for_inner.size and "client" not in self._passed_on:
            self._passed_on.add("client")
            with contextlib.suppress(OSError):
                self._inner.shutdown(socket.SHUT_WR)
        if self._inner_ended and not self._incoming.pending and "inner" not in self._passed_on:
            self._passed_on.add("inner")
            with contextlib.suppress(ssl.SSLWantReadError):  # which is for the client's own
                self._tls.unwrap()

    def _see_off(self, sent: int) -> None:
        """The inner side has ended: until the client has what is left for him, and has hung up, but not for ever."""
        if not self._for_client.size and self._client_hung_up:
            self._stop()
        elif sent or not self._timer.pending:
            self._timer.cancel()
            seconds = STALL_SECONDS if self._for_client.size else LINGER_SECONDS
            self._timer = self._loop.timers.add(seconds, self._stop)

    def _watch(self) -> None:
        """Have the selector look for what is of interest now."""
        selector = self._loop.selector
        reads = not self._client_hung_up and max(self._for_inner.size, self._for_client.size // 2) < WAITING_BYTES
        listens = self._agreed and not self._inner_ended and self._for_client.size < WAITING_BYTES
        hears = not reads and not self._client_hung_up
        watch(selector, self._client, reads * _READ | bool(self._for_client.size) * _WRITE, self._on_client)
        watch(selector, self._inner, listens * _READ | bool(self._for_inner.size) * _WRITE, self._on_inner)
        watch(selector, self._hangups, hears * _READ, lambda _: self._stop())


def _received(connection: socket.socket) -> bytes | None:
    """b"" at the end; None when there is nothing now. Raises OSError."""
    try:
        return connection.recv(CHUNK)
    except (BlockingIOError, InterruptedError):
        return None


def configure(certificate: str, key: str) -> ssl.SSLContext:
    """Raises OSError for files that cannot be read or are not a certificate and its key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET  # nobody comes back to this very process
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


def main(context: Context) -> None:
    """A worker's life: as long as its connection's."""
    tls = configure(context.args["certificate"], context.args["key"])
    client, inner = (socket.socket(fileno=fd) for fd in context.fds)
    context.ready()
    jail.enter([client.fileno(), inner.fileno()], FILES)
    loop = Loop(lambda pid, _code, _status: process.reap(pid))
    Terminator(loop, tls, client, inner)
    loop.run()
