"""The agent as the client of each runtime: one application by Holdfast, and by Debian's containerd with either shim.

Agent and runtime may die: nothing of it is lost, run twice, or left.
"""

import os
import signal
from collections.abc import Iterator

import pytest
from kit.agent import Agent, Other, application, get, running_agent
from kit.containerd import RUNTIME, serving_cri
from kit.node import Node, node
from kit.ports import free_port

RUNC = "io.containerd.runc.v2"


SOAK = [pytest.param(one, marks=pytest.mark.soak) for one in ("holdfast", "containerd-with-our-shim")]


@pytest.fixture(params=["containerd", *SOAK])
def runtime(request: pytest.FixtureRequest) -> Iterator[Node | Other]:
    if request.param == "holdfast":
        with node() as one:
            yield one
        return
    with serving_cri(RUNC if request.param == "containerd" else RUNTIME) as other:
        yield Other(other)


def ready(there: Agent) -> str:
    conditions = there.status("web").get("conditions", ())  # none while the agent does not answer
    return next((one["status"] for one in conditions if one["type"] == "Ready"), "")


def restarts(there: Agent) -> list[int]:
    return [there.container("web", name).get("restartCount", 0) for name in ("fill", "refresh", "httpd")]


def test_the_same_application(runtime: Node | Other) -> None:
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
        there.until(lambda: restarts(there) == [0, 1, 0], "it to be told")

        runtime.exec(httpd, ["/bin/sh", "-c", "killall -STOP httpd"])
        there.until(lambda: ready(there) == "False", "it not to be ready while it does not answer")
        runtime.restart()
        runtime.exec(httpd, ["/bin/sh", "-c", "killall -CONT httpd"])
        there.until(lambda: ready(there) == "True", "it to be ready again")
        os.kill(pid, signal.SIGKILL)
        there.until(lambda: there.running("httpd") not in ("", httpd), "what was killed to be restarted")
        there.until(lambda: get(port) == b"hello\n", "what was filled in to be there still")
        there.until(lambda: "lastState" in there.container("web", "httpd"), "its end to be told")
        assert there.container("web", "httpd")["lastState"]["terminated"]["exitCode"] == 137

        (there.manifests / "web.yaml").unlink()
        there.until(lambda: there.shown("web")[-1:] != ["Running"], "its end to begin")
        there.restart()
        runtime.restart()
        there.until(lambda: not there.left(), "nothing to be left")
