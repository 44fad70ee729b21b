"""F37: checkpoints fill the disk, or are cut off: no half archive counts, nothing is left, and what ran runs on."""

import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from kit import disk, invariants
from kit.checkpoints import (
    COUNT,
    PRIVATE,
    checkpoint,
    checkpoint_pod,
    emptied,
    follow,
    lines,
    lost,
    numbers,
    place,
    restore,
    restore_pod,
    run,
)
from kit.crash import Inject, at_rest, pids, read
from kit.node import Node, node, until
from kit.tools import CRIU, needs_criu

from holdfast.checkpoint import sealed
from holdfast.lifecycle.freezing import LEASE_SECONDS
from holdfast.linux import cgroup, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_criu]

T = TypeVar("T")
ROUNDS = 12
STEP = 0.015  # s between the moments of two rounds; they cover all that CRIU does
STUCK_SECONDS = 30  # for a runtime that hangs a hundred would go by


@pytest.fixture(scope="module")
def one() -> Iterator[Node]:
    with node("auto", inject=True, checkpoints=True, criu_path=CRIU) as made:
        yield made


@pytest.fixture
def inject(one: Node) -> Iterator[Inject]:
    with emptied(one, at_once=False):
        yield Inject(one)


@pytest.fixture
def counter(one: Node, inject: Inject) -> str:
    container_id = run(one)
    until(lambda: len(lines(one, container_id)) > 5, "a few numbers")
    return container_id


class Asked(threading.Thread):
    """A CheckpointContainer that somebody else waits for."""

    def __init__(self, one: Node, container_id: str, target: Path, timeout: int = 60) -> None:
        super().__init__(name=str(target))
        self._call = lambda: checkpoint(one, container_id, target, timeout)
        self.error: grpc.RpcError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except grpc.RpcError as exc:
            self.error = exc

    def answer(self) -> grpc.StatusCode | None:
        """What came of it; None for an archive."""
        self.join(90)
        assert not self.is_alive()
        return self.error.code() if self.error is not None else None


def goes_on(one: Node, container_id: str) -> None:
    at = len(numbers(one, container_id))
    until(lambda: len(numbers(one, container_id)) > at + 3, "the container to go on")
    assert follow(numbers(one, container_id), lost(one, container_id))


def nothing_left(one: Node, target: Path) -> None:
    """Neither an archive, whole or half, nor what it was made of."""
    until(lambda: not os.listdir(one.root / "checkpoints"), "what was being written to go")
    assert not os.listdir(target.parent)


def at(inject: Inject, point: str, asked: Callable[[], Asked]) -> tuple[int, Asked]:
    """Whoever stands at that point, and who has asked."""
    inject.disarm(point)
    inject.arm(point, 1)
    found = asked()
    return until(lambda: inject.hit(point), point), found


def test_checkpoints_until_the_disk_is_full(one: Node, counter: str, tmp_path: Path) -> None:
    with disk.small("ext4", tmp_path, 64 << 20) as small:
        made = []
        with pytest.raises(grpc.RpcError) as failure:
            for number in range(1000):
                made.append(checkpoint(one, counter, small / f"{number}.tar"))
                (small / f"ballast-{number}").write_bytes(bytes(6 << 20))
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(small) in failure.value.details()
        assert made
        assert sorted(small.glob("*.tar")) == sorted(made)
        assert not [name for name in os.listdir(small) if name.startswith(".")]
        for number, archive in enumerate(made):
            sealed.unpack(archive, tmp_path / f"read-{number}", "container", 1 << 30)
        goes_on(one, counter)
        invariants.check(one)


@pytest.mark.parametrize("call", ["fail-fsync", "fail-rename"])
def test_a_disk_that_fills_up_in_the_middle(one: Node, inject: Inject, counter: str, call: str) -> None:
    target = place(one, "full.tar")
    point, asked = at(inject, "checkpoint.thawed", lambda: Asked(one, counter, target))
    (one.inject / call).write_text("1 28")  # ENOSPC, of what the daemon does from here on
    inject.go_on(point)
    assert asked.answer() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (one.inject / f"{call}.hit").unlink()
    nothing_left(one, target)
    goes_on(one, counter)
    checkpoint(one, counter, target)
    target.unlink()


@pytest.mark.parametrize("victim", ["shim", "runc"])
def test_shim_or_runc_is_killed_at_any_moment(one: Node, inject: Inject, counter: str, victim: str) -> None:
    """CRIU comes to its end all the same, and nobody in the container notices."""
    target, failed, pod = place(one, "killed.tar"), 0, pod_of(one, counter)
    for round_ in range(ROUNDS):
        asked = Asked(one, counter, target)
        until(lambda: criu_of(one) or not asked.is_alive(), "CRIU")  # noqa: B023
        time.sleep(round_ * STEP)
        shims = [worker.pid for worker in keeper.workers(one.state) if worker.id == pod]
        end(shims if victim == "shim" else at_work(one).values())
        if asked.answer() is None:
            target.unlink()
        else:
            failed += 1
        nothing_left(one, target)
        goes_on(one, counter)
    assert failed
    checkpoint(one, counter, target)
    target.unlink()


@pytest.mark.parametrize("rounds", [ROUNDS // 3, pytest.param(ROUNDS * 5, marks=pytest.mark.soak)])
def test_criu_itself_is_killed(one: Node, inject: Inject, rounds: int) -> None:
    """While it is in the registers of a process that may cost it its life, and then that is told; all else goes on."""
    target = place(one, "killed.tar")
    for round_ in range(rounds):
        container_id = run(one)
        until(lambda: len(lines(one, container_id)) > 3, "a few numbers")  # noqa: B023
        asked = Asked(one, container_id, target)
        until(lambda: criu_of(one) or not asked.is_alive(), "CRIU")  # noqa: B023
        time.sleep(round_ % ROUNDS * STEP * ROUNDS / min(rounds, ROUNDS))
        end(criu_of(one))
        if asked.answer() is None:
            target.unlink()
        nothing_left(one, target)
        at_rest(one)
        lives_or_tells(one, container_id)
        ends_at_once(one, container_id)


def test_criu_leaves_a_child_that_is_stopped(one: Node, inject: Inject, counter: str) -> None:
    """As it has for a moment when it looks what the kernel can do: that child has the socket on which runc waits."""
    target = place(one, "killed.tar")
    for _ in range(ROUNDS * 5):
        asked = Asked(one, counter, target)
        until(lambda: criu_of(one) or not asked.is_alive(), "CRIU")  # noqa: B023
        child = 0
        for criu in criu_of(one):
            while process.state(criu) not in ("", "Z") and not child:
                child = next(iter(process.children(criu)), 0)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child or criu, signal.SIGSTOP)
                os.kill(criu, signal.SIGKILL)
        caught = child and until(lambda: process.state(child) in ("T", "Z", ""), "it to stand still")  # noqa: B023
        caught = caught and process.state(child) == "T"
        began, answer = time.monotonic(), asked.answer()
        if answer is None:
            target.unlink()
        nothing_left(one, target)
        goes_on(one, counter)
        if caught:
            assert answer is grpc.StatusCode.UNKNOWN
            assert time.monotonic() - began < STUCK_SECONDS
            until(lambda: process.state(child) in ("", "Z"), "it to be ended")  # noqa: B023
            return
    pytest.fail("no child of CRIU was met")


def test_a_pod_is_stopped_whose_criu_hangs(one: Node, inject: Inject, counter: str) -> None:
    target = place(one, "hangs.tar")
    asked, criu = with_a_held_criu(one, counter, target)
    pod = pod_of(one, counter)
    one.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod), STUCK_SECONDS)
    assert one.exited(counter).exit_code == 137
    assert asked.answer() is not None
    until(lambda: process.state(criu) in ("", "Z"), "it to be ended")
    nothing_left(one, target)


def lives_or_tells(one: Node, container_id: str) -> None:
    """A container over which CRIU was killed goes on, or has ended and says of which signal."""
    at = len(lines(one, container_id))

    def runs() -> bool:
        return bool(one.status(container_id).state == pb.CONTAINER_RUNNING)

    until(lambda: len(lines(one, container_id)) > at + 3 or not runs(), "the container to go on, or to end of it")
    if runs():
        assert not cgroup.frozen(path_of(one, container_id))
    else:
        assert one.status(container_id).exit_code in (128 + signal.SIGTRAP, 128 + signal.SIGSEGV)


