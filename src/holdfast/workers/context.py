"""What the keeper gives to a worker it has forked."""

import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.linux import sockets


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


def over(control: socket.socket, ready_fd: int, id: str, args: dict[str, Any], fds: list[int],
         listener: socket.socket | None) -> Context:  # fmt: skip
    """A context whose keeper is at the other end of `control`. A keeper that is gone is no reason to fail."""

    def tell(message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        try:
            sockets.send(control, json.dumps(message).encode(), descriptors)
        except OSError:
            return  # the descriptors live on in this worker; a new keeper will be told by a new worker

    def ready() -> None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)

    return Context(
        id=id,
        args=args,
        fds=fds,
        listener=listener,
        ready=ready,
        hold=lambda key, descriptors: tell({"op": "hold", "key": key}, descriptors),
        drop=lambda key: tell({"op": "drop", "key": key}),
    )
