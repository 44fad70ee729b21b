"""A streamer of a real keeper beside a real shim, and its client at the other end of a socket pair."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shim_kit import ShimKit
from wsproto.connection import CLIENT, Connection
from wsproto.events import BytesMessage, CloseConnection, Ping

from holdfast.linux import files, namespace, process
from holdfast.model.state import ProcessRef
from holdfast.runtime import keeper as keepers
from holdfast.runtime.keeper import Keeper
from holdfast.runtime.task import V3, TaskClient
from holdfast.streaming import spdy

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
SECONDS = 30.0
V5 = "v5.channel.k8s.io"
_numbers = itertools.count(1)


class Client:
    """Over a WebSocket, by wsproto: what came on each channel, and whether the session is over."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._protocol = Connection(CLIENT)
        self.head = b""
        self.channels: dict[int, bytearray] = {}
        self.over = False  # a close has come, or the end

    @property
    def stdout(self) -> bytes:
        return bytes(self.channels.get(STDOUT, b""))

    @property
    def stderr(self) -> bytes:
        return bytes(self.channels.get(STDERR, b""))

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.channels[ERROR])
        return found

    @property
    def code(self) -> int:
        """The exit code that the session has reported."""
        if self.status["status"] == "Success":
            return 0
        assert self.status["reason"] == "NonZeroExitCode", self.status
        (cause,) = self.status["details"]["causes"]
        return int(cause["message"])

    async def send(self, channel: int, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.socket, self._protocol.send(BytesMessage(bytes([channel]) + data)))

    async def end_input(self) -> None:
        await self.send(CLOSE, bytes([STDIN]))

    async def resize(self, width: int, height: int) -> None:
        await self.send(RESIZE, json.dumps({"Width": width, "Height": height}).encode())

    async def read(self, until: Callable[[], object] = lambda: False, seconds: float = SECONDS) -> None:
        """Until a condition, or the end."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            while not self.over and not until():
                self._take(await loop.sock_recv(self.socket, 1 << 18))

    def _take(self, data: bytes) -> None:
        if not data:
            self.over = True
            return
        if not self.head.endswith(b"\r\n\r\n"):
            head, end, data = (self.head + data).partition(b"\r\n\r\n")
            self.head = head + end
            if not data:
                return
        self._protocol.receive_data(data)
        for event in self._protocol.events():
            match event:
                case BytesMessage():
                    self._channel(bytes(event.data), event.message_finished)
                case Ping() | CloseConnection():
                    with contextlib.suppress(OSError):
                        self.socket.send(self._protocol.send(event.response()))
                    self.over |= isinstance(event, CloseConnection)

    _open: int | None = None

    def _channel(self, data: bytes, finished: bool) -> None:
        if self._open is None and data:
            self._open, data = data[0], data[1:]
        if self._open is not None:
            self.channels.setdefault(self._open, bytearray()).extend(data)
        if finished:
            self._open = None


class Forwarder:
    """The client of a port-forward over SPDY."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.head = b""
        self.over = False
        self.data: dict[int, bytearray] = {}  # by stream
        self.ended: set[int] = set()
        self.reset: set[int] = set()
        self._encoder, self._decoder = spdy.Encoder(), spdy.Decoder()
        self._streams = itertools.count(1, 2)

    async def open(self, port: int) -> tuple[int, int]:
        """The streams of a new connection to a port: for its error, and its data."""
        error, data = next(self._streams), next(self._streams)
        for stream, kind in ((error, "error"), (data, "data")):
            headers = {"streamtype": kind, "port": str(port), "requestid": str(error)}
            await self._send(spdy.SynStream(stream, headers, fin=kind == "error"))
            self.data[stream] = bytearray()
        return error, data

    async def send(self, stream: int, data: bytes, fin: bool = False) -> None:
        await self._send(spdy.Data(stream, data, fin))

    async def drop(self, stream: int) -> None:
        await self._send(spdy.Reset(stream, spdy.CANCEL))

    async def _send(self, frame: spdy.Frame) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, self._encoder.encode(frame))

    async def read(self, until: Callable[[], object], seconds: float = SECONDS) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(seconds):
            while not self.over and not until():
                data = await loop.sock_recv(self.socket, 1 << 18)
                self.over = not data
                if not self.head.endswith(b"\r\n\r\n"):
                    head, end, data = (self.head + data).partition(b"\r\n\r\n")
                    self.head = head + end
                for frame in self._decoder.receive(data):
                    self._take(frame)

    def _take(self, frame: spdy.Frame) -> None:
        match frame:
            case spdy.Data(stream, data, fin):
                self.data[stream].extend(data)
                self.ended |= {stream} if fin else set()
            case spdy.Reset(stream):
                self.reset.add(stream)


