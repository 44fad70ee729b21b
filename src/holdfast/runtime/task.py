"""The Task API, typed, for the daemon: one method a call, each with its own deadline."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.linux import sockets
from holdfast.model import errors
from holdfast.model.spec import Mount
from holdfast.proto import containerd_types_pb2, task_pb2
from holdfast.ttrpc.client import Client, ConnectionLost, TtrpcError

M = TypeVar("M", bound=Message)

SERVICE: Final = "containerd.task.v2.Task"
REOPEN_LOG: Final = "holdfast.io/reopen-log"
CONNECT_SECONDS: Final = 2.0
QUICK_SECONDS: Final = 10.0
RUNTIME_SECONDS: Final = 60.0  # calls that run a command of the OCI runtime

_ERRORS: Final[dict[int, type[errors.HoldfastError]]] = {
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
    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task or an exec as its shim sees it; times are ns since the epoch."""

    status: Status
    pid: int
    exit_status: int
    exited_at: int


class RuntimeFailed(errors.HoldfastError):
    """The OCI runtime said no; the text is its own."""


class TaskClient:
    """One shim. Raises model.errors; Unavailable when the connection was lost."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    async def connect(cls, path: Path) -> "TaskClient":
        """Raises OSError when nobody listens."""
        connection = sockets.connect(path, timeout=CONNECT_SECONDS)
        connection.setblocking(False)
        return cls(await Client.over(connection))

    @property
    def closed(self) -> bool:
        return self._client.closed

    def close(self) -> None:
        self._client.close()

    async def create(
        self,
        task_id: str,
        *,
        bundle: Path,
        rootfs: Iterable[Mount],
        terminal: bool,
        stdin: str,
        stdout: str,
        stderr: str,
    ) -> int:
        """Returns the pid of the init."""
        mounts = [
            containerd_types_pb2.Mount(type=one.type, source=one.source, target=one.target, options=one.options)
            for one in rootfs
        ]
        request = task_pb2.CreateTaskRequest(
            id=task_id,
            bundle=str(bundle),
            rootfs=mounts,
            terminal=terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        return (await self._call("Create", request, task_pb2.CreateTaskResponse, RUNTIME_SECONDS)).pid

    async def start(self, task_id: str, exec_id: str = "") -> int:
        """Start a created task, or an exec. Returns its pid."""
        request = task_pb2.StartRequest(id=task_id, exec_id=exec_id)
        return (await self._call("Start", request, task_pb2.StartResponse, RUNTIME_SECONDS)).pid

    async def exec(
        self, task_id: str, exec_id: str, process: dict[str, object], *, stdin: str, stdout: str, stderr: str,
        terminal: bool,
    ) -> None:  # fmt: skip
        """Make a process known that `start` will run; `process` is an OCI process object."""
        spec = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process")
        spec.value = json.dumps(process).encode()
        request = task_pb2.ExecProcessRequest(
            id=task_id, exec_id=exec_id, terminal=terminal, stdin=stdin, stdout=stdout, stderr=stderr, spec=spec
        )
        await self._call("Exec", request, Empty, QUICK_SECONDS)

    async def delete(self, task_id: str, exec_id: str = "") -> tuple[int, int]:
        """Returns (exit code, exited at)."""
        request = task_pb2.DeleteRequest(id=task_id, exec_id=exec_id)
        reply = await self._call("Delete", request, task_pb2.DeleteResponse, RUNTIME_SECONDS)
        return reply.exit_status, reply.exited_at.ToNanoseconds()

    async def wait(self, task_id: str, exec_id: str = "") -> tuple[int, int]:
        """Wait for an exit, however long. Returns (exit code, exited at)."""
        request = task_pb2.WaitRequest(id=task_id, exec_id=exec_id)
        reply = await self._call("Wait", request, task_pb2.WaitResponse, None)
        return reply.exit_status, reply.exited_at.ToNanoseconds()

    async def state(self, task_id: str, exec_id: str = "") -> TaskState:
        request = task_pb2.StateRequest(id=task_id, exec_id=exec_id)
        reply = await self._call("State", request, task_pb2.StateResponse, QUICK_SECONDS)
        return TaskState(Status(reply.status), reply.pid, reply.exit_status, reply.exited_at.ToNanoseconds())

    async def kill(self, task_id: str, signal: int, exec_id: str = "", *, everybody: bool = False) -> None:
        request = task_pb2.KillRequest(id=task_id, exec_id=exec_id, signal=signal, all=everybody)
        await self._call("Kill", request, Empty, QUICK_SECONDS)

    async def update(self, task_id: str, resources: dict[str, object]) -> None:
        """Change limits; `resources` is an OCI resources object."""
        packed = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources")
        packed.value = json.dumps(resources).encode()
        request = task_pb2.UpdateTaskRequest(id=task_id, resources=packed)
        await self._call("Update", request, Empty, RUNTIME_SECONDS)

    async def reopen_log(self, task_id: str) -> None:
        """Have the shim write to the file that has the log's name now."""
        request = task_pb2.UpdateTaskRequest(id=task_id, annotations={REOPEN_LOG: "1"})
        await self._call("Update", request, Empty, QUICK_SECONDS)

    async def pause(self, task_id: str) -> None:
        await self._call("Pause", task_pb2.PauseRequest(id=task_id), Empty, RUNTIME_SECONDS)

    async def resume(self, task_id: str) -> None:
        await self._call("Resume", task_pb2.ResumeRequest(id=task_id), Empty, RUNTIME_SECONDS)

    async def pids(self, task_id: str) -> list[int]:
        reply = await self._call("Pids", task_pb2.PidsRequest(id=task_id), task_pb2.PidsResponse, QUICK_SECONDS)
        return [process.pid for process in reply.processes]

    async def stats(self, task_id: str) -> Any:
        reply = await self._call("Stats", task_pb2.StatsRequest(id=task_id), task_pb2.StatsResponse, QUICK_SECONDS)
        return reply.stats

    async def resize_pty(self, task_id: str, exec_id: str, width: int, height: int) -> None:
        request = task_pb2.ResizePtyRequest(id=task_id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request, Empty, QUICK_SECONDS)

    async def close_stdin(self, task_id: str, exec_id: str = "") -> None:
        request = task_pb2.CloseIORequest(id=task_id, exec_id=exec_id, stdin=True)
        await self._call("CloseIO", request, Empty, QUICK_SECONDS)

    async def shim_pid(self, task_id: str = "") -> int:
        request = task_pb2.ConnectRequest(id=task_id)
        return (await self._call("Connect", request, task_pb2.ConnectResponse, QUICK_SECONDS)).shim_pid

    async def shutdown(self, task_id: str, *, now: bool = False) -> None:
        await self._call("Shutdown", task_pb2.ShutdownRequest(id=task_id, now=now), Empty, QUICK_SECONDS)

    async def _call(self, method: str, request: Message, reply: type[M], seconds: float | None) -> M:
        try:
            return await self._client.call(SERVICE, method, request, reply, seconds)
        except TtrpcError as exc:
            raise _ERRORS.get(exc.code, RuntimeFailed)(f"cannot {method.lower()} task: {exc}") from exc
        except ConnectionLost as exc:
            raise errors.Unavailable(
                f"cannot {method.lower()} task: the connection to its shim was lost: {exc}"
            ) from exc
        except TimeoutError as exc:
            raise errors.DeadlineExceeded(f"cannot {method.lower()} task: no answer after {seconds:g} s") from exc
