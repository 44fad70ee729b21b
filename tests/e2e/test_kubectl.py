"""kubectl's exec, attach, cp, port-forward and logs: Debian's, which speaks SPDY, and a newer one's, by WebSockets."""

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.apiserver import DEBIANS, Api, kubectls
from kit.node import Node, until
from kit.ports import ask
from kit.terminal import Terminal

from holdfast.proto import runtime_v1_pb2 as pb

pytestmark = pytest.mark.usefixtures("sessions_end")

SECONDS = 60
LARGE = bytes(range(256)) * 4096 * 5  # 5 MiB
COUNT = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"
ECHO = 'while read line; do echo "heard $line"; done'
# Answers with what it has heard once that has ended; and one that says who it is.
SERVERS = "nc -ll -p 7001 -e sha256sum & nc -ll -p 7002 -e cat & sleep 100000"


@pytest.fixture(scope="module")
def pod(life: Node) -> str:
    """A pod "web" with a container "main" to execute in, "echo" that is typed to, and "server" with ports."""
    pod_id = life.run_pod(life.pod_config("web", network=pb.POD))
    life.run(pod_id, "sleep 100000", "main", network=pb.POD)
    life.run(pod_id, ECHO, "echo", network=pb.POD, stdin=True)
    life.run(pod_id, SERVERS, "server", network=pb.POD)
    return pod_id


