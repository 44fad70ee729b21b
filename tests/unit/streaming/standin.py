"""A stand-in for an API server with one pod, in front of the codecs alone: what real clients are tried on, and recorded from.

`python tests/unit/streaming/standin.py DIRECTORY` (with tests/ on PYTHONPATH) takes the captures anew: see `capture`.
"""

import contextlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11

from holdfast.streaming import upgrade
from holdfast.streaming.session import (
    ATTACH,
    EXEC,
    FORWARD,
    STDERR,
    STDOUT,
    Command,
    CommandEvent,
    Dropped,
    Ended,
    Forward,
    ForwardEvent,
    Gone,
    Input,
    InputEnded,
    Opened,
    Outcome,
    ProtocolError,
    Ready,
    Received,
    Request,
    Resize,
    Wanted,
)  # fmt: skip

REFUSED_PORT = 1  # of which a connection fails
POD = {
    "kind": "Pod",
    "apiVersion": "v1",
    "metadata": {"name": "p", "namespace": "default", "uid": "1"},
    "spec": {"containers": [{"name": "c", "image": "i", "stdin": True, "tty": False}]},
    "status": {"phase": "Running", "containerStatuses": [{"name": "c", "ready": True, "state": {"running": {}}}]},
}
DOCUMENTS: dict[str, Any] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [{"name": "pods", "singularName": "pod", "namespaced": True, "kind": "Pod", "verbs": ["get"]}],
    },
    "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
    "/api/v1/namespaces/default/pods/p": POD,
}


@dataclass
class Session:
    """One upgraded connection: what its client sent, and what was understood."""

    request: Request
    codec: str = ""
    received: bytes = b""
    events: list[CommandEvent | ForwardEvent] = field(default_factory=list)
    problem: str = ""
    finished: bool = False


