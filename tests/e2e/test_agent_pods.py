"""A real application without a cluster: it runs, outlives the agent and the daemon, and leaves nothing."""

import os
import signal
from pathlib import Path

from kit.agent import Agent, application, get
from kit.ports import free_port


def test_an_application_outlives_agent_and_daemon_and_leaves_nothing(there: Agent) -> None:
    port = free_port()
    there.write("web.yaml", application(port))
    there.until(lambda: get(port) == b"hello\n", "the application to answer")
    (fill,) = there.runs("fill")
    httpd, refresh = (there.until(lambda name=name: there.running(name), name) for name in ("httpd", "refresh"))
    pid = there.node.pid(httpd)
    (uid,) = [path.name for path in (there.root / "pods").iterdir()]
    (www,) = there.root.glob(f"pods/{uid}/volumes/*/www")
    assert (www / "index.html").read_text() == "hello\n"
    assert Path(f"{there.logs}/default_web_{uid}/httpd/0.log").exists()
    said = there.node.exec(httpd, ["/bin/sh", "-c", "echo $NODE; cat /etc/web/httpd.conf"]).stdout
    assert said == f"{os.uname().nodename}\nH:/www\n".encode()
    for kill_agent, kill_daemon in ((True, False), (False, True), (True, True)):
        if kill_agent:
            there.end(signal.SIGKILL)
        if kill_agent and kill_daemon:
            os.kill(there.node.pid(refresh), signal.SIGKILL)
        if kill_daemon:
            there.node.restart()
        if kill_agent:
            there.start()
        there.until(lambda: there.shown("web") == ["default", "web", "2/2", "Running"], "the agent to see it again")
        assert there.running("httpd") == httpd
        assert there.node.pid(httpd) == pid
        assert [one.id for one in there.runs("fill")] == [fill.id], "what was through is not run again"
        assert get(port) == b"hello\n"
    there.until(lambda: there.running("refresh") not in ("", refresh), "the sidecar to be back")
    assert there.running("httpd") == httpd
    (there.manifests / "web.yaml").unlink()
    there.until(lambda: not there.left(), "nothing to be left")
    assert there.end(signal.SIGTERM) == 0


POINTS = ["sandbox", "sandbox.made", "start", "started", "kill", "leave", "left"]


def test_the_agent_may_be_killed_at_every_step(there: Agent) -> None:
    """Each point is passed by an agent that stops there and is killed, in the order in which a pod comes to them."""
    port = free_port()
    for point in POINTS:
        (there.inject / f"agent.{point}").write_text("1")
    there.write("web.yaml", application(port))

    def die(points: list[str]) -> None:
        for point in points:
            there.until(lambda point=point: (there.inject / f"agent.{point}.hit").exists(), f"agent.{point}")
            there.restart()

    die(POINTS[:4])
    there.until(lambda: get(port) == b"hello\n", "the application to answer")
    there.until(lambda: there.running("httpd"), "httpd")
    assert len(there.node.pods()) == 1
    (there.manifests / "web.yaml").unlink()
    die(POINTS[4:])
    there.until(lambda: not there.left(), "nothing to be left")


def test_a_manifest_that_cannot_be_read_ends_nothing(there: Agent) -> None:
    port = free_port()
    there.write("web.yaml", application(port))
    there.until(lambda: get(port) == b"hello\n", "the application to answer")
    httpd = there.until(lambda: there.running("httpd"), "httpd")
    there.write("web.yaml", "kind: [")
    there.until(lambda: "it is not YAML" in there.log(), "it to be said")
    there.restart(signal.SIGTERM)
    there.until(lambda: there.log().count("it is not YAML") == 2, "it to be said by the next one")
    assert there.running("httpd") == httpd
    there.write("web.yaml", application(port).replace("hostNetwork:", "hostname: other\n  hostNetwork:"))
    there.until(lambda: there.running("httpd") not in ("", httpd), "another pod in place of the first")
    (there.manifests / "web.yaml").unlink()
    there.until(lambda: not there.left(), "nothing to be left")
