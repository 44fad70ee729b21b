"""The daemon's side of the keeper: see to it that one runs, and ask it for workers."""

import asyncio
import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from holdfast import __version__
from holdfast.linux import process, sockets
from holdfast.linux.patience import patience
from holdfast.model import trace
from holdfast.model.errors import Unavailable
from holdfast.model.state import ProcessRef
from holdfast.model.tally import Counter, Timed

MESSAGE_BYTES: Final = 128 * 1024
SOCKET: Final = "keeper.sock"
ANSWER_SECONDS: Final = 5.0
HELLO_SECONDS: Final = 0.7  # within which a keeper says at the daemon's start that it is there
HANGS: Final = (TimeoutError, BlockingIOError)  # no answer, or no room for one more who waits for one
START_SECONDS: Final = 20.0
FORK_SECONDS: Final = 10.0
BUSY: Final = 75  # exit status of a keeper that found another one in its place
BUSY_SECONDS: Final = 0.01
SIGNALLED: Final = 128  # statuses above are those of signals


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that runs, or one that has ended with `status`."""

    kind: str
    id: str
    pid: int
    start_time: int
    status: int = 0


def ensure_running(state: Path, files: int | None = None) -> None:
    """Start a keeper for this state directory unless one of our release answers. Raises Unavailable.

    One of another release, or one that does not answer, is set aside: it keeps what it has, and what is new goes to
    ours. One without workers is told to end instead. `files` is the soft limit on open files of what it forks, if not
    that of this process.
    """
    deadline = time.monotonic() + START_SECONDS
    command = [sys.executable, "-I", "-m", "holdfast.workers.keeper", "--state", str(state)]
    command += ["--files", str(files)] if files is not None else []
    while not _is_ours(state):
        status, said = _run(command, max(deadline - time.monotonic(), 0))
        if status not in (0, BUSY):
            raise Unavailable(f"cannot start the keeper: {said.strip()[-500:]}")
        if status == BUSY:
            time.sleep(BUSY_SECONDS)  # another one is about to answer, or about to be gone


def _run(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """(exit status, stderr). Raises Unavailable for one that does not end in time, and kills it."""
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        with process.pin(child.pid, None) as pinned:
            if pinned is not None and not select.select([pinned.fd], [], [], seconds)[0]:
                child.kill()
                raise Unavailable(f"cannot start the keeper: no answer after {START_SECONDS:g} s")
        assert child.stderr is not None
        said = child.stderr.read().decode(errors="replace")
    return child.returncode, said


def _is_ours(state: Path) -> bool:
    """Whether the keeper that answers is of our release; another one has been told to end, or set aside."""
    try:
        found = _ask(state / SOCKET, "hello", HELLO_SECONDS)
        if found is None:
            return False
        if found["version"] == __version__:
            return True
        has = _ask(state / SOCKET, "list")
    except HANGS:
        has = {"workers": True}
    if has is not None and (has["workers"] or has["held"]):
        _set_aside(state)
    else:
        with contextlib.suppress(*HANGS):
            _ask(state / SOCKET, "shutdown")
    return False


def _set_aside(state: Path) -> None:
    """Give a keeper's socket and lock other names, by which it can be reached as long as it lives."""
    lock, path = state / "keeper.lock", state / SOCKET
    name = (lock if lock.exists() else path).stat().st_ino
    for one in (lock, path):
        with contextlib.suppress(FileNotFoundError):
            one.rename(one.with_stem(f"keeper.{name}"))


def set_aside(state: Path) -> list[Path]:
    """The sockets of keepers that are not the one for what is new."""
    return sorted(state.glob("keeper.*.sock"))


def shut_down(state: Path) -> None:
    """Have each keeper end as soon as it has no worker; nothing when there is none."""
    for path in (state / SOCKET, *set_aside(state)):
        with contextlib.suppress(*HANGS):
            _ask(path, "shutdown")


def workers(state: Path) -> list[WorkerInfo]:
    """The workers of all keepers that answer."""
    return _list(state)[0]


def list_workers(state: Path) -> list[WorkerInfo] | None:
    """The same; None when a keeper does not answer, or none does, which says nothing of workers."""
    found, whole = _list(state)
    return found if whole else None


def _list(state: Path) -> tuple[list[WorkerInfo], bool]:
    found, answers = [], []
    for path in (state / SOCKET, *set_aside(state)):
        try:
            answer = _ask(path, "list")
        except HANGS:
            answer = None
        answers.append(answer is not None)
        found += [WorkerInfo(**entry) for entry in (answer or {"workers": ()})["workers"]]
    return found, all(answers)


