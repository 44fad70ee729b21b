"""F04: a path that never answers, as on a dead NFS server. It delays its own pod, takes no name for ever, and ends."""

import concurrent.futures
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from kit.hung import Hung, hung
from kit.node import Node, node, until

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub

PATH_SECONDS, RUNTIME_SECONDS = 6, 8  # what is well takes 0.3, or some on a busy machine


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(path_timeout=PATH_SECONDS, runtime_timeout=RUNTIME_SECONDS) as one:
        yield one


@pytest.fixture
def dead(life: Node) -> Iterator[Hung]:
    with hung(life.base / "nfs") as one:
        yield one


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), str(raised.value.details())


def is_well(life: Node) -> None:
    """Another pod comes, works and goes as if nothing were."""
    began = time.monotonic()
    pod = life.run_pod()
    assert life.exited(life.run(pod, "exit 5")).exit_code == 5
    life.remove_pod(pod)
    assert time.monotonic() - began < PATH_SECONDS, "the sick held up the healthy"


def test_f04_a_log_directory_that_never_answers(
    life: Node, dead: Hung, clients: concurrent.futures.ThreadPoolExecutor
) -> None:
    config = life.pod_config()
    good, config.log_directory = config.log_directory, str(dead.path / "logs")
    request = pb.RunPodSandboxRequest(config=config)
    first = RuntimeServiceStub(life.channel).RunPodSandbox.future(request)
    until(lambda: dead.waiting, "somebody to wait for the path")
    assert first.cancel(), "its client goes"
    retry = clients.submit(failure, lambda: life.call("RunPodSandbox", request))
    is_well(life)
    config.log_directory = good
    code, told = failure(lambda: life.run_pod(config))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert "being created for" in told
    code, told = retry.result()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert told == f"cannot use config.log_directory {dead.path}/logs: no answer after {PATH_SECONDS} s"
    pod = life.run_pod(config)  # the name is free at once, although the path still hangs
    assert [one.id for one in life.pods()] == [pod]
    life.remove_pod(pod)


def test_f04_a_volume_that_never_answers(
    life: Node, dead: Hung, clients: concurrent.futures.ThreadPoolExecutor
) -> None:
    pod = life.run_pod()
    mounts = [pb.Mount(host_path=str(path), container_path=f"/{path.name}") for path in (life.base, dead.path / "data")]
    config = life.container_config("exit 0", "sick", mounts=mounts)
    create = clients.submit(failure, lambda: life.create(pod, config))
    until(lambda: dead.waiting, "somebody to wait for the path")
    is_well(life)
    code, told = create.result()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert told == f"cannot use config.mounts[1].host_path {dead.path}/data: no answer after {PATH_SECONDS} s"
    assert life.containers() == []
    del config.mounts[1]
    assert life.exited(life.run(pod, "exit 5", "sick", mounts=config.mounts)).exit_code == 5, "its name is free"
    life.remove_pod(pod)


def test_f04_a_volume_that_does_not_answer_any_more(life: Node, clients: concurrent.futures.ThreadPoolExecutor) -> None:
    pod, place = life.run_pod(), life.base / "dying"
    (place / "data").mkdir(parents=True)
    beside = life.run(pod, "while :; do sleep 0.02; done", "beside")
    mount = pb.Mount(host_path=str(place / "data"), container_path="/data")
    sick = life.create(pod, life.container_config("exit 0", "sick", mounts=[mount]))
    with hung(place) as dead:
        start = clients.submit(failure, lambda: life.start_container(sick))
        until(lambda: dead.waiting, "somebody to wait for the path")
        is_well(life)
        assert life.exec(beside, ["/bin/echo", "here"]).stdout == b"here\n"
        life.restart()
        is_well(life)
        assert start.result()[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert life.status(beside).state == pb.CONTAINER_RUNNING
    until(lambda: life.status(sick).state != pb.CONTAINER_UNKNOWN, "the sick one to settle")
    life.stop_container(beside)
    life.remove_pod(pod)
    until(lambda: not life.leftovers(), "nothing to be left")


def test_f04_a_volume_that_answers_again_can_be_used(life: Node) -> None:
    place = life.base / "again"
    (place / "data").mkdir(parents=True)
    pod = life.run_pod()
    mount = pb.Mount(host_path=str(place / "data"), container_path="/data")
    one = life.create(pod, life.container_config("exit 0", "one", mounts=[mount]))
    with hung(place):
        code, told = failure(lambda: life.start_container(one))
        assert code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        assert f"no end after {RUNTIME_SECONDS}" in told
    two = life.create(pod, life.container_config("exit 6", "two", mounts=[mount]))
    life.start_container(two)
    assert life.exited(two).exit_code == 6
    life.remove_pod(pod)
    until(lambda: not life.leftovers(), "nothing to be left")
