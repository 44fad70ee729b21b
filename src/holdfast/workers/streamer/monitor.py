"""The privileged half of a session: it asks the shim for what the other half's client wishes, and sees to the end.

    exec     Start when the client is ready, Wait; ResizePty and CloseIO as he says; Delete. If he goes before the
             process has ended, it and all it has started get SIGHUP and, if that does not end it, SIGKILL
    attach   a copy of the output, asked of shim or logger; Wait of the container's init; CloseIO for stdin_once
    forward  nothing: all of it is the other half's

The session ends, too, with SIGTERM to this process, as if the client had gone, and with the death of the other half.
"""

import contextlib
import functools
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from holdfast.linux import files, process
from holdfast.proto import task_pb2
from holdfast.streaming.session import EXEC, Outcome
from holdfast.ttrpc.server import NOT_FOUND, CallError
from holdfast.workers.shim.loop import Loop, Pause, Resume
from holdfast.workers.streamer import line as lines
from holdfast.workers.streamer.task import ACT, Peer, Process
from holdfast.workers.streamer.wish import Wish

HANGUP_SECONDS: Final = 2.0  # from SIGHUP to SIGKILL
END_SECONDS: Final = 30.0  # for a killed process to end
FAREWELL_SECONDS: Final = 600.0  # for a client to take what he is still to be told
WORDS: Final = 10  # so often the other half is written to the log
ATTACH: Final = "holdfast.io/attach"
LOGGER: Final = "logger"
FAILURES: Final = (CallError, TimeoutError, ConnectionError, DecodeError)


