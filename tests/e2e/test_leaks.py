"""Nothing leaks, whatever is killed when: cgroups (F29), files and inodes (F32); and an error is not absence (F06)."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kit import disk, invariants
from kit.crash import Inject, paths, recovered
from kit.node import Node, node, until

from holdfast.linux import cgroup, files, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

LONG = (pytest.mark.soak, pytest.mark.timeout(1800))


def cgroups(one: Node) -> list[str]:
    """Every cgroup of a node in every hierarchy, those below containers' too."""
    tops = [top / one.cgroup.strip("/") for top in dict.fromkeys(cgroup.hierarchies().values())]
    return sorted(level for top in tops for level, _, _ in os.walk(top))


@pytest.fixture(scope="module")
def brittle() -> Iterator[Node]:
    with node(inject=True) as one:
        yield one


# -- F06


@pytest.mark.alone
@pytest.mark.parametrize("which", ["its process", "its shim", "the first"])
def test_f06_a_process_that_cannot_be_looked_at_once_is_not_leaked(brittle: Node, which: str) -> None:
    """The question for pids fails in the recovery's own look, once."""
    pod = brittle.run_pod()
    container = brittle.run(pod, "while :; do sleep 1; done")
    pid, started = brittle.pid(container), process.start_time(brittle.pid(container))
    (shim,) = [worker.pid for worker in keeper.workers(brittle.state) if worker.id == pod]
    brittle.kill()
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    number = {"its process": pids.index(pid), "its shim": pids.index(shim), "the first": 0}[which] + 1
    (brittle.inject / "fail-process").write_text(f"{number} {errno.EIO}")
    brittle.start()
    until(lambda: recovered(brittle), "recovery to end")
    until((brittle.inject / "fail-process.hit").exists, "the question to have failed")
    (brittle.inject / "fail-process.hit").unlink()
    assert brittle.status(container).state == pb.CONTAINER_RUNNING
    assert (brittle.pid(container), process.start_time(pid)) == (pid, started)
    assert process.state(shim) not in ("", "Z")
    invariants.check(brittle)
    brittle.remove_pod(pod)


def test_f06_a_mount_table_that_cannot_be_read_is_not_an_empty_one(brittle: Node) -> None:
    """Nothing is removed on the strength of a question that was not answered."""
    pod = brittle.run_pod(brittle.pod_config(network=pb.POD))
    container = brittle.run(pod, "sleep 1000")
    brittle.kill()
    for call in ("cgroup-list", "mountinfo"):
        (brittle.inject / f"fail-{call}").write_text(f"1 {errno.EIO}")
    brittle.start()
    until(lambda: recovered(brittle), "recovery to end")
    assert brittle.status(container).state == pb.CONTAINER_RUNNING
    for call in ("cgroup-list", "mountinfo"):
        for name in (f"fail-{call}", f"fail-{call}.hit"):
            (brittle.inject / name).unlink(missing_ok=True)
    invariants.check(brittle)
    brittle.remove_pod(pod)


# -- F29


@pytest.mark.parametrize("point", ["shim.mounted", "shim.created", "shim.made", "shim.starting", "start.created"])
def test_f29_killed_between_cgroup_and_start(brittle: Node, point: str) -> None:
    """Daemon and shim die when the container's cgroup is there and the container is not; the name is free again."""
    inject = Inject(brittle)
    pod = brittle.run_pod()
    before = cgroups(brittle)
    container = brittle.create(pod, brittle.container_config("sleep 1000", name="again"))
    inject.arm(point, 1)

    def start() -> None:
        with contextlib.suppress(grpc.RpcError):
            brittle.start_container(container)

    starting = threading.Thread(target=start)
    starting.start()
    pid = until(lambda: inject.hit(point), f"{point} to be reached")
    inject.strike(pid, "both", spared=set())
    starting.join()
    inject.disarm(point)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    brittle.start()
    invariants.check(brittle)
    brittle.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container))
    until(lambda: cgroups(brittle) == before, "the cgroups to be as before")
    brittle.remove_pod(pod)
    pod = brittle.run_pod()
    again = brittle.run(pod, "exit 4", name="again")
    assert brittle.exited(again).exit_code == 4
    brittle.remove_pod(pod)
    invariants.check(brittle)
    until(lambda: cgroups(brittle) == [], "all cgroups to be gone")


