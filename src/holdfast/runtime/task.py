"""The Task API of a shim, typed, with a deadline for every call; its errors as those of the model."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.linux.mount import MountLike
from holdfast.model import errors, trace
from holdfast.model.checkpoint import CRIU_TYPE, FORGET, FREEZE, THAW, CriuSettings
from holdfast.model.tally import Timed
from holdfast.proto import containerd_types_pb2, task_pb2
from holdfast.ttrpc.client import Client, ConnectionLost, TtrpcError

M = TypeVar("M", bound=Message)

V2: Final = "containerd.task.v2.Task"
V3: Final = "containerd.task.v3.Task"
REOPEN_LOG: Final = "holdfast.io/reopen-log"
PROCESS_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE: Final = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

# Seconds. What runs an OCI runtime command is given long; what only asks the shim is not.
ASK: Final = 5.0
ACT: Final = 30.0
RUN: Final = 120.0

_ERRORS: Final[dict[int, type[errors.HoldfastError]]] = {
    1: errors.Cancelled,
    3: errors.InvalidArgument,
    4: errors.DeadlineExceeded,
    5: errors.NotFound,
    6: errors.AlreadyExists,
    8: errors.ResourceExhausted,
    9: errors.FailedPrecondition,
    12: errors.Unimplemented,
    14: errors.Unavailable,
}


class Status(IntEnum):
    """A task's state as containerd.v1.types.Status numbers it."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True)
class TaskState:
    """What State answers. `exited_at` is ns since the epoch, 0 while it runs."""

    status: Status
    pid: int
    exit_status: int
    exited_at: int
    bundle: str
    terminal: bool


