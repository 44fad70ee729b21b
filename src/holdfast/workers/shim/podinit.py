"""Process 1 of a pid namespace that the containers of a pod share: it reaps, and otherwise sleeps."""

import os
import signal
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup, files, namespace, process

NAME: Final = "pid"


def start(directory: Path, cgroup_path: str = "") -> int:
    """Fork the init in a cgroup of its own and pin its namespace at ns/pid. Returns its pid.

    It becomes a child of the caller, who has to be a subreaper, and lives on under the next one when the caller dies;
    the cgroup, in which it is born, is how it can be found then. Raises OSError, having ended it.
    """
    if cgroup_path:
        cgroup.create(cgroup_path)
    told, tell = os.pipe2(os.O_CLOEXEC)
    between = os.fork()
    if between == 0:
        _in_between(tell, cgroup_path)
    os.close(tell)
    with os.fdopen(told, "rb") as answer:
        pid = int(answer.read() or b"0")
    os.waitpid(between, 0)
    if not pid:
        raise OSError("cannot make an init for the pod's pid namespace")
    try:
        files.mkdir(directory / "ns", 0o700, exist_ok=True)
        namespace.pin_existing(f"/proc/{pid}/ns/pid", directory / "ns" / NAME)
    except OSError:
        end(pid)
        raise
    return pid


def end(pid: int) -> None:
    """End the init, and with it whatever else is in its namespace."""
    os.kill(pid, signal.SIGKILL)  # a child that has not been reaped: the number is its own
    process.reap(pid)


def _in_between(tell: int, cgroup_path: str) -> None:
    """In a child that ends at once: only its children are in the new namespace (unshare(2))."""
    try:
        if cgroup_path:
            cgroup.enter(cgroup_path, os.getpid())
        namespace.unshare(namespace.CLONE_NEWPID)
        child = os.fork()
        if child == 0:
            _be_init()
        os.write(tell, str(child).encode())
    finally:
        os._exit(0)


def _be_init() -> None:
    """With SIGCHLD ignored the kernel reaps whatever is left to this process (wait(2)): nothing is to be done."""
    try:
        os.setsid()
        process.set_name("hf-pod-init")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        process.close_fds_except([0, 1, 2])
        while True:
            signal.pause()
    finally:
        os._exit(1)
