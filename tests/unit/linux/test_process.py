"""linux.process with real processes: identity, pidfds, exit status from the kernel, reaping."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.linux import process


def child(script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def sleeper() -> subprocess.Popen[bytes]:
    """A process that ends with its standard input."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def test_boot_id_and_start_time() -> None:
    assert process.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    first, second = process.start_time(os.getpid()), process.start_time(1)
    assert first is not None and second is not None
    assert first >= second


def test_of_no_process() -> None:
    with sleeper() as gone:
        pass
    assert process.start_time(gone.pid) is None
    assert process.state(gone.pid) == ""
    with process.pin(gone.pid, None) as pinned:
        assert pinned is None


@pytest.mark.parametrize("pid", [0, -1, 2**31 - 1])
def test_numbers_that_are_no_process(pid: int) -> None:
    with process.pin(pid, None) as pinned:
        assert pinned is None


def test_a_name_with_brackets_does_not_confuse() -> None:
    with child("open('/proc/self/comm','w').write(') S 1 (('); print(flush=True); input()") as odd:
        assert odd.stdout is not None
        odd.stdout.readline()
        assert process.state(odd.pid) in ("S", "R")
        assert isinstance(process.start_time(odd.pid), int)


def test_children_are_those_of_all_threads() -> None:
    with sleeper() as mine, ThreadPoolExecutor(1) as other, other.submit(sleeper).result() as its:
        assert {mine.pid, its.pid} <= set(process.children(os.getpid()))
    assert not {mine.pid, its.pid} & set(process.children(os.getpid()))
    assert process.children(its.pid) == []


def test_an_end_is_awaited_for_so_long() -> None:
    with sleeper() as one, process.pin(one.pid, None) as pinned:
        assert pinned is not None
        began = time.monotonic()
        assert pinned.alive(0.05)
        assert time.monotonic() - began >= 0.05
        one.kill()
        assert not pinned.alive(60)


def test_pin_compares_the_start_time() -> None:
    with sleeper() as one:
        started = process.start_time(one.pid)
        assert started is not None
        with process.pin(one.pid, started + 1) as pinned:
            assert pinned is None
        with process.pin(one.pid, started) as pinned:
            assert pinned is not None
            assert pinned.alive()
            assert not os.get_inheritable(pinned.fd)
            assert pinned.send(signal.SIGKILL)
            os.waitid(os.P_PIDFD, pinned.fd, os.WEXITED | os.WNOWAIT)
            assert not pinned.alive()  # a zombie
            assert pinned.send(0)
            one.wait()
            assert not pinned.alive()
            assert not pinned.send(signal.SIGKILL)


def kernel_tells() -> bool:
    return tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 15)


@pytest.mark.skipif(not kernel_tells(), reason="PIDFD_INFO_EXIT is Linux 6.15")
@pytest.mark.parametrize(
    ("ending", "code", "number"), [("raise SystemExit(42)", 42, 0), ("import os; os.kill(os.getpid(), 9)", 0, 9)]
)
def test_exit_status_seen_by_one_who_is_not_the_parent(ending: str, code: int, number: int) -> None:
    """The process is a grandchild whose parent reaps it; all that is here is a pidfd."""
    parent = child(
        "import os, subprocess, sys\n"
        f"one = subprocess.Popen([sys.executable, '-c', 'input()\\n{ending}'], stdin=subprocess.PIPE)\n"
        "print(one.pid, flush=True); input(); one.communicate(b'\\n'); print('reaped', flush=True); input()"
    )
    with parent:
        assert parent.stdout is not None and parent.stdin is not None
        pid = int(parent.stdout.readline())
        with process.pin(pid, process.start_time(pid)) as pinned:
            assert pinned is not None
            assert pinned.exit_status() is None
            parent.stdin.write(b"\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == b"reaped\n"
            status = pinned.exit_status()
        parent.stdin.write(b"\n")
        parent.stdin.flush()
    assert status is not None
    assert (os.WEXITSTATUS(status), os.WTERMSIG(status)) == (code, number)


def run_alone(script: str) -> str:
    """What a fresh interpreter prints: for what would change this one for good."""
    code = f"import os, signal, sys\nfrom holdfast.linux import process\n{script}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_peek_leaves_the_zombie_and_reap_takes_it() -> None:
    said = run_alone(
        "assert process.peek_exited() is None\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(7)\n"
        "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
        "assert process.peek_exited() == process.peek_exited() == (pid, os.CLD_EXITED, 7)\n"
        "assert process.state(pid) == 'Z'\n"
        "process.reap(pid); process.reap(pid)\n"
        "print(process.peek_exited(), repr(process.state(pid)))"
    )
    assert said == "None ''"


def test_a_subreaper_inherits_orphans() -> None:
    said = run_alone(
        "process.set_child_subreaper()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    if os.fork() == 0: signal.pause()\n"
        "    os._exit(0)\n"
        "process.reap(pid)\n"
        "orphan = int(open('/proc/thread-self/children').read())\n"
        "os.kill(orphan, 9)\n"
        "os.waitid(os.P_PID, orphan, os.WEXITED | os.WNOWAIT)\n"
        "print(process.peek_exited()[1:] == (os.CLD_KILLED, 9))"
    )
    assert said == "True"


def test_a_fork_beside_other_threads_goes_on() -> None:
    """One that waits for the interpreter's lock is not there in the child, which must not wait for it in turn."""
    said = run_alone(
        "import select, threading, time\n"
        "sys.setswitchinterval(1e-6)\n"
        "threading.Thread(target=exec, args=('while True: pass',), daemon=True).start()\n"
        "for _ in range(10):\n"
        "    if (pid := process.fork()) == 0: time.sleep(0.001); time.sleep(0.001); os._exit(7)\n"
        "    with open(os.pidfd_open(pid)) as child:\n"
        "        if not select.select([child], [], [], 30)[0]: os.kill(pid, 9)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
        "print('all', flush=True)\n"
        "os._exit(0)"
    )
    assert said == "all"


def test_set_name() -> None:
    assert (
        run_alone("process.set_name('a name that is too long'); print(open('/proc/self/comm').read())")
        == ("a name that is ").strip()
    )


def test_close_fds_except_closes_all_others() -> None:
    said = run_alone(
        "fds = [os.open('/dev/null', 0) for _ in range(20)]\n"
        "process.close_fds_except([0, 1, 2, fds[3], fds[4], fds[17]])\n"
        "kept = [fd for fd in fds if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "print(kept == [fds[3], fds[4], fds[17]])"
    )
    assert said == "True"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs privileges to drop")
def test_drop_capabilities_for_good() -> None:
    said = run_alone(
        "process.drop_capabilities({1})\n"
        "found = dict(line.split(':\\t') for line in open('/proc/self/status').read().splitlines())\n"
        "sets = [int(found['Cap' + name], 16) for name in ('Eff', 'Prm', 'Inh', 'Bnd', 'Amb')]\n"
        "print(*sets, found['NoNewPrivs'])"
    )
    assert said == "2 2 0 2 0 1"


def test_an_age_is_that_of_the_process_and_grows() -> None:
    first = process.age()
    began = time.clock_gettime(time.CLOCK_BOOTTIME) - (process.start_time(os.getpid()) or 0) / os.sysconf("SC_CLK_TCK")
    assert 0 < first <= process.age()
    assert abs(process.age() - began) < 5
