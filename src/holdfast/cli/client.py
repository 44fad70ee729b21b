"""The connection to the daemon, and finding things by what people type."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click
import grpc

from holdfast.cli.errors import CommandError
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import ImageServiceStub, RuntimeServiceStub

T = TypeVar("T")

HINTS = {
    grpc.StatusCode.UNAVAILABLE: "is holdfastd running?",
    grpc.StatusCode.PERMISSION_DENIED: "the socket belongs to root",
}


class Client:
    """The services of one daemon. Calls raise CommandError."""

    def __init__(self, socket: str, seconds: float) -> None:
        self.socket = socket
        self._seconds = seconds
        options = (("grpc.max_receive_message_length", -1),)
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=options)
        self.runtime = RuntimeServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.images = ImageServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def node(self) -> Any:
        from holdfast.proto.node_pb2_grpc import NodeStub

        return NodeStub(self.channel)  # type: ignore[no-untyped-call]

    def call(self, method: Callable[..., Any], request: Any, seconds: float | None = None) -> Any:
        with self.errors():
            return method(request, timeout=seconds or self._seconds)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as exc:
            raise CommandError(self._explain(exc)) from exc

    def _explain(self, error: Any) -> str:
        code, details = error.code(), " ".join((error.details() or "").split())
        if code is grpc.StatusCode.UNAVAILABLE and "connect" in details:
            return f"cannot reach the daemon at {self.socket} (hint: {HINTS[code]})"
        hint = HINTS.get(code) if code is not grpc.StatusCode.UNAVAILABLE else None
        return details + (f" (hint: {hint})" if hint else "")

    def containers(self, **wanted: Any) -> list[pb.Container]:
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**wanted))
        return list(self.call(self.runtime.ListContainers, request).containers)

    def pods(self, **wanted: Any) -> list[pb.PodSandbox]:
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**wanted))
        return list(self.call(self.runtime.ListPodSandbox, request).items)

    def find_container(self, wanted: str) -> pb.Container:
        """By id, unique beginning of an id, or unique name."""
        return _one(self.containers(), wanted, "container")

    def find_pod(self, wanted: str) -> pb.PodSandbox:
        return _one(self.pods(), wanted, "pod")


def _one(objects: Iterable[T], wanted: str, what: str) -> T:
    found = list(objects)
    exact = [one for one in found if wanted in (one.id, one.metadata.name)]  # type: ignore[attr-defined]
    matches = exact or [one for one in found if wanted and one.id.startswith(wanted)]  # type: ignore[attr-defined]
    if len(matches) != 1:
        why = f"{len(matches)} match" if matches else "there is none"
        raise CommandError(f"cannot find {what} {wanted!r}: {why}")
    return matches[0]


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
