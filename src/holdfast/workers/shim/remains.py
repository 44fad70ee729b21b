"""The other processes of a container: those that do not end with its init, and signals to all of them."""

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup, files, process
from holdfast.model.cgroups import from_oci
from holdfast.workers.shim.loop import Loop

ROUNDS: Final = 500
PAUSE: Final = 0.01
SPEC_LIMIT: Final = 4 * 1024 * 1024


def is_first_in_namespace(pid: int) -> bool:
    """Whether a process is number 1 of its pid namespace, whose others die with it (pid_namespaces(7)).

    Of one that is gone nobody knows.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:  # its name may be anything
            if line.startswith(b"NSpid:"):
                return line.split()[-1] == b"1"
    return False


def holds_us(path: str) -> bool:
    """Whether we are in a cgroup, or below it: then it is not a container's own, whatever its init says."""
    return f"{cgroup.of_process(os.getpid())}/".startswith(f"{path.rstrip('/')}/")


def pids(path: str) -> set[int]:
    """Whoever lives in a container's cgroup. Nobody when it is gone, or not the container's own."""
    if holds_us(path):
        return set()
    return {pid for pid in cgroup.pids(path) if process.state(pid) not in ("Z", "X", "")}


def cgroup_of_bundle(bundle: Path) -> str:
    """The cgroup that a container was to have, while nothing is recorded of it; "" when that is not known, or ours."""
    try:
        spec = json.loads(files.read_bounded(bundle / "config.json", SPEC_LIMIT))
        path = str(spec["linux"]["cgroupsPath"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    path = from_oci(path)
    return path if path and not holds_us(path) else ""


def signal_all(path: str, number: int) -> int:
    """Send a signal to every process in a cgroup. Returns how many there are."""
    found = pids(path)
    for pid in found:
        with process.pin(pid, None) as pinned:
            if pinned is not None and _is_below(pid, path):  # and not another process by now
                pinned.send(number)
    return len(found)


def signal_session(path: str, leader: int, number: int) -> None:
    """Send a signal to those in a cgroup that are of one session: to what its leader has started, and nobody else.

    Whoever was forked meanwhile by one that is not dead yet gets it, too. Who began a session of his own is left alone.
    """
    seen: set[int] = set()
    while found := {pid for pid in pids(path) if process.session(pid) == leader} - seen:
        for pid in found:
            with process.pin(pid, None) as pinned:
                if pinned is not None and process.session(pid) == leader and _is_below(pid, path):
                    pinned.send(number)
        seen |= found


def _is_below(pid: int, path: str) -> bool:
    try:
        return f"{cgroup.of_process(pid)}/".startswith(f"{path}/")
    except OSError:
        return False


async def kill(loop: Loop, path: str) -> bool:
    """End every process in a cgroup. Returns whether none is left; what the kernel holds on to is given up."""
    for _ in range(ROUNDS):
        if not signal_all(path, signal.SIGKILL):
            return True
        await loop.sleep(PAUSE)
    return False
