"""A pod's status as Kubernetes would show it."""

from dataclasses import replace
from typing import Any

import pytest

from holdfast.agent.plan.actions import NS, Remembered, Turned
from holdfast.agent.plan.observed import Observed, Run, Sandbox, State
from holdfast.agent.plan.probes import Health
from holdfast.agent.plan.probes import Run as Results
from holdfast.agent.plan.status import Waiting, status, turned
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


def test_what_is_about_to_run_again_is_not_pending() -> None:
    assert shown(DONE, run("a", State.CREATED))["phase"] == "Pending"
    assert shown(DONE, run("a", State.EXITED, 0, 1), run("a", State.CREATED, 1))["phase"] == "Running"


@pytest.mark.parametrize(("finished", "code"), [("Succeeded", 0), ("Failed", 3)])
def test_over(finished: str, code: int) -> None:
    known = Remembered(begun_at=NS, finished=finished)
    found = shown(DONE, run("a", State.EXITED, code=code), known=known)
    assert found["phase"] == finished
    assert found["containerStatuses"][0]["state"]["terminated"]["exitCode"] == code
    assert conditions(found)["Ready"] == "False"


def test_what_has_a_hook_under_way_has_not_started() -> None:
    known = Remembered(begun_at=NS, health={"a-0": Health(readiness=Results(True))}, hooks={"a": 0})
    (main,) = shown(DONE, run("a", State.RUNNING), known=known)["containerStatuses"]
    assert (main["started"], main["ready"]) == (False, False)


def test_a_sidecar_that_is_not_ready_makes_the_pod_so() -> None:
    beside = Container(Name("x"), "i", restart_policy="Always", readiness_probe=PROBE)
    one = replace(POD, spec=PodSpec((Container(Name("a"), "i"),), (beside,)))
    runs = (run("x", State.RUNNING), run("a", State.RUNNING))
    found = status(one, Observed((READY,), runs), Remembered(begun_at=NS), "BestEffort", {})
    assert conditions(found) | {"Ready": "", "ContainersReady": ""} == dict.fromkeys(conditions(found), "True") | {
        "Ready": "",
        "ContainersReady": "",
    }
    ready = next(one for one in found["conditions"] if one["type"] == "ContainersReady")
    assert ready["message"] == "containers with unready status: [x]"


def test_it_is_over_when_the_last_of_it_has_ended() -> None:
    one = replace(POD, spec=PodSpec((MAIN,), (Container(Name("x"), "i", restart_policy="Always"),)))
    known = Remembered(begun_at=NS, finished="Failed")
    through = run("a", State.EXITED, code=1)
    ending = status(one, Observed((READY,), (run("x", State.RUNNING), through)), known, "BestEffort", {})
    assert ending["phase"] == "Running"
    over = status(one, Observed((READY,), (run("x", State.EXITED, code=9), through)), known, "BestEffort", {})
    assert over["phase"] == "Failed"
    assert {one["reason"] for one in over["conditions"] if "eady" in one["type"] and one["status"] == "False"} == {
        "PodFailed"
    }


def test_a_pod_that_is_to_go_is_ready_as_long_as_its_containers_are() -> None:
    known = Remembered(begun_at=NS, deleted_at=NS, health={"a-0": Health(readiness=Results(True))})
    assert conditions(shown(DONE, run("a", State.RUNNING), known=known))["Ready"] == "True"


def test_once_begun_it_stays_initialized() -> None:
    found = shown(run("x", State.EXITED, code=137), run("a", State.RUNNING))
    assert conditions(found)["Initialized"] == "True"


def test_since_when() -> None:
    there = Observed((READY,), (DONE, run("a", State.RUNNING)))
    known = Remembered(begun_at=NS)
    first = turned(POD, there, known, 5 * NS)
    assert set(first.values()) == {Turned(True, 5 * NS), Turned(False, 5 * NS)}
    known = replace(known, turned=first, health={"a-0": Health(readiness=Results(True))})
    second = turned(POD, there, known, 9 * NS)
    assert {kind for kind, one in second.items() if one == Turned(True, 9 * NS)} == {"Ready", "ContainersReady"}
    shown_now = status(POD, there, replace(known, turned=second), "BestEffort", {})["conditions"]
    assert next(one for one in shown_now if one["type"] == "Ready")["lastTransitionTime"] == "1970-01-01T00:00:09Z"
    assert next(one for one in shown_now if one["type"] == "Initialized")["lastTransitionTime"].endswith("05Z")


def test_in_the_hosts_network_the_addresses_are_the_hosts() -> None:
    one = replace(POD, spec=replace(POD.spec, host_network=True))
    found = status(one, Observed((READY,), (DONE,)), Remembered(begun_at=NS), "BestEffort", {}, ("192.0.2.1",))
    assert (found["podIP"], found["hostIP"], found["hostIPs"]) == ("192.0.2.1", "192.0.2.1", [{"ip": "192.0.2.1"}])


def test_what_the_runtime_cannot_tell_is_unknown() -> None:
    found = shown(DONE, replace(run("a", State.UNKNOWN), message="its shim does not answer"))
    assert found["phase"] == "Unknown"
    waiting = found["containerStatuses"][0]["state"]["waiting"]
    assert waiting == {"reason": "ContainerStatusUnknown", "message": "its shim does not answer"}
