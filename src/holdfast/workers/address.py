"""Where a keeper is found: its lock and its socket in the state directory, kept there in spite of everybody.

A daemon that has set a keeper aside (runtime.keeper) has given both other names, with the inode of the lock in them.
"""

import os
import socket
from pathlib import Path
from typing import Final

from holdfast.linux import files, sockets

SOCKET: Final = "keeper.sock"
LOCK: Final = "keeper.lock"


class Address:
    """Taken when made: raises BlockingIOError when another keeper has this state directory."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._directory = _identity(state)
        self._lock = files.lock(state / LOCK)
        self._file: tuple[int, int] | None = None  # which one our socket is

    def listen(self) -> socket.socket:
        """Be heard; whoever was heard before at this place is not any more."""
        listener = sockets.listen(self._state / SOCKET, socket.SOCK_SEQPACKET)
        self._file = _identity(self._state / SOCKET)
        return listener

    def is_there(self) -> bool:
        """Whether the state directory is still the one that this was made for, and not a later one at its path."""
        try:
            return _identity(self._state) == self._directory
        except OSError:
            return False

    def missing(self) -> bool:
        """Bring back the lock if somebody has deleted it. Returns whether the socket is to be brought back.

        Raises BlockingIOError when another keeper is in this place.
        """
        if self._aside("lock").exists():
            return False
        own = os.fstat(self._lock)
        if _identity(self._state / LOCK) != (own.st_dev, own.st_ino):
            lock = files.lock(self._state / LOCK)
            os.close(self._lock)
            self._lock = lock
        return _identity(self._state / SOCKET) != self._file and not self._aside("lock").exists()

    def leave(self) -> None:
        """Remove what is ours; the lock of the usual name is for whoever is next."""
        if self.is_there():
            if _identity(self._state / SOCKET) == self._file:
                (self._state / SOCKET).unlink(missing_ok=True)
            for kind in ("sock", "lock"):
                self._aside(kind).unlink(missing_ok=True)
        os.close(self._lock)

    def _aside(self, kind: str) -> Path:
        return self._state / f"keeper.{os.fstat(self._lock).st_ino}.{kind}"


def _identity(path: Path) -> tuple[int, int] | None:
    """None for what is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
