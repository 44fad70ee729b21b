"""Process 1 of a pid namespace that the containers of a pod share: it reaps, and otherwise sleeps."""

import os
import signal
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup, files, namespace, process, userns
from holdfast.model.cgroups import unit_of
from holdfast.model.errors import HoldfastError

NAME: Final = "pid"
USERS: Final = "user"  # pinned for a pod that has its own; then the init is root there, and the namespace theirs


def start(directory: Path, cgroup_path: str = "") -> int:
    """Fork the init, put it into a cgroup of its own and pin its namespace at ns/pid. Returns its pid.

    It becomes a child of the caller, who has to be a subreaper, and lives on under the next one when the caller dies;
    the cgroup is how it can be found then. Raises OSError.
    """
    if cgroup_path and not unit_of(cgroup_path):
        cgroup.create(cgroup_path)
    told, tell = os.pipe2(os.O_CLOEXEC)
    between = os.fork()
    if between == 0:
        _in_between(tell, cgroup_path, directory / "ns" / USERS)
    os.close(tell)
    with os.fdopen(told, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(between, 0)
    if not said.isdigit():
        raise OSError(f"cannot make an init for the pod's pid namespace: {said or 'whoever was to do it has died'}")
    pid = int(said)
    try:
        files.mkdir(directory / "ns", 0o700, exist_ok=True)
        namespace.pin_existing(f"/proc/{pid}/ns/pid", directory / "ns" / NAME)
    except OSError:
        end(pin(pid))
        raise
    return pid


def adopt(directory: Path, cgroup_path: str) -> process.Pinned:
    """The init that a dead shim has left; one that has died is replaced, with a namespace anew. Raises OSError."""
    for pid in sorted(cgroup.pids(cgroup_path)) if cgroup_path else ():
        pinned = process.open_pinned(pid, None)
        if pinned is not None and pinned.alive():
            return pinned
    namespace.unpin(directory / "ns" / NAME)
    return pin(start(directory, cgroup_path))


def pin(pid: int) -> process.Pinned:
    """Hold an init that was just started; it may be another one's child by the time it is to be ended."""
    pinned = process.open_pinned(pid, None)
    if pinned is None:
        raise OSError("the init of the pod's pid namespace has ended")
    return pinned


def end(pinned: process.Pinned) -> None:
    """End the init, and with it whatever else is in its namespace."""
    pinned.send(signal.SIGKILL)
    process.reap(pinned.pid)
    pinned.close()


def _in_between(tell: int, cgroup_path: str, users: Path) -> None:
    """In a child that ends at once: only its children are in the new namespace (unshare(2)).

    It is in the cgroup before it has any, so that there never is an init that nobody can find.
    """
    try:
        if unit := unit_of(cgroup_path):
            from holdfast.systemd import units  # in a child that ends at once: no shim keeps it in its memory

            slice = unit_of(os.path.dirname(cgroup_path))
            units.start_scope(unit, slice, os.getpid(), "init of a pod's pid namespace")
        elif cgroup_path:
            cgroup.enter(cgroup_path, os.getpid())
        if users.exists():
            namespace.enter(users, namespace.CLONE_NEWUSER)
            userns.become_root()
        namespace.unshare(namespace.CLONE_NEWPID)
        child = os.fork()
        if child == 0:
            _be_init()
        os.write(tell, str(child).encode())
    except (OSError, HoldfastError) as exc:
        os.write(tell, str(exc).encode())
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
