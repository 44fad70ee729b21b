"""Unix sockets by path, of any length; descriptors over them; who is at the other end."""

import array
import errno
import os
import select
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from holdfast.linux.inject import fault

PATH_LIMIT: Final = 107  # sun_path, unix(7)
LOOKS: Final = 5
_FD_BYTES: Final = array.array("i").itemsize


class _Short:
    """A path that fits into sun_path: through a descriptor of the directory where it does not by itself."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._directory = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= PATH_LIMIT:
            return str(self._path)
        self._directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{self._path.name}"

    def __exit__(self, *error: object) -> None:
        if self._directory >= 0:
            os.close(self._directory)


def listen(path: str | os.PathLike[str], kind: int = socket.SOCK_STREAM, backlog: int = 128) -> socket.socket:
    """A listening socket at `path` that only its owner may connect to; a socket left there by somebody is replaced."""
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        with _Short(path) as short:
            if os.path.lexists(path) and stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
            os.fchmod(listener.fileno(), 0o600)  # the mode with which bind(2) makes the file, so there is no gap
            fault("bind", path)
            listener.bind(short)
        os.chmod(path, 0o600)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def connect(
    path: str | os.PathLike[str], kind: int = socket.SOCK_STREAM, timeout: float | None = None
) -> socket.socket:
    """A connected socket. Raises OSError: ENOENT, ECONNREFUSED, EAGAIN when the backlog is full."""
    connection = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout)
        with _Short(path) as short:
            fault("connect", path)
            connection.connect(short)
    except OSError:
        connection.close()
        raise
    return connection


def wait_for_input(connection: socket.socket, seconds: float) -> bool:
    """Whether there is something to be read, or nobody left to write it, within `seconds`.

    They pass in looks: while the whole machine stands still, as one that is moved or suspended, nobody comes to
    anything, and whoever wakes first must not take the others for dead. That costs one look, however long it lasts.
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return any(poll.poll(1000 * seconds / LOOKS) for _ in range(LOOKS))


def keep_alive(connection: socket.socket) -> None:
    """Over TCP: find out within a minute that the other machine is no more, and send small things at once (tcp(7))."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, 30),
        (socket.TCP_KEEPINTVL, 10),
        (socket.TCP_KEEPCNT, 3),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def hangups(connection: socket.socket) -> select.epoll:
    """What becomes readable when the other end says that it sends no more, read or not; for while it is not read."""
    found = select.epoll(flags=select.EPOLL_CLOEXEC)
    found.register(connection, select.EPOLLRDHUP)
    return found


def peer_uid(connection: socket.socket) -> int:
    """The user id of whoever connected."""
    return _peer(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """Who is, or was, at the other end: the process that connected, or the one that has begun to listen."""
    return _peer(connection)[0]


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid): struct ucred of SO_PEERCRED, unix(7)."""
    pid, uid, gid = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def send(connection: socket.socket, data: bytes, fds: Sequence[int] = ()) -> int:
    """Send bytes, and copies of descriptors with them."""
    return socket.send_fds(connection, [data], list(fds)) if fds else connection.send(data)


def receive(connection: socket.socket, size: int, max_fds: int = 16) -> tuple[bytes, list[int]]:
    """(bytes, descriptors); b"" at the end. The descriptors are ours to close, and close on exec.

    Raises OSError EMSGSIZE for a message, or a number of descriptors, that does not fit: part of one is of no use.
    """
    # Not socket.recv_fds: it drops its flags, so that every program run later would inherit them.
    room = socket.CMSG_LEN(max_fds * _FD_BYTES)
    data, ancillary, flags, _ = connection.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return data, list(fds)
