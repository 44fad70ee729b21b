"""Processes: identities that survive pid reuse, pidfds, reaping, and what a process says of itself."""

import _thread
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Container, Iterable
from types import TracebackType
from typing import Final

from holdfast.linux.inject import fault
from holdfast.linux.libc import SYS_CLONE3, check, libc

CLONE_PARENT: Final = 0x00008000
CLONE_NEWNS: Final = 0x00020000
F_ADD_SEALS: Final = 1033
F_SEAL_SEAL: Final = 0x1
F_SEAL_SHRINK: Final = 0x2
F_SEAL_GROW: Final = 0x4
F_SEAL_WRITE: Final = 0x8
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
LINUX_CAPABILITY_VERSION_3: Final = 0x20080522
NOBODY: Final = 65534
PIDFD_GET_INFO: Final = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes), linux/pidfd.h
PIDFD_INFO_EXIT: Final = 1 << 3
_PIDFD_INFO: Final = "=QQ11Ii"  # mask, cgroup id, pid, tgid, ppid, eight user and group ids, exit code

_python_api: Final = ctypes.PyDLL(None, use_errno=True)  # calls through it keep the interpreter's lock


@functools.cache
def boot_id() -> str:
    """The kernel's name for this boot, random(4)."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _stat(pid: int) -> list[bytes] | None:
    """Fields 3 and following of /proc/PID/stat; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid: int) -> int | None:
    """When the process was started, in clock ticks since boot (proc(5), field 22); None when there is none."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def age() -> float:
    """Seconds since this process was started, by whomever, to a hundredth."""
    began = start_time(os.getpid()) or 0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def state(pid: int) -> str:
    """One letter as proc(5) has it: R, S, D, Z, T...; "" when there is no such process."""
    fields = _stat(pid)
    return fields[0].decode() if fields else ""


def session(pid: int) -> int:
    """The session it is in, setsid(2), which is the pid of whoever began that; 0 when there is no such process."""
    fields = _stat(pid)
    return int(fields[3]) if fields else 0


def may_see_limits(pid: int) -> bool:
    """Whether the kernel tells us the limits of this process, prlimit(2): of others' it takes CAP_SYS_RESOURCE."""
    try:
        resource.prlimit(pid, resource.RLIMIT_CPU)
    except (PermissionError, ProcessLookupError) as exc:
        return isinstance(exc, ProcessLookupError)
    return True


