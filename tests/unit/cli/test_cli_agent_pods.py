"""How the agent's pods are shown, in rows and in sections."""

import json
import time
from typing import Any

import pytest

from holdfast.cli.pod_described import amount, described
from holdfast.cli.pod_table import changed, duration, row, word
from holdfast.proto import agent_pb2 as pb

START = "2026-01-01T00:00:00Z"
NOW = 1767225600 + 300  # five minutes later
RUNNING = {"running": {"startedAt": START}}
CREATING = {"waiting": {"reason": "ContainerCreating"}}
INITIALIZING = {"waiting": {"reason": "PodInitializing"}}
CRASHING = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
FAILED = {"terminated": {"exitCode": 3, "reason": "Error", "message": "out of luck", "finishedAt": START}}
DONE = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": START}}


def container(state: dict[str, Any], restarts: int = 0, name: str = "c", **more: Any) -> dict[str, Any]:
    ready = "running" in state
    return {
        "name": name,
        "image": "i",
        "state": state,
        "ready": ready,
        "started": ready,
        "restartCount": restarts,
        **more,
    }


def pod(
    phase: str, mains: list[Any], inits: list[Any] | None = None, *, sidecars: tuple[str, ...] = (), **meta: Any
) -> dict[str, Any]:
    """Its containers are those of which there is a status; it is ready and initialized if all of those run."""
    through = "True" if all(one["ready"] or one["state"] == DONE for one in inits or []) else "False"
    ready = "True" if all(one["ready"] for one in mains) else "False"
    conditions = [{"type": "Ready", "status": ready}, {"type": "Initialized", "status": through}]
    always = [{"name": name, "restartPolicy": "Always"} for name in sidecars]
    spec = {"initContainers": always, "containers": [{"name": one["name"]} for one in mains], "nodeName": "here"}
    status = {"phase": phase, "conditions": conditions, "containerStatuses": mains, "podIP": "10.0.0.2"}
    metadata = {"name": "p", "uid": "u", "creationTimestamp": START, **meta}
    return {"metadata": metadata, "spec": spec, "status": status | {"initContainerStatuses": inits or []}}


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (pod("Running", [container(RUNNING)]), "Running"),
        (pod("Running", [container(RUNNING), container(CRASHING)]), "CrashLoopBackOff"),
        (pod("Running", [container(RUNNING), container(FAILED)]), "Error"),
        (pod("Running", [container({"terminated": {"exitCode": 3}})]), "ExitCode:3"),
        (pod("Running", [container(RUNNING), container(DONE)]), "NotReady"),
        (pod("Succeeded", [container(DONE)]), "Completed"),
        (pod("Pending", [container(CREATING)]), "ContainerCreating"),
        (pod("Pending", [], [container(DONE), container(RUNNING, ready=False, started=False)]), "Init:1/2"),
        (pod("Pending", [], [container(INITIALIZING)]), "Init:0/1"),
        (pod("Pending", [], [container(CRASHING)]), "Init:CrashLoopBackOff"),
        (pod("Pending", [], [container(FAILED)]), "Init:Error"),
        (pod("Pending", [container(INITIALIZING)], [container(RUNNING, name="s")], sidecars=("s",)), "PodInitializing"),
        (pod("Running", [container(RUNNING)], [container(RUNNING, name="s")], sidecars=("s",)), "Running"),
        (pod("Running", [container(RUNNING)], deletionTimestamp=START), "Terminating"),
        (pod("Succeeded", [container(DONE)], deletionTimestamp=START), "Completed"),
    ],
)  # fmt: skip
def test_what_a_pod_does_in_a_word(one: dict[str, Any], said: str) -> None:
    assert word(one) == said


def test_rows() -> None:
    mains = [container(RUNNING, 2, lastState=FAILED), container(CRASHING, 3, lastState=FAILED)]
    inits = [container(DONE, 1), container(RUNNING, 4, name="s")]
    one = pod("Running", mains, inits, sidecars=("s",))
    assert row(one, now=NOW) == ("p", "2/3", "CrashLoopBackOff", "9 (5m ago)", "5m")
    assert row(one, wide=True, now=NOW)[-2:] == ("10.0.0.2", "here")
    beginning = pod("Pending", [container(INITIALIZING)], [container(CRASHING, 6, lastState=FAILED)])
    assert row(beginning, now=NOW) == ("p", "0/1", "Init:CrashLoopBackOff", "6 (5m ago)", "5m")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (600, "10m"), (10799, "179m"), (10800, "3h"),
        (11100, "3h5m"), (8 * 3600 + 60, "8h"), (48 * 3600, "2d"), (49 * 3600, "2d1h"), (9 * 86400 + 3600, "9d"),
        (740 * 86400, "2y10d"), (9 * 365 * 86400 + 86400, "9y"),
    ],
)  # fmt: skip
def test_ages(seconds: int, said: str) -> None:
    assert duration(seconds) == said