class TaskClient:
    """One connection to one shim. Every call raises the model's errors.

    NotFound, AlreadyExists, FailedPrecondition, InvalidArgument and Unimplemented are the shim's own words;
    DeadlineExceeded means that it has not answered in time (the act may still succeed), Unavailable that the
    connection is lost; any other failure of the shim or of the OCI runtime is a plain HoldfastError with its text.
    """

    def __init__(self, client: Client, service: str = V2, calls: Timed | None = None) -> None:
        """`calls` is where they are counted, with those of others."""
        self._client = client
        self._service = service
        self._calls = calls or timed()

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], service: str = V2, calls: Timed | None = None) -> "TaskClient":
        """Raises OSError when nobody listens there."""
        return cls(await Client.connect(path), service, calls)

    @property
    def closed(self) -> bool:
        return self._client.closed

    def close(self) -> None:
        self._client.close()

    async def create(
        self,
        container_id: str,
        *,
        bundle: str | os.PathLike[str],
        rootfs: Iterable[MountLike] = (),
        terminal: bool = False,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        options: bytes = b"",
        restore: tuple[str | os.PathLike[str], CriuSettings] | None = None,
        seconds: float = RUN,
    ) -> int:
        """Create the task from its bundle, without starting it. Returns the pid of its init.

        `options` are a foreign shim's own, a serialized google.protobuf.Any. With `restore`, a directory of images,
        the start will bring back what they show; until then there is no init.
        """
        mounts = [containerd_types_pb2.Mount(type=one.type, source=one.source, options=one.options) for one in rootfs]
        request = task_pb2.CreateTaskRequest(
            id=container_id,
            bundle=os.fspath(bundle),
            rootfs=mounts,
            terminal=terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        if options:
            request.options.ParseFromString(options)
        if restore is not None:
            request.checkpoint = os.fspath(restore[0])
            request.options.type_url, request.options.value = CRIU_TYPE, restore[1].encode()
        return (await self._call("Create", request, task_pb2.CreateTaskResponse, seconds)).pid

    async def start(self, container_id: str, exec_id: str = "", seconds: float = RUN) -> int:
        """Start the task, or a process that `exec` has prepared. Returns its pid."""
        request = task_pb2.StartRequest(id=container_id, exec_id=exec_id)
        return (await self._call("Start", request, task_pb2.StartResponse, seconds)).pid

    async def exec(
        self,
        container_id: str,
        exec_id: str,
        process: Mapping[str, Any],
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
        seconds: float = ACT,
    ) -> None:
        """Prepare a process in the container; `process` is as the OCI spec has it. `start` runs it."""
        request = task_pb2.ExecProcessRequest(
            id=container_id, exec_id=exec_id, terminal=terminal, stdin=stdin, stdout=stdout, stderr=stderr
        )
        request.spec.type_url = PROCESS_TYPE
        request.spec.value = json.dumps(process).encode()
        await self._call("Exec", request, Empty, seconds)

    async def kill(
        self, container_id: str, signal: int, exec_id: str = "", *, everything: bool = False, seconds: float = ACT
    ) -> None:
        """Send a signal; with `everything` to all processes of the container, or to all that an exec has started.

        NotFound when it has ended.
        """
        request = task_pb2.KillRequest(id=container_id, exec_id=exec_id, signal=signal, all=everything)
        await self._call("Kill", request, Empty, seconds)

    async def delete(self, container_id: str, exec_id: str = "", seconds: float = RUN) -> tuple[int, int]:
        """Delete what does not run. Returns (exit code, when it ended in ns since the epoch)."""
        request = task_pb2.DeleteRequest(id=container_id, exec_id=exec_id)
        reply = await self._call("Delete", request, task_pb2.DeleteResponse, seconds)
        return reply.exit_status, reply.exited_at.ToNanoseconds()

    async def wait(self, container_id: str, exec_id: str = "") -> tuple[int, int]:
        """Wait, for however long it takes, until it ends. Returns (exit code, when in ns since the epoch)."""
        request = task_pb2.WaitRequest(id=container_id, exec_id=exec_id)
        reply = await self._call("Wait", request, task_pb2.WaitResponse, None)
        return reply.exit_status, reply.exited_at.ToNanoseconds()

    async def state(self, container_id: str, exec_id: str = "", seconds: float = ASK) -> TaskState:
        request = task_pb2.StateRequest(id=container_id, exec_id=exec_id)
        reply = await self._call("State", request, task_pb2.StateResponse, seconds)
        if reply.id != container_id and not exec_id:  # of an exec, some shims say its own id here
            raise errors.HoldfastError(f"cannot tell the state of task {container_id}: its shim tells of {reply.id!r}")
        at = reply.exited_at.ToNanoseconds() if reply.HasField("exited_at") else 0
        return TaskState(Status(reply.status), reply.pid, reply.exit_status, at, reply.bundle, reply.terminal)

    async def pids(self, container_id: str, seconds: float = ASK) -> list[int]:
        """Every process of the container, as the host numbers them."""
        reply = await self._call("Pids", task_pb2.PidsRequest(id=container_id), task_pb2.PidsResponse, seconds)
        return [one.pid for one in reply.processes]

    async def pause(self, container_id: str, seconds: float = ACT) -> None:
        await self._call("Pause", task_pb2.PauseRequest(id=container_id), Empty, seconds)

    async def resume(self, container_id: str, seconds: float = ACT) -> None:
        await self._call("Resume", task_pb2.ResumeRequest(id=container_id), Empty, seconds)

    async def close_io(self, container_id: str, exec_id: str = "", seconds: float = ASK) -> None:
        """End of input for the process."""
        await self._call(
            "CloseIO", task_pb2.CloseIORequest(id=container_id, exec_id=exec_id, stdin=True), Empty, seconds
        )

    async def resize_pty(
        self, container_id: str, width: int, height: int, exec_id: str = "", seconds: float = ASK
    ) -> None:
        request = task_pb2.ResizePtyRequest(id=container_id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request, Empty, seconds)

    async def update(self, container_id: str, resources: Mapping[str, Any], seconds: float = ACT) -> None:
        """Change limits; `resources` is linux.resources as the OCI spec has it."""
        request = task_pb2.UpdateTaskRequest(id=container_id)
        request.resources.type_url = RESOURCES_TYPE
        request.resources.value = json.dumps(resources).encode()
        await self._call("Update", request, Empty, seconds)

    async def reopen_log(self, container_id: str, seconds: float = ACT) -> None:
        """Have the log opened anew by its path. The Task API has no such call: it is an annotation of Update."""
        request = task_pb2.UpdateTaskRequest(id=container_id, annotations={REOPEN_LOG: "1"})
        await self._call("Update", request, Empty, seconds)

    async def freeze(
        self, container_ids: Sequence[str], lease: float, *, again: bool = False, seconds: float = ACT
    ) -> None:
        """Freeze these, all at one instant, or with `again` keep them so; `lease` seconds later the shim thaws them."""
        asked = json.dumps({"tasks": list(container_ids), "seconds": lease, "again": again})
        request = task_pb2.UpdateTaskRequest(id=container_ids[0], annotations={FREEZE: asked})
        await self._call("Update", request, Empty, seconds)

    async def thaw(self, container_ids: Sequence[str], seconds: float = ACT) -> None:
        """Raises FailedPrecondition if one of them was thawed before."""
        asked = json.dumps({"tasks": list(container_ids)})
        request = task_pb2.UpdateTaskRequest(id=container_ids[0], annotations={THAW: asked})
        await self._call("Update", request, Empty, seconds)

    async def forget(self, pod_id: str, seconds: float = ACT) -> None:
        """Have gVisor forget what the containers of a pod are done with, before they are frozen."""
        request = task_pb2.UpdateTaskRequest(id=pod_id, annotations={FORGET: ""})
        await self._call("Update", request, Empty, seconds)

    async def checkpoint(
        self, container_id: str, images: str | os.PathLike[str], settings: CriuSettings, seconds: float = RUN
    ) -> None:
        """Have CRIU write the images of a frozen task into a directory that is there."""
        request = task_pb2.CheckpointTaskRequest(id=container_id, path=os.fspath(images))
        request.options.type_url, request.options.value = CRIU_TYPE, settings.encode()
        await self._call("Checkpoint", request, Empty, seconds)

    async def stats(self, container_id: str, seconds: float = ASK) -> tuple[str, bytes]:
        """(type, serialized message): io.containerd.cgroups.v1.Metrics or io.containerd.cgroups.v2.Metrics."""
        reply = await self._call("Stats", task_pb2.StatsRequest(id=container_id), task_pb2.StatsResponse, seconds)
        return reply.stats.type_url, reply.stats.value

    async def shim_pid(self, container_id: str = "", seconds: float = ASK) -> int:
        """The pid of the shim itself (Connect)."""
        request = task_pb2.ConnectRequest(id=container_id)
        return (await self._call("Connect", request, task_pb2.ConnectResponse, seconds)).shim_pid

    async def shutdown(self, pod_id: str, *, now: bool = False, seconds: float = ASK) -> None:
        """Have the shim end: when it has no task, or `now`."""
        await self._call("Shutdown", task_pb2.ShutdownRequest(id=pod_id, now=now), Empty, seconds)

    async def _call(self, method: str, request: Message, reply: type[M], seconds: float | None) -> M:
        container_id, exec_id = getattr(request, "id", ""), getattr(request, "exec_id", "")
        if seconds is None and not exec_id:  # the end of a container is waited for apart from everything else
            with _translated(method, container_id):
                return await self._client.call(self._service, method, request, reply, seconds)
        span = trace.span(f"shim {method}", container=container_id, exec=exec_id)
        with span, self._calls.one(method), _translated(method, container_id):
            return await self._client.call(self._service, method, request, reply, seconds)


def timed() -> Timed:
    """For the calls of shims."""
    return Timed("holdfast_shim_call", "calls of shims", ("method",))


@contextlib.contextmanager
def _translated(method: str, what: str) -> Iterator[None]:
    try:
        yield
    except TtrpcError as exc:
        raise _ERRORS.get(exc.code, errors.HoldfastError)(str(exc)) from exc
    except ConnectionLost as exc:
        raise errors.Unavailable(f"cannot {method.lower()} task {what}: connection to its shim is lost: {exc}") from exc
    except TimeoutError as exc:
        raise errors.DeadlineExceeded(f"cannot {method.lower()} task {what}: its shim does not answer") from exc
