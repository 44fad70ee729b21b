"""Crash points: stop a process at one, kill whom you like, let the rest go on, and see whether it all comes right."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc

from holdfast.linux import process
from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper
from kit.node import Node, until

SOURCE = Path(__file__).parents[2] / "src" / "holdfast"
CALL = re.compile(r'crashpoint\("([a-z.-]+)"\)')
QUIET_LOOKS = 30  # one after the other at a trace, 10 ms apart: who stood still as long has not looked
T = TypeVar("T")
AGAIN = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def every_point() -> frozenset[str]:
    """The name of every crash point of daemon, keeper and workers; the agent is a process apart, with its own."""
    return _points(path for path in SOURCE.rglob("*.py") if "agent" not in path.relative_to(SOURCE).parts)


def every_agent_point() -> frozenset[str]:
    return _points((SOURCE / "agent").rglob("*.py"))


def _points(paths: Iterable[Path]) -> frozenset[str]:
    return frozenset(name for path in paths for name in CALL.findall(path.read_text()))


@dataclass(frozen=True, order=True)
class Combination:
    """Stop `operation` when `point` is passed for the n-th time, and kill `victim`."""

    operation: str
    point: str
    count: int
    victim: str  # "daemon", "shim", "both" or "self": whoever has passed the point

    def __str__(self) -> str:
        return f"{self.operation}:{self.point}:{self.count}:{self.victim}"


def shuffled(everything: list[T], seed: str) -> list[T]:
    """By `seed` and what each is called: one more in the list, as when something was done again, moves no other."""
    return sorted(everything, key=lambda one: hashlib.sha256(f"{seed}:{one}".encode()).digest())


class Inject:
    """The test's side of linux.inject."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._directory = node.inject

    def start_trace(self) -> None:
        (self._directory / "trace").write_text("")

    def end_trace(self) -> Counter[str]:
        """How often each point was passed and each call ("fail-CALL") made, once nobody has done so for a while."""
        trace, seen = self._directory / "trace", [-1] * QUIET_LOOKS

        def quiet() -> bool:
            seen[:] = [*seen[1:], trace.stat().st_size]
            return seen[0] == seen[-1]

        until(quiet, "quiet", every=0.01)
        lines = trace.read_text().splitlines()
        trace.unlink()
        return Counter(line.split()[1] for line in lines)

    def arm(self, point: str, count: int) -> None:
        (self._directory / point).write_text(str(count))

    def disarm(self, point: str) -> None:
        """Whoever stands still at the point goes on standing still."""
        self._take_back(point)
        (self._directory / f"{point}.hit").unlink(missing_ok=True)

    def missed(self, point: str) -> int:
        """Nobody passes the point any more: like `hit`, and 0 is the last word."""
        self._take_back(point)
        if not (self._directory / f"{point}.hit").exists():
            return 0
        return until(lambda: self.hit(point), "whoever has just passed it to stand still")

    def _take_back(self, point: str) -> None:
        """While nobody counts: who has found it has it until it has another name."""
        with contextlib.suppress(FileNotFoundError), (self._directory / point).open() as armed:
            fcntl.flock(armed, fcntl.LOCK_EX)
            (self._directory / point).unlink(missing_ok=True)

    def hit(self, point: str) -> int:
        """The process that stands still at the point, 0 when none does yet."""
        try:
            pid = int((self._directory / f"{point}.hit").read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return pid if process.state(pid) in ("T", "") else 0

    def go_on(self, pid: int) -> None:
        os.kill(pid, signal.SIGCONT)

    def shims(self) -> set[int]:
        """The shims of this node, whether or not the keeper can be asked."""
        mark = f"HOLDFAST_INJECT={self._directory}".encode()
        return {
            pid for pid in pids() if read(pid, "comm") == b"hf-shim\n" and mark in read(pid, "environ").split(b"\0")
        }

    def kill_shim(self, pod_id: str) -> None:
        """SIGKILL a pod's shim and wait until another one has taken its place."""

        def shim() -> list[int]:
            return [one.pid for one in keeper.workers(self._node.state) if one.id == pod_id]

        before = until(shim, "a shim")
        os.kill(before[0], signal.SIGKILL)
        until(lambda: (now := shim()) and now != before, "another shim")

    def strike(self, pid: int, victim: str, spared: set[int]) -> bool:
        """Kill; whoever stands at the point and is not among the victims goes on. Returns whether there was a victim.

        `spared` are shims of pods that have nothing to do with it.
        """
        node = self._node
        assert node.process is not None
        shims = sorted(self.shims() - spared)
        daemon = [node.process.pid]
        victims = {"daemon": daemon, "shim": shims, "both": shims + daemon, "self": [pid]}[victim]
        if victim == "both" and not shims:
            victims = []
        for one in victims:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(one, signal.SIGKILL)
        if pid not in victims:
            with contextlib.suppress(ProcessLookupError):  # it went with them
                os.kill(pid, signal.SIGCONT)
        if node.process.pid in victims:
            node.hang_up()
            node.process.wait()
        return bool(victims)


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def read(pid: int, name: str) -> bytes:
    """A file of a process; b"" when it has gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def recovered(node: Node) -> bool:
    """Whether the recovery of this start is over."""
    stub = node_pb2_grpc.NodeStub(node.channel)
    report = json.loads(stub.Recovery(node_pb2.RecoveryRequest(), timeout=10).json)
    return bool(report["total_milliseconds"])


def wrong(node: Node) -> Iterator[str]:
    """What is said of containers and pods that cannot be true, at rest."""
    containers, pods = node.containers(), node.pods()
    names = Counter((one.pod_sandbox_id, one.metadata.name, one.metadata.attempt) for one in containers)
    names.update(("pod", pod.metadata.name, pod.metadata.attempt) for pod in pods)
    yield from (f"{name} is there {count} times" for name, count in names.items() if count > 1)
    for one in containers:
        pid = node.info(one.id)["pid"]
        lives = bool(pid) and process.state(pid) not in ("", "Z", "X")
        if one.state == pb.CONTAINER_UNKNOWN:
            yield f"container {one.metadata.name} is UNKNOWN"
        if lives != (one.state == pb.CONTAINER_RUNNING):
            state = pb.ContainerState.Name(one.state)
            yield f"container {one.metadata.name} is {state}, its pid {pid} {'lives' if lives else 'is gone'}"


def paths(node: Node) -> set[str]:
    """Every file and directory below root and state; two states at rest with the same objects have the same."""
    found = set()
    for top in (node.root, node.state):
        for directory, names, files in os.walk(top):
            found |= {os.path.join(directory, name) for name in (*names, *files)}
    return found


def nothing_more_on_disk(node: Node, than: set[str]) -> None:
    """Wait until it is so: a keeper that takes the place of one that was killed rehearses first."""
    try:
        until(lambda: paths(node) <= than, "nothing to be left on disk", 10)
    except AssertionError:
        raise AssertionError(f"left on disk: {sorted(paths(node) - than)}") from None


def at_rest(node: Node) -> None:
    """Wait until what is said is true."""
    try:
        until(lambda: not list(wrong(node)), "the truth", 20)
    except AssertionError:
        raise AssertionError(f"false state: {list(wrong(node))}") from None