def own_memory(pid: int) -> int:
    """Bytes of memory that are its own or shared with others but no file's, swapped out or not; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # whose name may be anything
            fields = dict(line.split(b":", 1) for line in file)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(fields[name].split()[0]) * 1024 for name in (b"RssAnon", b"RssShmem", b"VmSwap") if name in fields)


def parent(pid: int) -> int:
    """Its parent's pid; 0 when there is no such process."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def children(pid: int) -> list[int]:
    """Those of all its threads (/proc/PID/task/TID/children, proc(5)); none when there is no such process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def in_group(group: int) -> list[int]:
    """Who is in a process group, setpgid(2), and lives."""
    found = []
    for name in os.listdir("/proc"):
        fields = _stat(int(name)) if name.isdigit() else None
        if fields and int(fields[2]) == group and fields[0] not in (b"Z", b"X"):
            found.append(int(name))
    return found


def kill_group(group: int) -> None:
    """SIGKILL to everyone in a process group, if there is one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def stuck(pid: int) -> str:
    """Where in the kernel a thread of the process waits that no signal reaches (state D); "" when none does.

    A function's name as /proc/PID/wchan or the top of /proc/PID/stack has it or, of a kernel that tells neither, the
    system call's number.
    """
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return ""
    for thread in threads:
        if state(int(thread)) == "D":
            return _waits_in(thread)
    return ""


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it, signal(7); one that was frozen after that says that it waits."""
    return state(pid) == "T" or stuck(pid) == "do_signal_stop"


def _waits_in(pid: str) -> str:
    texts = dict.fromkeys(("wchan", "stack", "syscall"), b"")
    for name in texts:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
            texts[name] = file.read(4096)
    if texts["wchan"].strip(b"0\n"):
        return os.fsdecode(texts["wchan"].strip())
    if top := texts["stack"].partition(b"] ")[2].partition(b"+")[0].strip():
        return os.fsdecode(top)
    number = texts["syscall"].partition(b" ")[0].strip()
    return f"system call {os.fsdecode(number)}" if number.isdigit() else "a place that the kernel does not tell"


def set_oom_score_adj(value: int) -> None:
    """For this process and those it starts, proc(5); as low as the kernel lets us, which is where it is now."""
    with contextlib.suppress(PermissionError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(value))


class Pinned:
    """A process held by its pidfd: what is sent goes to it or to nobody."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self.fd = fd

    def send(self, number: int) -> bool:
        """Signal it. Returns False when it has already been reaped."""
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            return False
        return True

    def alive(self, seconds: float = 0) -> bool:
        """Whether it runs, and still does after so many seconds; a zombie does not.

        Its pidfd tells (pidfd_open(2)), whatever its number is by now.
        """
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return not poll.poll(seconds * 1000)

    def exit_status(self) -> int | None:
        """Its wait status, if the kernel tells (Linux 6.15 and later) and it has been reaped; else None."""
        buffer = bytearray(struct.pack(_PIDFD_INFO, PIDFD_INFO_EXIT, *([0] * 13)))
        try:
            fcntl.ioctl(self.fd, PIDFD_GET_INFO, buffer)
        except OSError as exc:
            if exc.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH):
                return None
            raise
        mask, *_, status = struct.unpack_from(_PIDFD_INFO, buffer)
        return int(status) if mask & PIDFD_INFO_EXIT else None

    def wait_status(self, started: int) -> int | None:
        """How it ended, as wait(2) has it: from its zombie (proc(5), field 52), or what `exit_status` knows.

        That field is 0 for whoever may not trace the process, and so says nothing unless we may.
        """
        fields = _stat(self.pid)
        if fields and fields[0] in (b"Z", b"X") and int(fields[19]) == started and _may_trace(self.pid):
            return int(fields[49])
        return self.exit_status()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _may_trace(pid: int) -> bool:
    """Whether the kernel tells us what it tells tracers: /proc/PID/io asks for the same right, and says no aloud."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            return bool(file.read())
    except OSError:
        return False


class _Pin:
    """Context manager of `pin`: the process, or None when it is gone."""

    def __init__(self, pid: int, started: int | None) -> None:
        self._pid, self._started = pid, started
        self._pinned: Pinned | None = None

    def __enter__(self) -> Pinned | None:
        self._pinned = open_pinned(self._pid, self._started)
        return self._pinned

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pinned is not None:
            self._pinned.close()


def pin(pid: int, started: int | None) -> _Pin:
    """with pin(pid, start time) as process: ...  None when it is gone or the pid is another process by now."""
    return _Pin(pid, started)


def open_pinned(pid: int, started: int | None) -> Pinned | None:
    """The same without a context; the caller closes. The start time is compared after the pidfd is open."""
    fault("pidfd_open")
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError):
        return None
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            return None
        raise
    try:
        same = started is None or start_time(pid) == started
    except OSError:
        os.close(fd)
        raise
    if not same:
        os.close(fd)
        return None
    return Pinned(pid, fd)


def arguments(pid: int) -> list[str]:
    """With what it was started (/proc/PID/cmdline, proc(5)); empty for one that has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return [os.fsdecode(word) for word in file.readall().split(b"\0")[:-1]]
    except OSError:
        return []


PF_EXITING: Final = 0x4  # flags of /proc/PID/stat, include/linux/sched.h


