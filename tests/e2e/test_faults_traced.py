"""As test_faults, but the kernel says no: strace makes the n-th system call of the real daemon fail.

So it reaches what no wrapper of ours does, above all SQLite. strace counts the calls of each thread by itself.
"""

import contextlib
import errno
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.node import until
from kit.registry import registry
from test_faults import OPERATIONS, Fault, Rounds, played

STORE = ("fsync", "fdatasync", "pwrite64", "ftruncate")  # on the database and its log
OWN = ("mkdir", "mkdirat", "rename", "renameat2", "unlink", "unlinkat", "rmdir", "umount2")  # on whatever
ERRORS = (errno.EIO, errno.ENOSPC)
LINE = re.compile(r"^(\d+) +(\w+)\(")
# A daemon under strace cannot ask CRIU what it can do, as that traces, too.
TRACED = [name for name in OPERATIONS if not re.search("checkpoint|restore", name)]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(7200)]


class Traced(Rounds):
    """The calls of operation "run" on the store are called "store.fsync" and so on, the others by their name."""

    def plan(self, learned: dict[str, Counter[str]]) -> list[Fault]:
        return [
            Fault(operation, call, count, error)
            for operation, calls in learned.items()
            for call, times in sorted(calls.items())
            for count in range(1, times + 1)
            for error in ERRORS
        ]

    def _learn(self, name: str) -> Counter[str]:
        """Of the thread that makes the most of each."""
        most: Counter[str] = Counter()
        for area, calls in (("store.", STORE), ("", OWN)):
            operation, out = OPERATIONS[name], self.stage.node.base / "strace"
            target = operation.prepare(self.stage)
            with self._strace(area, calls, "--output", str(out)):
                operation.act(self.stage, target)
            operation.check(self.stage, target)
            self.stage.clear()
            found = Counter(match.groups() for line in out.read_text().splitlines() if (match := LINE.match(line)))
            out.unlink()
            for (_, call), times in found.items():
                most[area + call] = max(most[area + call], times)
        return most

    @contextlib.contextmanager
    def _armed(self, one: Fault) -> Iterator[None]:
        area, dot, call = one.call.rpartition(".")
        inject = f"inject={call}:error={errno.errorcode[one.error]}:when={one.count}"
        out = self.stage.node.base / "strace"
        with self._strace(area + dot, (call,), "-e", inject, "--output", str(out)):
            yield
        self.struck += "(INJECTED)" in out.read_text()
        out.unlink()

    @contextlib.contextmanager
    def _strace(self, area: str, calls: tuple[str, ...], *options: str) -> Iterator[None]:
        node = self.stage.node
        assert node.process is not None
        pid = node.process.pid
        paths = [f"--trace-path={node.root}/holdfast.db{end}" for end in ("", "-wal")] if area else []
        command = ["strace", "-f", "-e", f"trace={','.join(calls)}", *paths, *options]
        if node.process.poll() is not None:
            with self._from_the_start(command):
                yield
            return
        command += ["-p", str(pid)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as strace:
            try:
                until(lambda: _traced(pid), "strace to hold every thread")
                yield
            finally:
                strace.send_signal(signal.SIGTERM)
                strace.wait()

    @contextlib.contextmanager
    def _from_the_start(self, command: list[str]) -> Iterator[None]:
        """A daemon that is down is to be started under strace, which is to be its grandchild."""
        node = self.stage.node
        node.wrapper = [*command, "--daemonize", "--interruptible=anywhere"]
        try:
            yield
        finally:
            for tracer in _tracers(node.process.pid if node.process else 0):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(tracer, signal.SIGTERM)
            until(lambda: not _tracers(node.process.pid if node.process else 0), "strace to let go")


def _tracers(pid: int) -> set[int]:
    """Who traces a thread of the process."""
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):
            found.add(int(path.read_text().partition("TracerPid:")[2].split()[0]))
    return found - {0}


def _traced(pid: int) -> bool:
    """Whether every thread of a process has a tracer."""
    try:
        return all("TracerPid:\t0\n" not in path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status"))
    except OSError:  # a thread has ended
        return False


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with registry() as found:
        yield found


def test_every_system_call_of_the_daemon_may_fail(host: str) -> None:
    played(Traced(host), TRACED, list)