class Standin:
    """Serves until it is left. `versions` are those of X-Stream-Protocol-Version that it lets through."""

    def __init__(self, versions: Sequence[str] = ()) -> None:
        self.sessions: list[Session] = []
        self._versions = versions
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "Standin":
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError, TimeoutError):
            connection.settimeout(20)
            http = h11.Connection(h11.SERVER)
            while (event := http.next_event()) is not h11.PAUSED:
                if event is h11.NEED_DATA:
                    http.receive_data(connection.recv(65536))
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.ConnectionClosed):
                    return
                elif isinstance(event, h11.EndOfMessage) and http.their_state is h11.DONE:
                    break
            target = head.target.decode()
            headers = [(name.decode(), value.decode()) for name, value in head.headers]
            if any(name == "upgrade" for name, _ in headers):
                self._upgrade(connection, Request(head.method.decode(), target, headers), http.trailing_data[0])
                return
            found = DOCUMENTS.get(urlsplit(target).path)
            body = json.dumps(found or {"kind": "Status", "status": "Failure", "code": 404}).encode()
            connection.sendall(
                f"HTTP/1.1 {200 if found else 404} x\r\nContent-Type: application/json\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )

    def _upgrade(self, connection: socket.socket, request: Request, rest: bytes) -> None:
        if self._versions:
            kept = [one for one in request.headers if one[0] != "x-stream-protocol-version" or one[1] in self._versions]
            request = Request(request.method, request.target, kept)
        url = urlsplit(request.target)
        query = parse_qs(url.query)
        kind = {"exec": EXEC, "attach": ATTACH, "portforward": FORWARD}[url.path.rpartition("/")[2]]
        wanted = Wanted(*(query.get(name) in (["true"], ["True"]) for name in ("stdin", "stdout", "stderr", "tty")))
        ports = [int(port) for port in ",".join(query.get("ports", [])).split(",") if port]
        session = Session(request)
        self.sessions.append(session)
        try:
            codec, answer = upgrade.accept(request, kind, None if kind == FORWARD else wanted, ports)
        except upgrade.Refused as exc:
            session.problem = exc.message
            connection.sendall(exc.answer())
            return
        session.codec = type(codec).__name__
        act = Ports(codec) if kind == FORWARD else Program(codec, query.get("command", ["cat"])[0])
        connection.sendall(answer)
        _drive(connection, codec, act, rest, session)


def _drive(
    connection: socket.socket, codec: Command | Forward, act: "Ports | Program", rest: bytes, session: Session
) -> None:
    """What a worker does with a codec, in short: events to `act`, what it says to the client, until both have said goodbye."""
    connection.setblocking(False)
    waiting = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        batch: bytes | None = rest or None
        for event in codec.begin():
            session.events.append(event)
            act.take(event)
        while True:
            if batch is not None:
                session.received += batch
                try:
                    for event in codec.receive(batch):
                        session.events.append(event)
                        act.take(event)
                except ProtocolError as exc:
                    session.problem = str(exc)
                    return
            waiting += codec.outgoing()
            session.finished = codec.finished
            if (codec.finished and not waiting) or batch == b"":
                return
            selector.modify(connection, selectors.EVENT_READ | (selectors.EVENT_WRITE if waiting else 0))
            ready = selector.select(20)
            if not ready:
                session.problem = "nothing came for 20 s"
                return
            batch = None
            try:
                if ready[0][1] & selectors.EVENT_WRITE:
                    del waiting[: connection.send(waiting)]
                if ready[0][1] & selectors.EVENT_READ:
                    batch = connection.recv(65536)
            except ConnectionError:
                batch = b""


class Program:
    """What runs in the container."""

    def __init__(self, codec: Any, name: str) -> None:
        self._codec: Command = codec
        self._name = name

    def take(self, event: CommandEvent | ForwardEvent) -> None:
        match event, self._name:
            case Input(data), _:
                self._codec.consumed(len(data))
                if self._name == "cat":
                    self._codec.send(STDOUT, data)
                elif self._name == "head" and b"\n" in data:
                    self._codec.send(STDOUT, data)
                    self._codec.finish(Outcome())
            case InputEnded(), "cat":
                self._codec.finish(Outcome())
            case Ready(), "fail":
                self._codec.send(STDOUT, b"out\n")
                self._codec.send(STDERR, b"err\n")
                self._codec.finish(Outcome(3))
            case Ready(), "missing":
                self._codec.finish(Outcome(error="no such command: missing"))
            case Ready(), "large":
                for _ in range(80):
                    self._codec.send(STDOUT, 64 * 1024 * b"x")
                self._codec.finish(Outcome())
            case Resize(width, height), "size":
                self._codec.send(STDOUT, f"{width}x{height}\r\n".encode())
                self._codec.finish(Outcome())
            case _:
                pass


class Ports:
    """Every port of the pod answers in capitals, and ends when it has read the end."""

    def __init__(self, codec: Any) -> None:
        self._codec: Forward = codec

    def take(self, event: CommandEvent | ForwardEvent) -> None:
        match event:
            case Opened(connection, port) if port == REFUSED_PORT:
                self._codec.fail(connection, f"no connection to port {port}: refused")
            case Received(connection, data):
                self._codec.consumed(connection, len(data))
                self._codec.send(connection, data.upper())
            case Ended(connection):
                self._codec.end(connection)
            case Dropped() | Gone():
                pass


# -- real clients


def kubectls() -> list[str]:
    """Debian's, and those of the PATH's directory."""
    debian = Path(__file__).parents[3] / ".tools/usr/bin/kubectl"
    found = [debian] if debian.exists() else []
    if other := shutil.which("kubectl"):
        found += [Path(other), *sorted(Path(other).resolve().parent.glob("kubectl.1.*"))]
    return [str(path) for path in found]


def kubectl(
    binary: str, url: str, home: Path, *args: str, sends: bytes = b"", stdin: int | None = None, **env: str
) -> subprocess.CompletedProcess[bytes]:
    """kubectl against a stand-in, to its end; its stdin is `sends`, or a descriptor."""
    return subprocess.run(
        [binary, "--server", url, "--cache-dir", str(home), *args],
        **({"input": sends} if stdin is None else {"stdin": stdin}),
        capture_output=True,
        timeout=60,
        env=_environment(home) | env,
    )


def _environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": "/usr/bin:/bin", "KUBECONFIG": os.devnull, "TERM": "xterm"}


@contextlib.contextmanager
def forwarding(binary: str, url: str, home: Path, *ports: int, **env: str) -> Iterator[list[int]]:
    """kubectl port-forward; the local ports, in the order of those of the pod."""
    with subprocess.Popen(
        [binary, "--server", url, "--cache-dir", str(home), "port-forward", "--address", "127.0.0.1", "pod/p"]
        + [f":{port}" for port in ports],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(home) | env,
    ) as process:
        try:
            assert process.stdout is not None
            told = (line.decode() for line in process.stdout)
            lines = list(islice((line for line in told if line.startswith("Forwarding from")), len(ports)))
            yield [int(line.partition(" -> ")[0].rpartition(":")[2]) for line in lines]
        finally:
            process.terminate()


def ask(port: int, data: bytes) -> bytes:
    """All that a local port answers to some bytes and their end."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer
