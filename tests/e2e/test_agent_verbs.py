"""The agent's pods by the command line, as users have them, in kubectl's words: a real agent, a real daemon."""

import contextlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kit.agent import IMAGE, Agent, application, get, running_agent
from kit.node import BIN, SECONDS, Node, until
from kit.ports import free_port
from kit.terminal import Terminal

BOTH = "httpd, fill (init), refresh (init)"
NOTE = f'Defaulted container "httpd" out of: {BOTH}\n'


@pytest.fixture
def there(shared: Node) -> Iterator[Agent]:
    with running_agent(shared) as one:
        one.until(lambda: (one.root / "agent.sock").exists(), "the agent's socket")
        yield one


class Web:
    """The application, applied; `file` is its manifest."""

    def __init__(self, there: Agent) -> None:
        self.there, self.port = there, free_port()
        self.file = there.base / "web.yaml"
        self.file.write_text(application(self.port))

    def is_ready(self) -> bool:
        return self.there.shown("web") == ["default", "web", "2/2", "Running"]


@pytest.fixture
def web(there: Agent) -> Iterator[Web]:
    one = Web(there)
    there.cli("apply", "-f", str(one.file))
    there.until(one.is_ready, "it to be ready")
    yield one
    there.cli("delete", "-f", str(one.file), "--ignore-not-found")
    assert not there.left()


def pod(name: str, script: str, more: str = "") -> str:
    command = json.dumps(["sh", "-c", script])
    spec = f"{{{more}containers: [{{name: main, image: '{IMAGE}', command: {command}}}]}}"
    return f"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {spec}}}\n"


