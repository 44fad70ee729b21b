"""A pod's status as Kubernetes would show it."""

from dataclasses import replace
from typing import Any

import pytest

from holdfast.agent.plan.actions import NS, Remembered
from holdfast.agent.plan.observed import Observed, Run, Sandbox, State
from holdfast.agent.plan.probes import Health
from holdfast.agent.plan.probes import Run as Results
from holdfast.agent.plan.status import Waiting, status
from holdfast.agent.pod.containers import Container, ExecAction, Probe
from holdfast.agent.pod.scalars import Name, Subdomain
from holdfast.agent.pod.spec import Metadata, Pod, PodSpec

READY = Sandbox("s", 0, True, addresses=("10.0.0.7", "fd00::7"))
PROBE = Probe(exec=ExecAction(("true",)))
MAIN = Container(Name("a"), "i", readiness_probe=PROBE)
POD = Pod("v1", "Pod", Metadata(Subdomain("p")), PodSpec((MAIN,), (Container(Name("x"), "i"),)))


def run(name: str, state: State, attempt: int = 0, code: int = 0) -> Run:
    times = {"created_at": (attempt + 1) * NS, "started_at": (attempt + 1) * NS, "ended_at": 90 * NS}
    return Run(name, f"{name}-{attempt}", "s", attempt, state, code=code, **times)


def shown(*runs: Run, known: Remembered | None = None, waiting: Waiting | None = None) -> dict[str, Any]:
    return status(POD, Observed((READY,), runs), known or Remembered(begun_at=NS), "BestEffort", waiting or {})


def conditions(found: dict[str, Any]) -> dict[str, str]:
    return {one["type"]: one["status"] for one in found["conditions"]}


DONE = run("x", State.EXITED)


def test_at_the_beginning() -> None:
    found = status(POD, Observed(), Remembered(begun_at=NS), "Burstable", {"x": ("ErrImagePull", "no such image")})
    assert (found["phase"], found["startTime"], found["qosClass"]) == ("Pending", "1970-01-01T00:00:01Z", "Burstable")
    assert "podIP" not in found
    assert set(conditions(found).values()) == {"False", "True"}
    assert conditions(found)["PodScheduled"] == "True"
    assert found["initContainerStatuses"][0]["state"] == {
        "waiting": {"reason": "ErrImagePull", "message": "no such image"}
    }
    assert found["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}


def test_running_and_ready() -> None:
    known = Remembered(begun_at=NS, health={"a-0": Health(readiness=Results(True))})
    found = shown(DONE, run("a", State.RUNNING), known=known)
    assert (found["phase"], found["podIP"]) == ("Running", "10.0.0.7")
    assert found["podIPs"] == [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]
    assert set(conditions(found).values()) == {"True"}
    (main,) = found["containerStatuses"]
    assert (main["ready"], main["started"], main["restartCount"], main["containerID"]) == (True, True, 0, "a-0")
    assert main["state"] == {"running": {"startedAt": "1970-01-01T00:00:01Z"}}
    assert "lastState" not in main
    (init,) = found["initContainerStatuses"]
    assert init["ready"]
    assert init["state"]["terminated"]["reason"] == "Completed"


def test_running_and_not_ready() -> None:
    found = shown(DONE, run("a", State.RUNNING))
    assert found["phase"] == "Running"
    ready = next(one for one in found["conditions"] if one["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ContainersNotReady")
    assert ready["message"] == "containers with unready status: [a]"


def test_a_crash_loop_shows_how_it_ended_last() -> None:
    waiting = {"a": ("CrashLoopBackOff", "back-off 20s restarting container a")}
    found = shown(DONE, run("a", State.EXITED, 0, 1), run("a", State.EXITED, 1, 2), waiting=waiting)
    (main,) = found["containerStatuses"]
    assert found["phase"] == "Running"
    assert main["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert (main["lastState"]["terminated"]["exitCode"], main["restartCount"]) == (2, 1)
    again = shown(DONE, run("a", State.EXITED, 0, 1), run("a", State.RUNNING, 1))["containerStatuses"][0]
    assert (again["state"].keys(), again["lastState"]["terminated"]["reason"]) == ({"running"}, "Error")


@pytest.mark.parametrize(("finished", "code"), [("Succeeded", 0), ("Failed", 3)])
def test_over(finished: str, code: int) -> None:
    known = Remembered(begun_at=NS, finished=finished)
    found = shown(DONE, run("a", State.EXITED, code=code), known=known)
    assert found["phase"] == finished
    assert found["containerStatuses"][0]["state"]["terminated"]["exitCode"] == code
    assert conditions(found)["Ready"] == "False"


def test_what_the_runtime_cannot_tell_is_unknown() -> None:
    found = shown(DONE, replace(run("a", State.UNKNOWN), message="its shim does not answer"))
    assert found["phase"] == "Unknown"
    waiting = found["containerStatuses"][0]["state"]["waiting"]
    assert waiting == {"reason": "ContainerStatusUnknown", "message": "its shim does not answer"}
