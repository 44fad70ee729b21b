"""Sessions: exec, attach and port-forward as streams. The daemon prepares one, and a streamer of the keeper's has it.

What is asked for in the CRI is looked at twice: when it is asked for, and when the client comes, which may be a minute
later. From then on the client's connection is the streamer's. The daemon sees to it that nothing is left when that
ends, however it ends, and knows the sessions of an earlier daemon by their ids (runtime.streamers).
"""

import base64
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from holdfast.lifecycle.bundle import Bundles
from holdfast.lifecycle.containers import Containers
from holdfast.lifecycle.execute import Executor
from holdfast.lifecycle.foreign import Foreign
from holdfast.lifecycle.networks import network_result
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.tasks import Background, in_thread, within
from holdfast.lifecycle.world import World
from holdfast.linux import files
from holdfast.linux.inject import crashpoint
from holdfast.model.errors import FailedPrecondition, InvalidArgument, NotFound
from holdfast.model.state import ContainerState, PodState, ProcessRef
from holdfast.model.tally import OK, result_of
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handlers
from holdfast.runtime.loggers import SERVICE, SOCKET
from holdfast.runtime.shims import Shims, wait_gone
from holdfast.runtime.streamers import ATTACH, EXEC, FORWARD, Streamers, kind_of, new_id, owner_of

log = logging.getLogger(__name__)

STREAMS: Final = ("stdin", "stdout", "stderr")
PORTS: Final = range(1, 65536)
OVER_LONGEST: Final = 3.0  # between attempts to end what a streamer has left under a shim that does not answer
SETTLE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Session:
    """What was asked for. `owner` is the id of the container or, where ports are forwarded, of the pod."""

    kind: str
    owner: str
    streams: tuple[str, ...] = ()  # of STREAMS
    tty: bool = False
    command: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Caller:
    """The client who has come: his connection, the head of his request, and what he has sent beyond it."""

    connection: int
    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    rest: bytes


