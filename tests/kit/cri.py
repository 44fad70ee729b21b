"""A runtime without containers, behind real gRPC on a unix socket: it does what a test tells it to, when it is told to.

Whatever a client asks, one name has one container, and what lives twice is an error of the test that ran it.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import (
    ImageServiceServicer,
    RuntimeServiceServicer,
    add_ImageServiceServicer_to_server,
    add_RuntimeServiceServicer_to_server,
)

UID = "io.kubernetes.pod.uid"
NAME = "io.kubernetes.container.name"
ALIVE = (pb.CONTAINER_RUNNING, pb.CONTAINER_UNKNOWN)
Fault = tuple[grpc.StatusCode, str, bool]  # the code, its words, and whether it was done all the same


class Scripted(RuntimeServiceServicer, ImageServiceServicer):
    """`calls` is what was asked, as "Method what"; `faults` by method are for the next calls, one each."""

    def __init__(self, socket: Path, *, events: bool = True) -> None:
        self.socket = socket
        self.has_events = events
        self.calls: list[str] = []
        self.wrong: list[str] = []  # what no client may do
        self.at_call: Callable[[str], None] | None = None  # told of each call that was done
        self.faults: dict[str, list[Fault]] = {}
        self.hanging: dict[str, asyncio.Event] = {}
        self.sandboxes: dict[str, pb.PodSandboxStatus] = {}
        self.containers: dict[str, pb.ContainerStatus] = {}
        self.configs: dict[str, pb.ContainerConfig] = {}
        self.sandbox_of: dict[str, str] = {}
        self.images: set[str] = {"i:1"}
        self.registry: set[str] = set()
        self.commands: list[tuple[str, tuple[str, ...]]] = []
        self.answer: Callable[[str, tuple[str, ...]], int] = lambda name, command: 0  # the code of a command
        self.at_stop: Callable[[str, int], int | None] = lambda name, grace: 0  # the code; None: it does not end
        self.at_start: Callable[[str], int | None] = lambda name: None  # the code with which it ends at once
        self.at_reopen: Callable[[str], None] = lambda name: None
        self._watchers: list[asyncio.Queue[pb.ContainerEventResponse]] = []
        self._server: Any = None

    # -- the server

    async def up(self) -> None:
        self._server = grpc.aio.server()
        self.register(self._server)
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()

    def register(self, server: Any) -> None:
        """What it serves."""
        add_RuntimeServiceServicer_to_server(self, server)
        add_ImageServiceServicer_to_server(self, server)

    async def down(self) -> None:
        """As if it was killed: whoever waits is not answered. What it has stays."""
        self._watchers.clear()
        await self._server.stop(None)

    def fail(
        self, method: str, code: grpc.StatusCode, words: str = "no", *, done: bool = False, times: int = 1
    ) -> None:
        self.faults.setdefault(method, []).extend([(code, words, done)] * times)

    def hang(self, method: str) -> asyncio.Event:
        """The next calls wait until the event is set."""
        return self.hanging.setdefault(method, asyncio.Event())

    @contextlib.asynccontextmanager
    async def _asked(self, method: str, what: str, context: Any) -> AsyncIterator[None]:
        self.calls.append(f"{method} {what}".strip())
        if method in self.hanging:
            await self.hanging[method].wait()
        fault = self.faults[method].pop(0) if self.faults.get(method) else None
        if fault is not None and not fault[2]:
            await context.abort(fault[0], fault[1])
        try:
            yield
        except AssertionError as exc:
            self.wrong.append(f"{method} {what}: {exc}")
            raise
        if self.at_call is not None:
            self.at_call(method)
        if fault is not None:
            await context.abort(fault[0], fault[1])

    # -- what a test does to it

    def of(self, name: str) -> list[pb.ContainerStatus]:
        """The runs of a container, in order."""
        found = [one for one in self.containers.values() if one.labels[NAME] == name]
        return sorted(found, key=lambda one: one.metadata.attempt)

    def running(self, name: str) -> bool:
        return any(one.state == pb.CONTAINER_RUNNING for one in self.of(name))

    def exit(self, name: str, code: int = 0) -> None:
        """End the run that there is."""
        (one,) = [one for one in self.of(name) if one.state in ALIVE]
        self._end(one, code)

    def set_state(self, name: str, state: Any) -> None:
        self.of(name)[-1].state = state
        self._tell(self.of(name)[-1], pb.CONTAINER_STOPPED_EVENT)

    def lose_sandbox(self) -> None:
        """Its processes are gone, as after a reboot."""
        for sandbox in self.sandboxes.values():
            sandbox.state = pb.SANDBOX_NOTREADY
        for one in self.containers.values():
            if one.state == pb.CONTAINER_RUNNING:
                self._end(one, 255)

    def asked(self, method: str) -> int:
        return sum(call.split()[0] == method for call in self.calls)

    def _end(self, one: pb.ContainerStatus, code: int) -> None:
        one.state = pb.CONTAINER_EXITED
        one.exit_code = code
        one.finished_at = max(time.time_ns(), one.started_at + 1)
        one.reason = "Error" if code else "Completed"
        self._tell(one, pb.CONTAINER_STOPPED_EVENT)

    def _tell(self, one: pb.ContainerStatus, kind: Any) -> None:
        event = pb.ContainerEventResponse(container_id=one.id, container_event_type=kind)
        event.pod_sandbox_status.metadata.uid = one.labels[UID]
        for queue in self._watchers:
            queue.put_nowait(event)

    # -- the CRI

    async def GetContainerEvents(self, request: Any, context: Any) -> AsyncIterator[pb.ContainerEventResponse]:
        if not self.has_events:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method GetContainerEvents")
        queue: asyncio.Queue[pb.ContainerEventResponse] = asyncio.Queue()
        self._watchers.append(queue)
        await context.send_initial_metadata(())
        while True:
            yield await queue.get()

    async def Status(self, request: Any, context: Any) -> Any:
        return pb.StatusResponse()

    async def ListPodSandbox(self, request: Any, context: Any) -> Any:
        async with self._asked("ListPodSandbox", "", context):
            wanted = request.filter.label_selector.get(UID)
            items = [
                pb.PodSandbox(
                    id=one.id,
                    metadata=one.metadata,
                    state=one.state,
                    created_at=one.created_at,
                    labels=one.labels,
                    annotations=one.annotations,
                )
                for one in self.sandboxes.values()
                if wanted in (None, one.labels[UID])
            ]
        return pb.ListPodSandboxResponse(items=items)

    async def PodSandboxStatus(self, request: Any, context: Any) -> Any:
        async with self._asked("PodSandboxStatus", "", context):
            if request.pod_sandbox_id not in self.sandboxes:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such sandbox")
        return pb.PodSandboxStatusResponse(status=self.sandboxes[request.pod_sandbox_id])

    async def RunPodSandbox(self, request: Any, context: Any) -> Any:
        meta = request.config.metadata
        async with self._asked("RunPodSandbox", str(meta.attempt), context):
            if any(one.metadata == meta for one in self.sandboxes.values()):
                await context.abort(grpc.StatusCode.ALREADY_EXISTS, "the name is reserved")
            assert not any(
                one.labels[UID] == meta.uid and one.state == pb.SANDBOX_READY for one in self.sandboxes.values()
            ), "two sandboxes at once"
            one = pb.PodSandboxStatus(
                id=f"s-{meta.uid}-{meta.attempt}",
                metadata=meta,
                state=pb.SANDBOX_READY,
                created_at=time.time_ns(),
                labels=request.config.labels,
                annotations=request.config.annotations,
                network=pb.PodSandboxNetworkStatus(ip="127.0.0.1"),
            )
            one.linux.namespaces.options.CopyFrom(request.config.linux.security_context.namespace_options)
            self.sandboxes[one.id] = one
        return pb.RunPodSandboxResponse(pod_sandbox_id=one.id)

    async def StopPodSandbox(self, request: Any, context: Any) -> Any:
        async with self._asked("StopPodSandbox", request.pod_sandbox_id, context):
            if (one := self.sandboxes.get(request.pod_sandbox_id)) is not None:
                one.state = pb.SANDBOX_NOTREADY
            for run in self.containers.values():
                if self.sandbox_of[run.id] == request.pod_sandbox_id and run.state in ALIVE:
                    self._end(run, 137)
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(self, request: Any, context: Any) -> Any:
        async with self._asked("RemovePodSandbox", request.pod_sandbox_id, context):
            self.sandboxes.pop(request.pod_sandbox_id, None)
            for key in [key for key, of in self.sandbox_of.items() if of == request.pod_sandbox_id]:
                self.containers.pop(key, None)
                del self.sandbox_of[key]
        return pb.RemovePodSandboxResponse()

    async def ListContainers(self, request: Any, context: Any) -> Any:
        async with self._asked("ListContainers", "", context):
            wanted = request.filter.label_selector.get(UID)
            found = [
                pb.Container(
                    id=one.id,
                    pod_sandbox_id=self.sandbox_of[one.id],
                    metadata=one.metadata,
                    state=one.state,
                    created_at=one.created_at,
                    labels=one.labels,
                    annotations=one.annotations,
                )
                for one in self.containers.values()
                if wanted in (None, one.labels[UID])
            ]
        return pb.ListContainersResponse(containers=found)

    async def ContainerStatus(self, request: Any, context: Any) -> Any:
        if request.container_id not in self.containers:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such container")
        return pb.ContainerStatusResponse(status=self.containers[request.container_id])

    async def CreateContainer(self, request: Any, context: Any) -> Any:
        config = request.config
        async with self._asked("CreateContainer", f"{config.metadata.name} {config.metadata.attempt}", context):
            if self.sandboxes[request.pod_sandbox_id].state != pb.SANDBOX_READY:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the sandbox is not ready")
            users = self.sandboxes[request.pod_sandbox_id].linux.namespaces.options.userns_options
            asked = config.linux.security_context.namespace_options.userns_options
            assert asked == users, "its users are not its pod's"
            for one in self.containers.values():
                if one.metadata == config.metadata and self.sandbox_of[one.id] == request.pod_sandbox_id:
                    await context.abort(grpc.StatusCode.ALREADY_EXISTS, "the name is reserved")
            one = pb.ContainerStatus(
                id=f"{request.pod_sandbox_id}-{config.metadata.name}-{config.metadata.attempt}",
                metadata=config.metadata,
                state=pb.CONTAINER_CREATED,
                created_at=time.time_ns(),
                image=config.image,
                image_ref=config.image.image,
                labels=config.labels,
                annotations=config.annotations,
            )
            self.containers[one.id] = one
            self.configs[one.id] = config
            self.sandbox_of[one.id] = request.pod_sandbox_id
        return pb.CreateContainerResponse(container_id=one.id)

    async def StartContainer(self, request: Any, context: Any) -> Any:
        one = self.containers[request.container_id]
        async with self._asked("StartContainer", f"{one.metadata.name} {one.metadata.attempt}", context):
            assert one.id in self.containers, "what was removed is started"
            assert one.state == pb.CONTAINER_CREATED
            one.state, one.started_at = pb.CONTAINER_RUNNING, time.time_ns()
            alive = Counter(
                (run.labels[UID], run.labels[NAME]) for run in self.containers.values() if run.state in ALIVE
            )
            assert set(alive.values()) == {1}, f"two copies: {alive}"
            if (code := self.at_start(one.metadata.name)) is not None:
                self._end(one, code)
        self._tell(one, pb.CONTAINER_STARTED_EVENT)
        return pb.StartContainerResponse()

    async def StopContainer(self, request: Any, context: Any) -> Any:
        one = self.containers.get(request.container_id)
        name = one.metadata.name if one is not None else "?"
        async with self._asked("StopContainer", f"{name} {request.timeout}", context):
            if one is not None and one.state in ALIVE and (code := self.at_stop(name, request.timeout)) is not None:
                self._end(one, code)
        return pb.StopContainerResponse()

    async def RemoveContainer(self, request: Any, context: Any) -> Any:
        async with self._asked("RemoveContainer", request.container_id, context):
            one = self.containers.get(request.container_id)
            assert one is None or one.state not in ALIVE, "what lives is removed"
            self.containers.pop(request.container_id, None)
            self.sandbox_of.pop(request.container_id, None)
        return pb.RemoveContainerResponse()

    async def ReopenContainerLog(self, request: Any, context: Any) -> Any:
        one = self.containers[request.container_id]
        async with self._asked("ReopenContainerLog", one.metadata.name, context):
            if one.state != pb.CONTAINER_RUNNING:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it does not run")
            self.at_reopen(one.metadata.name)
        return pb.ReopenContainerLogResponse()

    async def ExecSync(self, request: Any, context: Any) -> Any:
        name = self.containers[request.container_id].metadata.name
        self.commands.append((name, tuple(request.cmd)))
        async with self._asked("ExecSync", f"{name} {' '.join(request.cmd)}", context):
            code = self.answer(name, tuple(request.cmd))
        return pb.ExecSyncResponse(exit_code=code, stderr=b"said")

    async def RuntimeConfig(self, request: Any, context: Any) -> Any:
        async with self._asked("RuntimeConfig", "", context):
            return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=pb.CGROUPFS))

    async def ImageStatus(self, request: Any, context: Any) -> Any:
        wanted = request.image.image.removeprefix("id:")
        async with self._asked("ImageStatus", wanted, context):
            image = pb.Image(id=f"id:{wanted}") if wanted in self.images else None
        return pb.ImageStatusResponse(image=image)

    async def PullImage(self, request: Any, context: Any) -> Any:
        wanted = request.image.image
        async with self._asked("PullImage", wanted, context):
            if wanted not in self.registry:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"{wanted}: not found")
            self.images.add(wanted)
        return pb.PullImageResponse(image_ref=f"id:{wanted}")
