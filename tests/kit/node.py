"""A real holdfastd in directories of its own, started, killed and asked as a user would."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
from image import build_busybox_image

from holdfast.config import toml
from holdfast.linux import cgroup, mount
from holdfast.model.hidden import MASKED, READ_ONLY
from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import ImageServiceStub, RuntimeServiceStub
from holdfast.runtime import keeper

BIN = Path(sys.executable).parent
IMAGE = "test/busybox:latest"
SECONDS = 30.0
IMPORT_SECONDS = 120.0  # of a layer that unpacks to a gigabyte on a slow disk


def until(
    condition: Callable[[], Any], what: str = "the condition", seconds: float = SECONDS, every: float = 0.005
) -> Any:
    """Wait for a condition and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(every)
    return value


class Node:
    """One daemon. `runtime` is the handler that its pods use; with `inject` see linux.inject."""

    def __init__(
        self, runtime: str = "crun", base: Path | None = None, *, inject: bool = False, **settings: Any
    ) -> None:
        self.base = base or Path(tempfile.mkdtemp(prefix=f"hf-t-{os.getpid()}-"))
        self.base.chmod(0o711)  # so that root of a pod with users of its own gets to its containers
        self.root, self.state = self.base / "root", self.base / "state"
        self.socket = self.state / "holdfast.sock"
        self.cgroup = f"/{self.base.name}"
        self.runtime = runtime
        self.bin = BIN
        self.inject = self.base / "inject"
        self._environment = dict(os.environ)
        if inject:
            self.inject.mkdir()
            self._environment["HOLDFAST_INJECT"] = str(self.inject)
        self.process: subprocess.Popen[bytes] | None = None
        self.pods_made = 0
        self.wrapper: list[str] = []  # what the next daemon is started by
        self._channel: grpc.Channel | None = None
        settings = {"cgroup_root": self.cgroup, "default_runtime": runtime, "log_root": f"{self.base}/logs"} | settings
        self.config = self.base / "config.toml"
        self.config.write_text("".join(f"{key} = {toml(value)}\n" for key, value in settings.items()))

    # -- the daemon

    def set_environment(self, **values: str) -> None:
        """For the daemons that are started from now on, and for what they fork."""
        self._environment |= values

    def start(self, *arguments: str) -> float:
        """Start it; returns the seconds from exec until it lists containers."""
        began = time.monotonic()
        wrapper, self.wrapper = self.wrapper, []
        command = [*wrapper, str(self.bin / "holdfastd"), "--root", str(self.root), "--state", str(self.state)]
        with open(self.base / "daemon.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.config), *arguments], stdout=log, stderr=log, env=self._environment
            )
        until(self.answers, "the daemon to answer")
        return time.monotonic() - began

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"holdfastd ended: {self.log()[-3000:]}"
        if not self.socket.exists():
            return False
        try:
            self.call("ListContainers", pb.ListContainersRequest())
        except grpc.RpcError as exc:
            assert exc.code() is grpc.StatusCode.UNAVAILABLE, exc
            self.hang_up()
            return False
        return True

    def end(self, number: int) -> int:
        assert self.process is not None
        self.hang_up()
        self.process.send_signal(number)
        return self.process.wait(timeout=SECONDS)

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def restart(self, number: int = signal.SIGKILL) -> float:
        self.end(number)
        return self.start()

    def log(self) -> str:
        return (self.base / "daemon.log").read_text(errors="replace")

    def hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    @property
    def channel(self) -> grpc.Channel:
        if self._channel is None:
            options = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
            self._channel = grpc.insecure_channel(f"unix:{self.socket}", options=options)
        return self._channel

    def call(self, method: str, request: Any, seconds: float = SECONDS) -> Any:
        return getattr(RuntimeServiceStub(self.channel), method)(request, timeout=seconds)

    def images(self, method: str, request: Any, seconds: float = SECONDS) -> Any:
        return getattr(ImageServiceStub(self.channel), method)(request, timeout=seconds)

    def command(self, *arguments: str) -> list[str]:
        """The command line, told of this node."""
        return [str(BIN / "holdfast"), "--socket", str(self.socket), *arguments]

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments)
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=SECONDS)

    # -- pods and containers

    def import_image(self, archive: Path) -> list[str]:
        def chunks() -> Iterator[node_pb2.ImportChunk]:
            with archive.open("rb") as file:
                while data := file.read(1 << 20):
                    yield node_pb2.ImportChunk(data=data)

        steps = list(node_pb2_grpc.NodeStub(self.channel).ImportImage(chunks(), timeout=IMPORT_SECONDS))
        return list(steps[-1].images)

    def busybox(self, **config: Any) -> None:
        self.import_image(build_busybox_image(self.base, IMAGE, **config))

    def pod_config(self, name: str = "", **more: Any) -> pb.PodSandboxConfig:
        self.pods_made += 1
        name = name or f"pod-{self.pods_made}"
        options = pb.NamespaceOption(
            network=more.pop("network", pb.NODE), pid=more.pop("pid", pb.CONTAINER), ipc=more.pop("ipc", pb.POD)
        )
        context = pb.LinuxSandboxSecurityContext(namespace_options=options, privileged=more.pop("privileged", False))
        return pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(
                name=name, namespace="test", uid=f"uid-{name}", attempt=more.pop("attempt", 0)
            ),
            log_directory=str(self.base / "logs" / name),
            linux=pb.LinuxPodSandboxConfig(security_context=context),
            **more,
        )

    def run_pod(self, config: pb.PodSandboxConfig | None = None, handler: str = "") -> str:
        request = pb.RunPodSandboxRequest(config=config or self.pod_config(), runtime_handler=handler)
        return self.call("RunPodSandbox", request).pod_sandbox_id

    def container_config(self, script: str | list[str], name: str = "main", **more: Any) -> pb.ContainerConfig:
        command = ["/bin/sh", "-c", script] if isinstance(script, str) else script
        linux = more.pop("linux", pb.LinuxContainerConfig())
        if not linux.security_context.HasField("namespace_options"):
            options = pb.NamespaceOption(network=more.pop("network", pb.NODE), pid=more.pop("pid", pb.CONTAINER))
            linux.security_context.namespace_options.CopyFrom(options)
            if options.network == pb.POD:  # one as a kubelet makes it
                linux.security_context.masked_paths.extend(MASKED)
                linux.security_context.readonly_paths.extend(READ_ONLY)
        return pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name=name, attempt=more.pop("attempt", 0)),
            image=pb.ImageSpec(image=more.pop("image", IMAGE)),
            command=command,
            log_path=f"{name}.log",
            linux=linux,
            **more,
        )

    def create(self, pod_id: str, config: pb.ContainerConfig) -> str:
        request = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config)
        return self.call("CreateContainer", request).container_id

    def start_container(self, container_id: str) -> None:
        self.call("StartContainer", pb.StartContainerRequest(container_id=container_id))

    def run(self, pod_id: str, script: str | list[str], name: str = "main", **more: Any) -> str:
        container_id = self.create(pod_id, self.container_config(script, name, **more))
        self.start_container(container_id)
        return container_id

    def stop_container(self, container_id: str, seconds: int = 0) -> None:
        request = pb.StopContainerRequest(container_id=container_id, timeout=seconds)
        self.call("StopContainer", request, seconds + SECONDS)

    def status(self, container_id: str) -> pb.ContainerStatus:
        return self.call("ContainerStatus", pb.ContainerStatusRequest(container_id=container_id)).status

    def info(self, container_id: str) -> dict[str, Any]:
        request = pb.ContainerStatusRequest(container_id=container_id, verbose=True)
        found: dict[str, Any] = json.loads(self.call("ContainerStatus", request).info["info"])
        return found

    def pid(self, container_id: str) -> int:
        return int(self.info(container_id)["pid"])

    def exited(self, container_id: str) -> pb.ContainerStatus:
        """Its status, once it has exited."""
        until(lambda: self.status(container_id).state == pb.CONTAINER_EXITED, f"{container_id[:12]} to exit")
        return self.status(container_id)

    def complete_log(self, container_id: str) -> bytes:
        """Of one that has exited: of a foreign shim its logger comes to the end of it a moment later."""
        fifos = [next((self.state / "pods").glob(f"*/{container_id}")) / name for name in ("stdout", "stderr")]
        until(lambda: not any(one.exists() for one in fifos), "its logger to end")
        return self.container_log(container_id)

    def exec(self, container_id: str, command: Iterable[str], seconds: int = 20) -> Any:
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=seconds)
        return self.call("ExecSync", request, max(SECONDS, seconds + 10))

    def works(self, container_id: str) -> bool:
        """Whether something can be executed in it: its shim answers."""
        try:
            return bool(self.exec(container_id, ["/bin/true"]).exit_code == 0)
        except grpc.RpcError:
            return False

    def container_log(self, container_id: str) -> bytes:
        return Path(self.status(container_id).log_path).read_bytes()

    def containers(self) -> list[pb.Container]:
        return list(self.call("ListContainers", pb.ListContainersRequest()).containers)

    def pods(self) -> list[pb.PodSandbox]:
        return list(self.call("ListPodSandbox", pb.ListPodSandboxRequest()).items)

    def remove_pod(self, pod_id: str) -> None:
        self.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
        self.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))

    def streamers(self) -> list[int]:
        """Pids of those who have a session. They end by themselves some time after their clients."""
        return [one.pid for one in keeper.workers(self.state) if one.kind == "streamer"]

    # -- the end

    def leftovers(self) -> list[str]:
        """What belongs to no row, when there are no pods: everything but the image."""
        mounts = {entry.target for entry in mount.mountinfo()} - {str(self.root), str(self.state)}
        left = [f"mount {target}" for target in sorted(mounts) if str(self.base) in target]
        lasting = ("shim", "streamer", "tls")
        left += [f"{one.kind} {one.id}" for one in keeper.workers(self.state) if one.kind in lasting]
        left += [f"cgroup {name}" for name in cgroup.children(self.cgroup)]
        for directory in ("pods", *(f"oci/{name}" for name in ("crun", "runc", "runsc"))):
            with contextlib.suppress(FileNotFoundError):
                names = os.listdir(self.state / directory)
                left += [f"{directory}/{name}" for name in names if not name.startswith(".")]  # .cache is crun's
        with contextlib.suppress(FileNotFoundError):
            left += [f"ingest/{name}" for name in os.listdir(self.root / "ingest")]
        return left

    def empty(self) -> list[str]:
        """Remove everything but what is on disk, however the test has left it. Returns what is left behind."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        for pod in self.pods():
            self.remove_pod(pod.id)
        with contextlib.suppress(AssertionError):  # sessions end some time after their clients
            until(lambda: not any(one.kind in ("streamer", "tls") for one in keeper.workers(self.state)))
        left = self.leftovers()
        self.end(signal.SIGTERM)
        keeper.shut_down(self.state)
        until(lambda: not keeper.workers(self.state), "the keeper to end")
        until(lambda: not list(self.state.glob("keeper*.sock")), "the keeper to end")
        return left

    def purge(self) -> None:
        """Remove everything, however the test has left it."""
        left = self.empty()
        shutil.rmtree(self.base)  # noqa: TID251  (nothing is mounted below it any more, see above)
        assert not left, f"left behind: {left}"


@contextlib.contextmanager
def node(runtime: str = "crun", base: Path | None = None, *, inject: bool = False, **settings: Any) -> Iterator[Node]:
    """A started node with the busybox image, taken apart at the end."""
    one = Node(runtime, base, inject=inject, **settings)
    try:
        one.start()
        one.busybox()
        yield one
    except BaseException:
        sys.stderr.write(one.log()[-4000:])
        raise
    finally:
        one.purge()
