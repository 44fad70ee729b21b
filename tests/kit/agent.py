"""A real `holdfast agent` beside a real daemon, started and killed as its users would."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from image import build_busybox_image

from holdfast.linux import cgroup, mount
from holdfast.proto import agent_pb2
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.agent_pb2_grpc import AgentStub
from kit.containerd import Containerd
from kit.node import BIN, SECONDS, Node, until
from kit.pods import APPLICATION

IMAGE = "test/busybox:1"
LOOKS = 0.05  # seconds from one to the next: they make work for the agent
NOTHING: dict[str, Any] = {"state": {}, "restartCount": 0, "ready": False}
NAME = "io.kubernetes.container.name"
FOREVER = "trap exit TERM; sleep 1000 & wait"


def box(name: str, script: str = FOREVER, **more: Any) -> dict[str, Any]:
    """A container."""
    return {"name": name, "image": IMAGE, "command": ["/bin/sh", "-c", script], **more}


def application(port: int) -> str:
    """The docs' example, with the image that there is here, at a port that is free."""
    return APPLICATION.replace("docker.io/library/busybox:1.36", IMAGE).replace("8080", str(port))


def get(port: int) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException):  # the latter of a server that is killed meanwhile
        return b""


class Other:
    """As much of a node as an agent needs, of a containerd; the agent has its place at `base`."""

    def __init__(self, runtime: Containerd, base: Path | None = None) -> None:
        self._runtime = runtime
        self.base, self.socket, self.cgroup = base or runtime.base, runtime.socket, runtime.cgroup

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


class Agent:
    """`inject` is its crash points' directory; `wrapper` starts it, `flags` are what it is told besides its places."""

    def __init__(self, node: Node | Other, root: Path | None = None, wrapper: Sequence[str] = ()) -> None:
        self.node = node
        self.wrapper = wrapper
        self.base = Path(tempfile.mkdtemp(prefix="agent-", dir=node.base))
        self.root, self.manifests, self.inject = (self.base / name for name in ("root", "manifests", "inject"))
        self.root = root or self.root
        self.logs = self.base / "logs"
        for place in (self.manifests, self.inject):
            place.mkdir()
        self.cgroup = f"{node.cgroup}/agent"
        self.flags: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        places: list[object] = ["--root", self.root, "--manifests", self.manifests, "--log-root", self.logs]
        places += ["--cgroup-root", self.cgroup, *self.flags]
        command = [*self.wrapper, BIN / "holdfast", "--socket", self.node.socket, "agent", *places]
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
            return until(condition, what, seconds, LOOKS)
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

    def write_pods(self, **specs: dict[str, Any]) -> None:
        """A manifest for each pod, by name; what ends is given a second to, if its spec does not say otherwise."""
        for name, spec in specs.items():
            spec = {"terminationGracePeriodSeconds": 1, **spec}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "uid": f"{name}-0"}, "spec": spec}
            self.write(f"{name}.json", json.dumps(pod))

    def told(self, name: str) -> agent_pb2.AgentPod | None:
        """What the agent says of a pod; None when it has none of that name, or does not answer."""
        with grpc.insecure_channel(f"unix:{self.root}/agent.sock") as channel:
            try:
                found = AgentStub(channel).ListPods(agent_pb2.ListPodsRequest(name=name), timeout=SECONDS).pods
            except grpc.RpcError:
                return None
        return found[0] if found else None

    def status(self, name: str) -> dict[str, Any]:
        """Of a pod; {} when there is none."""
        found = self.told(name)
        return json.loads(found.json)["status"] if found is not None else {}

    def container(self, pod: str, name: str) -> dict[str, Any]:
        """The status of a container, init containers among them; of one that is not there it says nothing."""
        status = self.status(pod)
        every = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
        return next((one for one in every if one["name"] == name), NOTHING)

    def phase(self, pod: str) -> str:
        return str(self.status(pod).get("phase", ""))

    def waits(self, pod: str) -> str:
        """Why its container c does not run yet."""
        return str(self.container(pod, "c")["state"].get("waiting", {}).get("reason", ""))

    def lines(self, pod: str, name: str) -> list[str]:
        """What a container's first run has written, but for a record that is being written."""
        path = self.logs / f"default_{pod}_{pod}-0" / name / "0.log"
        return [line.split(" ", 3)[3] for line in path.read_text().split("\n")[:-1]] if path.exists() else []

    def ended(self, *names: str) -> None:
        """Take pods' manifests away; nothing is left of them."""
        for name in names:
            (self.manifests / f"{name}.json").unlink()
        try:
            self.until(lambda: not self.left(), "nothing to be left")
        except AssertionError as exc:
            raise AssertionError(f"left: {self.left()}\n{exc}") from exc

    def events(self, pod: str) -> list[str]:
        """ "Reason: message", the oldest first."""
        found = self.told(pod)
        return [f"{one.reason}: {one.message}" for one in found.events] if found is not None else []

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
        left += [f"mount {one.target}" for one in mount.mountinfo() if f"{self.root}/" in one.target]
        for place in (self.root / "pods", self.root / "trash", self.root / "images", self.logs):
            with contextlib.suppress(FileNotFoundError):
                left += [os.fspath(path) for path in place.iterdir()]
        return left + ([f"cgroup {self.cgroup}"] if cgroup.exists(self.cgroup) else [])


@contextlib.contextmanager
def running_agent(one: Node | Other, root: Path | None = None, wrapper: Sequence[str] = ()) -> Iterator[Agent]:
    """A started agent; at the end nothing of its pods is left, however the test has left them."""
    one.import_image(build_busybox_image(one.base, IMAGE))
    found = Agent(one, root, wrapper)
    found.start()
    try:
        yield found
    finally:
        if found.process is not None and found.process.poll() is None:
            found.end()
        for pod in one.pods():
            one.remove_pod(pod.id)
        while entries := [entry for entry in mount.mountinfo() if found.root in Path(entry.target).parents]:
            mount.detach(entries[-1].target)  # the latest first: it may hide others
        cgroup.remove(one.cgroup)
