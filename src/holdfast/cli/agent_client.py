"""The connection to the agent, and its pods by what people type: "web", "pod/web"."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final

import click
import grpc

from holdfast.cli.calls import explained
from holdfast.cli.errors import CommandError, Missing, Unreachable
from holdfast.proto import agent_pb2 as pb

SOCKET: Final = "/var/lib/holdfast-agent/agent.sock"
DEFAULT: Final = "default"  # the namespace
PODS: Final = ("pod", "pods", "po")
AGAIN_SECONDS: Final = 0.2


def agent_option(command: Any) -> Any:
    return click.option(
        "--agent",
        envvar="HOLDFAST_AGENT",
        default=SOCKET,
        show_default=True,
        help="The agent's socket. [env: HOLDFAST_AGENT]",
    )(command)


def namespace_option(command: Any) -> Any:
    return click.option("--namespace", "-n", default="", help="The pod's namespace. [default: default]")(command)


class Agent:
    """Calls raise CommandError: Missing for NOT_FOUND, Unreachable without an agent."""

    def __init__(self, socket: str, seconds: float) -> None:
        from holdfast.proto.agent_pb2_grpc import AgentStub

        self.socket = socket
        self._seconds = seconds
        options = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
        self._stub = AgentStub(grpc.insecure_channel(f"unix:{socket}", options=options))  # type: ignore[no-untyped-call]

    def call(self, method: str, request: Any) -> Any:
        with self._errors():
            return getattr(self._stub, method)(request, timeout=self._seconds)

    def listed(self, namespace: str, name: str = "") -> pb.ListPodsReply:
        """Of a namespace, "" for all."""
        found: pb.ListPodsReply = self.call("ListPods", pb.ListPodsRequest(namespace=namespace, name=name))
        return found

    def pod(self, wanted: str, namespace: str) -> tuple[pb.AgentPod, str]:
        """The pod, and the socket of the runtime that has it. Raises Missing."""
        found = self.listed(namespace or DEFAULT, name_of(wanted))
        if not found.pods:
            raise Missing(missing(wanted, namespace))
        return found.pods[0], found.runtime

    def watch(self, namespace: str, name: str = "") -> Iterator[list[pb.AgentPod]]:
        """The pods, whenever one has changed; without an end. An agent that goes away is waited for."""
        seen = away = False
        while True:
            try:
                with self._errors():
                    for listed in self._stub.WatchPods(pb.ListPodsRequest(namespace=namespace, name=name)):
                        if away:
                            print("holdfast: the agent is back", file=sys.stderr)
                        seen, away = True, False
                        yield list(listed.pods)
            except Unreachable:
                if not seen:
                    raise
            if not away:
                print("holdfast: the agent does not answer; waiting for it", file=sys.stderr)
                away = True
            time.sleep(AGAIN_SECONDS)

    def _errors(self) -> AbstractContextManager[None]:
        return explained("agent", self.socket, "does `holdfast agent` run?")


def agent_of(ctx: click.Context, socket: str) -> Agent:
    return Agent(socket, ctx.find_root().obj["timeout"])


def name_of(wanted: str) -> str:
    """Of "web" or "pod/web". Raises UsageError for another kind of thing."""
    kind, slash, name = wanted.rpartition("/")
    if slash and kind not in PODS:
        raise click.UsageError(f"{wanted!r} is no pod")
    return name


def missing(wanted: str, namespace: str) -> str:
    return f"cannot find pod {name_of(wanted)!r} in namespace {namespace or DEFAULT!r}: the agent has none of that name"


def as_object(one: pb.AgentPod) -> dict[str, Any]:
    """The v1 Pod."""
    found: dict[str, Any] = json.loads(one.json)
    return found


def completing(seconds: float) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Names of the agent's pods, for a shell; without an agent there are none to offer."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        namespace = ctx.params.get("namespace") or DEFAULT
        try:
            found = Agent(ctx.params.get("agent") or SOCKET, seconds).listed(namespace)
        except CommandError:
            return []
        return sorted(one.name for one in found.pods if one.name.startswith(incomplete))

    return complete