@contextlib.contextmanager
def started(there: Agent, command: list[str | Path], **streams: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """The command line, which is not there any more at the end."""
    with subprocess.Popen(command, env=there.environment, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def test_apply_get_describe_and_delete(there: Agent) -> None:
    one = Web(there)
    assert there.cli("apply", "-f", str(one.file)).stdout == "configmap/web created\npod/web created\n"
    there.until(one.is_ready, "it to be ready")
    assert there.cli("apply", "-f", str(one.file)).stdout == "configmap/web unchanged\npod/web unchanged\n"
    httpd = there.running("httpd")
    shown = there.cli("get", "pod", "web", "-o", "yaml").stdout
    (again := there.base / "again.yaml").write_text(shown)
    assert there.cli("apply", "-f", str(again)).stdout == "pod/web unchanged\n", "what is shown can be applied"

    titles, row = there.cli("get", "pods").stdout.splitlines()
    assert titles.split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert re.fullmatch(r"web +2/2 +Running +0 +\d+s", row)
    assert (
        there.cli("get", "po/web", "-o", "wide", "--no-headers").stdout.split()[-1]
        == there.cli("exec", "web", "-c", "httpd", "--", "sh", "-c", "echo $NODE").stdout.strip()
    )
    assert there.cli("get", "pods", "-o", "name").stdout == "pod/web\n"
    found = yaml.safe_load(shown)
    assert {each["type"] for each in found["status"]["conditions"] if each["status"] == "True"} >= {"Ready"}
    assert json.loads(there.cli("get", "pods", "-o", "json").stdout)["items"][0]["kind"] == "Pod"
    assert there.cli("get", "pods", "-n", "other").stderr == "No resources found in other namespace.\n"

    told = there.cli("describe", "pod", "web").stdout
    assert re.search(r"^  httpd:\n    Container ID:  [0-9a-f]{64}$", told, re.MULTILINE)
    assert re.search(r"^  fill:(\n    .*)*\n    State: +Terminated\n      Reason: +Completed$", told, re.MULTILINE)
    assert re.search(r"^    Readiness: +http-get http://:http/ delay=0s timeout=1s period=1s ", told, re.MULTILINE)
    assert re.search(r"^  www:\n    Type: +EmptyDir .*\n    Medium:\n    SizeLimit: +8Mi$", told, re.MULTILINE)
    assert re.search(r"^  Normal +Started +\d+s +holdfast-agent +Started container httpd$", told, re.MULTILINE)

    said = there.cli("delete", "-f", str(one.file), "--grace-period", "1").stdout
    assert said == 'pod "web" deleted\nconfigmap "web" deleted\n'
    assert not there.left(), "it was waited for"
    assert there.running("httpd") == "", httpd
    assert there.cli("get", "pods").stderr == "No resources found in default namespace.\n"
    for verb in (["describe", "pod", "web"], ["get", "pod", "web"], ["logs", "pod/web"], ["delete", "pod", "web"]):
        gone = there.cli(*verb, check=False)
        assert (gone.returncode, gone.stdout) == (1, ""), verb
        assert "web" in gone.stderr
    assert there.cli("delete", "pod/web", "cm/web", "--ignore-not-found").stdout == ""


def test_directories_stdin_and_what_is_refused(there: Agent) -> None:
    directory = there.base / "manifests.d"
    directory.mkdir()
    for name in ("b", "a"):
        (directory / f"{name}.yaml").write_text(pod(name, "sleep 1000", "terminationGracePeriodSeconds: 0, "))
    (directory / "c.json").write_text(pod("c", "true").replace("main", "Main"))
    (directory / "notes.txt").write_text("nothing to be applied")
    said = there.cli("apply", "-f", str(directory), check=False)
    assert (said.returncode, said.stdout) == (1, "pod/a created\npod/b created\n")
    assert "c.json: document 1: spec.containers[0].name: 'Main'" in said.stderr
    command = [BIN / "holdfast", "apply", "-f", "-"]
    text = pod("d", "exit 3", "restartPolicy: Never, nodeSelector: {disk: ssd}, ")
    done = subprocess.run(
        command, input=text, check=True, capture_output=True, text=True, timeout=SECONDS, env=there.environment
    )
    assert done.stdout == "pod/d created\n"
    assert "nodeSelector: not supported here" in done.stderr
    there.until(lambda: there.shown("d")[2:] == ["0/1", "Error"], "it to have ended")
    assert there.cli("delete", "pod", "a", "b", "d").stdout.splitlines() == [f'pod "{name}" deleted' for name in "abd"]
    assert not there.left()
    for wrong in (["apply"], ["delete", "pod"], ["get", "services"], ["delete", "service/a"], ["get", "-A", "pod/a"]):
        assert there.cli(*wrong, check=False).returncode == 2, wrong


def test_logs_and_commands_by_the_pod(there: Agent, web: Web) -> None:
    get(web.port)
    found = there.cli("logs", "web")
    assert found.stderr.startswith(NOTE)
    until(lambda: "response:200" in there.cli("logs", "pod/web", "-c", "httpd").stderr, "what was asked to be logged")
    assert there.cli("logs", "web", "-c", "fill").stdout == ""
    assert there.cli("exec", "pod/web", "--", "cat", "/www/index.html").stdout == "hello\n"
    assert there.cli("exec", "web", "-c", "refresh", "--", "sh", "-c", "exit 7", check=False).returncode == 7
    assert there.cli("exec", "-n", "default", "web", "sh", "-c", "echo -- $0", "x").stdout == "-- x\n"
    nobody = there.cli("exec", "web", "-c", "nobody", "--", "true", check=False)
    assert (nobody.returncode, f"it has {'httpd, fill, refresh'}" in nobody.stderr) == (1, True)
    httpd = there.running("httpd")
    assert there.cli("exec", httpd[:13], "--", "cat", "/etc/web/httpd.conf").stdout == "H:/www\n", "by id as ever"
    assert there.cli("exec", "httpd", "cat", "/www/index.html").stdout == "hello\n", "and by its own name"
    command = [BIN / "holdfast", "exec", "-it", "web", "-c", "httpd", "--", "sh"]
    with Terminal([str(part) for part in command], environment=there.environment) as terminal:
        terminal.type("tty; exit 5\n")
        terminal.expect("/dev/pts/")
        assert terminal.end() == 5


def test_ports_by_the_pod(there: Agent, web: Web) -> None:
    local = free_port()
    command = [BIN / "holdfast", "port-forward", "pod/web", f"{local}:{web.port}"]
    with started(there, command, stdout=subprocess.PIPE) as forward:
        assert forward.stdout is not None
        assert b"Forwarding" in forward.stdout.readline()
        assert get(local) == b"hello\n"
        forward.send_signal(signal.SIGINT)
        assert forward.wait(SECONDS) == 0


def between_two_runs(there: Agent) -> list["subprocess.CompletedProcess[str]"]:
    """Its log now and before, its row, and all of it; [] if it did not wait to be started all the time."""
    verbs = (["logs", "crash"], ["logs", "crash", "--previous"], ["get", "pods"], ["describe", "pod", "crash"])

    def state() -> tuple[list[str], list[str]]:
        return there.shown("crash")[3:], [one.id for one in there.runs("main")]

    before = state()
    found = [there.cli(*verb, check=False) for verb in verbs]
    return found if before[0] == ["CrashLoopBackOff"] and before == state() else []


def test_a_crash_loop_as_it_is_seen(there: Agent) -> None:
    """Its log now and before, its restarts, its last state, its events; and a watch that sees it through."""
    manifest = there.base / "crash.yaml"
    manifest.write_text(pod("crash", "echo run; cat /proc/uptime >&2; exit 3"))
    watch = [BIN / "holdfast", "get", "pods", "-w", "crash"]
    with (there.base / "watched").open("wb") as seen, started(there, watch, stdout=seen, stderr=seen) as watching:
        there.cli("apply", "-f", str(manifest))
        there.until(lambda: there.shown("crash")[3:] == ["CrashLoopBackOff"], "it to crash again")
        now, before, row, told = there.until(lambda: between_two_runs(there), "it to crash again, and to be looked at")
        assert now.stdout == "run\n"
        assert now.stderr == before.stderr, "the last one is the one before the next"
        assert re.search(r"crash +0/1 +CrashLoopBackOff +\d \(\d+s ago\)", row.stdout)
        assert re.search(r"Last State: +Terminated\n +Reason: +Error\n +Exit Code: +3\n", told.stdout)
        events = r"Normal +Started +\d+s \(x\d over \d+s\) +holdfast-agent +Started container main"
        assert re.search(events, told.stdout)
        there.restart()
        there.until(lambda: "the agent is back" in (there.base / "watched").read_text(), "the watch to go on")
        rows = (there.base / "watched").read_text().count("\n")
        there.cli("delete", "pod", "crash")
        there.until(lambda: (there.base / "watched").read_text().count("\n") > rows, "its end to be seen")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(SECONDS) == 130
    found = [line.split() for line in (there.base / "watched").read_text().splitlines()]
    assert ["NAME", "READY", "STATUS", "RESTARTS", "AGE"] in found
    assert "CrashLoopBackOff" in {row[2] for row in found if row[:1] == ["crash"]}
    assert not there.left()


def test_the_log_of_the_run_before(there: Agent) -> None:
    script = "test -e /v/there && echo second && exec sleep 1000; touch /v/there; echo first; exit 1"
    volumes = "terminationGracePeriodSeconds: 0, volumes: [{name: v, emptyDir: {}}], "
    text = pod("twice", script, volumes).replace("command", "volumeMounts: [{name: v, mountPath: /v}], command")
    (manifest := there.base / "twice.yaml").write_text(text)
    there.cli("apply", "-f", str(manifest))
    there.until(lambda: there.cli("logs", "twice", check=False).stdout == "second\n", "the second run")
    assert there.cli("logs", "--previous", "twice").stdout == "first\n"
    assert there.cli("logs", "pod/twice", "--tail", "1", "--since", "1h").stdout == "second\n"
    with started(there, [BIN / "holdfast", "logs", "-f", "twice"], stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == b"second\n"
        there.cli("delete", "pod", "twice")
        assert following.wait(SECONDS) == 0
    assert not there.left()


def test_what_has_not_begun(there: Agent) -> None:
    manifest = there.base / "wanting.yaml"
    manifest.write_text(
        pod("wanting", "true").replace("command", "imagePullPolicy: Never, command").replace(IMAGE, "no/image")
    )
    there.cli("apply", "-f", str(manifest))
    there.until(lambda: there.shown("wanting")[3:] == ["ErrImageNeverPull"], "it to be told")
    assert "waiting to start: ErrImageNeverPull" in there.cli("logs", "wanting", check=False).stderr
    assert "previous terminated" in there.cli("logs", "-p", "wanting", check=False).stderr
    there.cli("delete", "-f", str(manifest))
    assert not there.left()
