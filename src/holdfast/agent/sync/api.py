"""The agent's own service, for whoever may be root: apply, delete, list and watch pods."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from holdfast.agent.pod.decode import Refused
from holdfast.agent.sync import applied, orphans
from holdfast.agent.sync.agent import Agent
from holdfast.agent.sync.kept import Kept
from holdfast.agent.sync.orphans import Orphan
from holdfast.agent.sync.runtime import MEANING
from holdfast.agent.sync.worker import Worker
from holdfast.linux import files
from holdfast.linux.threads import in_thread
from holdfast.model.errors import HoldfastError
from holdfast.proto import agent_pb2 as pb
from holdfast.proto.agent_pb2_grpc import AgentServicer, add_AgentServicer_to_server

SOCKET: Final = "agent.sock"
WATCH: Final = 0.5  # seconds between looks at what has changed


class Api(AgentServicer):
    """Answers when what was asked for is on disk."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def serve(self, socket: Path) -> None:
        """Until it is cancelled."""
        await in_thread(files.unlink, socket)
        server = grpc.aio.server()
        add_AgentServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        try:
            await server.wait_for_termination()
        finally:
            await server.stop(None)

    async def Apply(self, request: pb.ApplyRequest, context: Any) -> Any:
        try:
            manifest = await in_thread(applied.read, request.manifest)
        except Refused as exc:
            return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        for pod in manifest.pods:
            for worker in self._agent.named(pod.metadata.namespace, pod.metadata.name):
                if not applied.is_applied(self._agent.applied, worker.record.source):
                    return await self._is_elsewhere(worker, context)
        try:
            done = await in_thread(applied.store, self._agent.applied, manifest)
        except OSError as exc:
            return await context.abort(grpc.StatusCode.UNAVAILABLE, str(exc))
        self._agent.look_soon()
        names, whats = [name for name, _ in done], [what for _, what in done]
        return pb.ApplyReply(applied=names, warnings=manifest.warnings, done=whats)

    async def Delete(self, request: pb.DeleteRequest, context: Any) -> Any:
        workers = self._agent.named(request.namespace, request.name) if request.kind == "pod" else []
        for worker in workers:
            if not applied.is_applied(self._agent.applied, worker.record.source):
                return await self._is_elsewhere(worker, context)
        try:
            there = await in_thread(applied.remove, self._agent.applied, request.kind, request.namespace, request.name)
            for worker in workers:
                await worker.delete(request.grace if request.HasField("grace") else None)
        except ValueError as exc:
            return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        except OSError as exc:
            return await context.abort(grpc.StatusCode.UNAVAILABLE, str(exc))
        if not there and not workers:
            for orphan in self._agent.orphans(request.namespace, request.name) if request.kind == "pod" else ():
                return await context.abort(grpc.StatusCode.FAILED_PRECONDITION, orphan.why)
            what = f"{request.kind} {request.namespace}/{request.name}"
            return await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {what}")
        return pb.DeleteReply()

    async def _is_elsewhere(self, worker: Worker, context: Any) -> Any:
        words = f"pod {worker.pod.metadata.namespace}/{worker.pod.metadata.name} is what {worker.record.source} says"
        return await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{words}: change it there")

    async def Checkpoint(self, request: pb.CheckpointRequest, context: Any) -> Any:
        workers = self._agent.named(request.namespace, request.name) if request.name else []
        if len(workers) != 1:
            what = f"pod {request.namespace}/{request.name}"
            return await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {what}")
        try:
            made, seconds = await self._agent.checkpoints.make(workers[0], request.compress)
        except (HoldfastError, OSError) as exc:
            return await context.abort(_code(exc), str(exc))
        return self._kept(made, seconds)

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> Any:
        try:
            found = await self._agent.checkpoints.all()
        except OSError as exc:
            return await context.abort(_code(exc), str(exc))
        return pb.ListCheckpointsReply(checkpoints=[self._kept(one) for one in found])

    async def RemoveCheckpoint(self, request: pb.RemoveCheckpointRequest, context: Any) -> Any:
        try:
            await self._agent.checkpoints.remove(request.name)
        except (HoldfastError, OSError) as exc:
            return await context.abort(_code(exc), str(exc))
        return pb.RemoveCheckpointReply()

    def _kept(self, one: Kept, seconds: float = 0.0) -> pb.KeptCheckpoint:
        path = str(self._agent.checkpoints.path(one))
        return pb.KeptCheckpoint(name=one.name, path=path, bytes=one.bytes, at=one.at, frozen_seconds=seconds)

    async def ListPods(self, request: pb.ListPodsRequest, context: Any) -> pb.ListPodsReply:
        return self._listed(request)

    async def WatchPods(self, request: pb.ListPodsRequest, context: Any) -> AsyncIterator[pb.ListPodsReply]:
        before = None
        while True:
            if (now := self._listed(request)) != before:
                yield now
                before = now
            await asyncio.sleep(WATCH)

    def _listed(self, request: pb.ListPodsRequest) -> pb.ListPodsReply:
        found = self._agent.named(request.namespace, request.name)
        left_alone = self._agent.orphans(request.namespace, request.name)
        pods = [*map(self._shown, found), *map(_shown_orphan, left_alone)]
        return pb.ListPodsReply(pods=pods, unread=self._agent.unread, runtime=self._agent.settings.socket)

    def _shown(self, worker: Worker) -> pb.AgentPod:
        meta = worker.pod.metadata
        return pb.AgentPod(
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
            source=worker.record.source,
            json=json.dumps(self._agent.shown(worker)),
            events=[pb.PodEvent(**asdict(one)) for one in worker.events],
            volumes=self._agent.volumes.told(meta.uid),
            deleted_at=worker.record.deleted_at,
        )


def _code(exc: HoldfastError | OSError) -> grpc.StatusCode:
    """As the runtime's answers mean it; what a disk does may be over soon."""
    return next((code for code, kind in MEANING.items() if isinstance(exc, kind)), grpc.StatusCode.UNAVAILABLE)


def _shown_orphan(one: Orphan) -> pb.AgentPod:
    plain = json.dumps(orphans.shown(one))
    return pb.AgentPod(namespace=one.namespace, name=one.name, uid=one.uid, source="-", json=plain)
