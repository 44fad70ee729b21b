"""A worker just after its fork: what the keeper gives to it, and how it is run."""

import json
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(slots=True)
class Start:
    """All that a forked worker needs and nothing else of the keeper's: `name` for ps, `files` the soft limit."""

    main: Callable[[Context], None]
    name: str
    id: str
    args: dict[str, Any]
    fds: list[int]
    listener: socket.socket | None
    ready: int
    control: socket.socket
    files: int


def over(start: Start) -> Context:
    """A context whose keeper is at the other end of `control`. It never waits: a keeper may be gone, or stopped."""
    start.control.setblocking(False)

    def tell(message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        try:
            sockets.send(start.control, json.dumps(message).encode(), descriptors)
        except OSError:
            return  # the descriptors live on in this worker

    def ready() -> None:
        os.write(start.ready, b"1")
        os.close(start.ready)

    return Context(
        id=start.id,
        args=start.args,
        fds=start.fds,
        listener=start.listener,
        ready=ready,
        hold=lambda key, descriptors: tell({"op": "hold", "key": key}, descriptors),
        drop=lambda key: tell({"op": "drop", "key": key}),
    )


def run(start: Start) -> NoReturn:
    """In the child: keep only what is the worker's own, run it, and leave without unwinding the keeper's frames."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)  # what is sent to the keeper's group is not for its workers
        listener = [start.listener.fileno()] if start.listener is not None else []
        process.close_fds_except([0, 1, 2, *start.fds, start.ready, start.control.fileno(), *listener])
        resource.setrlimit(resource.RLIMIT_NOFILE, (start.files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        process.set_name(start.name)
        start.main(over(start))
        status = 0
    except BaseException as exc:
        _tell_failure(start.ready, exc)
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
