"""Which pods and containers a list shows."""

from types import SimpleNamespace as Namespace
from typing import Any

import pytest

from holdfast.cri import filters
from holdfast.model.state import ContainerState, PodState
from holdfast.proto import runtime_v1_pb2 as pb


def pod(id: str, state: PodState = PodState.READY, *, there: bool = True, **labels: str) -> Any:
    config = pb.PodSandboxConfig(labels=labels)
    status = Namespace(ready=state is PodState.READY)
    return Namespace(meta=Namespace(id=id), state=state, status=status, config=config, acknowledged=there)


def container(id: str, state: ContainerState = ContainerState.RUNNING, *, there: bool = True, **labels: str) -> Any:
    config = pb.ContainerConfig(labels=labels)
    return Namespace(meta=Namespace(id=id, pod_id=f"p{id}"), state=state, config=config, acknowledged=there)


def ids(found: list[Any]) -> list[str]:
    return [one.meta.id for one in found]


PODS = [
    pod("aa1", app="web", tier="front"),
    pod("aa2", PodState.NOTREADY, app="web"),
    pod("b", app="db"),
    pod("c", there=False, app="web"),
]
CONTAINERS = [
    container("aa1", app="web", tier="front"),
    container("aa2", ContainerState.EXITED, app="web"),
    container("b", ContainerState.UNKNOWN, app="db"),
    container("c", there=False, app="web"),
    container("d", ContainerState.CREATED),
]
READY = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
EXITED = pb.ContainerStateValue(state=pb.CONTAINER_EXITED)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (pb.PodSandboxFilter(), ["aa1", "aa2", "b"]),
        (pb.PodSandboxFilter(id="aa"), ["aa1", "aa2"]),
        (pb.PodSandboxFilter(state=READY), ["aa1", "b"]),
        (pb.PodSandboxFilter(label_selector={"app": "web"}), ["aa1", "aa2"]),
        (pb.PodSandboxFilter(label_selector={"app": "web", "tier": "front"}), ["aa1"]),
        (pb.PodSandboxFilter(id="aa", state=READY, label_selector={"app": "db"}), []),
    ],
    ids=str,
)
def test_pods(wanted: pb.PodSandboxFilter, found: list[str]) -> None:
    assert ids(filters.pods(PODS, wanted)) == found


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (pb.ContainerFilter(), ["aa1", "aa2", "b", "d"]),
        (pb.ContainerFilter(id="aa"), ["aa1", "aa2"]),
        (pb.ContainerFilter(pod_sandbox_id="pb"), ["b"]),
        (pb.ContainerFilter(state=EXITED), ["aa2"]),
        (pb.ContainerFilter(label_selector={"app": "web"}, pod_sandbox_id="paa2"), ["aa2"]),
        (pb.ContainerFilter(label_selector={"app": ""}), []),
    ],
    ids=str,
)
def test_containers(wanted: pb.ContainerFilter, found: list[str]) -> None:
    assert ids(filters.containers(CONTAINERS, wanted)) == found


def test_statistics_are_of_what_runs() -> None:
    assert ids(filters.ready_pods(PODS, pb.PodSandboxStatsFilter())) == ["aa1", "b"]
    assert ids(filters.ready_pods(PODS, pb.PodSandboxStatsFilter(label_selector={"app": "db"}))) == ["b"]
    assert ids(filters.running_containers(CONTAINERS, pb.ContainerStatsFilter())) == ["aa1", "b"]
    assert ids(filters.running_containers(CONTAINERS, pb.ContainerStatsFilter(pod_sandbox_id="paa"))) == ["aa1"]
