"""Calls to the shim of the session's container, which may be killed and replaced while the session goes on."""

import time
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.proto import task_pb2
from holdfast.ttrpc.caller import Caller
from holdfast.workers.shim.loop import Loop, Pause

M = TypeVar("M", bound=Message)

# Seconds. What runs an OCI runtime command is given long; what only asks the shim is not.
ASK: Final = 5.0
ACT: Final = 30.0
RUN: Final = 120.0
AWAY: Final = 60.0  # for as long a shim may be away: a daemon that has to come back first has it replaced
PAUSE: Final = 0.05
PAUSE_LONGEST: Final = 1.0


class Peer:
    """One ttrpc service at a path, connected to when there is something to say."""

    def __init__(self, loop: Loop, path: str, service: str) -> None:
        self._loop = loop
        self._path = path
        self._service = service
        self._caller: Caller | None = None

    async def call(self, method: str, request: Message, reply: type[M], seconds: float | None) -> M:
        """Raises CallError, TimeoutError, ConnectionError, DecodeError."""
        caller = self.connect()
        payload, error = await Pause(
            lambda resume: caller.call(self._service, method, request, lambda *answer: resume(answer), seconds)
        )
        if error is not None:
            raise error
        return reply.FromString(payload)

    def close(self) -> None:
        if self._caller is not None:
            self._caller.close()
            self._loop.clocks.remove(self._caller)
            self._caller = None

    def connect(self) -> Caller:
        """Raises ConnectionError."""
        if self._caller is not None and not self._caller.closed:
            return self._caller
        self.close()
        try:
            self._caller = Caller(self._loop.selector, self._path)
        except OSError as exc:
            raise ConnectionError(f"cannot connect to {self._path}: {exc.strerror}") from exc
        self._loop.clocks.append(self._caller)
        return self._caller


class Process:
    """A container's init (exec_id "") or what is executed in it, asked for through the shim."""

    def __init__(self, loop: Loop, path: str, service: str, container: str, exec_id: str) -> None:
        self._loop = loop
        self._directory = Path(path).parent
        self._peer = Peer(loop, path, service)
        self._ids = {"id": container, "exec_id": exec_id}

    async def start(self) -> None:
        await self._peer.call("Start", task_pb2.StartRequest(**self._ids), task_pb2.StartResponse, RUN)

    async def wait(self) -> int:
        """Its exit code, whichever shim it has by then. Raises CallError; ConnectionError if that stays away."""
        request = task_pb2.WaitRequest(**self._ids)
        while True:
            await self._reach()
            try:
                return (await self._peer.call("Wait", request, task_pb2.WaitResponse, None)).exit_status
            except ConnectionError:
                await self._loop.sleep(PAUSE)

    async def _reach(self) -> None:
        """A shim that has been killed is replaced, unless its pod is over."""
        pause, deadline = PAUSE, time.monotonic() + AWAY
        while True:
            try:
                self._peer.connect()
                return
            except ConnectionError:
                if time.monotonic() > deadline or not self._directory.is_dir():
                    raise
            await self._loop.sleep(pause)
            pause = min(pause * 2, PAUSE_LONGEST)

    async def kill(self, number: int) -> None:
        """Signal it and all that it has started."""
        await self._peer.call("Kill", task_pb2.KillRequest(**self._ids, signal=number, all=True), Empty, ACT)

    async def resize(self, width: int, height: int) -> None:
        request = task_pb2.ResizePtyRequest(**self._ids, width=width, height=height)
        await self._peer.call("ResizePty", request, Empty, ASK)

    async def close_stdin(self) -> None:
        await self._peer.call("CloseIO", task_pb2.CloseIORequest(**self._ids, stdin=True), Empty, ASK)

    async def delete(self) -> None:
        await self._peer.call("Delete", task_pb2.DeleteRequest(**self._ids), task_pb2.DeleteResponse, ACT)
