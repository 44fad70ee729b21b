"""How pods live: as users of Kubernetes expect it, seen through a real agent and a real daemon.

Each test runs several pods at once, and looks at what the agent says of them and at what they have done.
"""

import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from kit.agent import FOREVER, Agent, box
from kit.ports import free_port


def command(script: str) -> dict[str, Any]:
    """The action of a probe or of a hook."""
    return {"exec": {"command": ["/bin/sh", "-c", script]}}


def every_second(**more: Any) -> dict[str, Any]:
    """A probe that fails, or succeeds, at once: however slow the machine is, it is not its time that is over."""
    return {"periodSeconds": 1, "timeoutSeconds": 30, "failureThreshold": 1, **more}


class Diary:
    """A directory of the host in which pods write down what they do, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o777)
        path.chmod(0o777)
        self.volumes = [{"name": "diary", "hostPath": {"path": str(path)}}]
        self.mounts = [{"name": "diary", "mountPath": "/diary"}]

    def box(self, name: str, script: str = FOREVER, **more: Any) -> dict[str, Any]:
        return box(name, script, volumeMounts=self.mounts, **more)

    def lines(self, file: str = "it") -> list[str]:
        path = self.path / file
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def diary(there: Agent) -> Diary:
    return Diary(there.base / "diary")


def backing_off(there: Agent, pod: str) -> dict[str, Any] | None:
    """The status of its container c, if that waits in a crash loop."""
    found = there.container(pod, "c")
    return found if found["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff" else None


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def condition(there: Agent, pod: str, kind: str) -> dict[str, Any]:
    return next((one for one in there.status(pod).get("conditions", []) if one["type"] == kind), {})


def test_how_containers_end_and_begin_again(there: Agent, diary: Diary) -> None:
    """Restart policies of pods and containers, and what is told of a run that is over."""
    once = "if [ -e /diary/again ]; then exit 0; fi; touch /diary/again; exit 42"
    rule = {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}
    there.write_pods(
        always={"containers": [box("c", "echo because > /dev/termination-log; exit 3")]},
        failing={"restartPolicy": "OnFailure", "containers": [box("c", "exit 4")]},
        done={"restartPolicy": "OnFailure", "containers": [box("c", "exit 0")]},
        failed={
            "restartPolicy": "Never",
            "containers": [
                box("c", "echo one; echo two >&2; exit 5", terminationMessagePolicy="FallbackToLogsOnError"),
                box("good", "exit 0"),
            ],
        },
        own={"containers": [box("c", "exit 0", restartPolicy="Never"), box("d")]},
        ruled={
            "volumes": diary.volumes,
            "restartPolicy": "Never",
            "containers": [diary.box("c", once, restartPolicy="Never", restartPolicyRules=[rule])],
        },
        greedy={
            "restartPolicy": "Never",
            "containers": [box("c", "tail /dev/zero", resources={"limits": {"memory": "16Mi"}})],
        },
    )
    for name, code in (("always", 3), ("failing", 4)):
        found = there.until(lambda name=name: backing_off(there, name), name)
        pause = 5 << found["restartCount"]  # seconds: 10 after the second run
        assert found["state"]["waiting"]["message"] == (
            f"back-off {pause}s restarting failed container=c pod={name}_default({name}-0)"
        )
        assert (found["restartCount"] >= 1, found["ready"], found["started"]) == (True, False, False)
        last = found["lastState"]["terminated"]
        assert (last["exitCode"], last["reason"], last.get("message", "")) == (code, "Error", "because\n" * (code == 3))
        assert last["startedAt"] <= last["finishedAt"]
        assert there.phase(name) == "Running"
        there.until(
            lambda name=name: there.shown(name) == ["default", name, "0/1", "CrashLoopBackOff"], "it to be shown"
        )
    there.until(lambda: there.phase("done") == "Succeeded", "a pod that is done")
    assert there.container("done", "c")["state"]["terminated"]["reason"] == "Completed"
    assert condition(there, "done", "Ready")["reason"] == "PodCompleted"
    assert there.shown("done")[2:] == ["0/1", "Completed"]
    there.until(lambda: there.phase("failed") == "Failed", "a pod that has failed")
    over = there.container("failed", "c")["state"]["terminated"]
    assert (over["exitCode"], over["message"]) == (5, "one\ntwo")
    assert there.container("failed", "c")["restartCount"] == 0
    assert condition(there, "failed", "Ready")["reason"] == "PodFailed"
    there.until(lambda: "terminated" in there.container("own", "c")["state"], "a container to be through")
    there.until(lambda: there.running("d") and there.phase("own") == "Running", "the other to run")
    there.until(lambda: there.phase("ruled") == "Succeeded", "what a rule begins again")
    assert there.container("ruled", "c")["restartCount"] == 1
    assert there.container("ruled", "c")["lastState"]["terminated"]["exitCode"] == 42
    there.until(lambda: there.phase("greedy") == "Failed", "the memory to be all")
    over = there.container("greedy", "c")["state"]["terminated"]
    assert (over["exitCode"], over["reason"]) == (137, "OOMKilled")
    there.ended("always", "failing", "done", "failed", "own", "ruled", "greedy")


def test_init_containers_and_sidecars(there: Agent, diary: Diary) -> None:
    """One after the other, sidecars beside the rest, and the end in reverse order."""

    def says(name: str, more: str = "") -> dict[str, Any]:
        """Writes down when it begins and when it is asked to end."""
        script = f"echo {name} >> /diary/it; trap 'echo {name} ends >> /diary/it; exit' TERM; {more}sleep 1000 & wait"
        return diary.box(name, script)

    gate = every_second(failureThreshold=60, **command("test -e /diary/gate"))
    sidecar = {"restartPolicy": "Always"}
    there.write_pods(
        order={
            "volumes": diary.volumes,
            "terminationGracePeriodSeconds": 30,
            "initContainers": [
                diary.box("first", "echo first >> /diary/it"),
                {**says("near"), **sidecar, "startupProbe": gate},
                diary.box("second", "echo second >> /diary/it"),
                {**says("far"), **sidecar},
            ],
            "containers": [says("main")],
        },
        never={
            "restartPolicy": "Never",
            "initContainers": [box("i", "exit 7")],
            "containers": [box("c")],
        },
        looping={"initContainers": [box("i", "exit 8")], "containers": [box("c")]},
        job={
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 30,
            "volumes": diary.volumes,
            "initContainers": [diary.box("beside", "trap 'exit 9' TERM; touch /diary/so; sleep 99 & wait", **sidecar)],
            "containers": [diary.box("c", "while ! [ -e /diary/so ]; do sleep 0.1; done")],
        },
    )
    there.until(lambda: diary.lines() == ["first", "near"], "the first sidecar")
    assert not there.container("order", "near")["started"]
    assert there.phase("order") == "Pending"
    initialized = condition(there, "order", "Initialized")
    assert initialized["message"] == "containers with incomplete status: [near second far]"
    assert there.container("order", "main")["state"] == {"waiting": {"reason": "PodInitializing"}}
    (diary.path / "gate").touch()
    there.until(lambda: there.phase("order") == "Running", "the main container")
    there.until(lambda: len(diary.lines()) == 5, "all to have begun")
    assert diary.lines()[:3] == ["first", "near", "second"]
    there.until(lambda: condition(there, "order", "Ready")["status"] == "True", "it to be ready")
    assert {one["status"] for one in there.status("order")["conditions"]} == {"True"}
    assert all(one["lastTransitionTime"] for one in there.status("order")["conditions"])
    there.until(lambda: there.phase("never") == "Failed", "a pod whose init container has failed")
    assert not there.runs("c") or there.container("never", "c")["containerID"] == ""
    there.until(lambda: there.shown("looping")[3:] == ["Init:CrashLoopBackOff"], "an init container that loops")
    assert there.container("looping", "i")["lastState"]["terminated"]["exitCode"] == 8
    assert there.phase("looping") == "Pending"
    there.until(lambda: there.phase("job") == "Succeeded", "a job that is done, whatever its sidecar ends with")
    assert there.container("job", "beside")["state"]["terminated"]["exitCode"] == 9
    there.ended("order", "never", "looping", "job")
    assert diary.lines()[-3:] == ["main ends", "far ends", "near ends"]


def test_probes(there: Agent, diary: Diary) -> None:
    """What they mean: another run, or nothing is sent to it."""
    port, other = free_port(), free_port()
    serve = f"mkdir /tmp/www; cd /tmp/www; httpd -f -p {port} & trap exit TERM; wait"
    listen = "while ! [ -e /diary/listen ]; do sleep 0.1; done; " + f"httpd -f -p {other} & trap exit TERM; wait"
    there.write_pods(
        living={
            "containers": [
                box(
                    "c",
                    f"touch /tmp/well; {FOREVER}",
                    startupProbe=every_second(failureThreshold=60, **command("test -e /tmp/well")),
                    livenessProbe=every_second(**command("test -e /tmp/well")),
                )
            ]
        },
        stubborn={
            "terminationGracePeriodSeconds": 3600,
            "containers": [
                box(
                    "c",
                    "trap : TERM; while :; do sleep 1; done",
                    livenessProbe=every_second(terminationGracePeriodSeconds=1, **command("exit 1")),
                )
            ],
        },
        web={
            "hostNetwork": True,
            "containers": [
                box("c", serve, readinessProbe=every_second(httpGet={"path": "/ready", "port": port})),
                box("d", listen, readinessProbe=every_second(tcpSocket={"port": other}), volumeMounts=diary.mounts),
            ],
            "volumes": diary.volumes,
        },
        slow={
            "restartPolicy": "Never",
            "containers": [
                box(
                    "c",
                    startupProbe=every_second(failureThreshold=2, **command("exit 1")),
                    readinessProbe=every_second(**command("touch /tmp/asked")),
                )
            ],
        },
    )
    there.until(lambda: there.container("living", "c")["ready"], "it to live")
    living = there.container("living", "c")["containerID"]
    there.node.exec(living, ["rm", "/tmp/well"])
    there.until(lambda: there.container("living", "c")["restartCount"] == 1, "another run")
    assert any(one.startswith("Unhealthy: liveness probe of c failed: ") for one in there.events("living"))
    assert "Killing: Stopping container c: its liveness probe has failed" in there.events("living")
    there.until(lambda: there.container("stubborn", "c")["restartCount"] >= 1, "the probe's own grace to be over")
    assert there.container("stubborn", "c")["lastState"]["terminated"]["exitCode"] == 137

    there.until(lambda: there.container("web", "d").get("state", {}).get("running"), "the servers")
    assert condition(there, "web", "Ready")["message"] == "containers with unready status: [c d]"
    assert condition(there, "web", "ContainersReady")["status"] == "False"
    server = there.container("web", "c")["containerID"]
    there.until(lambda: there.node.exec(server, ["touch", "/tmp/www/ready"]).exit_code == 0, "its directory")
    (diary.path / "listen").touch()
    there.until(lambda: condition(there, "web", "Ready")["status"] == "True", "both to be ready")
    since = condition(there, "web", "Ready")["lastTransitionTime"]
    time.sleep(1.1)  # a transition is told to the second
    there.node.exec(server, ["rm", "/tmp/www/ready"])
    there.until(lambda: condition(there, "web", "Ready")["status"] == "False", "one of them not to be ready")
    assert condition(there, "web", "Ready")["lastTransitionTime"] > since
    assert there.container("web", "c")["restartCount"] == 0
    assert there.shown("web")[2:] == ["1/2", "Running"]

    there.until(lambda: there.phase("slow") == "Failed", "what does not start to be killed")
    assert not any("readiness" in one for one in there.events("slow"))
    there.ended("living", "stubborn", "web", "slow")


def test_hooks_and_grace(there: Agent, diary: Diary) -> None:
    """What is done after a start and before an end, and how long an end may take."""
    port = free_port()
    term = "trap 'echo {0} TERM >> /diary/{0}; exit' TERM; sleep 1000 & wait"

    def hooked(name: str, lifecycle: dict[str, Any], script: str = term, **more: Any) -> dict[str, Any]:
        containers = [diary.box(name, script.format(name), lifecycle=lifecycle)]
        return {"volumes": diary.volumes, "containers": containers, **more}

    there.write_pods(
        said=hooked(
            "said",
            {
                "postStart": command("echo said postStart >> /diary/said"),
                "preStop": command("echo said preStop >> /diary/said"),
            },
            terminationGracePeriodSeconds=30,
        ),
        refused=hooked(
            "refused",
            {"postStart": command("exit 6"), "preStop": command("echo bye >> /diary/refused")},
            "trap exit TERM; sleep 1000 & wait",
            terminationGracePeriodSeconds=30,
        ),
        late=hooked(
            "late",
            {"preStop": {"sleep": {"seconds": 600}}},
            "trap : TERM; while :; do sleep 1; done",
            terminationGracePeriodSeconds=3,
        ),
        asleep=hooked("asleep", {"preStop": {"sleep": {"seconds": 1}}}, terminationGracePeriodSeconds=30),
        http=hooked(
            "http",
            {"preStop": {"httpGet": {"path": "/goodbye", "port": port}}},
            f"httpd -f -vv -p {port} 2>> /diary/http & " + term,
            terminationGracePeriodSeconds=30,
            hostNetwork=True,
        ),
        other=hooked(
            "other",
            {"stopSignal": "SIGUSR1"},
            "trap 'echo other USR1 >> /diary/other; exit' USR1; sleep 1000 & wait",
            terminationGracePeriodSeconds=30,
        ),
        waiting=hooked(
            "waiting",
            {"postStart": command("while ! [ -e /diary/go ]; do sleep 0.1; done")},
            FOREVER,
        ),
    )
    names = ("said", "late", "asleep", "http", "other")
    for name in names:
        there.until(lambda name=name: condition(there, name, "Ready").get("status") == "True", f"{name} to run")
    there.until(lambda: listens(port), "the server to be there when it is told goodbye")
    there.until(lambda: there.container("refused", "refused")["restartCount"] >= 1, "a hook that fails to end it")
    assert any(one.startswith("FailedPostStartHook: refused: ") for one in there.events("refused"))
    assert diary.lines("refused")[0] == "bye"
    there.until(lambda: there.container("waiting", "waiting")["state"].get("running"), "a hook to hold it")
    assert not there.container("waiting", "waiting")["started"]
    assert not there.container("waiting", "waiting")["ready"]
    (diary.path / "go").touch()
    there.until(lambda: there.container("waiting", "waiting")["ready"], "the hook to be through")
    began = time.monotonic()
    there.ended(*names, "refused", "waiting")
    assert time.monotonic() - began < 50, "a hook has not been counted in the grace period"
    assert diary.lines("said") == ["said postStart", "said preStop", "said TERM"]
    assert diary.lines("asleep") == ["asleep TERM"]
    assert any("/goodbye" in line for line in diary.lines("http"))
    assert diary.lines("http")[-1] == "http TERM"
    assert diary.lines("other") == ["other USR1"]


def test_a_deadline(there: Agent) -> None:
    there.write_pods(short={"activeDeadlineSeconds": 8, "containers": [box("c")]})  # enough to be seen to run before
    there.until(lambda: there.phase("short") == "Running", "it to run")
    there.until(lambda: there.phase("short") == "Failed", "its deadline to be over")
    found = there.status("short")
    assert (found["reason"], bool(found["message"])) == ("DeadlineExceeded", True)
    assert "terminated" in there.container("short", "c")["state"]
    there.restart()
    there.until(lambda: there.phase("short") == "Failed", "the next agent to say the same")
    assert there.container("short", "c")["restartCount"] == 0
    there.ended("short")


def test_nothing_is_forgotten(there: Agent, diary: Diary) -> None:
    """Agent and daemon are killed in the midst of a crash loop, of a hook and of an end."""
    there.write_pods(
        loop={
            "volumes": diary.volumes,
            "containers": [diary.box("c", "date +%s >> /diary/it; echo why > /dev/termination-log; exit 3")],
        },
        leaving={
            "terminationGracePeriodSeconds": 8,
            "volumes": diary.volumes,
            "containers": [
                diary.box(
                    "slow",
                    "trap : TERM; while :; do sleep 1; done",
                    lifecycle={"preStop": command("echo preStop >> /diary/end; sleep 600")},
                )
            ],
        },
    )
    there.until(lambda: there.container("loop", "c")["restartCount"] >= 1, "the first crashes")
    there.until(lambda: there.phase("leaving") == "Running", "the other")
    slow = there.running("slow")
    began = time.monotonic()
    (there.manifests / "leaving.json").unlink()
    there.until(lambda: diary.lines("end"), "its hook to run")
    counts = []
    for kill_agent, kill_daemon in ((True, False), (False, True), (True, True)):
        if kill_agent:
            there.end(signal.SIGKILL)
        if kill_daemon:
            there.node.restart()
        if kill_agent:
            there.start()
        there.until(lambda: there.status("loop"), "the agent to answer")
        found = there.container("loop", "c")
        counts.append(found["restartCount"])
        if there.waits("loop") == "CrashLoopBackOff":
            last = there.container("loop", "c")["lastState"]["terminated"]
            assert (last["exitCode"], last["reason"], last["message"]) == (3, "Error", "why\n")
    there.until(lambda: there.told("loop") and not there.told("leaving"), "the end of the other")
    assert 7 < time.monotonic() - began < 45, "its grace began anew, or was not given"
    assert not [one for one in there.node.containers() if one.id == slow]
    there.until(lambda: there.container("loop", "c")["restartCount"] >= 2, "the crash loop to go on")
    found = there.until(lambda: backing_off(there, "loop"), "its next pause")
    assert f"back-off {5 << found['restartCount']}s" in found["state"]["waiting"]["message"]
    assert counts == sorted(counts)
    _, second, third, *_ = map(int, diary.lines())
    assert third - second >= 9, "its pause was forgotten"
    there.ended("loop")
