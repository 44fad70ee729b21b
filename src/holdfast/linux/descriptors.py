"""What processes have open, as /proc tells it: files, and TCP connections of theirs."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from holdfast.linux.inject import fault

LISTENING: Final = {"0A", "07"}  # TCP_LISTEN and TCP_CLOSE, include/net/tcp_states.h: nobody is at the other end
_ANONYMOUS: Final = ("/memfd:", "/SYSV", "/dev/zero (deleted)", "/[")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One that a process has. `link` is what it leads to: a path, "pipe:[4711]"; `mount` is the id of its mount."""

    pid: int
    number: int
    link: str
    mount: int
    device: int
    inode: int
    kind: int  # S_IFREG and so on, 0 where that cannot be said

    @property
    def named(self) -> bool:
        """Whether it is in a directory of some filesystem, or was."""
        return self.link.startswith("/") and not self.link.startswith(_ANONYMOUS)


def of(pid: int) -> list[Descriptor]:
    """Of a process that may end meanwhile: then there are none."""
    fault("proc-fd", pid)
    try:
        numbers = sorted(map(int, os.listdir(f"/proc/{pid}/fd")))
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for number in numbers if (found := _read(pid, number)) is not None]


def _read(pid: int, number: int) -> Descriptor | None:
    """All of one file: it is held meanwhile, for the process may put another one in its place between two looks."""
    try:
        held = os.open(f"/proc/{pid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):  # it was closed
        return None
    try:
        link, found = os.readlink(f"/proc/self/fd/{held}"), os.fstat(held)
        with open(f"/proc/self/fdinfo/{held}") as file:
            fields = dict(line.split(":", 1) for line in file if line.startswith("mnt_id"))
    finally:
        os.close(held)
    return Descriptor(pid, number, link, int(fields["mnt_id"]), found.st_dev, found.st_ino, stat.S_IFMT(found.st_mode))


def mounts_of(pid: int) -> set[int]:
    """Ids of the mounts that a process sees; none of one that has ended."""
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            return {int(line.split(b" ", 1)[0]) for line in file}
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ESRCH, errno.EINVAL):  # the last one of a zombie
            return set()
        raise


def connections(pids: Iterable[int]) -> Iterator[tuple[int, str]]:
    """(pid, "local -> remote" in the kernel's spelling) of each TCP connection that these have open."""
    for pid in pids:
        inodes = {one.inode for one in of(pid) if one.link.startswith("socket:")}
        for name in ("tcp", "tcp6") if inodes else ():
            yield from ((pid, text) for text in _connected(f"/proc/{pid}/net/{name}", inodes))


def _connected(path: str, inodes: set[int]) -> Iterator[str]:
    try:
        with open(path) as file:
            lines = file.read().splitlines()[1:]
    except FileNotFoundError:  # without IPv6, or the process has ended
        return
    for line in lines:
        fields = line.split()
        if fields[3] not in LISTENING and int(fields[9]) in inodes:
            yield f"{fields[1]} -> {fields[2]}"