def is_dying(pid: int, started: int) -> bool:
    """Whether this very process has ended, is ending, or has SIGKILL before it (proc(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.readall().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            lines = dict(line.split(b":", 1) for line in file.readall().splitlines() if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return True
    pending = int(lines[b"SigPnd"], 16) | int(lines[b"ShdPnd"], 16)
    ended = fields[0] in (b"Z", b"X") or int(fields[19]) != started or int(fields[6]) & PF_EXITING
    return bool(ended or pending & 1 << signal.SIGKILL - 1)


def has_open(pid: int, path: str | os.PathLike[str]) -> bool:
    """Whether the process has this very file open (/proc/PID/fd, proc(5))."""
    try:
        wanted = os.stat(path)
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            found = os.stat(f"/proc/{pid}/fd/{descriptor}")
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False


def fork() -> int:
    """fork(2) and nothing else, for a process that has one thread; of one that has others os.fork.

    os.fork also runs what modules have registered to make up for threads that are not there in the child. Here none
    are; and running that code, in the child, costs half a megabyte of pages copied because reference counts change.
    Where there are others it is needed: the child would hang, for ever offering the interpreter's lock to one of them.
    """
    fault("fork")
    return os.fork() if _thread._count() else check(_python_api.fork(), "fork")


class _CloneArgs(ctypes.Structure):
    """struct clone_args of clone3(2), its first version."""

    _names = ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls")
    _fields_ = tuple((name, ctypes.c_uint64) for name in _names)


_SIBLING: Final = _CloneArgs(CLONE_PARENT)  # made once: a call shall touch as little memory as it can


def fork_sibling() -> int:
    """As `fork`, but the new process is a child of the caller's parent, which is told by the caller's own signal."""
    fault("clone")
    return check(_python_api.syscall(SYS_CLONE3, ctypes.byref(_SIBLING), ctypes.sizeof(_SIBLING)), "clone3")


def set_child_subreaper() -> None:
    """Orphans below this process become its children (prctl(2))."""
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def signal_at_parents_death(number: int) -> None:
    """Have the kernel send this process a signal when the thread that forked it ends (PR_SET_PDEATHSIG, prctl(2))."""
    check(libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")


def set_name(name: str) -> None:
    """What ps shows as the command's name; 15 bytes."""
    check(libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl")


def raise_file_limit() -> int:
    """Raise the soft limit on open files to the hard one. Returns what it was; it is for whatever is not ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft


def peek_exited() -> tuple[int, int, int] | None:
    """(pid, code, status) of a dead child that stays a zombie, as waitid(2) has them; None when there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return (found.si_pid, found.si_code, found.si_status) if found else None


def reap(pid: int) -> None:
    """Take a dead child off the table."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def sealed_copy(path: str) -> int:
    """A program as a memfd that nobody can change any more (memfd_create(2)).

    crun and runc make one of themselves before each command, against containers that would overwrite them
    (CVE-2019-5736), and run themselves anew; executed from one they need not.
    """
    fault("memfd", path)
    copy = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(path, "rb") as source:
            size = os.fstat(source.fileno()).st_size
            done = 0
            while done < size:
                done += os.sendfile(copy, source.fileno(), done, size - done)
        os.fchmod(copy, 0o755)
        fcntl.fcntl(copy, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    except OSError:
        os.close(copy)
        raise
    return copy


def sealed_crun(path: str) -> int:
    """The same of crun, which else binds itself to a file in /tmp first, where it stays if it is killed; else -1.

    -1 as well where that cannot be had: crun sees to itself then.
    """
    with contextlib.suppress(OSError):
        if os.path.basename(path) == "crun":
            return sealed_copy(path)
    return -1


def drop_capabilities(keep: Iterable[int]) -> None:
    """Keep only these capabilities, by number, for good (capabilities(7), capset(2), PR_SET_NO_NEW_PRIVS)."""
    kept = set(keep)
    _bound_capabilities(kept)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    bits = sum(1 << number for number in kept)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    data = struct.pack("=IIIIII", low, low, 0, high, high, 0)  # effective, permitted, inheritable; twice
    check(libc.capset(header, data), "capset")


def _bound_capabilities(kept: Container[int]) -> None:
    for number in range(64):
        if number not in kept and libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break  # EINVAL: there are no more


def become_nobody() -> None:
    """Nobody's user and group, no capability nor a way to one, and nobody may look into this process. For good."""
    _bound_capabilities(())  # first: afterwards there is no right to
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    drop_capabilities(())
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def close_fds_except(keep: Iterable[int]) -> None:
    """Close every descriptor but these; what is negative is none."""
    kept = sorted({-1, *(fd for fd in keep if fd >= 0)})
    for low, high in zip(kept, [*kept[1:], 1 << 20], strict=True):
        if low + 1 < high:  # an empty range, handed to close_range(2) as 0 to -1, would be all of them
            os.closerange(low + 1, high)
