"""Every operation with its n-th fsync, write, rename, mkdir, mount, connect, fork... failing, for each n.

It succeeds or is refused with a status that a client can act on; nobody else notices; what is said of the object is
true; the same operation succeeds once the fault is over; and then all of it can be removed, and nothing is left.

CI takes a sample; `make soak` takes all. A failure names the combination: replay it with
HOLDFAST_FAULT=operation:call:n:ERRNO (or patterns of such), or the whole sample with HOLDFAST_SEED.
"""

import contextlib
import errno
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import grpc
import pytest
import test_crash_points as operations
from kit import crash, invariants, streams
from kit.node import Node, until
from kit.registry import registry
from test_crash_points import Operation, Stage, Target, patiently

from holdfast.proto import runtime_v1_pb2 as pb

SEED = os.environ.get("HOLDFAST_SEED", "7")
SAMPLE = 64
PREFIX = "fail-"
LONGEST = 25.0
CLEAN_SECONDS = 20.0  # what could not be done at once is tried again after 1, 2, 4... s
FOR_EVER = 1_000_000
SICK_SECONDS = 2.0

pytestmark = pytest.mark.timeout(7200)

_STORAGE = (errno.EIO, errno.ENOSPC, errno.EROFS)
_MOUNT = (errno.EIO, errno.ENOSPC)
_PROCESS = (errno.EAGAIN, errno.ENOMEM)
_DESCRIPTOR = (errno.EIO, errno.EMFILE)
ERRORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("open", "write", "fsync", "syncfs", "rename", "mkdir", "mkfifo", "unpack", "log"), _STORAGE),
    **dict.fromkeys(("unlink", "rmdir"), (errno.EIO, errno.EROFS)),
    **dict.fromkeys(("mount", "fsmount", "mount_setattr", "unshare", "setns"), _MOUNT),
    **dict.fromkeys(("cgroup-mkdir", "cgroup-write"), _MOUNT),
    **dict.fromkeys(("cgroup-rmdir", "umount"), (errno.EIO, errno.EBUSY)),
    **dict.fromkeys(("fork", "clone", "spawn"), _PROCESS),
    **dict.fromkeys(("read", "openat2", "mountinfo", "pidfd_open", "memfd", "cgroup-read", "process"), _DESCRIPTOR),
    "connect": (errno.ECONNREFUSED, errno.EAGAIN),
    "bind": (errno.EIO, errno.EROFS),
}
MOST = 40  # of one call in one operation: what is passed once for every process of the machine is always the same
SERVERS_FAULT = (409, 500, 503, 504)  # HTTP statuses
CLEAR = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.DATA_LOSS,
}


@dataclass(frozen=True, order=True)
class Fault:
    """The n-th `call` of `operation` fails with `error`, or each of them for some time."""

    operation: str
    call: str
    count: int
    error: int
    lasts: bool = False

    def __str__(self) -> str:
        which = "all" if self.lasts else self.count
        return f"{self.operation}:{self.call}:{which}:{errno.errorcode[self.error]}"

    @property
    def armed(self) -> str:
        return f"{self.count} {self.error} {FOR_EVER if self.lasts else 1}"


class Violation(AssertionError):
    """Something that must not be."""


class Start(operations.Start):
    """A container whose start has failed is over; the kubelet then makes another."""

    def repeat(self, stage: Stage, target: Target) -> None:
        status = stage.node.status(target.container)
        if status.state == pb.CONTAINER_EXITED:
            assert (status.exit_code, status.reason) == (128, "StartError"), status
            config = target.container_config()
            config.metadata.attempt = 1
            stage.node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=target.container))
            target.container = stage.node.create(target.pod, config)
        super().repeat(stage, target)


class Recover(operations.Recover):
    """A daemon that cannot start says why; the next one starts."""

    def act(self, stage: Stage, target: Target) -> None:
        try:
            super().act(stage, target)
        except AssertionError:
            assert stage.node.process is not None
            assert stage.node.process.poll(), "it neither answers nor ends"
            super().act(stage, target)


class Share(Start, operations.Share):
    pass


class ForeignStart(Start, operations.ForeignStart):
    pass


OPERATIONS: dict[str, Operation] = {
    **operations.OPERATIONS, "start": Start(), "share": Share(), "foreign-start": ForeignStart(), "recover": Recover(),
}  # fmt: skip
del OPERATIONS["salvage"]  # which is what is done about a fault: a second one at the same moment may need another start


