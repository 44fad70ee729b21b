"""A real `holdfast agent` beside a real daemon, started and killed as its users would."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from image import build_busybox_image

from holdfast.linux import cgroup, mount
from holdfast.proto import runtime_v1_pb2 as pb
from kit.node import BIN, SECONDS, Node, until
from kit.pods import APPLICATION

IMAGE = "test/busybox:1"
NAME = "io.kubernetes.container.name"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def application(port: int) -> str:
    """The docs' example, with the image that there is here, at a port that is free."""
    return APPLICATION.replace("docker.io/library/busybox:1.36", IMAGE).replace("8080", str(port))


def get(port: int) -> bytes:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        return bytes(answer.read())
    return b""


class Agent:
    """`inject` is its crash points' directory, `flags` what it is started with besides its places."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.base = Path(tempfile.mkdtemp(prefix="agent-", dir=node.base))
        self.root, self.manifests, self.inject = (self.base / name for name in ("root", "manifests", "inject"))
        self.logs = self.base / "logs"
        for place in (self.manifests, self.inject):
            place.mkdir()
        self.cgroup = f"{node.cgroup}/agent"
        self.flags: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        places: list[object] = ["--root", self.root, "--manifests", self.manifests, "--log-root", self.logs]
        places += ["--cgroup-root", self.cgroup, *self.flags]
        command = [BIN / "holdfast", "--socket", self.node.socket, "agent", *places]
        environment = {**os.environ, "HOLDFAST_INJECT": str(self.inject)}
        with open(self.base / "log", "ab") as log:
            self.process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)

    def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=SECONDS)

    def restart(self, number: int = signal.SIGKILL) -> None:
        self.end(number)
        self.start()

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")

    def until(self, condition: Any, what: str = "the condition", seconds: float = 60.0) -> Any:
        try:
            return until(condition, what, seconds)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.log()[-4000:]}") from exc

    # -- pods

    @property
    def environment(self) -> dict[str, str]:
        """For the command line."""
        return {**os.environ, "HOLDFAST_AGENT": str(self.root / "agent.sock"), "HOLDFAST_SOCKET": str(self.node.socket)}

    def write(self, file: str, text: str) -> None:
        """A manifest, at once as a whole."""
        temporary = self.manifests / f".{file}"
        temporary.write_text(text)
        temporary.rename(self.manifests / file)

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [BIN / "holdfast", *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=SECONDS, env=self.environment
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def shown(self, pod: str) -> list[str]:
        """Namespace, name, how many are ready, and status."""
        rows = [line.split() for line in self.cli("get", "pods", "-A", check=False).stdout.splitlines()]
        return next((row[:4] for row in rows if row[1] == pod), [])

    def runs(self, name: str) -> list[pb.Container]:
        """Of a container of a pod, the oldest first."""
        found = [one for one in self.node.containers() if one.labels.get(NAME) == name]
        return sorted(found, key=lambda one: (one.metadata.attempt, one.created_at))

    def running(self, name: str) -> str:
        """The id of the run of a container that there is, or ""; never two."""
        found = [one.id for one in self.runs(name) if one.state == pb.CONTAINER_RUNNING]
        assert len(found) <= 1, f"two copies of {name}: {found}"
        return found[0] if found else ""

    def left(self) -> list[str]:
        """What is left of pods that are gone."""
        left = [f"pod {one.id}" for one in self.node.pods()] + [f"container {one.id}" for one in self.node.containers()]
        left += [f"mount {one.target}" for one in mount.mountinfo() if str(self.root) in one.target]
        for place in (self.root / "pods", self.root / "trash", self.root / "images", self.logs):
            with contextlib.suppress(FileNotFoundError):
                left += [os.fspath(path) for path in place.iterdir()]
        return left + ([f"cgroup {self.cgroup}"] if cgroup.exists(self.cgroup) else [])


@contextlib.contextmanager
def running_agent(one: Node) -> Iterator[Agent]:
    """A started agent; at the end nothing of its pods is left, however the test has left them."""
    one.import_image(build_busybox_image(one.base, IMAGE))
    found = Agent(one)
    found.start()
    try:
        yield found
    finally:
        if found.process is not None and found.process.poll() is None:
            found.end()
        for pod in one.pods():
            one.remove_pod(pod.id)
        for entry in sorted(mount.mountinfo(), key=lambda entry: entry.target, reverse=True):
            if Path(entry.target).is_relative_to(found.root):
                mount.detach(entry.target)
        cgroup.remove(one.cgroup)
