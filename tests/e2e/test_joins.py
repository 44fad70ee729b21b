"""A client that asks again: joins what is under way, gets its result, or learns who has the name and what it is at."""

import concurrent.futures
import re
from collections.abc import Callable, Iterator

import grpc
import pytest
from kit.crash import Inject
from kit.node import Node, node, until

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(inject=True) as one:
        yield one


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    assert failure.value.code() is grpc.StatusCode.ALREADY_EXISTS
    return str(failure.value.details())


def test_f04_what_was_made_is_what_an_identical_request_gets(life: Node) -> None:
    config = life.pod_config(labels={"one": "1", "two": "2", "three": "3"})
    pod = life.run_pod(config)
    assert life.run_pod(config) == pod
    container = life.create(pod, life.container_config("exit 0"))
    assert life.create(pod, life.container_config("exit 0")) == container
    life.restart()
    assert (life.run_pod(config), life.create(pod, life.container_config("exit 0"))) == (pod, container)
    assert (len(life.pods()), len(life.containers())) == (1, 1)
    life.remove_pod(pod)


def test_f04_another_request_is_told_who_has_the_name_since_when_and_what_it_is_at(life: Node, pod: str) -> None:
    container = life.create(pod, life.container_config("while :; do sleep 0.02; done"))
    told = refused(lambda: life.create(pod, life.container_config("exit 1")))
    assert container in told
    assert re.search(r"CREATED for \d+ s", told)
    life.start_container(container)
    same = life.container_config("while :; do sleep 0.02; done")
    assert f"{container} has that name, RUNNING for" in refused(lambda: life.create(pod, same))
    life.stop_container(container)
    assert f"{container} has that name, EXITED for" in refused(lambda: life.create(pod, same))


def test_a_pod_that_was_stopped_is_not_what_was_asked_for(life: Node) -> None:
    config = life.pod_config()
    pod = life.run_pod(config)
    life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert f"{pod} has that name, NOTREADY for" in refused(lambda: life.run_pod(config))
    life.remove_pod(pod)


def test_f04_a_retry_joins_what_is_under_way_although_the_first_client_has_gone(
    life: Node, pod: str, clients: concurrent.futures.ThreadPoolExecutor
) -> None:
    """The daemon stands still in the middle of it; the first client goes away meanwhile, and two more ask."""
    inject = Inject(life)
    inject.arm("create.snapshot", 1)
    config = life.container_config("exit 0")
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    first = RuntimeServiceStub(life.channel).CreateContainer.future(request)
    daemon = until(lambda: inject.hit("create.snapshot"), "the daemon to stand still")
    assert first.cancel()
    retries = [clients.submit(life.create, pod, config) for _ in range(2)]
    inject.go_on(daemon)
    ids = {one.result() for one in retries}
    inject.disarm("create.snapshot")
    assert len(ids) == 1
    assert [one.id for one in life.containers()] == [*ids]


def test_f04_after_a_crash_in_the_middle_a_retry_succeeds(life: Node, clients: concurrent.futures.Executor) -> None:
    inject, config = Inject(life), life.pod_config(network=pb.POD)
    inject.arm("run.shim", 1)
    first = clients.submit(life.run_pod, config)
    until(lambda: inject.hit("run.shim"), "the daemon to stand still")
    life.kill()
    with pytest.raises(grpc.RpcError):
        first.result()
    inject.disarm("run.shim")
    life.start()
    pod = life.run_pod(config)
    assert [one.id for one in life.pods()] == [pod]
    life.remove_pod(pod)
