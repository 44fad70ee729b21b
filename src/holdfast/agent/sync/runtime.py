"""The agent's side of the CRI, for any runtime: typed calls, each with a deadline, and what they say as plain data.

An answer that does not come says nothing: it is raised as Unavailable, and whoever asked leaves things as they are.
That something is not there is only what the runtime itself has said. UNKNOWN stays UNKNOWN.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

import grpc
import grpc.aio

from holdfast.agent.plan.observed import Observed, Run, Sandbox, State
from holdfast.agent.pod import qos
from holdfast.agent.pod.logins import Login
from holdfast.agent.sync.convert import AGENT_CGROUP, AGENT_ROOT, CONTAINER_NAME, HASH, POD_UID
from holdfast.agent.sync.orphans import Made
from holdfast.linux import cgroup
from holdfast.linux.patience import patience
from holdfast.linux.threads import in_thread
from holdfast.model import cgroups, errors
from holdfast.model.errors import HoldfastError, NotFound, Unavailable, Unimplemented
from holdfast.proto import node_pb2
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.node_pb2_grpc import NodeStub
from holdfast.proto.runtime_v1_pb2_grpc import ImageServiceStub, RuntimeServiceStub

LOOK: Final = 10.0  # seconds for what only reads
ACT: Final = 120.0  # for what changes something, a kubelet's
SANDBOX: Final = 240.0  # for a sandbox, whose network somebody else may have to make
PULL: Final = 3600.0
CHECKPOINT: Final = 3600.0
MARGIN: Final = 15.0  # for a call beyond the time that it is asked to take itself
POLL: Final = 1.0  # between looks at a runtime that tells no events
RECONNECT: Final = 1.0
BEGIN: Final = 1.0  # for a stream of events to begin

OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
STATES: Final = {
    pb.CONTAINER_CREATED: State.CREATED,
    pb.CONTAINER_RUNNING: State.RUNNING,
    pb.CONTAINER_EXITED: State.EXITED,
}
MEANING: Final[dict[grpc.StatusCode, type[HoldfastError]]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,  # by a server that ends
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
}


class Runtime:
    """One runtime, by its socket; to be made within the event loop. Calls raise HoldfastError."""

    def __init__(self, socket: str, cgroup_root: str, driver: str = "") -> None:
        """`driver` is that of its cgroups, where it does not say itself."""
        self.socket = socket
        self._cgroup_root = cgroup_root
        self._driver = driver
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=OPTIONS)
        self._runtime = RuntimeServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._images = ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._node = NodeStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self._channel.close(None)

    # -- what there is

    async def observe(self, uid: str) -> Observed:
        """All there is of one pod."""
        wanted = {POD_UID: uid}
        pods = await self._call(
            self._runtime.ListPodSandbox, pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=wanted))
        )
        listed = await self._call(
            self._runtime.ListContainers, pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector=wanted))
        )
        sandboxes = await _all(self._sandbox(one) for one in pods.items)
        runs = await _all(self._run(one) for one in listed.containers)
        return Observed(
            tuple(one for one in sandboxes if one is not None), tuple(one for one in runs if one is not None)
        )

    async def _sandbox(self, one: pb.PodSandbox) -> Sandbox | None:
        """None if it went in between."""
        ready = one.state == pb.SANDBOX_READY
        addresses: tuple[str, ...] = ()
        users = 0
        if ready:
            try:
                request = pb.PodSandboxStatusRequest(pod_sandbox_id=one.id)
                status = (await self._call(self._runtime.PodSandboxStatus, request)).status
            except NotFound:
                return None
            ready = status.state == pb.SANDBOX_READY
            found = (status.network.ip, *(more.ip for more in status.network.additional_ips))
            addresses = tuple(address for address in found if address)
            users = next((ids.host_id for ids in status.linux.namespaces.options.userns_options.uids), 0)
        return Sandbox(one.id, one.metadata.attempt, ready, one.created_at, addresses, users)

    async def _run(self, one: pb.Container) -> Run | None:
        """None if it went in between."""
        try:
            status = await self.container(one.id)
        except NotFound:
            return None
        return run_of(one, status)

    async def container(self, container_id: str) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=container_id)
        found: pb.ContainerStatus = (await self._call(self._runtime.ContainerStatus, request)).status
        return found

    async def changed(self) -> AsyncIterator[str]:
        """Uids of pods of which something has changed, "" when it may be any; whatever becomes of the runtime."""
        told = True
        while True:
            try:
                async for uid in self._events() if told else self._polled():
                    yield uid
            except Unimplemented:
                told = False
            except HoldfastError:
                await asyncio.sleep(RECONNECT)

    async def _events(self) -> AsyncIterator[str]:
        """First "", once it is certain that what happens from then on is told."""
        call = self._runtime.GetContainerEvents(pb.GetEventsRequest())
        begun = asyncio.get_running_loop().create_task(call.initial_metadata())
        try:
            await asyncio.wait({begun}, timeout=BEGIN)  # not every runtime sends its headers before the first event
            yield ""
            async for event in call:
                yield event.pod_sandbox_status.metadata.uid
        except grpc.aio.AioRpcError as exc:
            raise _error(exc) from exc
        finally:
            call.cancel()
            await asyncio.gather(begun, return_exceptions=True)
        raise Unavailable("the runtime has ended its events")

    async def _polled(self) -> AsyncIterator[str]:
        before: dict[str, set[tuple[str, int]]] | None = None
        while True:
            now: dict[str, set[tuple[str, int]]] = {}
            for pod in await self._pods():
                now.setdefault(pod.metadata.uid, set()).add((pod.id, pod.state))
            for one in await self._containers():
                now.setdefault(one.labels.get(POD_UID, ""), set()).add((one.id, one.state))
            if before is None:
                yield ""
            else:
                for uid in before.keys() | now.keys():
                    if before.get(uid) != now.get(uid):
                        yield uid
            before = now
            await asyncio.sleep(POLL)

    async def _pods(self) -> list[pb.PodSandbox]:
        return list((await self._call(self._runtime.ListPodSandbox, pb.ListPodSandboxRequest())).items)

    async def _containers(self) -> list[pb.Container]:
        return list((await self._call(self._runtime.ListContainers, pb.ListContainersRequest())).containers)

    async def made_here(self, root: str) -> list[Made]:
        """All sandboxes that an agent of this cgroup root has made, whichever root it had."""
        found = [one for one in await self._pods() if one.annotations.get(AGENT_CGROUP) == self._cgroup_root]
        used = {one.pod_sandbox_id for one in await self._containers()} if found else set()
        return [
            Made(
                one.id,
                one.metadata.uid,
                one.metadata.namespace,
                one.metadata.name,
                is_unused=one.id not in used and one.annotations.get(AGENT_ROOT) == root,
            )
            for one in found
        ]

    # -- the proof

    async def proven_dead(self, uid: str) -> bool:
        return not await self.why_alive(uid)

    async def why_alive(self, uid: str) -> str:
        """Why something of the pod may live; "" once it is proven that nothing does. It kills nobody to find out.

        Proven: all its containers have exited, its sandboxes' stop was answered, and no process is in its cgroup.
        """
        try:
            sandboxes = [one for one in await self._pods() if uid in (one.metadata.uid, one.labels.get(POD_UID))]
            if why := await self._why_running(uid, sandboxes):
                return why
            for one in sandboxes:
                await self.stop_pod(one.id)
            if why := await self._why_running(uid, sandboxes):
                return why
            return await in_thread(self._why_populated, uid)
        except (HoldfastError, OSError) as exc:
            return f"it cannot be found out: {exc}"

    async def _why_running(self, uid: str, sandboxes: list[pb.PodSandbox]) -> str:
        ids = {one.id for one in sandboxes}
        for one in await self._containers():
            ours = one.pod_sandbox_id in ids or one.labels.get(POD_UID) == uid
            if ours and one.state != pb.CONTAINER_EXITED:
                state = STATES.get(one.state, State.UNKNOWN).value
                return f"container {one.metadata.name} ({one.id[:13]}) is {state}"
        return ""

    def _why_populated(self, uid: str) -> str:
        for path in qos.cgroup_paths(uid, self._cgroup_root):
            if found := cgroup.pids(path):
                return f"processes are in its cgroup {path}: {', '.join(map(str, sorted(found)[:5]))}"
        return ""

    async def is_populated(self, uid: str) -> str:
        """Why a process of the pod may be there, whatever the runtime knows of; "" if none is."""
        try:
            return await in_thread(self._why_populated, uid)
        except OSError as exc:
            return f"its cgroup cannot be read: {exc}"

    # -- what is done

    async def run_pod(self, config: pb.PodSandboxConfig, handler: str) -> str:
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return str((await self._call(self._runtime.RunPodSandbox, request, SANDBOX)).pod_sandbox_id)

    async def stop_pod(self, sandbox_id: str) -> None:
        """Idempotent; also for one that is not there."""
        try:
            await self._call(self._runtime.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=sandbox_id), ACT)
        except NotFound:
            return

    async def remove_pod(self, sandbox_id: str) -> None:
        """Idempotent."""
        try:
            await self._call(self._runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id), ACT)
        except NotFound:
            return

    async def create(self, sandbox_id: str, config: pb.ContainerConfig, sandbox: pb.PodSandboxConfig) -> str:
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox)
        return str((await self._call(self._runtime.CreateContainer, request, ACT)).container_id)

    async def start(self, container_id: str) -> None:
        await self._call(self._runtime.StartContainer, pb.StartContainerRequest(container_id=container_id), ACT)

    async def stop(self, container_id: str, grace: int) -> None:
        """Idempotent; within `grace` seconds by its own will."""
        request = pb.StopContainerRequest(container_id=container_id, timeout=grace)
        try:
            await self._call(self._runtime.StopContainer, request, grace + ACT)
        except NotFound:
            return

    async def remove(self, container_id: str) -> None:
        """Idempotent."""
        try:
            await self._call(self._runtime.RemoveContainer, pb.RemoveContainerRequest(container_id=container_id), ACT)
        except NotFound:
            return

    async def reopen_log(self, container_id: str) -> None:
        """Of one that runs: from the answer on it writes to the file that has the log's name, made if there is none."""
        await self._call(self._runtime.ReopenContainerLog, pb.ReopenContainerLogRequest(container_id=container_id))

    async def execute(self, container_id: str, command: Iterable[str], seconds: int) -> pb.ExecSyncResponse:
        """Raises DeadlineExceeded when it was the command that took too long; Unavailable when it was the runtime."""
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=seconds)
        found: pb.ExecSyncResponse = await self._call(self._runtime.ExecSync, request, seconds + MARGIN)
        return found

    async def checkpoint(self, sandbox_id: str, location: str, compress: str, limit: int) -> float:
        """Leave an archive of a pod, which goes on. Returns for how many seconds it stood still.

        Raises Unimplemented where the runtime cannot; Holdfast can.
        """
        request = node_pb2.CheckpointPodRequest(
            pod_id=sandbox_id, location=location, compress=compress, leave_running=True, limit=limit
        )
        return float((await self._call(self._node.CheckpointPod, request, CHECKPOINT)).frozen_seconds)

    async def cgroup_driver(self) -> str:
        """It is asked once: as with a kubelet, who changes it ends the pods and the agent first."""
        if not self._driver:
            try:
                found = await self._call(self._runtime.RuntimeConfig, pb.RuntimeConfigRequest())
                told = found.HasField("linux") and found.linux.cgroup_driver == pb.SYSTEMD
            except Unimplemented:
                told = False
            self._driver = cgroups.SYSTEMD if told else cgroups.CGROUPFS
        return self._driver

    async def mounts_read_only(self, handler: str) -> bool:
        """Whether it can make a mount read-only with all that is mounted below it."""
        found = await self._call(self._runtime.Status, pb.StatusRequest())
        return any(one.name == handler and one.features.recursive_read_only_mounts for one in found.runtime_handlers)

    # -- images

    async def image(self, reference: str) -> pb.Image | None:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=reference))
        found = await self._call(self._images.ImageStatus, request)
        return found.image if found.image.id else None

    async def pull(self, reference: str, sandbox: pb.PodSandboxConfig, login: Login | None = None) -> str:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=reference), sandbox_config=sandbox)
        if login is not None:
            request.auth.username, request.auth.password = login.user, login.password
        return str((await self._call(self._images.PullImage, request, PULL)).image_ref)

    # -- calls

    async def _call(self, method: Callable[..., Any], request: Any, seconds: float = LOOK) -> Any:
        try:
            async with patience(seconds):
                return await method(request)
        except TimeoutError as exc:
            raise Unavailable(f"cannot finish {type(request).__name__}: no answer in {seconds:g} s") from exc
        except grpc.aio.AioRpcError as exc:
            raise _error(exc) from exc


def run_of(one: pb.Container, status: pb.ContainerStatus) -> Run:
    """From what the list and the status say, of which the second is the newer."""
    return Run(
        name=one.labels.get(CONTAINER_NAME, one.metadata.name),
        id=one.id,
        sandbox=one.pod_sandbox_id,
        attempt=one.metadata.attempt,
        state=STATES.get(status.state, State.UNKNOWN),
        digest=status.annotations.get(HASH, ""),
        created_at=status.created_at,
        started_at=status.started_at,
        ended_at=status.finished_at,
        code=status.exit_code,
        reason=status.reason,
        message=status.message,
        image=status.image.user_specified_image or status.image.image,
        image_ref=status.image_ref,
    )


async def _all(questions: Any) -> list[Any]:
    """All at once. The first that fails is raised, once all have ended."""
    found = await asyncio.gather(*questions, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def _error(exc: grpc.aio.AioRpcError) -> HoldfastError:
    return MEANING.get(exc.code(), HoldfastError)(exc.details() or exc.code().name)