def test_what_has_changed() -> None:
    one, other = pod("Pending", []), pod("Pending", [], uid="v")
    later = pod("Running", [])
    assert list(changed({}, [one, other])) == [one, other]
    assert list(changed({"u": one, "v": other}, [later])) == [later, other]
    assert list(changed({"u": one}, [one])) == []


def test_a_pod_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word; in UTC, since times are those of here."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    spec = {
        "name": "c",
        "command": ["sh", "-c", "one\ntwo"],
        "ports": [{"containerPort": 80, "hostPort": 8080}],
        "resources": {"limits": {"memory": "67108864"}, "requests": {"cpu": "50m"}},
        "livenessProbe": {"tcpSocket": {"port": 80}},
        "readinessProbe": {"httpGet": {"path": "/x", "port": "http"}, "periodSeconds": 1},
        "startupProbe": {"exec": {"command": ["true", "1"]}, "initialDelaySeconds": 2},
        "env": [
            {"name": "A", "value": "b"},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ],
        "envFrom": [{"configMapRef": {"name": "m"}}],
        "volumeMounts": [{"name": "www", "mountPath": "/www", "readOnly": True, "subPath": "a"}],
    }
    volumes = [{"name": "www", "emptyDir": {"sizeLimit": "8388608"}}, {"name": "conf", "configMap": {"name": "m"}}]
    one = pod("Running", [container(RUNNING, 1, lastState=FAILED, containerID="id")], labels={"b": "c", "a": "x"})
    one["spec"] |= {"containers": [spec], "volumes": volumes}
    second = 10**9
    events = [
        pb.PodEvent(
            first_at=NOW * second, at=(NOW + 30) * second, count=3, reason="Unhealthy", message="no", warning=True
        ),
        pb.PodEvent(
            first_at=NOW * second, at=(NOW + 50) * second, count=1, reason="Killing", message="it was\ndeleted"
        ),
    ]
    shown = pb.AgentPod(
        namespace="n", name="p", uid="u", source="/m/p.yaml", json=json.dumps(one), events=events,
        volumes=["volume www: is kept: busy", "detached what was mounted"],
    )  # fmt: skip
    assert "\n".join(described(shown, one, (NOW + 60) * second)) == DESCRIBED


DESCRIBED = """\
Name:         p
Namespace:    n
Node:         here
Start Time:
Labels:       a=x
              b=c
Annotations:  <none>
UID:          u
Source:       /m/p.yaml
Status:       Running
IP:           10.0.0.2
IPs:          <none>
Containers:
  c:
    Container ID:  id
    Image:         i
    Image ID:
    Port:          80/TCP
    Host Port:     8080/TCP
    Command:
      sh
      -c
      one
      two
    State:          Running
      Started:      Thu, 01 Jan 2026 00:00:00 +0000
    Last State:     Terminated
      Reason:       Error
      Message:      out of luck
      Exit Code:    3
      Finished:     Thu, 01 Jan 2026 00:00:00 +0000
    Ready:          True
    Restart Count:  1
    Limits:
      memory:  64Mi
    Requests:
      cpu:      50m
    Liveness:   tcp-socket :80 delay=0s timeout=1s period=10s #success=1 #failure=3
    Readiness:  http-get http://:http/x delay=0s timeout=1s period=1s #success=1 #failure=3
    Startup:    exec [true 1] delay=2s timeout=1s period=10s #success=1 #failure=3
    Environment Variables from:
      m:  ConfigMap  Optional: false
    Environment:
      A:     b
      NODE:   (v1:spec.nodeName)
      S:     <set to the key 'k' of secret 's'>
    Mounts:
      /www from www (ro,path="a")
Conditions:
  Type          Status
  Ready         True
  Initialized   True
Volumes:
  www:
    Type:       EmptyDir (a temporary directory that shares a pod's lifetime)
    Medium:
    SizeLimit:  8Mi
    Status:     is kept: busy
  conf:
    Type:      ConfigMap (a volume populated by a ConfigMap)
    Name:      m
    Optional:  false
  detached what was mounted
QoS Class:  <none>
Events:
  Type     Reason     Age                From            Message
  ----     ------     ---                ----            -------
  Warning  Unhealthy  30s (x3 over 60s)  holdfast-agent  no
  Normal   Killing    10s                holdfast-agent  it was deleted"""


def test_amounts() -> None:
    assert [amount(text) for text in ("67108864", "1024", "1000", "50m", "0")] == ["64Mi", "1Ki", "1000", "50m", "0"]
