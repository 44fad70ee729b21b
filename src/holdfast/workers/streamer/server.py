"""The streamer: one exec, attach or port-forward, which goes on whatever becomes of the daemon. Two processes.

    monitor   root, tiny: opens what is to be opened, talks to the shim
    frames    nobody, without any right: has the client's connection and the FIFOs, or is in the pod's network; it
              parses what the client sends

It is given the client's connection just behind the head of his request.
"""

import os
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast

from holdfast.linux import files, process
from holdfast.streaming import upgrade
from holdfast.streaming.session import ATTACH, EXEC, FORWARD, Command, Forward
from holdfast.workers import jail
from holdfast.workers.context import Context
from holdfast.workers.shim.loop import Loop
from holdfast.workers.shim.stdio import open_fifo
from holdfast.workers.streamer import line as lines
from holdfast.workers.streamer.forward import LOOPBACK, Forwarding
from holdfast.workers.streamer.frames import Frames
from holdfast.workers.streamer.monitor import Monitor
from holdfast.workers.streamer.wish import Wish

REFUSAL_SECONDS: Final = 5.0
COMMAND_FILES: Final = 64
FORWARD_FILES: Final = 1024


@dataclass(slots=True)
class Streams:
    """Ends of FIFOs: those for frames, and `props`, which keep others open until the time has come."""

    stdin: int = -1
    outputs: dict[str, int] = field(default_factory=dict)
    props: list[int] = field(default_factory=list)

    def fds(self) -> list[int]:
        return [*self.outputs.values(), *((self.stdin,) if self.stdin >= 0 else ())]

    def hand_over(self) -> None:
        """They are frames's alone now."""
        for fd in self.fds():
            os.close(fd)


def open_streams(wish: Wish) -> Streams:
    """Never waits. Raises OSError."""
    streams = Streams()
    if wish.session == FORWARD:
        return streams
    for name in wish.outputs:
        path = str(_fifo(wish, name))
        streams.outputs[name] = _unblocked(open_fifo(path, os.O_RDONLY))
        # Those who write what is attached to may die and be replaced: that is not its end. A foreign shim that starts a
        # command waits for somebody who reads, and a command that nobody knows of yet cannot be ended.
        streams.props.append(open_fifo(path, os.O_WRONLY if wish.session == ATTACH else os.O_RDONLY))
    if wish.session == EXEC and wish.wanted.stdin:
        path = str(_fifo(wish, "stdin"))
        streams.props.append(open_fifo(path, os.O_RDWR))  # until the process has it open
        streams.stdin = _unblocked(open_fifo(path, os.O_WRONLY))
    elif wish.wanted.stdin and wish.stdin:
        try:
            streams.stdin = _unblocked(open_fifo(wish.stdin, os.O_WRONLY))
        except OSError:
            streams.stdin = -1  # nobody reads it any more: what the client sends is dropped
    return streams


def _fifo(wish: Wish, name: str) -> Path:
    path = wish.directory / name
    if not path.exists():
        files.fifo(path)
    return path


def _unblocked(fd: int) -> int:
    os.set_blocking(fd, False)
    return fd


def main(context: Context) -> None:
    """A worker's life: as long as its session's."""
    wish = Wish.from_args(context.args)
    connection, *network = context.fds
    streams = open_streams(wish)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = process.fork()
    if pid == 0:
        _be_frames(wish, connection, theirs, streams, network[0] if network else jail.HOST, parent)
    frames = process.open_pinned(pid, None)
    assert frames is not None  # it is a child that nobody has reaped
    theirs.close()
    streams.hand_over()
    for fd in context.fds:
        os.close(fd)
    context.ready()
    loop = Loop(_reap)
    _live(Monitor(loop, wish, context.id, ours, frames, streams.props), wish, loop)


def _live(monitor: Monitor, wish: Wish, loop: Loop) -> None:
    life = {EXEC: monitor.exec, ATTACH: monitor.attach, FORWARD: monitor.forward}[wish.session]
    failure: list[Exception] = []

    def done(_: object, error: Exception | None) -> None:
        loop.running = False
        if error is not None:
            failure.append(error)

    signal.signal(signal.SIGTERM, lambda *_: loop.soon(monitor.hang_up))
    loop.start(life(), done)
    loop.run()
    if failure:
        raise failure[0]


def _reap(pid: int, _code: int, _status: int) -> None:
    process.reap(pid)


# -- the other half


class _Mortal(Loop):
    """In which the failure of a callback is the end: there is but one session to lose."""

    def _guard(self, callback: Callable[..., None], *arguments: Any) -> None:
        callback(*arguments)


def _be_frames(wish: Wish, connection: int, line: socket.socket, streams: Streams, network: int, parent: int) -> None:
    """In the child: serve the client until the end, and leave without unwinding anybody else's frames."""
    status = 1
    try:
        process.set_name("hf-frames")
        client, keep = socket.socket(fileno=connection), [connection, line.fileno(), *streams.fds()]
        try:
            if wish.session == FORWARD:
                jail.enter(keep, FORWARD_FILES, network=network, parent=parent)
            else:
                jail.enter(keep, COMMAND_FILES, parent=parent)
        except OSError as exc:
            why = f"cannot begin the session: {exc.strerror}"
            refuse(client, upgrade.Refused(HTTPStatus.INTERNAL_SERVER_ERROR, why))
            raise
        serve(wish, client, line, streams)
        status = 0
    except BaseException:
        lines.tell(line, "words", text=traceback.format_exc())
    finally:
        os._exit(status)


def refuse(connection: socket.socket, refused: upgrade.Refused) -> None:
    """Raises OSError."""
    connection.settimeout(REFUSAL_SECONDS)
    connection.sendall(refused.answer())
    connection.shutdown(socket.SHUT_WR)


def serve(wish: Wish, connection: socket.socket, line: socket.socket, streams: Streams) -> None:
    """Answer the client's request, and see to what he asks for."""
    try:
        codec, answer = upgrade.accept(wish.request, wish.session, wish.wanted, wish.ports)
    except upgrade.Refused as exc:
        refuse(connection, exc)
        return
    loop = _Mortal(_reap)
    half: Frames | Forwarding
    if wish.session == FORWARD:
        half = Forwarding(loop, line, connection, cast(Forward, codec), wish.addresses or LOOPBACK)
    else:
        terminal = wish.wanted.tty
        half = Frames(loop, line, connection, cast(Command, codec), streams.stdin, streams.outputs, terminal=terminal)
    half.client.begin(answer, wish.rest)
    if wish.idle_seconds:
        half.client.end_when_idle(wish.idle_seconds)
    loop.run()
