"""The connection to the daemon, and finding things by what people type."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

import click
import grpc

from holdfast.cli.calls import explained
from holdfast.cli.errors import CommandError, Missing
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import ImageServiceStub, RuntimeServiceStub

T = TypeVar("T")
CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),  # a daemon that is back is a socket away
    ("grpc.max_reconnect_backoff_ms", 500),
)


class Client:
    """The services of one daemon. Calls raise CommandError: Missing for NOT_FOUND, Unreachable without a daemon."""

    def __init__(self, socket: str, seconds: float) -> None:
        self.socket = socket
        self._seconds = seconds
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS)
        self.runtime = RuntimeServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.images = ImageServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def node(self) -> Any:
        from holdfast.proto.node_pb2_grpc import NodeStub

        return NodeStub(self.channel)  # type: ignore[no-untyped-call]

    def call(self, method: Callable[..., Any], request: Any, seconds: float | None = None) -> Any:
        with self.errors():
            return method(request, timeout=seconds or self._seconds)

    def errors(self) -> AbstractContextManager[None]:
        return explained("daemon", self.socket, "is holdfastd running?")

    def containers(self, **wanted: Any) -> list[pb.Container]:
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**wanted))
        return list(self.call(self.runtime.ListContainers, request).containers)

    def pods(self, **wanted: Any) -> list[pb.PodSandbox]:
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**wanted))
        return list(self.call(self.runtime.ListPodSandbox, request).items)

    def find_container(self, wanted: str) -> pb.Container:
        """By id, name or beginning of an id. Raises Missing, or CommandError when several match."""
        return _one(self.containers(), wanted, "container")

    def find_pod(self, wanted: str) -> pb.PodSandbox:
        return _one(self.pods(), wanted, "pod")

    def facts(self) -> dict[str, Any]:
        """Where the daemon keeps things: root, state, log_root, cgroup_root and more."""
        import json

        status = self.call(self.runtime.Status, pb.StatusRequest(verbose=True))
        found: dict[str, Any] = json.loads(status.info.get("config", "{}"))
        return found


def _one(objects: Iterable[T], wanted: str, what: str) -> T:
    found: list[Any] = list(objects)
    for matches in (
        [one for one in found if one.id == wanted],
        [one for one in found if one.metadata.name == wanted],
        [one for one in found if wanted and one.id.startswith(wanted)],
    ):
        if len(matches) == 1:
            only: T = matches[0]
            return only
        if matches:
            ids = ", ".join(one.id[:13] for one in matches[:5])
            raise CommandError(f"cannot find {what} {wanted!r}: {len(matches)} match (hint: say which by id: {ids})")
    raise Missing(f"cannot find {what} {wanted!r}: there is none")


def client(ctx: click.Context) -> Client:
    """The connection this invocation asked for."""
    options = ctx.find_root().obj
    return Client(options["socket"], options["timeout"])


def each(names: Iterable[str], action: Callable[[str], None]) -> int:
    """Do something for every name; go on after an error, and end with 1 if there was one."""
    status = 0
    for name in names:
        try:
            action(name)
        except CommandError as exc:
            click.echo(f"holdfast: {exc}", err=True)
            status = 1
    return status


def named(names: tuple[str, ...], everything: bool, listed: Callable[[], Iterable[Any]]) -> tuple[str, ...]:
    """The names that were typed, or with --all the ids of all that is listed. Raises UsageError for neither or both."""
    if everything is bool(names):
        raise click.UsageError("say either names or --all")
    return tuple(one.id for one in listed()) if everything else names