class Rounds:
    """Plays faults one after the other; a stage on which one went wrong is given up for a new one."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.violations: list[str] = []
        self.played = self.struck = self.refused = 0
        self._open()

    def _open(self) -> None:
        self.stage = Stage(self._host)
        self._settle_baseline()
        self._logged = 0

    def learn(self, names: Iterable[str]) -> dict[str, Counter[str]]:
        """How often each operation makes each call; at the second time, when everything is warm."""
        for name in names:
            operations.learn(self.stage, name)
        learned = {name: self._learn(name) for name in names}
        self._settle_baseline()
        return learned

    def _learn(self, name: str) -> Counter[str]:
        points = operations.traced(self.stage, name)
        return Counter({point.removeprefix(PREFIX): n for point, n in points.items() if point.startswith(PREFIX)})

    def _settle_baseline(self) -> None:
        self._paths = crash.paths(self.stage.node)
        self._processes = processes(self.stage.node)

    def plan(self, learned: dict[str, Counter[str]]) -> list[Fault]:
        once = [
            Fault(operation, call, count, error)
            for operation, calls in learned.items()
            for call, times in sorted(calls.items())
            for count in range(1, min(times, MOST) + 1)
            for error in errors_of(call)
        ]
        calls = dict.fromkeys((one.operation, one.call) for one in once if one.operation != "recover")
        return once + [Fault(operation, call, 1, errors_of(call)[0], lasts=True) for operation, call in calls]

    def play(self, faults: list[Fault]) -> None:
        for one in faults:
            self.played += 1
            try:
                self._strike(one)
            except Exception as exc:
                self.violations.append(f"{one}: {type(exc).__name__}: {str(exc)[:1500]}")
                print(self.violations[-1], flush=True)
                self._reopen(one)

    def _reopen(self, one: Fault) -> None:
        base = self.stage.node.base
        if keep := os.environ.get("HOLDFAST_KEEP", ""):
            shutil.copy(base / "daemon.log", Path(keep, f"{one}.log"))
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(base / "state" / "keeper.log", Path(keep, f"{one}.keeper.log"))
        try:
            self.stage.node.restart()
            self.stage.close()
        except Exception as exc:
            print(f"and it could not be cleared: {exc}", flush=True)
        self._open()

    def _strike(self, one: Fault) -> None:
        stage, operation = self.stage, OPERATIONS[one.operation]
        node = stage.node
        target = operation.prepare(stage)
        self._logged = len(node.log())
        began, refused = time.monotonic(), False
        with self._armed(one):
            try:
                operation.act(stage, target)
            except (grpc.RpcError, streams.Rejected, streams.Failed) as exc:
                refused = True
                _check_clear(exc)
            seconds = time.monotonic() - began
        self.refused += refused
        assert seconds < LONGEST, f"it took {seconds:.1f} s"
        until(lambda: crash.recovered(node), "recovery to end")
        stage.unmoved()
        crash.at_rest(node)
        if refused:
            patiently(lambda: operation.repeat(stage, target))
            crash.at_rest(node)
        operation.check(stage, target)
        stage.unmoved()
        invariants.check(node)
        stage.clear()
        with contextlib.suppress(AssertionError):
            until(lambda: not self._left(), "nothing to be left", CLEAN_SECONDS)
        if left := self._left():
            raise Violation(f"left over: {left}")
        invariants.check(node)
        _, trace, after = node.log()[self._logged :].partition("Traceback")
        if trace:
            raise Violation(f"the daemon's log has a traceback: {after[:2000]}")

    @contextlib.contextmanager
    def _armed(self, one: Fault) -> Iterator[None]:
        name = f"{PREFIX}{one.call}"
        (self.stage.node.inject / name).write_text(one.armed)
        over = threading.Timer(SICK_SECONDS, lambda: self.stage.inject.disarm(name))
        if one.lasts:
            over.start()
        try:
            yield
            self.struck += one.lasts or (self.stage.node.inject / f"{name}.hit").exists()
        finally:
            over.cancel()
            self.stage.inject.disarm(name)

    def _left(self) -> list[str]:
        node = self.stage.node
        more = processes(node) - self._processes
        return [*self.stage.leftovers(), *sorted(crash.paths(node) - self._paths), *more.elements()]


def errors_of(call: str) -> tuple[int, ...]:
    return ERRORS.get(call, (errno.EIO,))


def processes(node: Node) -> Counter[str]:
    """How many processes of each name belong to the node: all of them have its directories on their command line."""
    found: Counter[str] = Counter()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(node.base) in (entry / "cmdline").read_bytes():
                found[(entry / "comm").read_text().strip()] += 1
    return found


def _check_clear(exc: Exception) -> None:
    """A status that tells the client what to do, or a sentence of ours that says what could not be done."""
    if isinstance(exc, streams.Rejected):
        assert exc.args[0] in SERVERS_FAULT, f"refused with HTTP status {exc}"
        return
    if isinstance(exc, streams.Failed):
        assert "cannot " in str(exc), f"ended with {exc}"
        return
    assert isinstance(exc, grpc.RpcError)
    code, text = exc.code(), exc.details() or ""
    clear = code in CLEAR or (code is grpc.StatusCode.UNKNOWN and text.startswith("cannot "))
    assert clear, f"refused with {code.name}: {text}"


def sample(everything: list[Fault], seed: str) -> list[Fault]:
    """Each call in some operation, and each operation with some call, and some more until there are enough."""
    chosen = crash.shuffled(everything, seed)
    first: dict[str, Fault] = {}
    for one in chosen:
        first.setdefault(one.call, one)
        first.setdefault(f"{one.operation}:", one)
    must = list(dict.fromkeys(first.values()))
    rest = [one for one in chosen if one not in must]
    return [*must, *rest[: max(0, SAMPLE - len(must))]]


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with registry() as found:
        yield found


def played(rounds: Rounds, names: Iterable[str], choose: Callable[[list[Fault]], list[Fault]]) -> None:
    """Play what `choose` takes, or what HOLDFAST_FAULT names, of all faults of these operations."""
    wanted = os.environ.get("HOLDFAST_FAULT", "").split(",")
    try:
        everything = rounds.plan(rounds.learn(names))
        if wanted != [""]:
            everything = [one for one in everything if any(fnmatch(str(one), pattern) for pattern in wanted)]
            choose = list
        assert everything, "nothing can fail"
        rounds.play(choose(everything))
    finally:
        rounds.stage.close()
    print(f"{rounds.played} of {len(everything)} faults played: {rounds.struck} struck, {rounds.refused} were refused")
    if rounds.violations:
        pytest.fail(f"{len(rounds.violations)} of {rounds.played}:\n" + "\n".join(rounds.violations), pytrace=False)


def test_a_sample_of_faults_harms_nobody(host: str) -> None:
    print(f"HOLDFAST_SEED={SEED}")
    played(Rounds(host), OPERATIONS, lambda everything: sample(everything, SEED))


@pytest.mark.soak
def test_every_fault_harms_nobody(host: str) -> None:
    played(Rounds(host), OPERATIONS, list)
