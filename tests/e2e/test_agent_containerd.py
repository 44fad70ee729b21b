"""The agent as the client of each runtime: one application by Holdfast, and by Debian's containerd with either shim.

Agent and runtime may die: nothing of it is lost, run twice, or left.
"""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from image import build_busybox_image
from kit.agent import IMAGE, Agent, Other, application, free_port, get, running_agent
from kit.containerd import RUNTIME, Containerd
from kit.node import Node, node

RUNC = "io.containerd.runc.v2"


@pytest.fixture(params=["holdfast", "containerd", "containerd-with-our-shim"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Node | Other]:
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
    found: dict[str, Any] = json.loads(there.cli("get", "pods", "web", "-o", "json").stdout)["status"]
    return found


def ready(there: Agent) -> str:
    return next(one["status"] for one in status(there)["conditions"] if one["type"] == "Ready")


def restarts(there: Agent) -> dict[str, int]:
    found = status(there)
    every = [*found["initContainerStatuses"], *found["containerStatuses"]]
    return {one["name"]: one["restartCount"] for one in every}


def test_the_same_application(runtime: Node | Other) -> None:
    runtime.import_image(build_busybox_image(runtime.base, IMAGE))
    port = free_port()
    with running_agent(runtime) as there:
        there.write("web.yaml", application(port))
        there.until(lambda: get(port) == b"hello\n", "the application to answer")
        there.until(lambda: ready(there) == "True", "its probe to say so")
        (fill,) = there.runs("fill")
        httpd, refresh = there.running("httpd"), there.running("refresh")
        pid = runtime.pid(httpd)
        told = runtime.exec(httpd, ["/bin/sh", "-c", "echo $NODE; cat /etc/web/httpd.conf"]).stdout
        assert told == f"{os.uname().nodename}\nH:/www\n".encode()
        assert there.cli("--socket", "/none", "exec", "web", "--", "cat", "/www/index.html").stdout == "hello\n"
        there.until(lambda: "response:200" in there.cli("--socket", "/none", "logs", "web").stderr, "its log")

        there.end(signal.SIGKILL)
        runtime.restart()
        there.start()
        there.until(lambda: there.shown("web") == ["default", "web", "2/2", "Running"], "the agent to see it again")
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
