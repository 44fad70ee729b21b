"""Notices of OOM kills in many cgroups, through one descriptor. A notice says where to look, not what happened.

v1: an eventfd for each cgroup, registered with its memory.oom_control (cgroup-v1/memory.rst), on which the kernel says
when a kill begins, a moment before it is counted, and when the cgroup goes. v2: one inotify for all memory.events,
files that are modified when any of their counts has moved (cgroup-v2.rst), as those of reclaim do all the time.
"""

import ctypes
import os
import select
import struct
from pathlib import Path
from typing import Final, Protocol

from holdfast.linux import cgroup
from holdfast.linux.libc import check, libc, path_bytes

IN_MODIFY: Final = 0x2
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
_EVENT: Final = struct.Struct("iIII")  # wd, mask, cookie, length of the name: struct inotify_event, inotify(7)
READ_BYTES: Final = 16 * 1024
AT_ONCE: Final = 256


class Notices(Protocol):
    """Readable when there is something to `read`; a kill is counted at most `late` seconds after the notice of it."""

    late: float

    def fileno(self) -> int: ...

    def add(self, path: str) -> None:
        """Raises OSError, ENOENT for a cgroup without the files."""

    def remove(self, path: str) -> None: ...

    def read(self) -> list[str]:
        """The cgroups to look at, each once; some of them may be gone. Never waits."""

    def close(self) -> None: ...


def open_notices() -> Notices:
    """For this host's memory controller. Raises OSError, EMFILE when the user has no inotify instance left."""
    found = cgroup.hierarchies()
    return EventNotices() if "memory" in found else FileNotices(found.get("", cgroup.ROOT))


class EventNotices:
    """cgroup v1."""

    late = 1.0

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._paths: dict[int, str] = {}
        self._events: dict[str, int] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, path: str) -> None:
        if path in self._events:
            return
        directory = cgroup.hierarchies()["memory"] / path.lstrip("/")
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(directory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                (directory / "cgroup.event_control").write_text(f"{event} {control}")
            finally:
                os.close(control)
            self._epoll.register(event, select.EPOLLIN)
        except OSError:
            os.close(event)
            raise
        self._paths[event], self._events[path] = path, event

    def remove(self, path: str) -> None:
        if (event := self._events.pop(path, None)) is not None:
            del self._paths[event]
            os.close(event)

    def read(self) -> list[str]:
        found = []
        for event, _ in self._epoll.poll(0, AT_ONCE):
            os.eventfd_read(event)
            found.append(self._paths[event])
        return found

    def close(self) -> None:
        for path in list(self._events):
            self.remove(path)
        self._epoll.close()


class FileNotices:
    """cgroup v2, mounted at `top`."""

    late = 0.0

    def __init__(self, top: Path) -> None:
        self._top = top
        self._fd = check(libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")
        self._paths: dict[int, str] = {}
        self._watches: dict[str, int] = {}

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str) -> None:
        if path in self._watches:
            return
        name = path_bytes(self._top / path.lstrip("/") / "memory.events")
        watch = check(libc.inotify_add_watch(self._fd, name, ctypes.c_uint32(IN_MODIFY)), "inotify_add_watch", path)
        self._paths[watch], self._watches[path] = path, watch

    def remove(self, path: str) -> None:
        if (watch := self._watches.pop(path, None)) is not None:
            self._paths.pop(watch, None)
            libc.inotify_rm_watch(self._fd, watch)  # EINVAL for one that went with its file

    def read(self) -> list[str]:
        found: dict[str, None] = {}
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return []
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & IN_Q_OVERFLOW:  # the kernel had no room for some notices: anybody's
                found |= dict.fromkeys(self._watches)
            if (path := self._paths.get(watch)) is not None:
                found[path] = None
                if mask & IN_IGNORED:
                    del self._paths[watch]
                    self._watches.pop(path, None)
        return list(found)

    def close(self) -> None:
        os.close(self._fd)
