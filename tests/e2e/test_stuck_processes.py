"""Processes that no signal reaches (state D), and F02's runtime half: no volume is torn down while one may live.

They wait for a filesystem that never answers. A pod with such a container is neither stopped nor removed: whoever asks
is told which process holds it up, and where; nothing of its volume is touched, and nobody else waits.
"""

import concurrent.futures
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest
from kit import crash, invariants
from kit.hung import Hung, hung, stopped
from kit.node import Node, until

from holdfast.linux import cgroup, mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

LONG = 90.0  # for calls that wait until a process does not die
OTHERS_SECONDS = 8.0
REFUSED = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)


class Stuck:
    """A container that waits in state D, with a volume of its pod that has somebody else's mount within.

    What waits is its init or, if that is not to, a child that the init leaves behind in the host's pid namespace.
    """

    def __init__(self, life: Node, dead: Hung, volume: Path, *, init: bool) -> None:
        self.life, self.dead = life, dead
        self.volume = volume
        self.inner = volume / "foreign"
        self.files = {volume / "own": os.urandom(999), self.inner / "data": os.urandom(4096)}
        for path, data in self.files.items():
            path.write_bytes(data)
        self.pod = life.run_pod()
        mounts = [
            pb.Mount(
                host_path=str(self.volume), container_path="/volume", propagation=pb.PROPAGATION_HOST_TO_CONTAINER
            ),
            pb.Mount(host_path=str(dead.path.parent), container_path="/nfs"),
        ]
        wait = f"cat /nfs/{dead.path.name}/file"
        if init:
            self.id = life.run(self.pod, wait.split(), mounts=mounts)
        else:
            self.id = life.run(
                self.pod, f"{wait} & while ! test -e /nfs/end; do :; done; exit 3", mounts=mounts, pid=pb.NODE
            )
        until(lambda: dead.waiting, "it to wait for the filesystem")  # in state D only when it was sent a signal
        path = f"{life.cgroup}/{self.pod}/{self.id}"
        (self.pid,) = until(lambda: [pid for pid in cgroup.pids(path) if waits(pid)], "whoever waits")
        (self.shim,) = [one.pid for one in keeper.workers(life.state) if one.id == self.pod]

    def stop(self) -> tuple[grpc.StatusCode, str]:
        return refusal(lambda: self.life.stop_container(self.id, 1))

    def calls(self, of_pod: str) -> dict[str, Callable[[], object]]:
        """Ways to have the container, or its pod, gone."""
        container, kind = pb.RemoveContainerRequest(container_id=self.id), getattr(pb, f"{of_pod}Request")
        return {
            "StopContainer": lambda: self.life.stop_container(self.id, 1),
            "RemoveContainer": lambda: self.life.call("RemoveContainer", container, LONG),
            of_pod: lambda: self.life.call(of_pod, kind(pod_sandbox_id=self.pod), LONG),
        }

    def refuses(self, answers: Mapping[str, concurrent.futures.Future[tuple[grpc.StatusCode, str]]]) -> None:
        """Each says which container it is, and none that all is well."""
        for name, answer in answers.items():
            code, told = answer.result()
            assert code in REFUSED, f"{name}: {code} {told}"
            assert self.id in told, f"{name}: {told}"

    def is_there_still(self) -> None:
        assert process.state(self.pid) == "D"
        assert [one.id for one in self.life.containers()] == [self.id]
        assert [one.id for one in self.life.pods()] == [self.pod]
        self.untouched()

    def untouched(self) -> None:
        assert [path.read_bytes() for path in self.files] == list(self.files.values())
        assert any(entry.target == str(self.inner) for entry in mount.mounts_below(self.volume))
        assert {path for path in self.volume.rglob("*") if path.is_file()} == set(self.files)


def waits(pid: int) -> bool:
    return crash.read(pid, "comm") == b"cat\n"


