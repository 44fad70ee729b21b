"""The agent as the client of another runtime: the same manifest runs by Debian's containerd, and leaves nothing."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from image import build_busybox_image
from kit.agent import IMAGE, Agent, application, free_port, get, running_agent
from kit.containerd import Containerd

from holdfast.proto import runtime_v1_pb2 as pb


class Other:
    """As much of a node as an agent needs."""

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


@pytest.fixture
def containerd() -> Iterator[Containerd]:
    one = Containerd(cri=True)
    try:
        one.start()
        one.load("k8s.io")
        yield one
    finally:
        one.stop()


def test_the_same_manifest_by_containerd(containerd: Containerd) -> None:
    other = Other(containerd)
    other.import_image(build_busybox_image(other.base, IMAGE))
    port = free_port()
    with running_agent(other) as one:  # type: ignore[arg-type]
        there: Agent = one
        there.write("web.yaml", application(port))
        there.until(lambda: get(port) == b"hello\n", "the application to answer")
        httpd, refresh = there.running("httpd"), there.until(lambda: there.running("refresh"))
        assert there.cli("--socket", "/none", "exec", "web", "--", "cat", "/www/index.html").stdout == "hello\n"
        there.until(lambda: "response:200" in there.cli("--socket", "/none", "logs", "web").stderr, "its log")
        there.end(signal.SIGKILL)
        containerd.restart()
        there.start()
        there.until(lambda: there.shown("web") == ["default", "web", "2/2", "Running"], "the agent to see it again")
        assert (there.running("httpd"), there.running("refresh")) == (httpd, refresh)
        pid = containerd.ctr("--namespace", "k8s.io", "tasks", "ls").stdout
        (line,) = [line for line in pid.splitlines() if line.startswith(refresh)]
        os.kill(int(line.split()[1]), signal.SIGKILL)
        there.until(lambda: there.running("refresh") not in ("", refresh), "the sidecar to be back")
        (there.manifests / "web.yaml").unlink()
        there.until(lambda: not there.left(), "nothing to be left")