class Monitor:
    """`frames` is the other half. `props` are ends of FIFOs that only this process has, to be closed in time."""

    def __init__(
        self, loop: Loop, wish: Wish, session_id: str, line: socket.socket, frames: process.Pinned, props: list[int]
    ) -> None:
        self._loop = loop
        self._wish = wish
        self._id = session_id
        self._line = line
        self._frames = frames
        self._props = props
        exec_id = session_id if wish.session == EXEC else ""
        self._process = Process(loop, wish.shim, wish.service, wish.container, exec_id)
        self._waiting: list[Resume] = []
        self._words = WORDS
        self._ready = False
        self._gone = False  # the client, and the other half with him
        self._size: tuple[int, int] | None = None  # not yet set
        self._owns_stdin = wish.wanted.stdin and (wish.session == EXEC or wish.stdin_once)  # and has not ended it
        self._closes_stdin = False
        self._outcome: Outcome | None = None
        line.setblocking(False)
        loop.selector.register(line, selectors.EVENT_READ, self._hear)

    async def exec(self) -> None:
        await self._until(lambda: self._ready or self._gone)
        if not self._gone and await self._start():
            self._drop_props()
            await self._begin()
            await self._until(lambda: self._outcome is not None or self._gone)
            if self._outcome is None:
                await self._end_process()
        await self._farewell()
        await self._forget()

    async def attach(self) -> None:
        await self._until(lambda: self._ready or self._gone)
        if not self._gone and (not self._wish.outputs or await self._ask_for_copy()):
            await self._begin()
            await self._until(lambda: self._outcome is not None or self._gone)
        self._drop_props()
        await self._farewell()
        if self._owns_stdin and self._ready and self._outcome is None:
            with contextlib.suppress(*FAILURES):
                await self._close_stdin()
        self._clear()

    async def forward(self) -> None:
        await self._until(lambda: self._gone)

    def hang_up(self) -> None:
        """End the session as if the client had gone."""
        self._frames.send(signal.SIGKILL)
        self._gone = True
        self._notify()

    # -- what becomes of the process

    async def _start(self) -> bool:
        try:
            await self._process.start()
        except FAILURES as exc:
            self._outcome = Outcome(error=str(exc))
            return False
        return True

    async def _ask_for_copy(self) -> bool:
        request = task_pb2.UpdateTaskRequest(id=self._wish.container)
        request.annotations[ATTACH] = str(self._wish.directory)
        try:
            await self._ask_source("Attach" if self._wish.attach["kind"] == LOGGER else "Update", request)
        except FAILURES as exc:
            self._outcome = Outcome(error=f"cannot attach to container {self._wish.container}: {exc}")
            return False
        return True

    async def _ask_source(self, method: str, request: Message) -> None:
        """Whoever reads what the container says: its shim or, where that is a foreign one, its logger."""
        peer = Peer(self._loop, self._wish.attach["socket"], self._wish.attach["service"])
        try:
            await peer.call(method, request, Empty, ACT)
        finally:
            peer.close()

    async def _close_stdin(self) -> None:
        """A logger keeps it open, too."""
        if self._wish.attach.get("kind") == LOGGER:
            await self._ask_source("CloseIO", task_pb2.CloseIORequest(id=self._wish.container, stdin=True))
        await self._process.close_stdin()

    async def _begin(self) -> None:
        """What the client types is let through once the terminal is of the size that he has told by now."""
        await self._set_size()
        with contextlib.suppress(OSError):  # it is gone, and the line tells of it
            lines.tell_begun(self._line)
        self._loop.start(self._watch(), _report)
        self._loop.start(self._obey(), _report)

    async def _watch(self) -> None:
        """Until the process ends, or nobody can tell any more."""
        try:
            code = await self._process.wait()
            self._outcome = Outcome(code if self._wish.session == EXEC else 0)
        except CallError as exc:
            if exc.code != NOT_FOUND:
                self._outcome = Outcome(error=str(exc))
            elif self._wish.session == EXEC:
                self._outcome = Outcome(error="it was ended with its shim, which was killed")
            else:
                self._outcome = Outcome()  # it has been deleted by now
        except (ConnectionError, DecodeError) as exc:
            self._outcome = Outcome(error=f"the pod's shim is gone: {exc}")
        self._notify()

    async def _obey(self) -> None:
        """One wish of the client at a time; of the sizes of his terminal the last."""
        while True:
            await self._until(lambda: self._size is not None or self._closes_stdin or self._over())
            if self._over():
                return
            await self._set_size()
            if self._closes_stdin:
                self._closes_stdin = False
                with contextlib.suppress(*FAILURES):
                    await self._close_stdin()

    async def _set_size(self) -> None:
        if self._size is not None:
            size, self._size = self._size, None
            with contextlib.suppress(*FAILURES):
                await self._process.resize(*size)

    async def _end_process(self) -> None:
        for number, seconds in ((signal.SIGHUP, HANGUP_SECONDS), (signal.SIGKILL, END_SECONDS)):
            if self._outcome is None:
                with contextlib.suppress(*FAILURES):
                    await self._process.kill(number)
                await self._until(lambda: self._outcome is not None, seconds)

    async def _farewell(self) -> None:
        """Have the client told how it ended, if it has and he is there; then the other half ends."""
        if self._outcome is not None and not self._gone:
            with contextlib.suppress(OSError):
                lines.tell_outcome(self._line, self._outcome)
            await self._until(lambda: self._gone, FAREWELL_SECONDS)
        self.hang_up()

    async def _forget(self) -> None:
        """Of what cannot be deleted the directory stays, so that the daemon sees to it."""
        try:
            await self._process.delete()
        except FAILURES as exc:
            if not isinstance(exc, CallError) or exc.code != NOT_FOUND:
                print(f"session {self._id}: cannot delete its process: {exc}", file=sys.stderr)  # noqa: T201
                return
        self._clear()

    def _clear(self) -> None:
        with contextlib.suppress(OSError):  # the daemon comes after
            files.remove_tree(self._wish.directory)

    # -- what the other half says

    def _hear(self, _: int) -> None:
        match lines.hear(self._line):
            case None:
                self._loop.selector.unregister(self._line)
                self.hang_up()
            case lines.Said("ready"):
                self._ready = True
            case lines.Said("input ended"):
                self._closes_stdin = self._owns_stdin
                self._owns_stdin = False
            case lines.Said("resize", width, height):
                self._size = width, height
            case lines.Said(_, _, _, text) if self._words > 0:
                self._words -= 1
                print(f"session {self._id}: {text!r}", file=sys.stderr)  # noqa: T201
        self._notify()

    # -- waiting

    def _over(self) -> bool:
        return self._gone or self._outcome is not None

    def _notify(self) -> None:
        waiting, self._waiting = self._waiting, []
        for resume in waiting:
            self._loop.soon(functools.partial(resume, None))

    async def _until(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait for a condition, or for so long."""
        timer = self._loop.timers.add(seconds, self._notify) if seconds is not None else None
        while not condition() and (timer is None or timer.pending):
            await Pause(self._waiting.append)
        if timer is not None:
            timer.cancel()

    def _drop_props(self) -> None:
        while self._props:
            os.close(self._props.pop())


def _report(_: object, error: Exception | None) -> None:
    if error is not None:
        raise error