class Sessions:
    """The rules by which sessions begin and end. `idle_seconds` is how long nothing may pass in one; 0 is for ever."""

    def __init__(
        self,
        world: World,
        containers: Containers,
        executor: Executor,
        bundles: Bundles,
        shims: Shims,
        streamers: Streamers,
        foreign: Foreign,
        background: Background,
        handlers: Handlers,
        idle_seconds: int,
    ) -> None:
        self._handlers = handlers
        self.offer: Callable[[Session], str] | None = None  # the URL at which it can be begun once
        self.mine: set[str] = set()  # begun, or taken over from an earlier daemon, and not over yet
        self._world = world
        self._containers = containers
        self._executor = executor
        self._bundles = bundles
        self._shims = shims
        self._streamers = streamers
        self._foreign = foreign
        self._background = background
        self._idle_seconds = idle_seconds

    async def exec(self, request: pb.ExecRequest) -> str:
        """A URL. Raises InvalidArgument, NotFound, FailedPrecondition, Unavailable."""
        streams = _streams(request)
        if not request.cmd:
            raise InvalidArgument("cmd: a command is needed")
        async with self._containers.running(request.container_id, "exec in") as container:
            session = Session(EXEC, container.meta.id, streams, request.tty, tuple(request.cmd))
            return self._offered(session)

    async def attach(self, request: pb.AttachRequest) -> str:
        """A URL. Raises InvalidArgument, NotFound, FailedPrecondition, Unavailable."""
        session = Session(ATTACH, request.container_id, _streams(request), request.tty)
        async with self._attachable(session) as container:
            return self._offered(replace(session, owner=container.meta.id))

    async def forward(self, request: pb.PortForwardRequest) -> str:
        """A URL. Raises InvalidArgument, NotFound, FailedPrecondition, Unavailable."""
        if not request.pod_sandbox_id:
            raise InvalidArgument("pod_sandbox_id: must not be empty")
        for number, port in enumerate(request.port):
            if port not in PORTS:
                raise InvalidArgument(f"port[{number}]: {port} is not from 1 to 65535")
        pod = self._ready(request.pod_sandbox_id)
        return self._offered(Session(FORWARD, pod.meta.id, ports=tuple(request.port)))

    async def begin(self, session: Session, caller: Caller) -> None:
        """Give the caller's connection to a streamer. Raises HoldfastError, OSError where that could not be done.

        The descriptor stays open here, and is not to be used any more.
        """
        crashpoint("session.taken")
        id = new_id(session.kind, session.owner)
        self._take(id)
        try:
            if session.kind == FORWARD:
                await self._begin_forward(id, session, caller)
            elif session.kind == ATTACH:
                await self._begin_attach(id, session, caller)
            else:
                await self._begin_exec(id, session, caller)
        except BaseException as exc:  # a daemon that ends meanwhile leaves that to the next one
            self._executor.sessions.total.add(session.kind, result_of(exc))
            self._see_off(id, None)
            raise
        self._executor.sessions.total.add(session.kind, OK)

    async def protect(self, connection: int, inner: int, certificate: str, key: str) -> None:
        """Have TLS spoken on a connection, and what is in it passed on by `inner`. Raises Unavailable."""
        await self._streamers.terminate_tls(connection, inner, certificate, key)

    async def recover(self) -> None:
        """Once after a start: go on with the sessions that go on, and end the others.

        Raises Unavailable while a keeper does not tell which those are.
        """
        living = await self._streamers.living()
        for pod, recorded, left in await in_thread(self._found, list(self._world.pods.values())):
            owners = (pod.meta.id, *pod.containers)
            listed = {id: one for id, one in living.items() if owner_of(id) in owners}
            for id, one in listed.items() - recorded.items():
                await in_thread(self._streamers.record, pod.meta.id, id, one)
            for id in {*listed, *recorded, *left} - self.mine:
                self._take(id)
                self._see_off(id, listed.get(id) or recorded.get(id))

    def _found(self, pods: Sequence[Pod]) -> list[tuple[Pod, dict[str, ProcessRef], list[str]]]:
        """Of each pod the recorded sessions, and those that have a directory in one of its bundles. Blocks."""
        return [(pod, self._streamers.recorded(pod.meta.id), list(self._directories(pod))) for pod in pods]

    def _directories(self, pod: Pod) -> Iterator[str]:
        for container in list(pod.containers.values()):
            for kind in (EXEC, ATTACH):
                with contextlib.suppress(FileNotFoundError):
                    yield from filter(kind_of, os.listdir(self._bundles.path(container) / kind))

    # -- what is asked for

    def _offered(self, session: Session) -> str:
        assert self.offer is not None
        return self.offer(session)

    @asynccontextmanager
    async def _attachable(self, session: Session) -> AsyncIterator[Container]:
        async with self._containers.running(session.owner, "attach to") as container:
            config = container.config
            if session.tty != config.tty:
                has = "has one" if config.tty else "has none"
                raise InvalidArgument(f"tty: {session.tty}, but as for a terminal container {container.meta.id} {has}")
            if "stdin" in session.streams and not config.stdin:
                raise InvalidArgument(f"stdin: container {container.meta.id} was created without")
            yield container

    def _ready(self, pod_id: str) -> Pod:
        pod = self._world.pod(pod_id)
        if not pod.acknowledged:
            raise NotFound(f"cannot find pod sandbox {pod_id!r}: it is being made")
        if not _is_open(pod):
            raise FailedPrecondition(f"cannot forward ports of pod sandbox {pod.meta.id}: it is not ready")
        if self._leads_by_address(pod) and not network_result(pod).ips:
            why = "its network is gVisor's, into which only addresses lead, and it has none"
            raise FailedPrecondition(f"cannot forward ports of pod sandbox {pod.meta.id}: {why}")
        return pod

    def _leads_by_address(self, pod: Pod) -> bool:
        """Whether who is in the pod's network namespace is not in its network: gVisor has one of its own."""
        return bool(pod.status.netns) and self._handlers.get(pod.meta.handler).gvisor

    # -- when the client has come

    async def _begin_exec(self, id: str, session: Session, caller: Caller) -> None:
        async with self._containers.running(session.owner, "exec in") as container:
            streams = [*session.streams, *(["tty"] if session.tty else [])]
            directory = await self._executor.prepare(container, id, list(session.command), streams)
            crashpoint("session.prepared")
            await self._hand_over(id, session, caller, container.pod, self._process(container, directory))

    async def _begin_attach(self, id: str, session: Session, caller: Caller) -> None:
        async with self._attachable(session) as container:
            directory = self._bundles.path(container) / ATTACH / id
            await in_thread(files.make_private, directory.parent)
            await in_thread(files.make_private, directory)
            crashpoint("session.prepared")
            told = self._process(container, directory) | {
                "attach": self._told_of_output(container),
                "stdin": str(self._bundles.path(container) / "stdin") if container.config.stdin else "",
                "stdin_once": container.config.stdin_once and not container.config.tty,  # a terminal's input has no end
            }
            await self._hand_over(id, session, caller, container.pod, told)

    async def _begin_forward(self, id: str, session: Session, caller: Caller) -> None:
        pod = self._ready(session.owner)
        with contextlib.ExitStack() as stack:
            fds = []
            told: dict[str, object] = {"ports": list(session.ports)}
            if self._leads_by_address(pod):
                told["addresses"] = list(network_result(pod).ips)
            elif pod.status.netns:
                fds.append(os.open(pod.status.netns, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, fds[0])
            crashpoint("session.prepared")
            await self._hand_over(id, session, caller, pod, told, fds)
        if not _is_open(pod):  # who stops it may not have seen this one
            await self._streamers.end(pod.meta.id, [pod.meta.id])

    async def _hand_over(
        self,
        id: str,
        session: Session,
        caller: Caller,
        pod: Pod,
        told: dict[str, object],
        fds: Sequence[int] = (),
    ) -> None:
        headers = [list(header) for header in caller.headers]
        args = told | {
            "session": session.kind,
            "request": {"method": caller.method, "target": caller.target, "headers": headers},
            "rest": base64.b64encode(caller.rest).decode(),
            "wanted": {name: name in session.streams for name in STREAMS} | {"tty": session.tty},
            "idle_seconds": self._idle_seconds,
        }
        streamer = await self._streamers.start(pod.meta.id, id, args, [caller.connection, *fds])
        crashpoint("session.begun")
        log.info("%s %s is streamed by pid %d", session.kind, id, streamer.pid, extra={"pod": pod.meta.id})
        self._see_off(id, streamer)

    def _process(self, container: Container, directory: Path) -> dict[str, object]:
        """How the streamer gets at the process."""
        path, service = self._shims.address(container.pod.meta.id)
        return {
            "directory": str(directory), "shim": str(path), "service": service, "container": container.meta.id,
        }  # fmt: skip

    def _told_of_output(self, container: Container) -> dict[str, str]:
        """Who is to be asked for a copy of a container's output."""
        if not self._foreign.serves(container):
            path, service = self._shims.address(container.pod.meta.id)
            return {"kind": "shim", "socket": str(path), "service": service}
        return {"kind": "logger", "socket": str(self._bundles.path(container) / SOCKET), "service": SERVICE}

    # -- the end

    def _see_off(self, id: str, streamer: ProcessRef | None) -> None:
        """See to it that nothing is left of a session once its streamer is gone, or when it never had one."""
        name = f"end of session {id}"
        self._background.see_through(name, lambda: self._clear(id, streamer), OVER_LONGEST)

    async def _clear(self, id: str, streamer: ProcessRef | None) -> None:
        if streamer is not None:
            await wait_gone(streamer)
            crashpoint("session.ended")
        container = self._world.containers.get(owner_of(id))
        if container is not None and kind_of(id) != FORWARD:
            directory = self._bundles.path(container) / kind_of(id) / id
            if kind_of(id) == EXEC and await in_thread(directory.exists):
                await within(SETTLE_SECONDS, container.settled.wait(), f"settle container {container.meta.id}")
                if container.state is ContainerState.RUNNING:
                    await self._executor.end(container, id)
            await in_thread(files.remove_tree, directory)
        if (pod := container.pod if container is not None else self._world.pods.get(owner_of(id))) is not None:
            await in_thread(self._streamers.forget, pod.meta.id, id)
        if id in self.mine:
            self.mine.remove(id)
            self._executor.sessions.begun((kind_of(id),), -1)

    def _take(self, id: str) -> None:
        self.mine.add(id)
        self._executor.sessions.begun((kind_of(id),), 1)


def _is_open(pod: Pod) -> bool:
    return pod.state is PodState.READY and not {"stop", "remove"} & pod.intents.keys()


def _streams(request: pb.ExecRequest | pb.AttachRequest) -> tuple[str, ...]:
    """The streams that are asked for, as the CRI allows them. Raises InvalidArgument."""
    if not request.container_id:
        raise InvalidArgument("container_id: must not be empty")
    if request.tty and request.stderr:
        raise InvalidArgument("stderr: it cannot be had together with tty")
    streams = tuple(name for name in STREAMS if getattr(request, name))
    if not streams:
        raise InvalidArgument("stdin, stdout, stderr: one of them must be asked for")
    return streams
