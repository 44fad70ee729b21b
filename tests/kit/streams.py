"""A client of streaming sessions over WebSocket, small and strict: v5.channel.k8s.io, and channels of port-forward."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, CloseConnection, Message, RejectConnection, Request, TextMessage

from holdfast.proto import runtime_v1_pb2 as pb
from kit.node import Node

SECONDS = 30.0
COMMAND = "v5.channel.k8s.io"
FORWARD = "portforward.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE, END = 0, 1, 2, 3, 4, 255

Wrap = Callable[[socket.socket], socket.socket]


class Rejected(Exception):
    """The HTTP status that came instead of an upgrade."""


class Failed(Exception):
    """What was said at a session's end, which had no exit code to tell."""


def _causes(status: dict[str, Any]) -> dict[str, str]:
    return {one.get("reason", ""): one["message"] for one in status.get("details", {}).get("causes", ())}


class Stream:
    """One session; `received` is what has come on each channel."""

    def __init__(self, url: str, protocol: str = COMMAND, wrap: Wrap = lambda connection: connection) -> None:
        where = urlsplit(url)
        self._connection = wrap(socket.create_connection((where.hostname or "", where.port or 0), SECONDS))
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self.received: dict[int, bytearray] = {}
        self._channel: int | None = None  # of the message of which a part has come
        self.open = False  # the upgrade was accepted
        self.ended = False  # nothing more will come
        request = Request(f"{where.hostname}:{where.port}", where.path, subprotocols=[protocol])
        try:
            self._connection.sendall(self._websocket.send(request))
            self.until(lambda: self.open, "the upgrade")
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return f"there is { ({channel: bytes(data[-1000:]) for channel, data in self.received.items()}) }"

    def close(self) -> None:
        """Vanish, without a word."""
        self._connection.close()

    def send(self, channel: int, data: bytes) -> None:
        self._send(BytesMessage(bytes([channel]) + data))

    def type(self, text: str) -> None:
        self.send(STDIN, text.encode())

    def end_input(self) -> None:
        self.send(END, bytes([STDIN]))

    def resize(self, columns: int, rows: int) -> None:
        self.send(RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    def until(self, condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        """Read until it holds. Raises AssertionError when that is in vain, ConnectionError when nothing more comes."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            left = deadline - time.monotonic()
            assert left > 0, f"waited {seconds:g} s in vain for {what}; {self}"
            self._require_open(what)
            self._read(left)
        return value

    def out(self, channel: int = STDOUT) -> str:
        return self.received.get(channel, bytearray()).decode(errors="replace")

    def until_out(self, text: str, channel: int = STDOUT) -> str:
        """All of the output so far, once this is in it."""
        self.until(lambda: text in self.out(channel), repr(text))
        return self.out(channel)

    def outcome(self) -> int:
        """Wait for the end; the process's exit code. Raises Failed with what is said when there is none, and
        ConnectionError when nothing is."""
        self.until(lambda: self.ended, "the end")
        if failure := self._failure():
            raise Failed(failure)
        if not self.out(ERROR):
            raise ConnectionError(f"it has ended without a word of how; {self}")
        status = json.loads(self.out(ERROR))
        return 0 if status["status"] == "Success" else int(_causes(status)["ExitCode"])

    def _failure(self) -> str:
        """What is said instead of how the process ended."""
        status = json.loads(self.out(ERROR) or '{"status": "Success"}')
        return "" if status["status"] == "Success" or "ExitCode" in _causes(status) else status["message"]

    def _require_open(self, what: str) -> None:
        """Raises Failed with what was said at its end, ConnectionError when nothing was."""
        if self.ended and (failure := self._failure()):
            raise Failed(failure)
        if self.ended:
            raise ConnectionError(f"it has ended before {what}; {self}")

    def _send(self, message: Any) -> None:
        self._require_open("a message")
        self._connection.sendall(self._websocket.send(message))

    def _read(self, seconds: float) -> None:
        self._connection.settimeout(max(seconds, 0.01))
        try:
            data = self._connection.recv(65536)
        except TimeoutError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.ended = True
            return
        self._websocket.receive_data(data)
        for event in self._websocket.events():
            self._take(event)

    def _take(self, event: Any) -> None:
        if isinstance(event, RejectConnection):
            raise Rejected(event.status_code)
        if isinstance(event, CloseConnection):
            with contextlib.suppress(OSError):
                self._connection.sendall(self._websocket.send(event.response()))
            self.ended = True
        elif isinstance(event, Message):
            assert not isinstance(event, TextMessage)
            data = bytes(event.data)
            if self._channel is None and data:
                self._channel, data = data[0], data[1:]
            if self._channel is not None:
                self.received.setdefault(self._channel, bytearray()).extend(data)
            if event.message_finished:
                self._channel = None
        else:
            self.open = True


def exec_url(node: Node, container: str, command: list[str], *, tty: bool = False, stdin: bool = True) -> str:
    request = pb.ExecRequest(container_id=container, cmd=command, tty=tty, stdin=stdin, stdout=True, stderr=not tty)
    return str(node.call("Exec", request).url)


def attach_url(node: Node, container: str, *, tty: bool = False, stdin: bool = True) -> str:
    request = pb.AttachRequest(container_id=container, tty=tty, stdin=stdin, stdout=True, stderr=not tty)
    return str(node.call("Attach", request).url)


def forward_url(node: Node, pod: str, *ports: int) -> str:
    return str(node.call("PortForward", pb.PortForwardRequest(pod_sandbox_id=pod, port=ports)).url)


def execute(node: Node, container: str, script: str) -> tuple[str, int]:
    """(stdout, exit code) of a script, as a session."""
    with Stream(exec_url(node, container, ["/bin/sh", "-c", script], stdin=False)) as stream:
        code = stream.outcome()
        return stream.out(), code