def ends_at_once(one: Node, container_id: str) -> None:
    pod = pod_of(one, container_id)
    one.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod), STUCK_SECONDS)
    one.remove_pod(pod)


def at_work(one: Node) -> dict[int, int]:
    """The CRIUs that this node's shims have running, as runc calls them, and whose child each is.

    A runc begins several, one after the other, of which some only say what they can do.
    """
    ours = f"--root\0{one.state}/oci/runc\0".encode()
    runcs = {pid for pid in pids() if ours in read(pid, "cmdline")}
    parents = {pid: process.parent(pid) for pid in pids() if b"\0swrk\0" in read(pid, "cmdline")}
    return {pid: parent for pid, parent in parents.items() if parent in runcs}


def criu_of(one: Node) -> list[int]:
    return list(at_work(one))


def end(victims: Iterable[int]) -> None:
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, signal.SIGKILL)


def held(one: Node) -> int:
    """A CRIU that has been stopped; 0 when none of those that there were lived long enough for that."""
    for pid in criu_of(one):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            until(lambda: process.state(pid) in ("T", "Z", ""), "it to stand still")  # noqa: B023
            if process.state(pid) == "T":
                return pid
    return 0


def with_a_held_criu(one: Node, container_id: str, target: Path) -> tuple[Asked, int]:
    """A checkpoint that goes on no more, and whom it waits for; one that is over before that is begun again."""
    while True:
        asked = Asked(one, container_id, target)
        while asked.is_alive():
            if criu := held(one):
                return asked, criu
        assert asked.answer() is None
        target.unlink()


def of_a_restore(one: Node, pod: str, victim: str) -> list[int]:
    """Who is at work on it of those that are to die."""
    found = {
        "criu": criu_of(one),
        "runc": list(at_work(one).values()),
        "shim": [worker.pid for worker in keeper.workers(one.state) if worker.id == pod],
    }
    return [pid for name in victim.split(" and ") for pid in found[name]]


def test_the_daemon_is_gone_and_what_was_frozen_goes_on_by_itself(one: Node, inject: Inject, counter: str) -> None:
    target, path = place(one, "daemon.tar"), path_of(one, counter)
    _, asked = at(inject, "checkpoint.packed", lambda: Asked(one, counter, target))
    assert cgroup.frozen(path)
    one.kill()
    asked.answer()
    until(lambda: not cgroup.frozen(path), "the shim to thaw it")
    one.start()
    nothing_left(one, target)
    goes_on(one, counter)


def pod_of(one: Node, container_id: str) -> str:
    return next(found.pod_sandbox_id for found in one.containers() if found.id == container_id)


def path_of(one: Node, container_id: str) -> str:
    return f"{one.cgroup}/{pod_of(one, container_id)}/{container_id}"


def test_the_shim_is_killed_and_its_successor_thaws(one: Node, inject: Inject, counter: str) -> None:
    target, pod = place(one, "shim.tar"), pod_of(one, counter)
    point, asked = at(inject, "checkpoint.packed", lambda: Asked(one, counter, target))
    shim = next(worker.pid for worker in keeper.workers(one.state) if worker.id == pod)
    os.kill(shim, signal.SIGKILL)
    inject.go_on(point)
    assert asked.answer() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
    nothing_left(one, target)
    goes_on(one, counter)


def test_a_stop_ends_a_checkpoint_and_is_not_held_up_by_it(one: Node, inject: Inject, counter: str) -> None:
    target = place(one, "stopped.tar")
    point, asked = at(inject, "shim.dumping", lambda: Asked(one, counter, target))
    stopping = threading.Thread(target=lambda: one.stop_container(counter), name="stop")
    stopping.start()
    stopping.join(30)
    assert not stopping.is_alive()
    assert one.exited(counter).exit_code == 137
    inject.go_on(point)
    assert asked.answer() is grpc.StatusCode.FAILED_PRECONDITION
    nothing_left(one, target)


