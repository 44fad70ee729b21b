"""Random calls, kills and restarts against a small model of what the node should say; after each step it says so.

A failure prints the steps and a blob for @reproduce_failure; HOLDFAST_SEED plays the same examples again.
"""

import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kit.crash import recovered
from kit.model import CREATED, EXITED, READY, RUNNING, Container, Model, Pod, Refused
from kit.node import Node, until

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

SEED = os.environ.get("HOLDFAST_SEED", "")
NAMES = st.sampled_from(["a", "b"])
ATTEMPTS = st.integers(0, 1)
COLOURS = st.sampled_from(["red", "blue"])
CODES = st.sampled_from([0, 1, 42, 255])
LASTING = "trap 'exit 3' TERM; echo ready; while [ ! -e /end ]; do sleep 0.02; done; exit $(cat /end)"

ADOPTED = find_spec("holdfast.workers.shim.adopt") is not None

pytestmark = pytest.mark.timeout(3600)
node: Node  # one for all examples: a daemon of its own for each would cost half a second


class Machine(RuleBasedStateMachine):
    """Calls the node and the model; both must agree on what comes of it."""

    pods = Bundle("pods")  # ids of pods that are removed stay in it, to be asked for again
    containers = Bundle("containers")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.configs: dict[str, Any] = {}

    @initialize(target=pods)
    def nobody(self) -> str:
        return "0123456789abcdef" * 4

    @initialize(target=containers)
    def nothing(self) -> str:
        return "fedcba9876543210" * 4

    # -- pods

    @rule(target=pods, name=NAMES, attempt=ATTEMPTS, colour=COLOURS)
    def run_pod(self, name: str, attempt: int, colour: str) -> Any:
        config = node.pod_config(name, attempt=attempt, labels={"colour": colour, "nonce": secrets.token_hex(4)})
        pod_id = self.agreed(lambda: self.model.may_run(name, attempt), lambda: node.run_pod(config))
        if pod_id is None:
            return multiple()
        self.new(pod_id, config)
        self.model.ran(pod_id, Pod(name, attempt, colour))
        return pod_id

    @rule(pod=pods)
    def run_it_again(self, pod: str) -> None:
        """A client that has not heard the answer asks once more."""
        if pod in self.model.pods:
            found = self.agreed(lambda: self.model.run_again(pod), lambda: node.run_pod(self.configs[pod]))
            assert found in (pod, None)

    @rule(pod=pods)
    def stop_pod(self, pod: str) -> None:
        self.model.stop_pod(pod)
        node.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))

    @rule(pod=pods)
    def remove_pod(self, pod: str) -> None:
        self.model.remove_pod(pod)
        node.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))

    # -- containers

    @rule(target=containers, pod=pods, name=NAMES, attempt=ATTEMPTS, colour=COLOURS, code=st.one_of(st.none(), CODES))
    def create(self, pod: str, name: str, attempt: int, colour: str, code: int | None) -> Any:
        script = LASTING if code is None else f"exit {code}"
        labels = {"colour": colour, "nonce": secrets.token_hex(4)}
        config = node.container_config(script, name, attempt=attempt, labels=labels)
        config.log_path = f"{name}-{attempt}-{labels['nonce']}.log"
        may = lambda: self.model.may_create(pod, name, attempt)  # noqa: E731
        container_id = self.agreed(may, lambda: node.create(pod, config))
        if container_id is None:
            return multiple()
        self.new(container_id, config)
        self.model.created(container_id, Container(pod, name, attempt, colour, code))
        return container_id

    @rule(container=containers)
    def create_it_again(self, container: str) -> None:
        if container in self.model.containers:
            pod, config = self.model.containers[container].pod, self.configs[container]
            found = self.agreed(lambda: self.model.create_again(container), lambda: node.create(pod, config))
            assert found in (container, None)

    @rule(container=containers)
    def start(self, container: str) -> None:
        self.agreed(lambda: self.model.start(container), lambda: node.start_container(container))
        if self.running(container):
            self.until_ready(container)

    @rule(container=containers, gracefully=st.booleans())
    def stop(self, container: str, gracefully: bool) -> None:
        self.model.stop(container, gracefully=gracefully)
        node.stop_container(container, 20 if gracefully else 0)

    @rule(container=containers)
    def remove(self, container: str) -> None:
        self.model.remove(container)
        node.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container))

    @rule(container=containers, code=CODES)
    def execute(self, container: str, code: int) -> None:
        found = self.agreed(
            lambda: self.model.may_exec(container),
            lambda: node.exec(container, ["/bin/sh", "-c", f"echo out; exit {code}"]),
        )
        if found is not None:
            assert (found.stdout, found.stderr, found.exit_code) == (b"out\n", b"", code)

    @rule(container=containers, megabytes=st.integers(32, 64))
    def update(self, container: str, megabytes: int) -> None:
        limits = pb.LinuxContainerResources(memory_limit_in_bytes=megabytes << 20)
        request = pb.UpdateContainerResourcesRequest(container_id=container, linux=limits)
        may = lambda: self.model.may_update(container)  # noqa: E731
        if self.agreed(may, lambda: node.call("UpdateContainerResources", request)) is not None:
            assert node.status(container).resources.linux.memory_limit_in_bytes == megabytes << 20

    @rule(container=containers, code=CODES)
    def it_ends_by_itself(self, container: str, code: int) -> None:
        if self.running(container):
            self.end(container, code)

    # -- kills and restarts

    @rule()
    def kill_the_daemon(self) -> None:
        node.restart()

    @rule()
    def restart_the_daemon(self) -> None:
        node.restart(signal.SIGTERM)

    @rule(container=containers, code=CODES)
    def it_ends_while_the_daemon_is_down(self, container: str, code: int) -> None:
        if self.running(container):
            path = self.end_of(container)
            node.kill()
            self.write_end(path, code)
            self.model.end(container, code)
            node.start()

    @rule(container=containers, code=CODES)
    def it_ends_as_the_daemon_dies(self, container: str, code: int) -> None:
        if self.running(container):
            self.end(container, code)
            node.restart()

    @precondition(lambda self: ADOPTED)
    @rule(pod=pods)
    def kill_a_shim(self, pod: str) -> None:
        if pod in self.model.pods and self.model.pods[pod].state == READY:
            before = until(lambda: shim_of(pod), "a shim")
            os.kill(before, signal.SIGKILL)
            until(lambda: shim_of(pod) not in (0, before), "another shim")

    # -- what is said

    @rule(state=st.sampled_from([CREATED, RUNNING, EXITED]), colour=COLOURS)
    def list_some_containers(self, state: str, colour: str) -> None:
        self.agree()
        wanted = pb.ContainerFilter(
            state=pb.ContainerStateValue(state=pb.ContainerState.Value(state)), label_selector={"colour": colour}
        )
        found = node.call("ListContainers", pb.ListContainersRequest(filter=wanted)).containers
        ours = self.model.containers.items()
        assert {one.id for one in found} == {id for id, one in ours if (one.state, one.colour) == (state, colour)}

    @rule(pod=pods)
    def list_a_pods_containers(self, pod: str) -> None:
        wanted = pb.ContainerFilter(pod_sandbox_id=pod)
        found = node.call("ListContainers", pb.ListContainersRequest(filter=wanted)).containers
        assert sorted(one.id for one in found) == sorted(self.model.of_pod(pod))

    @rule(colour=COLOURS)
    def list_some_pods(self, colour: str) -> None:
        wanted = pb.PodSandboxFilter(label_selector={"colour": colour})
        found = node.call("ListPodSandbox", pb.ListPodSandboxRequest(filter=wanted)).items
        assert {one.id for one in found} == {id for id, one in self.model.pods.items() if one.colour == colour}

    @rule(pod=pods)
    def ask_for_a_pod(self, pod: str) -> None:
        def may() -> None:
            if pod not in self.model.pods:
                raise Refused(grpc.StatusCode.NOT_FOUND)

        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod)
        found = self.agreed(may, lambda: node.call("PodSandboxStatus", request))
        if found is not None:
            assert sorted(one.id for one in found.containers_statuses) == sorted(self.model.of_pod(pod))

    @invariant()
    def agree(self) -> None:
        """What the node lists is what the model has, at once or, for what happens by itself, in a moment."""
        with contextlib.suppress(AssertionError):
            until(lambda: self.said() == self.meant(), "agreement", 20)
        assert self.said() == self.meant()

    def teardown(self) -> None:
        until(lambda: recovered(node), "recovery to end")
        for pod in node.pods():
            node.remove_pod(pod.id)
        assert node.containers() == []
        until(lambda: not node.leftovers(), f"nothing to be left, but there is {node.leftovers()}")

    # -- steps

    def agreed(self, model: Callable[[], None], real: Callable[[], Any]) -> Any:
        """The node's answer; None when it refuses, as the model does."""
        refused = None
        try:
            model()
        except Refused as exc:
            refused = exc.code
        try:
            answer = real()
        except grpc.RpcError as exc:
            assert exc.code() is refused, f"{exc.code()}: {exc.details()}, should be {refused or 'OK'}"
            return None
        assert refused is None, f"should have been refused with {refused}"
        return True if answer is None else answer

    def new(self, id: str, config: Any) -> None:
        assert id not in self.configs, "an id was given away twice"
        self.configs[id] = config

    def running(self, container: str) -> bool:
        return container in self.model.containers and self.model.containers[container].state == RUNNING

    def until_ready(self, container: str) -> None:
        log = Path(node.status(container).log_path)
        until(lambda: log.exists() and b"ready" in log.read_bytes(), "the container to be ready")

    def end(self, container: str, code: int) -> None:
        self.write_end(self.end_of(container), code)
        self.model.end(container, code)

    def end_of(self, container: str) -> Path:
        return Path(f"/proc/{node.pid(container)}/root/end")

    def write_end(self, path: Path, code: int) -> None:
        """As a whole: the container looks at any moment."""
        part = path.with_name("part")
        part.write_text(str(code))
        part.rename(path)

    def said(self) -> object:
        pods, containers = node.pods(), node.containers()
        exited = {one.id: one for one in containers if pb.ContainerState.Name(one.state) == EXITED}
        return (
            sorted(
                (pod.id, pod.metadata.name, pod.metadata.attempt, pb.PodSandboxState.Name(pod.state)) for pod in pods
            ),
            sorted(
                (
                    one.id,
                    one.pod_sandbox_id,
                    one.metadata.name,
                    one.metadata.attempt,
                    pb.ContainerState.Name(one.state),
                    node.status(one.id).exit_code if one.id in exited else 0,
                )
                for one in containers
            ),
        )

    def meant(self) -> object:
        return (
            sorted((id, pod.name, pod.attempt, pod.state) for id, pod in self.model.pods.items()),
            sorted(
                (id, one.pod, one.name, one.attempt, one.state, one.exit_code)
                for id, one in self.model.containers.items()
            ),
        )


def shim_of(pod: str) -> int:
    return next((one.pid for one in keeper.workers(node.state) if one.id == pod), 0)


@pytest.fixture(scope="module", autouse=True)
def one_node() -> Iterator[None]:
    global node
    node = Node()
    node.start()
    node.busybox()
    try:
        yield
    finally:
        node.purge()


def play(examples: int, steps: int, first: str) -> None:
    print(f"HOLDFAST_SEED={first}")
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=False,
        database=None,
        print_blob=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(int(first, 16))(Machine), settings=how)


def test_the_node_agrees_with_the_model() -> None:
    play(examples=12, steps=25, first=SEED or "1")


@pytest.mark.soak
def test_the_node_agrees_with_the_model_for_long() -> None:
    play(examples=150, steps=60, first=SEED or secrets.token_hex(4))
