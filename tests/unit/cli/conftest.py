"""A daemon of a few dictionaries behind a real socket: what the command line makes of answers, and asks for."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from holdfast.cli.main import main
from holdfast.proto import node_pb2, node_pb2_grpc
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto import runtime_v1_pb2_grpc as services

IMAGE_ID = f"sha256:{'1' * 64}"


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Fake(services.RuntimeServiceServicer, services.ImageServiceServicer, node_pb2_grpc.NodeServicer):
    """Answers from `pods`, `containers` and `images`, and notes every request in `asked`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pods: dict[str, Any] = {}
        self.containers: dict[str, Any] = {}
        self.images = {IMAGE_ID: pb.Image(id=IMAGE_ID, size=2_150_000, repo_tags=["docker.io/library/busybox:latest"])}
        self.asked: list[Any] = []
        self.fail: dict[str, tuple[grpc.StatusCode, str]] = {}
        self.exec_reply = pb.ExecSyncResponse()
        self.url = ""  # of streams
        self.exit_on_start: int | None = None
        self.before_status: Callable[[int], None] = lambda times: None  # how often a status was asked for before

    def add(self, number: str, name: str, state: str = "RUNNING", seconds: float = 125) -> str:
        """A pod with one container; `number` is a hex digit that the ids are made of."""
        made = time.time_ns() - int(seconds * 1e9)
        pod_id, container_id = number * 64, f"c{number}" + number * 62
        self.pods[pod_id] = pb.PodSandbox(
            id=pod_id,
            metadata=pb.PodSandboxMetadata(name=name, namespace="default", uid=f"uid-{name}"),
            state="SANDBOX_READY" if state == "RUNNING" else "SANDBOX_NOTREADY",
            created_at=made,
            runtime_handler="crun",
        )
        self.containers[container_id] = pb.Container(
            id=container_id,
            pod_sandbox_id=pod_id,
            metadata=pb.ContainerMetadata(name=name),
            image=pb.ImageSpec(image=IMAGE_ID, user_specified_image="busybox"),
            state=f"CONTAINER_{state}",
            created_at=made,
        )
        return container_id

    def _note(self, request: Any, context: Any, method: str) -> None:
        self.asked.append(request)
        if method in self.fail:
            context.abort(*self.fail[method])

    def last(self, kind: type[Any]) -> Any:
        return next(one for one in reversed(self.asked) if isinstance(one, kind))

    def Version(self, request: Any, context: Any) -> Any:
        return pb.VersionResponse(runtime_name="holdfast", runtime_version="0.9", runtime_api_version="v1")

    def Status(self, request: Any, context: Any) -> Any:
        facts = {"root": "/r", "state": "/s", "log_root": str(self.directory), "cgroup_root": "/holdfast"}
        conditions = [pb.RuntimeCondition(type="RuntimeReady", status=True)]
        return pb.StatusResponse(
            status=pb.RuntimeStatus(conditions=conditions),
            info={"config": json.dumps(facts)},
            runtime_handlers=[pb.RuntimeHandler(name=name) for name in ("", "crun", "runc")],
        )

    def ListPodSandbox(self, request: Any, context: Any) -> Any:
        self._note(request, context, "ListPodSandbox")
        wanted = request.filter
        found = [one for one in self.pods.values() if not wanted.HasField("state") or one.state == wanted.state.state]
        return pb.ListPodSandboxResponse(items=found)

    def ListContainers(self, request: Any, context: Any) -> Any:
        self._note(request, context, "ListContainers")
        wanted = request.filter
        found = [
            one
            for one in self.containers.values()
            if wanted.pod_sandbox_id in ("", one.pod_sandbox_id)
            and (not wanted.HasField("state") or one.state == wanted.state.state)
        ]
        return pb.ListContainersResponse(containers=found)

    def ContainerStatus(self, request: Any, context: Any) -> Any:
        self.before_status(sum(isinstance(one, pb.ContainerStatusRequest) for one in self.asked))
        self._note(request, context, "ContainerStatus")
        if (one := self.containers.get(request.container_id)) is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"cannot find container {request.container_id!r}")
        log = str(self.directory / f"{one.metadata.name}.log")
        status = pb.ContainerStatus(id=one.id, state=one.state, metadata=one.metadata, log_path=log)
        status.exit_code = self.exit_on_start or 0
        return pb.ContainerStatusResponse(status=status, info={"info": '{"pid": 42}'} if request.verbose else {})

    def PodSandboxStatus(self, request: Any, context: Any) -> Any:
        one = self.pods[request.pod_sandbox_id]
        status = pb.PodSandboxStatus(id=one.id, state=one.state, metadata=one.metadata)
        return pb.PodSandboxStatusResponse(status=status, info={"info": "{}"})

    def RunPodSandbox(self, request: Any, context: Any) -> Any:
        self._note(request, context, "RunPodSandbox")
        Path(request.config.log_directory).mkdir()
        one = pb.PodSandbox(id="a" * 64, metadata=request.config.metadata, annotations=request.config.annotations)
        self.pods[one.id] = one
        return pb.RunPodSandboxResponse(pod_sandbox_id=one.id)

    def CreateContainer(self, request: Any, context: Any) -> Any:
        self._note(request, context, "CreateContainer")
        one = pb.Container(id="b" * 64, pod_sandbox_id=request.pod_sandbox_id, metadata=request.config.metadata)
        self.containers[one.id] = one
        return pb.CreateContainerResponse(container_id=one.id)

    def StartContainer(self, request: Any, context: Any) -> Any:
        self._note(request, context, "StartContainer")
        over = self.exit_on_start is not None
        one = self.containers[request.container_id]
        one.state = pb.CONTAINER_EXITED if over else pb.CONTAINER_RUNNING
        log = self.directory / f"{one.metadata.name}.log"
        log.write_bytes(b"2026-01-01T00:00:00Z stdout F hello\n")
        return pb.StartContainerResponse()

    def StopContainer(self, request: Any, context: Any) -> Any:
        self._note(request, context, "StopContainer")
        self.containers[request.container_id].state = pb.CONTAINER_EXITED
        return pb.StopContainerResponse()

    def RemoveContainer(self, request: Any, context: Any) -> Any:
        self._note(request, context, "RemoveContainer")
        del self.containers[request.container_id]
        return pb.RemoveContainerResponse()

    def StopPodSandbox(self, request: Any, context: Any) -> Any:
        self._note(request, context, "StopPodSandbox")
        self.pods[request.pod_sandbox_id].state = pb.SANDBOX_NOTREADY
        return pb.StopPodSandboxResponse()

    def RemovePodSandbox(self, request: Any, context: Any) -> Any:
        self._note(request, context, "RemovePodSandbox")
        del self.pods[request.pod_sandbox_id]
        return pb.RemovePodSandboxResponse()

    def ExecSync(self, request: Any, context: Any) -> Any:
        self._note(request, context, "ExecSync")
        return self.exec_reply

    def Exec(self, request: Any, context: Any) -> Any:
        self._note(request, context, "Exec")
        return pb.ExecResponse(url=self.url)

    def Attach(self, request: Any, context: Any) -> Any:
        self._note(request, context, "Attach")
        return pb.AttachResponse(url=self.url)

    def ListImages(self, request: Any, context: Any) -> Any:
        return pb.ListImagesResponse(images=self.images.values())

    def ImageStatus(self, request: Any, context: Any) -> Any:
        name = request.image.image
        found = [one for one in self.images.values() if name in one.id or any(name in tag for tag in one.repo_tags)]
        return pb.ImageStatusResponse(image=found[0] if found else None, info={"info": '{"config": {}}'})

    def RemoveImage(self, request: Any, context: Any) -> Any:
        self._note(request, context, "RemoveImage")
        return pb.RemoveImageResponse()

    def ImageFsInfo(self, request: Any, context: Any) -> Any:
        used = pb.FilesystemUsage(used_bytes=pb.UInt64Value(value=5_000_000), inodes_used=pb.UInt64Value(value=17))
        return pb.ImageFsInfoResponse(image_filesystems=[used])

    def PullImage(self, request: Any, context: Any) -> Any:
        # Both services have a method of this name; only the one with progress is asked here.
        self._note(request, context, "PullImage")
        yield node_pb2.Progress(item=IMAGE_ID, phase="download", done=5, total=10)
        yield node_pb2.Progress(item=IMAGE_ID, phase="download", done=10, total=10)
        yield node_pb2.Progress(phase="done", images=[request.image])

    def ImportImage(self, request: Any, context: Any) -> Any:
        data = b"".join(chunk.data for chunk in request)
        yield node_pb2.Progress(item=IMAGE_ID, phase="unpack", done=len(data), total=len(data))
        yield node_pb2.Progress(phase="done", images=[f"imported/{len(data)}:latest"])

    def Config(self, request: Any, context: Any) -> Any:
        return node_pb2.ConfigReply(toml='root = "/r"\n')

    def Recovery(self, request: Any, context: Any) -> Any:
        finding = {"kind": "container", "id": "c" * 64, "name": "web", "before": "RUNNING", "after": "EXITED"}
        report = {
            "pods": 2, "containers": 3, "total_milliseconds": 12.5, "load_milliseconds": 1.5, "rebooted": True,
            "findings": [{**finding, "why": "the shim's exit file"}], "swept": ["mount /x"], "problems": [],
        }  # fmt: skip
        return node_pb2.RecoveryReply(json=json.dumps(report))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    one = Fake(tmp_path)
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        services.add_RuntimeServiceServicer_to_server(one, server)
        services.add_ImageServiceServicer_to_server(one, server)
        node_pb2_grpc.add_NodeServicer_to_server(one, server)
        server.add_insecure_port(f"unix:{tmp_path}/s")
        server.start()
        yield one
        server.stop(None).wait()


@pytest.fixture
def holdfast(fake: Fake, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the command line in this process."""

    def run(*arguments: str, socket: str = f"{fake.directory}/s") -> Done:
        monkeypatch.setattr(sys, "argv", ["holdfast", "--socket", socket, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run
