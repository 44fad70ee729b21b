"""The daemon's side of the keeper: see to it that one runs, and ask it for workers."""

import asyncio
import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from holdfast import __version__
from holdfast.linux import process, sockets
from holdfast.model.errors import Unavailable
from holdfast.model.state import ProcessRef

MESSAGE_BYTES: Final = 128 * 1024
ANSWER_SECONDS: Final = 5.0
START_SECONDS: Final = 20.0
FORK_SECONDS: Final = 10.0
BUSY: Final = 75  # exit status of a keeper that found another one in its place
BUSY_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that runs, or one that has ended with `status`."""

    kind: str
    id: str
    pid: int
    start_time: int
    status: int = 0


def ensure_running(state: Path) -> None:
    """Start a keeper for this state directory unless one answers. Raises Unavailable.

    One of another version goes on as long as it has workers; without, it gives way to one of ours.
    """
    deadline = time.monotonic() + START_SECONDS
    command = [sys.executable, "-I", "-m", "holdfast.workers.keeper", "--state", str(state)]
    while (found := _ask(state, "hello")) is None or _gives_way(state, found):
        left = deadline - time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, timeout=max(left, 0), check=False)
        except subprocess.TimeoutExpired as exc:
            raise Unavailable(f"cannot start the keeper: no answer after {START_SECONDS:g} s") from exc
        if done.returncode not in (0, BUSY):
            raise Unavailable(f"cannot start the keeper: {done.stderr.decode(errors='replace').strip()[-500:]}")
        if done.returncode == BUSY:
            time.sleep(BUSY_SECONDS)  # another one is about to answer, or about to be gone


def _gives_way(state: Path, found: dict[str, Any]) -> bool:
    if found["version"] == __version__ or list_workers(state) != []:  # None: it has not said
        return False
    shut_down(state)
    return True


def shut_down(state: Path) -> None:
    """Have the keeper end as soon as it has no worker; nothing when there is none."""
    _ask(state, "shutdown")


def workers(state: Path) -> list[WorkerInfo]:
    """The workers of a running keeper; none when no keeper answers."""
    return list_workers(state) or []


def list_workers(state: Path) -> list[WorkerInfo] | None:
    """The same; None when no keeper answers, which says nothing of workers."""
    answer = _ask(state, "list")
    return None if answer is None else [WorkerInfo(**entry) for entry in answer["workers"]]


def _ask(state: Path, op: str) -> dict[str, Any] | None:
    """One question and its answer, or None when nobody answers."""
    try:
        with sockets.connect(state / "keeper.sock", socket.SOCK_SEQPACKET, ANSWER_SECONDS) as connection:
            sockets.send(connection, json.dumps({"op": op, "seq": 0}).encode())
            data, fds = sockets.receive(connection, MESSAGE_BYTES)
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
    """A connection to the keeper; many requests may be under way at once."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._events: asyncio.Queue[WorkerInfo | None] = asyncio.Queue()
        self._connection: socket.socket | None = None

    @classmethod
    async def connect(cls, state: Path) -> "Keeper":
        """Raises Unavailable when no keeper answers."""
        keeper = cls(state)
        await keeper.reconnect()
        return keeper

    async def reconnect(self) -> None:
        """Connect, or connect again after the keeper was replaced. Raises Unavailable."""
        self._events = asyncio.Queue()
        try:
            self._connection = sockets.connect(self._state / "keeper.sock", socket.SOCK_SEQPACKET, ANSWER_SECONDS)
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

    async def list_workers(self) -> list[WorkerInfo]:
        _, fds = await self._request({"op": "list"})
        return [WorkerInfo(**entry) for entry in _read_list(fds)["workers"]]

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
        try:
            sockets.send(self._connection, json.dumps({**message, "seq": number}).encode(), fds)
            async with asyncio.timeout(seconds):
                answer, received = await future
        except OSError as exc:  # TimeoutError is one
            raise Unavailable(f"cannot have the keeper {message['op']}: {str(exc) or 'no answer'}") from exc
        finally:
            self._waiting.pop(number, None)
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
            self._events.put_nowait(WorkerInfo(**message))
            return
        future = self._waiting.pop(message.pop("seq", 0), None)
        if future is not None and not future.done():
            future.set_result((message, fds))
        else:
            for fd in fds:
                os.close(fd)

    def _lost(self, why: str) -> None:
        if self._connection is None:
            return
        asyncio.get_running_loop().remove_reader(self._connection)
        self._connection.close()
        self._connection = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(f"cannot reach the keeper: {why}"))
        self._events.put_nowait(None)