def unless_refused(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except grpc.RpcError as exc:
        assert exc.code() is grpc.StatusCode.FAILED_PRECONDITION, exc
        return None


def test_a_checkpoint_that_takes_too_long_is_given_up(one: Node, inject: Inject, counter: str) -> None:
    target = place(one, "late.tar")
    point, asked = at(inject, "shim.dumping", lambda: Asked(one, counter, target, timeout=5))
    assert asked.answer() is grpc.StatusCode.DEADLINE_EXCEEDED
    nothing_left(one, target)
    goes_on(one, counter)
    inject.go_on(point)
    again = until(lambda: unless_refused(lambda: checkpoint(one, counter, target)), "the first CRIU to end")
    assert again == target
    goes_on(one, counter)
    target.unlink()


@pytest.mark.parametrize("victim", ["criu", "runc", "shim", "shim and runc"])
def test_a_restore_is_cut_off(one: Node, inject: Inject, counter: str, victim: str) -> None:
    archive = checkpoint(one, counter, place(one, "kept.tar"))
    for round_ in range(6):
        pod = one.run_pod(one.pod_config(**PRIVATE))
        errors: list[grpc.RpcError] = []

        def start(pod: str = pod, errors: list[grpc.RpcError] = errors) -> None:
            try:
                restore(one, archive, pod)
            except grpc.RpcError as exc:
                errors.append(exc)

        starting = threading.Thread(target=start, name="restore")
        starting.start()
        until(lambda: criu_of(one) or not starting.is_alive(), "CRIU")  # noqa: B023
        time.sleep(round_ * 0.03)
        end(of_a_restore(one, pod, victim))
        starting.join(60)
        assert not starting.is_alive()
        (found,) = [each for each in one.containers() if each.pod_sandbox_id == pod]
        if errors and one.status(found.id).state == pb.CONTAINER_EXITED:
            assert one.status(found.id).reason == "StartError"
            until(lambda: not cgroup.exists(f"{one.cgroup}/{pod}/{found.id}"), "nobody to be left")  # noqa: B023
        elif errors:  # nothing was begun, as far as the next shim can tell
            assert "shim" in victim and one.status(found.id).state == pb.CONTAINER_CREATED
        else:
            until(lambda: len(numbers(one, found.id)) > 3, "the container to go on")  # noqa: B023
        one.remove_pod(pod)
    archive.unlink()


@pytest.mark.parametrize(
    "ends", ["stopped", pytest.param("left alone", marks=pytest.mark.soak), "cut off from its daemon"]
)
def test_a_container_that_is_restored_first_stands_still_as_long_as_that_is_wanted(
    one: Node, inject: Inject, ends: str
) -> None:
    pod = one.run_pod(one.pod_config(**PRIVATE))
    counters = [one.run(pod, COUNT, name, **PRIVATE) for name in ("first", "second")]
    until(lambda: all(len(numbers(one, each)) > 3 for each in counters), "a few numbers")
    archive = place(one, "held.tar")
    checkpoint_pod(one, pod, archive)
    one.remove_pod(pod)
    inject.arm("shim.restoring", 2)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        restoring = pool.submit(restore_pod, one, archive, name="held")
        point = until(lambda: inject.hit("shim.restoring"), "the second one's turn")
        inject.disarm("shim.restoring")
        (made,) = one.pods()
        held = next(each.id for each in one.containers() if each.state == pb.CONTAINER_RUNNING)
        path = f"{one.cgroup}/{made.id}/{held}"
        assert cgroup.frozen(path)
        if ends == "cut off from its daemon":
            one.kill()
            until(lambda: not cgroup.frozen(path), "its lease to end")
            inject.go_on(point)
            one.start()
            until(lambda: not one.pods(), "the pod to be removed")
            assert restoring.exception() is not None
            return
        later = time.monotonic() + LEASE_SECONDS + 2
        until(lambda: not cgroup.frozen(path) or time.monotonic() > later, "its lease to be over")
        assert cgroup.frozen(path) and not numbers(one, held)
        if ends == "stopped":
            stopping = pool.submit(one.call, "StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=made.id))
            until(lambda: one.status(held).state == pb.CONTAINER_EXITED, "it to end")
            inject.go_on(point)
            assert restoring.exception() is not None
            stopping.result()
            until(lambda: not one.pods(), "the pod to be removed")
        else:
            inject.go_on(point)
            assert restoring.result() == made.id
            counters = [each.id for each in one.containers()]
            until(lambda: all(len(numbers(one, each)) > 3 for each in counters), "both to go on")
            assert all(follow(numbers(one, each)) for each in counters)
