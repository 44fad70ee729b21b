"""holdfast.v1.Node: what the CRI cannot say, on the same socket."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from holdfast.cri import convert
from holdfast.images.service import Images
from holdfast.lifecycle.events import Events
from holdfast.lifecycle.gate import Gate
from holdfast.lifecycle.pod_checkpoints import Wish
from holdfast.lifecycle.pod_restores import Asked, PodRestores
from holdfast.lifecycle.pods import Pods
from holdfast.lifecycle.sweep import Sweeper
from holdfast.lifecycle.tasks import in_thread
from holdfast.lifecycle.tools import Tool
from holdfast.model.errors import InvalidArgument
from holdfast.model.image import Image
from holdfast.proto import node_pb2 as pb
from holdfast.proto.node_pb2_grpc import NodeServicer

PROGRESS_EVENTS: Final = 64
ProgressCallback = Callable[[str, str, int, int], None]


class NodeService(NodeServicer):
    """Recovery report, doctor, events, configuration, and image transfers with progress."""

    def __init__(
        self,
        images: Images,
        sweeper: Sweeper,
        events: Events,
        report: Callable[[], str],
        config: Callable[[], str],
        gate: Gate,
        look_for_tools: Callable[[], Awaitable[list[Tool]]],
        pods: Pods,
        restores: PodRestores,
    ) -> None:
        self._pods = pods
        self._restores = restores
        self._gate = gate
        self._look_for_tools = look_for_tools
        self._images = images
        self._events = events
        self._sweeper = sweeper
        self._report = report
        self._config = config

    async def Recovery(self, request: pb.RecoveryRequest, context: Any) -> pb.RecoveryReply:
        return pb.RecoveryReply(json=self._report())

    async def Doctor(self, request: pb.DoctorRequest, context: Any) -> pb.DoctorReply:
        found = await self._sweeper.examine(fix=request.fix)
        runtimes = [one.as_data() for one in await self._gate.examine()]
        tools = [one.as_data() for one in await self._look_for_tools()]
        return pb.DoctorReply(json=json.dumps(found.as_data("up") | {"runtimes": runtimes, "tools": tools}))

    async def Config(self, request: pb.ConfigRequest, context: Any) -> pb.ConfigReply:
        return pb.ConfigReply(toml=self._config())

    async def Events(self, request: pb.EventsRequest, context: Any) -> AsyncIterator[pb.Event]:
        since = request.since if request.HasField("since") else self._events.last
        if since > self._events.last:
            raise InvalidArgument(f"since: {since} has not been reached yet; the last event is {self._events.last}")
        await context.send_initial_metadata(())  # who has them is told all that happens from then on
        async for one in self._events.follow(since, wait=not request.only_known):
            yield convert.event(one)

    async def ImportImage(self, request: AsyncIterator[pb.ImportChunk], context: Any) -> AsyncIterator[pb.Progress]:
        """Take an archive in chunks, then import it; the upload is gone afterwards, whatever came of it."""
        async with self._images.upload() as upload:
            with await in_thread(open, upload, "xb", opener=_private) as file:
                async for chunk in request:
                    await in_thread(file.write, chunk.data)
            if upload.stat().st_size == 0:
                raise InvalidArgument("data: the archive is empty")
            async for progress in _follow(lambda tell: self._images.import_archive(upload, tell)):
                yield progress

    async def PullImage(self, request: pb.NodePullRequest, context: Any) -> AsyncIterator[pb.Progress]:
        if not request.image:
            raise InvalidArgument("image: must not be empty")

        async def pull(tell: ProgressCallback) -> list[Image]:
            return [await self._images.pull(request.image, None, tell)]

        async for progress in _follow(pull):
            yield progress

    async def CheckpointPod(self, request: pb.CheckpointPodRequest, context: Any) -> pb.CheckpointPodReply:
        asked = Wish(request.location, request.compress, request.leave_running, request.limit)
        done = await self._pods.checkpoint(request.pod_id, asked)
        return pb.CheckpointPodReply(bytes=done.bytes, frozen_seconds=done.frozen_seconds, left_out=done.left_out)

    async def RestorePod(self, request: pb.RestorePodRequest, context: Any) -> pb.RestorePodReply:
        asked = Asked(request.name, request.runtime_handler, dict(request.volumes), request.trusted)
        pod = await self._restores.restore(request.location, asked)
        return pb.RestorePodReply(pod_id=pod.meta.id)


async def _follow(work: Callable[[ProgressCallback], Any]) -> AsyncIterator[pb.Progress]:
    """Run a transfer and yield its progress; a slow reader loses steps, never the transfer its pace."""
    steps: asyncio.Queue[pb.Progress | None] = asyncio.Queue(PROGRESS_EVENTS)

    def tell(item: str, phase: str, done: int, total: int) -> None:
        if not steps.full():
            steps.put_nowait(pb.Progress(item=item, phase=phase, done=done, total=total))

    async def run() -> list[Image]:
        try:
            images: list[Image] = await work(tell)
            return images
        finally:
            while steps.full():
                steps.get_nowait()
            steps.put_nowait(None)

    running = asyncio.get_running_loop().create_task(run(), name="image transfer")
    try:
        while (step := await steps.get()) is not None:
            yield step
        images = await running
    finally:
        running.cancel()  # a client that hangs up ends its transfer; nothing of it is visible before it is whole
    names = [name for image in images for name in (image.tags or (image.id,))]
    yield pb.Progress(phase="done", images=names)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
