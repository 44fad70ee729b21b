"""The agent as the client of each runtime: one application by Holdfast, and by Debian's containerd with either shim.

Agent and runtime may die: nothing of it is lost, run twice, or left.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from image import build_busybox_image
from kit.agent import IMAGE, Agent, application, free_port, get, running_agent
from kit.containerd import RUNTIME, Containerd
from kit.node import node

from holdfast.proto import runtime_v1_pb2 as pb

RUNC = "io.containerd.runc.v2"


class Node(Protocol):
    """As much of one as an agent and this test need."""

    base: Path
    socket: Path
    cgroup: str

    def import_image(self, archive: Path) -> Any: ...
    def containers(self) -> list[pb.Container]: ...
    def pods(self) -> list[pb.PodSandbox]: ...
    def remove_pod(self, pod_id: str) -> None: ...
    def pid(self, container_id: str) -> int: ...
    def exec(self, container_id: str, command: list[str]) -> pb.ExecSyncResponse: ...
    def restart(self) -> Any: ...


class Other:
    """A node of containerd."""

    def __init__(self, runtime: Containerd) -> None:
        self._runtime = runtime
        self.base, self.socket, self.cgroup = runtime.base, runtime.socket, runtime.cgroup

    def import_image(self, archive: Path) -> None:
        self._runtime.ctr("--namespace", "k8s.io", "images", "import", str(archive))

    def containers(self) -> list[pb.Container]:
        return list(self._runtime.call("ListContainers", pb.ListContainersRequest()).containers)

    def pods(self) -> list[pb.PodSandbox]:
        return list(self._runtime.call("ListPodSandbox", pb.ListPodSandboxRequest()).items)

    def remove_pod(self, pod_id: str) -> None:
        self._runtime.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
        self._runtime.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))

    def pid(self, container_id: str) -> int:
        request = pb.ContainerStatusRequest(container_id=container_id, verbose=True)
        return int(json.loads(self._runtime.call("ContainerStatus", request).info["info"])["pid"])

    def exec(self, container_id: str, command: list[str]) -> pb.ExecSyncResponse:
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=20)
        found: pb.ExecSyncResponse = self._runtime.call("ExecSync", request)
        return found

    def restart(self) -> None:
        self._runtime.restart()


@pytest.fixture(params=["holdfast", "containerd", "containerd-with-our-shim"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Node]:
    if request.param == "holdfast":
        with node() as one:
            yield one
        return
    other = Containerd(cri=True, shim=RUNC if request.param == "containerd" else RUNTIME)
    try:
        other.start()
        other.load("k8s.io")
        yield Other(other)
    finally:
        other.stop()


def status(there: Agent) -> dict[str, Any]:
    (pod,) = json.loads(there.cli("get", "pods", "web", "-o", "json").stdout)["items"]
    found: dict[str, Any] = pod["status"]
    return found


def ready(there: Agent) -> str:
    return next(one["status"] for one in status(there)["conditions"] if one["type"] == "Ready")


def restarts(there: Agent) -> dict[str, int]:
    found = status(there)
    every = [*found["initContainerStatuses"], *found["containerStatuses"]]
    return {one["name"]: one["restartCount"] for one in every}


def test_the_same_application(runtime: Node) -> None:
    runtime.import_image(build_busybox_image(runtime.base, IMAGE))
    port = free_port()
    with running_agent(runtime) as there:  # type: ignore[arg-type]
        there.write("web.yaml", application(port))
        there.until(lambda: get(port) == b"hello\n", "the application to answer")
        there.until(lambda: ready(there) == "True", "its probe to say so")
        (fill,) = there.runs("fill")
        httpd, refresh = there.running("httpd"), there.running("refresh")
        pid = runtime.pid(httpd)
        told = runtime.exec(httpd, ["/bin/sh", "-c", "echo $NODE; cat /etc/web/httpd.conf"]).stdout
        assert told == f"{os.uname().nodename}\nH:/www\n".encode()

        there.end(signal.SIGKILL)
        runtime.restart()
        there.start()
        there.until(lambda: there.shown("web") == ["default", "web", "1/1", "Running"], "the agent to see it again")
        assert (there.running("httpd"), there.running("refresh")) == (httpd, refresh)
        assert (runtime.pid(httpd), [one.id for one in there.runs("fill")]) == (pid, [fill.id])

        there.end(signal.SIGKILL)
        os.kill(runtime.pid(refresh), signal.SIGKILL)
        runtime.restart()
        there.start()
        there.until(lambda: there.running("refresh") not in ("", refresh), "the sidecar to be back")
        there.until(lambda: restarts(there) == {"fill": 0, "refresh": 1, "httpd": 0}, "it to be told")

        os.kill(pid, signal.SIGSTOP)
        there.until(lambda: ready(there) == "False", "it not to be ready while it does not answer")
        runtime.restart()
        os.kill(pid, signal.SIGCONT)
        there.until(lambda: ready(there) == "True", "it to be ready again")
        os.kill(pid, signal.SIGKILL)
        there.until(lambda: there.running("httpd") not in ("", httpd), "what was killed to be restarted")
        there.until(lambda: get(port) == b"hello\n", "what was filled in to be there still")
        terminated = status(there)["containerStatuses"][0]["lastState"]["terminated"]
        assert terminated["exitCode"] == 137

        (there.manifests / "web.yaml").unlink()
        there.until(lambda: there.shown("web")[-1:] != ["Running"], "its end to begin")
        there.restart()
        runtime.restart()
        there.until(lambda: not there.left(), "nothing to be left")
