"""The agent as the client of another runtime: the same manifest runs by Debian's containerd, and leaves nothing."""

import os
import signal
from collections.abc import Iterator

import pytest
from kit.agent import Other, application, free_port, get, running_agent
from kit.containerd import Containerd, serving_cri


@pytest.fixture
def containerd() -> Iterator[Containerd]:
    with serving_cri() as one:
        yield one


def test_the_same_manifest_by_containerd(containerd: Containerd) -> None:
    port = free_port()
    with running_agent(Other(containerd)) as there:
        there.write("web.yaml", application(port))
        there.until(lambda: get(port) == b"hello\n", "the application to answer")
        httpd, refresh = there.running("httpd"), there.until(lambda: there.running("refresh"))
        there.end(signal.SIGKILL)
        containerd.restart()
        there.start()
        there.until(lambda: there.shown("web") == ["default", "web", "1/1", "Running"], "the agent to see it again")
        assert (there.running("httpd"), there.running("refresh")) == (httpd, refresh)
        pid = containerd.ctr("--namespace", "k8s.io", "tasks", "ls").stdout
        (line,) = [line for line in pid.splitlines() if line.startswith(refresh)]
        os.kill(int(line.split()[1]), signal.SIGKILL)
        there.until(lambda: there.running("refresh") not in ("", refresh), "the sidecar to be back")
        (there.manifests / "web.yaml").unlink()
        there.until(lambda: not there.left(), "nothing to be left")
