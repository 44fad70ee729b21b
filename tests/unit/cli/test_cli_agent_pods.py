"""How the agent's pods are shown."""

import json
from typing import Any

import pytest

from holdfast.cli.agent_pods import age, described, row, word
from holdfast.proto import agent_pb2 as pb

RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
CRASHING = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
FAILED = {"terminated": {"exitCode": 3, "reason": "Error", "message": "out of luck"}}
DONE = {"terminated": {"exitCode": 0, "reason": "Completed"}}


def container(state: dict[str, Any], restarts: int = 0, **more: Any) -> dict[str, Any]:
    ready = "running" in state
    return {
        "name": "c",
        "image": "i",
        "state": state,
        "ready": ready,
        "started": ready,
        "restartCount": restarts,
        **more,
    }


def shown(phase: str, mains: list[Any], inits: list[Any] | None = None, **more: Any) -> pb.AgentPod:
    status = {"phase": phase, "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": mains}
    status |= {"initContainerStatuses": inits or [], "podIP": "10.0.0.2"}
    return pb.AgentPod(
        namespace="n", name="p", uid="u", source="/m/p.yaml", json=json.dumps({"status": status}), **more
    )


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (shown("Running", [container(RUNNING)]), "Running"),
        (shown("Running", [container(RUNNING), container(CRASHING)]), "CrashLoopBackOff"),
        (shown("Running", [container(RUNNING), container(FAILED)]), "Error"),
        (shown("Succeeded", [container(DONE)]), "Completed"),
        (shown("Pending", [container({"waiting": {"reason": "ContainerCreating"}})]), "ContainerCreating"),
        (shown("Pending", [], [container(DONE), container(RUNNING | {}, ready=False, started=False)]), "Init:1/2"),
        (shown("Pending", [], [container(CRASHING)]), "Init:CrashLoopBackOff"),
        (shown("Running", [container(RUNNING)], [container(DONE), container(RUNNING)]), "Running"),
        (shown("Running", [container(RUNNING)], deleted_at=1), "Terminating"),
    ],
)
def test_what_a_pod_does_in_a_word(one: pb.AgentPod, said: str) -> None:
    assert word(json.loads(one.json), one.deleted_at) == said


def test_rows() -> None:
    one = shown("Running", [container(RUNNING, 2), container(CRASHING, 3)], [container(DONE, 1)])
    assert row(one) == ("n", "p", "1/2", "CrashLoopBackOff", "6", "-")
    assert row(one, wide=True)[-2:] == ("10.0.0.2", "/m/p.yaml")


def test_a_pod_described() -> None:
    events = [pb.PodEvent(at=10**9, reason="Killing", message="c: it was deleted")]
    one = shown("Running", [container(RUNNING, 1, lastState=FAILED)], events=events, volumes=["volume v: is kept"])
    lines = list(described(one))
    assert "  c: running, ready, 1 restarts" in lines
    assert "    before: terminated with 3 Error out of luck" in lines
    assert "  volume v: is kept" in lines
    assert "  1970-01-01T00:00:01Z   Killing   c: it was deleted" in lines


def test_ages() -> None:
    assert age(None) == "-"
    assert age("1970-01-01T00:00:00Z").endswith("d")