class Kubectl:
    def __init__(self, program: Path, api: Api, home: Path) -> None:
        self.api = api
        self.speaks = "spdy/3.1" if program == DEBIANS else "websocket"
        self.command = [str(program), "--server", api.url, "--namespace", "test"]
        self.environment = {"HOME": str(home), "KUBECONFIG": "/dev/null", "PATH": os.environ["PATH"]}

    def __call__(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.command, *arguments],
            input=stdin,
            env=self.environment,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )

    @contextlib.contextmanager
    def background(self, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [*self.command, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment
        ) as process:
            late = threading.Timer(SECONDS, process.kill)
            late.start()
            try:
                yield process
            finally:
                late.cancel()
                process.kill()

    def on_a_terminal(self, *arguments: str) -> Terminal:
        return Terminal([*self.command, *arguments], environment=self.environment)


@pytest.fixture(scope="module", params=kubectls(), ids=lambda path: path.name)
def kubectl(request: pytest.FixtureRequest, api: Api, pod: str, tmp_path_factory: pytest.TempPathFactory) -> Kubectl:
    return Kubectl(request.param, api, tmp_path_factory.mktemp("home"))


def line_of(process: "subprocess.Popen[bytes]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def test_exec_has_the_commands_streams_and_status(kubectl: Kubectl) -> None:
    done = kubectl("exec", "web", "-c", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.returncode, done.stdout) == (42, b"out\n")
    assert done.stderr.splitlines()[0] == b"err"
    done = kubectl("exec", "web", "-c", "main", "--", "echo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")
    assert ("Exec", kubectl.speaks) in kubectl.api.spoken


def test_input_is_whole_and_has_an_end(kubectl: Kubectl) -> None:
    done = kubectl("exec", "-i", "web", "-c", "main", "--", "sha256sum", stdin=LARGE)
    assert done.stdout.split()[:1] == [hashlib.sha256(LARGE).hexdigest().encode()], done.stderr
    done = kubectl("exec", "-i", "web", "-c", "main", "--", "cat", stdin=LARGE)
    assert hashlib.sha256(done.stdout).hexdigest() == hashlib.sha256(LARGE).hexdigest(), done.stderr


def test_a_command_that_does_not_exist(kubectl: Kubectl) -> None:
    done = kubectl("exec", "web", "-c", "main", "--", "/no/such/command")
    assert done.returncode != 0
    assert b"/no/such/command" in done.stderr
    assert kubectl("exec", "web", "-c", "nobody", "--", "true").returncode != 0


def test_a_terminal_of_the_users_size(kubectl: Kubectl) -> None:
    with kubectl.on_a_terminal("exec", "-it", "web", "-c", "main", "--", "sh") as terminal:
        terminal.expect("# ")
        until(lambda: sized(terminal, "24 80"), "the size to arrive")
        terminal.resize(132, 43)
        until(lambda: sized(terminal, "43 132"), "the new size to arrive")
        terminal.type("test -t 0 -a -t 1 -a -t 2 && exit 7\n")
        assert terminal.end() == 7
        assert terminal.settings() == terminal.before


def sized(terminal: Terminal, size: str) -> bool:
    terminal.type("echo = $(stty size) =\n")
    terminal.expect("= $(stty size) =")
    terminal.expect("= ")
    return terminal.expect(" =") == size


def test_attach_types_and_shows(kubectl: Kubectl) -> None:
    with kubectl.background("attach", "-i", "web", "-c", "echo") as process:
        assert process.stdin is not None
        for word in ("one", "two"):
            process.stdin.write(f"{word}\n".encode())
            process.stdin.flush()
            assert line_of(process) == f"heard {word}"


def test_copies_in_both_directions(kubectl: Kubectl, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "large").write_bytes(LARGE)
    (tmp_path / "there" / "small").write_text("hello")
    done = kubectl("cp", str(tmp_path / "there"), "web:/tmp/copied", "-c", "main")
    assert done.returncode == 0, done.stderr
    done = kubectl("cp", "web:/tmp/copied", str(tmp_path / "back"), "-c", "main")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back" / "large").read_bytes() == LARGE
    assert (tmp_path / "back" / "small").read_text() == "hello"
    kubectl("exec", "web", "-c", "main", "--", "rm", "-r", "/tmp/copied")


def test_ports_are_forwarded(kubectl: Kubectl) -> None:
    with kubectl.background("port-forward", "--address", "127.0.0.1", "pod/web", ":7001", ":7002", ":7999") as process:
        ports: dict[str, int] = {}
        while len(ports) < 3:
            if found := re.fullmatch(r"Forwarding from 127\.0\.0\.1:(\d+) -> (\d+)", line_of(process)):
                ports[found[2]] = int(found[1])
        for text in (b"one", b"two"):
            assert ask(ports["7001"], text).split()[:1] == [hashlib.sha256(text).hexdigest().encode()]
        with contextlib.ExitStack() as stack:
            several = [
                stack.enter_context(socket.create_connection(("127.0.0.1", ports["7002"]), timeout=SECONDS))
                for _ in range(5)
            ]
            for number, connection in enumerate(several):
                connection.sendall(b"%d" % number)
            for number, connection in enumerate(several):
                assert connection.recv(100) == b"%d" % number
        assert ask(ports["7002"], LARGE) == LARGE
        with contextlib.suppress(ConnectionResetError):
            assert ask(ports["7999"], b"nobody listens") == b""
        assert process.stderr is not None
        assert any(b"refused" in line for line in process.stderr), "it does not say why"
        assert ("PortForward", kubectl.speaks) in kubectl.api.spoken


def test_logs(kubectl: Kubectl, life: Node, pod: str) -> None:
    name = f"logged-by-{Path(kubectl.command[0]).name.replace('.', '-')}"
    container = life.run(pod, "seq 5; while ! [ -e /end ]; do sleep 0.05; done; echo the end", name)
    until(lambda: life.container_log(container).count(b"\n") == 5, "its output")
    assert kubectl("logs", "web", "-c", name, "--tail", "2").stdout == b"4\n5\n"
    assert kubectl("logs", "web", "-c", name, "--since", "1h").stdout == b"1\n2\n3\n4\n5\n"
    with kubectl.background("logs", "-f", "web", "-c", name) as process:
        assert [line_of(process) for _ in range(5)] == ["1", "2", "3", "4", "5"]
        life.exec(container, ["touch", "/end"])
        assert line_of(process) == "the end"
        assert process.wait(SECONDS) == 0
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container))


def test_an_exec_goes_on_when_the_daemon_is_killed(kubectl: Kubectl, life: Node) -> None:
    """F39."""
    with kubectl.background("exec", "web", "-c", "main", "--", "sh", "-c", COUNT) as process:
        numbers = [int(line_of(process))]
        life.restart()
        began = time.monotonic()
        while time.monotonic() < began + 0.5:
            numbers.append(int(line_of(process)))
    assert numbers == list(range(1, len(numbers) + 1))
