"""A worker just after its fork: what the keeper gives to it, and how it is run."""

import contextlib
import io
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from holdfast.linux import process, sockets


@dataclass(slots=True)
class Context:
    """One worker's start: who it is, what it was given, and its line to the keeper."""

    id: str
    args: dict[str, Any]
    fds: list[int]
    listener: socket.socket | None
    ready: Callable[[], None]  # to be called once, when the worker can do its work
    hold: Callable[[str, Sequence[int]], None]  # have the keeper keep copies of descriptors under a key
    drop: Callable[[str], None]  # let go of what is held under a key


Main = Callable[[Context], None]


class Complaints(io.TextIOBase):
    """A worker's stderr, which is the keeper's log: a disk that cannot take it is no reason to leave work undone."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="replace"))
        return len(text)


def complain_to(path: Path) -> None:
    """From now on nothing is read, and what is said goes to the end of this file."""
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)


def bequeath(
    held: Mapping[str, Sequence[int]], worker_id: str, fds: Sequence[int], args: Mapping[str, Any]
) -> tuple[list[int], dict[str, Any]]:
    """What is held for a dead worker, for the one that adopts its work: "held" says which, and at which of `fds`.

    Only a terminal has to be handed over; whatever else is held can be opened by its path.
    """
    given, places = list(fds), {}
    for key in [key for key in held if key.startswith(f"{worker_id}/")]:
        places[key.removeprefix(f"{worker_id}/")] = len(given) if key.endswith("/tty") else -1
        if key.endswith("/tty"):
            given += held[key]
    return given, {**args, "held": places}


def over(message: dict[str, Any], fds: list[int]) -> Context:
    """A context whose keeper is at the other end of a line that never waits: the keeper may be gone, or stopped."""
    ready_fd, control_fd, *given = fds
    listener = None
    if message["listens"]:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, given.pop(0))
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, control_fd)
    control.setblocking(False)

    def tell(message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        try:
            sockets.send(control, json.dumps(message).encode(), descriptors)
        except OSError:
            return  # the descriptors live on in this worker

    def ready() -> None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)

    return Context(
        id=message["id"],
        args=message["args"],
        fds=given,
        listener=listener,
        ready=ready,
        hold=lambda key, descriptors: tell({"op": "hold", "key": key}, descriptors),
        drop=lambda key: tell({"op": "drop", "key": key}),
    )


def run(line: socket.socket, data: bytes, fds: list[int], mains: Mapping[str, Main]) -> NoReturn:
    """In the child: run the worker, and leave without unwinding the frames of whoever it was forked from."""
    status = 1
    try:
        os.close(line.detach())
        os.setpgid(0, 0)  # what is sent to the keeper's group is not for its workers
        sys.stderr = Complaints()
        message = json.loads(data)
        process.set_name(f"hf-{message['kind']}")
        mains[message["kind"]](over(message, fds))
        status = 0
    except BaseException as exc:
        _tell_failure(fds[0], exc)
        report()
    finally:
        os._exit(status)


def report() -> None:
    """Write the exception at hand to the keeper's log; a full disk is no reason to end."""
    try:
        traceback.print_exc()
        sys.stderr.flush()
    except OSError:
        return


def _tell_failure(ready: int, error: BaseException) -> None:
    try:
        os.write(ready, f"{type(error).__name__}: {error}".encode(errors="replace")[:4000])
    except OSError:
        return  # it had been ready before