@pytest.fixture
def volume(life: Node) -> Iterator[Path]:
    """The directory of a volume in which somebody has mounted a filesystem of his own."""
    place = life.base / "emptyDir"
    place.mkdir()
    mount.mount("volume", place, "tmpfs", 0, "size=1m")
    mount.set_propagation(place, mount.MS_SHARED)
    inner = place / "foreign"
    inner.mkdir()
    mount.mount("foreign", inner, "tmpfs", 0, "size=1m")
    yield place
    mount.unmount_tree(place)
    place.rmdir()
    until(lambda: not life.leftovers(), "nothing to be left")


@pytest.fixture
def stuck(life: Node, volume: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stuck]:
    with hung(life.base / "nfs" / tmp_path.name) as dead:
        yield Stuck(life, dead, volume, init=getattr(request, "param", True))
    for pod in life.pods():
        life.remove_pod(pod.id)


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), str(raised.value.details())


def is_well(life: Node) -> None:
    """Another pod comes, is stopped and goes as if nothing were."""
    began = time.monotonic()
    pod = life.run_pod()
    one = life.run(pod, "trap 'exit 3' TERM; while :; do sleep 0.05; done")
    life.stop_container(one, 10)
    assert life.status(one).exit_code == 3
    life.remove_pod(pod)
    assert time.monotonic() - began < OTHERS_SECONDS, "the sick held up the healthy"


def test_a_process_in_state_d_is_named_with_where_it_waits_and_its_stop_ends_when_it_does(
    life: Node, stuck: Stuck
) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stop = pool.submit(stuck.stop)
        is_well(life)
        code, told = stop.result()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    text = f"process {stuck.pid} is in state D, waiting in "
    assert text in told and told.split(text)[1], told
    status = life.status(stuck.id)
    assert status.state == pb.CONTAINER_RUNNING
    assert status.message == f"it was sent SIGKILL, but {told[told.index(text) :]}"
    assert status.message in life.cli("inspect", stuck.id).stdout
    doctor = life.cli("doctor", check=False)
    assert doctor.returncode == 1 and text in doctor.stdout.replace("\n", " "), doctor.stdout
    life.restart()
    assert life.status(stuck.id).message == status.message, "a restart forgets nothing"
    is_well(life)
    stuck.untouched()
    stuck.dead.release()
    status = life.exited(stuck.id)
    assert (status.exit_code, status.reason, status.message) == (137, "Error", "")
    invariants.check(life)


@pytest.mark.parametrize(
    ("shim", "of_pod"),
    [("answers", "StopPodSandbox"), pytest.param("stopped", "RemovePodSandbox", marks=pytest.mark.soak)],
)
def test_f02_while_a_process_may_live_no_volume_is_torn_down(life: Node, stuck: Stuck, shim: str, of_pod: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool, contextlib.ExitStack() as stack:
        if shim == "stopped":
            stack.enter_context(stopped(stuck.shim))
        answers = {name: pool.submit(refusal, call) for name, call in stuck.calls(of_pod).items()}
        is_well(life)
        stuck.refuses(answers)
        stuck.is_there_still()
    stuck.dead.release()
    life.remove_pod(stuck.pod)
    assert not life.containers() and not life.pods()
    stuck.untouched()


@pytest.mark.soak  # forty seconds, for its clients wait for a clean-up and not for a kill
@pytest.mark.parametrize("stuck", [False], indirect=True, ids=["a child"])
def test_f02_while_what_an_init_has_left_behind_may_live_no_volume_is_torn_down(life: Node, stuck: Stuck) -> None:
    end = stuck.dead.path.parent / "end"
    end.touch()
    assert life.exited(stuck.id).exit_code == 3
    calls = stuck.calls("RemovePodSandbox")
    del calls["StopContainer"]  # its init has exited: it is stopped
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = {name: pool.submit(refusal, call) for name, call in calls.items()}
        is_well(life)
        stuck.refuses(answers)
    stuck.is_there_still()
    end.unlink()
    stuck.dead.release()
    life.remove_pod(stuck.pod)
    assert not life.containers() and not life.pods()
    stuck.untouched()