def test_f29_a_cgroup_that_somebody_is_in_is_neither_joined_nor_killed(brittle: Node) -> None:
    pod = brittle.run_pod()
    container = brittle.create(pod, brittle.container_config("sleep 1000"))
    path = f"{brittle.cgroup}/{pod}/{container}"
    cgroup.create(path)
    with subprocess.Popen(["sleep", "1000"]) as foreign:
        try:
            cgroup.enter(path, foreign.pid)
            with pytest.raises(grpc.RpcError) as refused:
                brittle.start_container(container)
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert path in refused.value.details() and "not its own" in refused.value.details()
            assert brittle.status(container).state == pb.CONTAINER_CREATED
            with pytest.raises(grpc.RpcError) as refused:
                brittle.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container))
            assert path in refused.value.details()
            brittle.restart()
            until(lambda: recovered(brittle), "recovery to end")
            assert foreign.poll() is None, "somebody else's process was killed"
        finally:
            foreign.kill()
    until(lambda: brittle.containers() == [], "the removal to be finished")
    invariants.check(brittle)
    brittle.remove_pod(pod)


def cycle(one: Node, number: int) -> None:
    """A container that ends in one way or another, and its name again."""
    pod = one.run_pod(one.pod_config(f"cycle-{number % 2}", pid=pb.POD if number % 3 == 0 else pb.CONTAINER))
    script = ("exit 0", "sleep 1000", "kill -9 $$", "sleep 1000 & exit 1")[number % 4]
    container = one.run(pod, script)
    if "1000" in script:
        one.stop_container(container)
    one.exited(container)
    if number % 2:
        one.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container))
    one.remove_pod(pod)


@pytest.mark.parametrize("count", [12, pytest.param(500, marks=LONG)])
def test_f29_cgroups_do_not_pile_up(brittle: Node, count: int) -> None:
    before = cgroups(brittle)
    for number in range(count):
        cycle(brittle, number)
    until(lambda: cgroups(brittle) == before, f"the cgroups to be {before} again")
    unified = cgroup.hierarchies().get("", Path("/nowhere")) / brittle.cgroup.strip("/")
    assert not unified.exists()


# -- F32


class Crashes:
    """Kills the daemon, or daemon and shims, at some time during each operation."""

    def __init__(self, one: Node, seed: int) -> None:
        self._node = one
        self._random = random.Random(seed)

    def during(self, operation: threading.Thread) -> None:
        assert self._node.process is not None
        operation.start()
        time.sleep(self._random.uniform(0, 0.12))
        if self._random.random() < 0.3:
            for worker in keeper.workers(self._node.state):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        self._node.process.kill()
        operation.join()
        self._node.hang_up()
        self._node.process.wait()
        self._node.start()


def lives(one: Node, number: int) -> None:
    with contextlib.suppress(grpc.RpcError):
        pod = one.run_pod(one.pod_config(f"crash-{number}", network=pb.POD))
        one.run(pod, "echo hello > /written; exit 0")
        one.remove_pod(pod)


def hidden(place: Path) -> int:
    """Inodes in use to which no name leads: the filesystem's own, and those of deleted files that are still held."""
    named = {os.lstat(place).st_ino}
    for directory, names, plain in os.walk(place):
        for name in (*names, *plain):
            with contextlib.suppress(FileNotFoundError):  # it goes just now
                named.add(os.lstat(os.path.join(directory, name)).st_ino)
    found = files.filesystem(place)
    return found.total_inodes - found.free_inodes - len(named)


@pytest.mark.parametrize(("count", "every"), [(30, 3), pytest.param(300, 2, marks=LONG)], ids=["sample", "soak"])
def test_f32_no_file_and_no_inode_is_left(count: int, every: int, tmp_path: Path) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    print(f"HOLDFAST_SEED={seed}")
    with disk.small("ext4", tmp_path) as place:
        unnamed = hidden(place)
        one = Node()
        one.root = place
        crashes = Crashes(one, seed)
        try:
            one.start()
            one.busybox()
            lives(one, 0)  # whatever is made once and kept
            invariants.check(one)
            before = paths(one)
            for number in range(count):
                if number % every == 0:
                    crashes.during(threading.Thread(target=lives, args=(one, number + 1)))
                else:
                    lives(one, number + 1)
            until(lambda: recovered(one), "recovery to end")
            for pod in one.pods():
                one.remove_pod(pod.id)
            invariants.check(one)
            until(lambda: paths(one) == before, f"nothing more and nothing less: {sorted(paths(one) ^ before)[:20]}")
            until(lambda: hidden(place) == unnamed, "every inode without a name to be free again")
        finally:
            one.purge()
