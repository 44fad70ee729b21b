"""The table of processes, read in one pass over /proc (proc(5))."""

import os
from dataclasses import dataclass

from holdfast.linux import process
from holdfast.linux.inject import fault


@dataclass(frozen=True, slots=True)
class Listed:
    """One process as it was when it was read; `cgroups` are its paths in all hierarchies, each once.

    `stuck` says where in the kernel it waits when it is in state D.
    """

    pid: int
    start_time: int
    parent: int
    state: str  # one letter, "Z" for one that has ended and was not reaped
    name: str
    argv: tuple[str, ...]
    cgroups: tuple[str, ...]
    stuck: str = ""

    @property
    def alive(self) -> bool:
        return self.state not in ("Z", "X")


def processes() -> tuple[list[Listed], dict[int, OSError]]:
    """Every process, and those of which something could not be read. One that ends meanwhile is in neither."""
    found: list[Listed] = []
    unread: dict[int, OSError] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fault("process", name)
            found.append(_read(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as exc:
            unread[int(name)] = exc
    return found, unread


def _read(pid: str) -> Listed:
    before, _, after = _content(f"/proc/{pid}/stat").rpartition(b")")
    fields = after.split()
    argv = _content(f"/proc/{pid}/cmdline").split(b"\0")[:-1]
    lines = _content(f"/proc/{pid}/cgroup").splitlines()
    cgroups = dict.fromkeys(os.fsdecode(line.split(b":", 2)[2]) for line in lines)
    return Listed(
        pid=int(pid),
        start_time=int(fields[19]),
        parent=int(fields[1]),
        state=fields[0].decode(),
        name=os.fsdecode(before.partition(b"(")[2]),
        argv=tuple(map(os.fsdecode, argv)),
        cgroups=tuple(path.removesuffix(" (deleted)") for path in cgroups),
        stuck=process.stuck(int(pid)) if fields[0] == b"D" else "",
    )


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()