class StreamKit:
    """A keeper, a shim, and sessions."""

    def __init__(self, shim: ShimKit, keeper: Keeper, task: TaskClient) -> None:
        self.shim, self.keeper, self.task = shim, keeper, task
        self.workers: list[ProcessRef] = []
        self.clients: list[Client] = []
        self.directories: list[Path] = []

    async def exec(self, container: str, args: list[str] | str, **options: Any) -> Client:
        """Prepared as the daemon does it. `options`: stdin, stdout, stderr, tty, and what else streamers are told."""
        wanted = {"stdin": False, "stdout": True, "stderr": True, "tty": False}
        wanted |= {name: options.pop(name) for name in list(wanted) if name in options}
        wanted["stderr"] = wanted["stderr"] and not wanted["tty"]
        exec_id = f"s{next(_numbers):016x}"
        directory = self._directory(container, "exec", exec_id)
        paths = {name: str(directory / name) if wanted[name] else "" for name in ("stdin", "stdout", "stderr")}
        for path in filter(None, paths.values()):
            files.fifo(path)
        process_ = {
            "args": ["sh", "-c", args] if isinstance(args, str) else args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "terminal": wanted["tty"],
        }
        await self.task.exec(container, exec_id, process_, terminal=wanted["tty"], **paths)
        return await self.session("exec", exec_id, container=container, wanted=wanted, directory=directory, **options)

    async def attach(self, container: str, **options: Any) -> Client:
        wanted = {"stdin": False, "stdout": True, "stderr": True, "tty": False}
        wanted |= {name: options.pop(name) for name in list(wanted) if name in options}
        session_id = f"a{next(_numbers):016x}"
        directory = self._directory(container, "attach", session_id)
        attach = {"socket": str(self.shim.socket), "service": V3, "kind": "shim"}
        if "stdin_path" in options:
            options["stdin"] = options.pop("stdin_path")
        return await self.session(
            "attach", session_id, container=container, wanted=wanted, directory=directory, attach=attach, **options
        )

    def _directory(self, container: str, kind: str, name: str) -> Path:
        directory = self.shim.directory / container / kind / name
        files.make_private(directory.parent)
        files.make_private(directory)
        self.directories.append(directory)
        return directory

    async def forward(self, network: Path, **options: Any) -> Forwarder:
        """Over SPDY, into a network namespace."""
        with open(network) as file:
            client = await self.session(
                "forward", f"f{next(_numbers):016x}", [file.fileno()], headers=SPDY_HEADERS, **options
            )
        return Forwarder(client.socket)

    async def session(self, kind: str, session_id: str, fds: list[int] | None = None, **args: Any) -> Client:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        subprotocol = args.pop("subprotocol", V5)
        request = {
            "method": "GET",
            "target": "/exec/token",
            "headers": args.pop("headers", websocket_headers(subprotocol)),
        }
        given = {
            "session": kind,
            "request": request,
            "rest": base64.b64encode(args.pop("rest", b"")).decode(),
            "shim": str(self.shim.socket),
            "service": V3,
            **{name: str(value) if isinstance(value, Path) else value for name, value in args.items()},
        }
        with theirs:
            self.workers.append(
                await self.keeper.fork("streamer", session_id, given, fds=[theirs.fileno(), *(fds or [])])
            )
        self.clients.append(Client(ours))
        return self.clients[-1]

    async def ended(self) -> None:
        """Hang up, wait until all sessions are over, and see that they have left nothing."""
        for client in self.clients:
            client.socket.close()
        for worker in self.workers:
            await until(lambda worker=worker: over(worker), f"streamer {worker.pid} to end")
        left = [str(one) for one in self.directories if one.exists()]
        assert left == []
        assert "Traceback" not in (log := (self.keeper.path.parent / "keeper.log").read_text()), log

    def frames(self) -> int:
        """The pid of the last session's other half."""
        (pid,) = Path(f"/proc/{self.workers[-1].pid}/task/{self.workers[-1].pid}/children").read_text().split()
        return int(pid)


def over(worker: ProcessRef) -> bool:
    """By its start time: a number is somebody else's after a minute of tests."""
    return process.start_time(worker.pid) != worker.start_time or process.state(worker.pid) == "Z"


def websocket_headers(subprotocol: str) -> list[tuple[str, str]]:
    return [
        ("host", "localhost"),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", base64.b64encode(bytes(16)).decode()),
        ("sec-websocket-protocol", subprotocol),
    ]


async def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.005)


@contextlib.contextmanager
def keeper_state() -> Iterator[Path]:
    """A state directory with a keeper, which is ended in the end with all that it has forked."""
    with tempfile.TemporaryDirectory(prefix=f"hf-s-{os.getpid()}-") as name:
        state = Path(name)
        keepers.ensure_running(state)
        try:
            yield state
        finally:
            for pid in [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]:
                with contextlib.suppress(OSError), process.pin(pid, None) as pinned:
                    if pinned is not None and name in process.arguments(pid):
                        pinned.send(signal.SIGKILL)


@contextlib.asynccontextmanager
async def connected(state: Path, shim: ShimKit) -> AsyncIterator[StreamKit]:
    """With what was made in it closed in the end."""
    keeper, task = await Keeper.connect(state), await shim.connect()
    made = StreamKit(shim, keeper, task)
    try:
        yield made
    finally:
        for client in made.clients:
            client.socket.close()
        task.close()
        await keeper.aclose()


SPDY_HEADERS = [
    ("host", "localhost"),
    ("connection", "Upgrade"),
    ("upgrade", "SPDY/3.1"),
    ("x-stream-protocol-version", "portforward.k8s.io"),
]


@contextlib.contextmanager
def network(directory: Path) -> Iterator[Path]:
    """A network namespace with loopback, pinned."""
    path = namespace.pin(["net"], directory)["net"]
    try:
        yield path
    finally:
        namespace.unpin(path)


async def listening(path: Path, host: str = "127.0.0.1") -> socket.socket:
    """A listening socket in a network namespace."""

    def make() -> socket.socket:
        namespace.enter(path)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, 0), family=family)

    with ThreadPoolExecutor(1) as elsewhere:  # a thread that has gone there does not come back
        return await asyncio.get_running_loop().run_in_executor(elsewhere, make)
