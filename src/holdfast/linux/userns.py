"""User namespaces (user_namespaces(7)): made by a child that lives as long as somebody needs what it stands in.

unshare(2) refuses a new user namespace to a process with threads, and the child is forked bare (process.fork), so that
all of this is for workers and their children while they have one thread. It is the parent, who has rights outside, that
writes the mappings.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from holdfast.linux import namespace, process
from holdfast.linux.inject import fault

IdMap = tuple[int, int, int]  # a line of uid_map: the first id inside, what it is outside, how many follow each other

_DONE: Final = b"done"
_ANSWER: Final = 4096


@contextmanager
def child(uids: Iterable[IdMap], gids: Iterable[IdMap], work: Callable[[], None] = lambda: None) -> Iterator[int]:
    """A child in a new user namespace with these mappings, who has done `work` there; its pid.

    It ends with the context, or with the caller. What it stands in is found below /proc/PID/ns. Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        pid = process.fork()
        if pid == 0:
            ours.close()
            _live(theirs, work)
        theirs.close()
        try:
            _expect(ours, "make a user namespace")
            for name, lines in (("uid_map", uids), ("gid_map", gids)):
                _write_map(f"/proc/{pid}/{name}", lines)
            ours.send(_DONE)
            _expect(ours, "make namespaces in a user namespace")
            yield pid
        finally:
            ours.close()  # which it takes for its end
            process.reap(pid)


@contextmanager
def opened(uids: Iterable[IdMap], gids: Iterable[IdMap]) -> Iterator[int]:
    """A descriptor of a new user namespace with these mappings and nobody in it, such as mount.idmap needs."""
    with child(uids, gids) as pid:
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def become_root() -> None:
    """The calling process, which has joined a user namespace, is root there and nobody's user outside."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _expect(line: socket.socket, what: str) -> None:
    said = line.recv(_ANSWER)
    if said == _DONE:
        return
    number, _, text = said.decode(errors="replace").partition(" ")
    raise OSError(int(number or 0), f"cannot {what}: {text or 'whoever was to do it has died'}")


def _write_map(path: str, lines: Iterable[IdMap]) -> None:
    """All lines at once: the kernel takes one write and no more."""
    fault("uid_map", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, "".join(f"{inside} {outside} {length}\n" for inside, outside, length in lines).encode())
    finally:
        os.close(descriptor)


def _live(line: socket.socket, work: Callable[[], None]) -> None:
    """In the child; it never returns."""
    try:
        namespace.unshare(namespace.CLONE_NEWUSER)
        line.send(_DONE)
        if line.recv(_ANSWER) == _DONE:
            work()
            line.send(_DONE)
            line.recv(_ANSWER)
    except OSError as exc:
        line.send(f"{exc.errno or 0} {exc.strerror or exc}".encode())
    finally:
        os._exit(0)