def _connected(path: Path, seconds: float) -> socket.socket:
    """As sockets.connect, but that a full backlog, which EAGAIN tells of at once, is waited for like any answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return sockets.connect(path, socket.SOCK_SEQPACKET, seconds)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(BUSY_SECONDS)


def _ask(path: Path, op: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any] | None:
    """One question and its answer, or None when nobody is there. Raises one of HANGS when there is no answer."""
    try:
        with _connected(path, seconds) as connection:
            sockets.send(connection, json.dumps({"op": op, "seq": 0}).encode())
            sockets.wait_for_input(connection, seconds)
            connection.settimeout(0)
            data, fds = sockets.receive(connection, MESSAGE_BYTES)
    except HANGS:
        raise
    except OSError:
        return None
    answer: dict[str, Any] = json.loads(data) if data else {}
    return (answer | _read_list(fds)) or None


def _read_list(fds: list[int]) -> dict[str, Any]:
    """What came as a file: a list is too long for a message."""
    found: dict[str, Any] = {}
    for fd in fds:
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            found |= json.load(file)
    return found


class Keeper:
    """A connection to a keeper; many requests may be under way at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._events: asyncio.Queue[WorkerInfo | None] = asyncio.Queue()
        self._connection: socket.socket | None = None
        self._forking: dict[int, str] = {}  # kinds, by the number of the request
        self.workers: dict[int, str] = {}  # kinds, by pid
        self.forks = Timed("holdfast_worker_fork", "forks of workers by a keeper", ("kind",))
        self.ends = Counter("holdfast_worker_ends_total", "Workers that have ended, by how.", ("kind", "result"))

    @classmethod
    async def connect(cls, state: Path) -> Self:
        """To the one for what is new. Raises Unavailable when no keeper answers."""
        keeper = cls(state / SOCKET)
        await keeper.reconnect()
        return keeper

    async def reconnect(self) -> None:
        """Connect, or connect again after the keeper was replaced. Raises Unavailable."""
        self._events = asyncio.Queue()
        try:
            self._connection = sockets.connect(self.path, socket.SOCK_SEQPACKET, ANSWER_SECONDS)
        except OSError as exc:
            raise Unavailable(f"cannot reach the keeper: {exc.strerror or exc}") from exc
        self._connection.setblocking(False)
        asyncio.get_running_loop().add_reader(self._connection, self._read)
        try:
            await self._request({"op": "watch"})
        except BaseException:
            self._lost("it does not answer")
            raise

    async def fork(
        self, kind: str, worker_id: str, args: dict[str, object], listen: Path | None = None, fds: Sequence[int] = ()
    ) -> ProcessRef:
        """Fork a worker; returns when it is ready. Raises Unavailable with the worker's own words when it is not."""
        message = {"op": "fork", "kind": kind, "id": worker_id, "args": args, "listen": str(listen) if listen else None}
        with trace.span("keeper fork", kind=kind), self.forks.one(kind):
            answer, _ = await self._request(message, fds, FORK_SECONDS)
        return ProcessRef(answer["pid"], answer["start_time"], process.boot_id())

    async def hold(self, key: str, fds: Sequence[int]) -> None:
        await self._request({"op": "hold", "key": key}, fds)

    async def take(self, key: str) -> list[int]:
        """Copies of what is held under a key; the caller closes them."""
        _, fds = await self._request({"op": "take", "key": key})
        return fds

    async def drop(self, prefix: str) -> None:
        await self._request({"op": "drop", "prefix": prefix})

    async def shut_down(self) -> None:
        """Have it end as soon as it has no worker."""
        await self._request({"op": "shutdown"})

    async def list_workers(self) -> list[WorkerInfo]:
        return (await self.holdings())[0]

    async def holdings(self) -> tuple[list[WorkerInfo], frozenset[str]]:
        """Its workers, and the ids for which it holds descriptors."""
        _, fds = await self._request({"op": "list"})
        found = _read_list(fds)
        held = frozenset(str(key).partition("/")[0] for key in found["held"])
        workers = [WorkerInfo(**entry) for entry in found["workers"]]
        self.workers = {worker.pid: worker.kind for worker in workers}
        return workers, held

    async def events(self) -> AsyncIterator[WorkerInfo]:
        """Workers as they end; ends itself when the keeper is gone."""
        while (event := await self._events.get()) is not None:
            yield event

    async def aclose(self) -> None:
        self._lost("closed")

    async def _request(
        self, message: dict[str, Any], fds: Sequence[int] = (), seconds: float = ANSWER_SECONDS
    ) -> tuple[dict[str, Any], list[int]]:
        if self._connection is None:
            raise Unavailable("cannot reach the keeper: not connected")
        number = next(self._numbers)
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        if message["op"] == "fork":
            self._forking[number] = message["kind"]
        try:
            sockets.send(self._connection, json.dumps({**message, "seq": number}).encode(), fds)
            async with patience(seconds):
                answer, received = await future
        except OSError as exc:  # TimeoutError is one
            raise Unavailable(f"cannot have the keeper {message['op']}: {str(exc) or 'no answer'}") from exc
        finally:
            self._waiting.pop(number, None)
            self._forking.pop(number, None)
        if "error" in answer:
            raise Unavailable(f"cannot have the keeper {message['op']}: {answer['error']}")
        return answer, received

    def _read(self) -> None:
        assert self._connection is not None
        while self._connection is not None:
            try:
                data, fds = sockets.receive(self._connection, MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError as exc:
                self._lost(str(exc))
                return
            if not data:
                self._lost("it has hung up")
                return
            self._take(json.loads(data), fds)

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        if message.pop("event", "") == "exit":
            self._end(WorkerInfo(**message))
            return
        number = message.pop("seq", 0)
        if (kind := self._forking.get(number)) is not None and "pid" in message:
            self.workers[message["pid"]] = kind
        future = self._waiting.pop(number, None)
        if future is not None and not future.done():
            future.set_result((message, fds))
        else:
            for fd in fds:
                os.close(fd)

    def _end(self, worker: WorkerInfo) -> None:
        self.workers.pop(worker.pid, None)
        result = "ok" if worker.status == 0 else "killed" if worker.status > SIGNALLED else "failed"
        self.ends.add(worker.kind, result)
        self._events.put_nowait(worker)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def _lost(self, why: str) -> None:
        if self._connection is None:
            return
        asyncio.get_running_loop().remove_reader(self._connection)
        self._connection.close()
        self._connection = None
        self.workers = {}
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(f"cannot reach the keeper: {why}"))
        self._events.put_nowait(None)
