"""A stand-in for an API server with one pod, in front of the codecs alone: real clients are tried and recorded by it.

`PYTHONPATH=tests .venv/bin/python -m kit.standin tests/unit/streaming/captures` takes the captures anew, with whatever
clients are at hand: see `capture`.
"""

import contextlib
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11
import kubernetes
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import PortForward, WSClient

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
from kit.ports import ask

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
        if session.codec == "WebSocketCommand":
            # As long as a process takes to start: what comes sooner kubectl 1.30 to 1.33 may throw away, as it reads
            # before it knows its own streams (kubernetes#131189).
            time.sleep(0.1)
        _drive(connection, codec, act, rest, session)


def _drive(
    connection: socket.socket, codec: Command | Forward, act: "Ports | Program", rest: bytes, session: Session
) -> None:
    """What a worker does with a codec, in short: events to `act`, what it says to the client, till both say goodbye."""
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
    debian = Path(__file__).parents[2] / ".tools/usr/bin/kubectl"
    found = [debian] if debian.exists() else []
    if other := shutil.which("kubectl"):
        found += [Path(other), *sorted(Path(other).resolve().parent.glob("kubectl.1.*"))]
    return [str(path) for path in found]


def kubectl(
    binary: str, url: str, home: Path, *args: str, sends: bytes = b"", terminal: int | None = None, **env: str
) -> subprocess.CompletedProcess[bytes]:
    """kubectl against a stand-in, to its end; it reads `sends`, or is at a terminal."""
    at = {"input": sends, "stdout": subprocess.PIPE} if terminal is None else {"stdin": terminal, "stdout": terminal}
    command = [binary, "--server", url, "--cache-dir", str(home), *args]
    return subprocess.run(command, **at, stderr=subprocess.PIPE, timeout=60, env=_environment(home) | env)


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


# -- captures


def exec_by_python(url: str, command: str, sends: str, *protocols: str) -> WSClient:
    """The Python client's exec, to its end; stdin is ended where the version has a word for that."""
    api = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=url))
    if protocols:
        api.set_default_header("sec-websocket-protocol", ",".join(protocols))
    session = stream(
        kubernetes.client.CoreV1Api(api).connect_get_namespaced_pod_exec, "p", "default", command=[command],
        stdin=bool(sends), stdout=True, stderr=True, tty=False, _preload_content=False,
    )  # fmt: skip
    if sends:
        session.write_stdin(sends)
        session.close_channel(0)
    session.run_forever(timeout=20)
    session.sock.shutdown()  # its close() leaves a socket open of which the server has said goodbye first
    return session


@contextlib.contextmanager
def forward_by_python(url: str, *ports: int) -> Iterator[PortForward]:
    api = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(kubernetes.client.Configuration(host=url)))
    forward = portforward(api.connect_get_namespaced_pod_portforward, "p", "default", ports=",".join(map(str, ports)))
    copying = [thread for thread in threading.enumerate() if "port forward" in thread.name]  # none, if it is over
    try:
        yield forward
    finally:
        forward.close()
        for thread in copying:
            thread.join(20)
        forward.websocket.shutdown()


def capture(directory: Path) -> None:
    """What each client sends: his request and, in hexadecimal, all that follows the answer to it, to files."""
    home = Path(tempfile.mkdtemp())
    for binary in kubectls():
        version = json.loads(subprocess.check_output([binary, "version", "--client", "-o", "json"]))
        name = "kubectl-" + version["clientVersion"]["gitVersion"].split("-")[0].lstrip("v")
        for suffix, versions in {"": [], "-v3": ["v3.channel.k8s.io"], "-v1": ["channel.k8s.io"]}.items():
            with Standin(versions) as pod:
                kubectl(binary, pod.url, home, "exec", "-i", "p", "--", "head", sends=b"hello\n")
            if not versions or pod.sessions[0].codec == "SpdyCommand":
                _write(
                    directory / f"{name}-exec{suffix}.txt", "exec -i p -- head, with a line to read", pod.sessions[0]
                )
        with Standin() as pod, forwarding(binary, pod.url, home, 80, 81) as ports:
            assert [ask(port, b"hello") for port in ports] == 2 * [b"HELLO"]
        _write(directory / f"{name}-forward.txt", "port-forward pod/p :80 :81, and hello to each", pod.sessions[0])
    name = f"python-{kubernetes.__version__}"
    for protocol in ("v5", "v4"):
        with Standin() as pod:
            exec_by_python(pod.url, "head", "hello\n", f"{protocol}.channel.k8s.io")
        _write(directory / f"{name}-exec-{protocol}.txt", "exec of head, with a line to read", pod.sessions[0])
    with Standin() as pod, forward_by_python(pod.url, 80, 81) as forward:
        for port in (80, 81):
            forward.socket(port).sendall(b"hello")
            assert forward.socket(port).recv(100) == b"HELLO"
    _write(directory / f"{name}-forward.txt", "portforward of 80 and 81, and hello to each", pod.sessions[0])


def _write(path: Path, what: str, session: Session) -> None:
    request = session.request
    lines = [f"# {path.stem}: {what}; taken by kit.standin", f"{request.method} {request.target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers if name != "host"]
    path.write_text("\n".join([*lines, "", *textwrap.wrap(session.received.hex(), 120), ""]))


def captured(path: Path) -> tuple[Request, bytes]:
    """What `capture` has written."""
    head, _, body = path.read_text().partition("\n\n")
    _, first, *headers = head.splitlines()
    method, target, _ = first.split(" ")
    pairs = [(name, value) for name, _, value in (line.partition(": ") for line in headers)]
    return Request(method, target, pairs), bytes.fromhex(body)


if __name__ == "__main__":
    capture(Path(sys.argv[1]))
