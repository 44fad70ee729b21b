"""Namespaces kept alive by bind mounts (namespaces(7)); made in a throw-away thread so that nobody else moves."""

import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from holdfast.linux import files, mount, process
from holdfast.linux.inject import fault
from holdfast.linux.libc import SYS_SETRESUID, check, libc, syscall

CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 0x1

KINDS: Final = {"net": CLONE_NEWNET, "ipc": CLONE_NEWIPC, "uts": CLONE_NEWUTS}


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    fault("unshare")
    check(libc.unshare(flags), "unshare")


def enter(path: str | os.PathLike[str], flags: int = 0) -> None:
    """setns(2): the calling thread joins the namespace behind `path`."""
    fault("setns", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        check(libc.setns(descriptor, flags), "setns", path)
    finally:
        os.close(descriptor)


def pin(kinds: Iterable[str], directory: Path, hostname: str = "") -> dict[str, Path]:
    """Make new namespaces and pin each at `directory/<kind>`; loopback is up in a new network. All or nothing.

    Raises OSError, having left nothing of its own behind; EEXIST for a kind that is pinned there already.
    """
    wanted = {kind: KINDS[kind] for kind in kinds}
    pinned: dict[str, Path] = {}
    failure: list[OSError] = []

    def make() -> None:
        try:
            move(wanted, hostname)
            for kind in wanted:
                pin_existing(f"/proc/thread-self/ns/{kind}", directory / kind)
                pinned[kind] = directory / kind
        except OSError as exc:
            failure.append(exc)

    thread = threading.Thread(target=make, name="new-namespaces")
    thread.start()
    thread.join()
    if failure:
        for path in pinned.values():
            unpin(path)
        raise failure[0]
    return pinned


def move(kinds: Iterable[str], hostname: str = "") -> None:
    """Move the calling thread into new namespaces; loopback is up in a new network."""
    wanted = set(kinds)
    flags = 0
    for kind in wanted:
        flags |= KINDS[kind]
    unshare(flags)
    if "uts" in wanted and hostname:
        socket.sethostname(hostname)
    if "net" in wanted:
        set_loopback_up()


def pin_existing(source: str, path: Path) -> None:
    """Bind a namespace file of /proc to `path`, so that the namespace outlives its processes."""
    fault("open", path)
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        mount.bind(source, path)
    except OSError:
        os.unlink(path)
        raise


def pin_of(pid: int, started: int, kind: str, path: Path) -> None:
    """Pin a namespace of that very process: its start time is looked at once the namespace is open.

    Raises ProcessLookupError when it has ended.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from exc
    try:
        with process.pin(pid, started) as pinned:
            if pinned is None or not pinned.alive():
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        pin_existing(f"/proc/self/fd/{descriptor}", path)
    finally:
        os.close(descriptor)


def unpin(path: Path) -> None:
    """Let a pinned namespace go. Idempotent."""
    while True:
        try:
            mount.detach(path)
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                break
            raise
    files.unlink(path)


def namespace_id(path: str | os.PathLike[str]) -> int:
    """The inode number that identifies a namespace."""
    return os.stat(path).st_ino


def set_sysctls(values: Mapping[str, str], namespaces: Iterable[Path]) -> None:
    """Write kernel parameters, by their files in /proc/sys, as whoever is in these pinned namespaces sees them.

    Raises OSError with the file's name.
    """

    def write() -> None:
        for name, value in values.items():
            _write_sysctl(name, value)

    act_inside(namespaces, write)


def act_inside(namespaces: Iterable[Path], act: Callable[[], None]) -> None:
    """Do something as a thread that has entered pinned namespaces, and ends then. Blocks. Raises OSError."""
    failure: list[OSError] = []

    def run() -> None:
        try:
            for path in namespaces:
                enter(path)
            act()
        except OSError as exc:
            failure.append(exc)

    thread = threading.Thread(target=run, name=f"{act.__name__} inside")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _write_sysctl(name: str, value: str) -> None:
    """Those of an IPC namespace in another user namespace are for its root alone, whatever rights others have."""
    fault("write", name)
    try:
        _write(name, value)
    except PermissionError:
        _become(os.stat(name).st_uid)
        try:
            _write(name, value)
        finally:
            _become(0)


def _write(name: str, value: str) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as exc:
        raise OSError(exc.errno, os.strerror(exc.errno or errno.EIO), name) from exc
    finally:
        os.close(descriptor)


def _become(uid: int) -> None:
    """Change the effective user of the calling thread, and of no other, as setresuid(3) of libc would."""
    syscall(SYS_SETRESUID, "setresuid", -1, uid, -1)


def set_loopback_up() -> None:
    """Bring up `lo` in the calling thread's network namespace (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, request))
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | IFF_UP))
