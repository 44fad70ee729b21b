"""apply, delete, get, describe: what the agent's pods are asked for. How a pod is shown is kubectl's way."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, Final

import click
import grpc

from holdfast.cli.errors import CommandError, Missing, Unreachable
from holdfast.cli.output import lines, show, table
from holdfast.proto import agent_pb2 as pb

SOCKET: Final = "/var/lib/holdfast-agent/agent.sock"
COLUMNS: Final = ("NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE")
WIDE: Final = (*COLUMNS, "IP", "SOURCE")


def agent_option(command: Any) -> Any:
    return click.option(
        "--agent",
        "socket",
        envvar="HOLDFAST_AGENT",
        default=SOCKET,
        show_default=True,
        help="The agent's socket. [env: HOLDFAST_AGENT]",
    )(command)


@contextlib.contextmanager
def _agent(socket: str) -> Iterator[Any]:
    """The agent's service. Raises CommandError for what it answers."""
    from holdfast.proto.agent_pb2_grpc import AgentStub

    with grpc.insecure_channel(f"unix:{socket}") as channel:
        try:
            yield AgentStub(channel)  # type: ignore[no-untyped-call]
        except grpc.RpcError as exc:
            code, details = exc.code(), exc.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE and "connect" in details:
                raise Unreachable(f"cannot reach the agent at {socket} (hint: does `holdfast agent` run?)") from exc
            kind = Missing if code is grpc.StatusCode.NOT_FOUND else CommandError
            raise kind(details or f"cannot finish the call: {code.name}") from exc


@click.command("apply")
@click.option("--file", "-f", type=click.File("rb"), required=True, help="A manifest; - is stdin.")
@agent_option
@click.pass_context
def apply_command(ctx: click.Context, file: Any, socket: str) -> None:
    """Have the agent run what a manifest says: pods, and the ConfigMaps and Secrets that they take.

    All of it is taken or nothing. What is there already becomes what the manifest says.
    """
    with _agent(socket) as agent:
        reply = agent.Apply(pb.ApplyRequest(manifest=file.read()), timeout=ctx.find_root().obj["timeout"])
    for warning in reply.warnings:
        click.echo(f"warning: {warning}", err=True)
    for name in reply.applied:
        click.echo(f"{name} applied")


@click.command("delete")
@click.argument("kind", type=click.Choice(["pod", "configmap", "secret"]))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--namespace", "-n", default="default", show_default=True, help="Where it is.")
@click.option("--grace-period", type=click.IntRange(min=0), help="Seconds to end, instead of the pod's own.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Until nothing is left of a pod.")
@agent_option
@click.pass_context
def delete_command(
    ctx: click.Context,
    kind: str,
    names: tuple[str, ...],
    namespace: str,
    grace_period: int | None,
    wait: bool,
    socket: str,
) -> None:
    """End pods that were applied, and delete what they had."""
    with _agent(socket) as agent:
        for name in names:
            request = pb.DeleteRequest(kind=kind, namespace=namespace, name=name, grace=grace_period)
            agent.Delete(request, timeout=ctx.find_root().obj["timeout"])
            if wait and kind == "pod":
                for listed in agent.WatchPods(pb.ListPodsRequest(namespace=namespace, name=name)):
                    if not listed.pods:
                        break
            click.echo(f"{kind}/{namespace}/{name} deleted")


@click.command("get")
@click.argument("kind", type=click.Choice(["pods", "pod"]))
@click.argument("name", default="")
@click.option("--namespace", "-n", default="", help="Only of this one.")
@click.option("--watch", "-w", is_flag=True, help="Go on: print what changes, until interrupted.")
@click.option("--output", "-o", type=click.Choice(["table", "wide", "json", "yaml"]), default="table")
@agent_option
@click.pass_context
def get_command(
    ctx: click.Context, kind: str, name: str, namespace: str, watch: bool, output: str, socket: str
) -> None:
    """List the agent's pods, with their status as Kubernetes has it."""
    request = pb.ListPodsRequest(namespace=namespace, name=name)
    with _agent(socket) as agent:
        if watch:
            before: list[pb.AgentPod] = []
            for listed in agent.WatchPods(request):
                _print([one for one in listed.pods if one not in before], output, head=not before)
                before = list(listed.pods)
            return
        listed = agent.ListPods(request, timeout=ctx.find_root().obj["timeout"])
    if name and not listed.pods:
        raise Missing(f"cannot find pod {name!r}: the agent has none of that name")
    _print(list(listed.pods), output)
    for file, why in listed.unread.items():
        click.echo(f"warning: {file}: {why}", err=True)


def _print(pods: list[pb.AgentPod], output: str, *, head: bool = True) -> None:
    if output in ("json", "yaml"):
        show({"apiVersion": "v1", "kind": "List", "items": [json.loads(one.json) for one in pods]}, output)
        return
    rows = [row(one, wide=output == "wide") for one in pods]
    columns = WIDE if output == "wide" else COLUMNS
    if head:
        table(columns, rows)
    else:
        click.echo("\n".join(lines(rows)))


def row(one: pb.AgentPod, *, wide: bool = False) -> tuple[str, ...]:
    pod = json.loads(one.json)
    status = pod["status"]
    mains = status.get("containerStatuses", [])
    ready = f"{sum(found['ready'] for found in mains)}/{len(mains)}"
    restarts = sum(found["restartCount"] for found in (*status.get("initContainerStatuses", []), *mains))
    found = (one.namespace, one.name, ready, word(pod, one.deleted_at), str(restarts), age(status.get("startTime")))
    return (*found, status.get("podIP", "-"), one.source) if wide else found


def word(pod: dict[str, Any], deleted_at: int = 0) -> str:
    """What a pod does, in a word, as kubectl's STATUS."""
    status = pod["status"]
    if deleted_at:
        return "Terminating"
    inits = status.get("initContainerStatuses", [])
    for number, one in enumerate(inits):
        if one["ready"] or one.get("started"):
            continue
        state = one["state"]
        if "terminated" in state and state["terminated"]["exitCode"] == 0:
            continue
        reason = _reason(state)
        return f"Init:{reason}" if reason not in ("", "PodInitializing") else f"Init:{number}/{len(inits)}"
    reasons = [_reason(one["state"]) for one in status.get("containerStatuses", [])]
    return next((one for one in reasons if one not in ("", "Completed")), "") or (
        "Completed" if status["phase"] == "Succeeded" else str(status["phase"])
    )


def _reason(state: dict[str, Any]) -> str:
    return str(next((state[key].get("reason", "") for key in ("waiting", "terminated") if key in state), ""))


def age(since: str | None) -> str:
    """ "5m", from RFC 3339."""
    if not since:
        return "-"
    from datetime import datetime

    seconds = max(int(time.time() - datetime.fromisoformat(since).timestamp()), 0)
    for name, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{name}"
    return f"{seconds}s"


@click.command("describe")
@click.argument("kind", type=click.Choice(["pod"]))
@click.argument("name")
@click.option("--namespace", "-n", default="default", show_default=True, help="Where it is.")
@agent_option
@click.pass_context
def describe_command(ctx: click.Context, kind: str, name: str, namespace: str, socket: str) -> None:
    """Show what a pod is, does and has met with: conditions, containers, volumes, events."""
    with _agent(socket) as agent:
        request = pb.ListPodsRequest(namespace=namespace, name=name)
        pods = agent.ListPods(request, timeout=ctx.find_root().obj["timeout"]).pods
    if not pods:
        raise Missing(f"cannot find pod {name!r} in namespace {namespace!r}: the agent has none of that name")
    (one,) = pods
    click.echo("\n".join(described(one)))


def described(one: pb.AgentPod) -> Iterator[str]:
    """Line by line."""
    pod = json.loads(one.json)
    status = pod["status"]
    head = {
        "Name": one.name,
        "Namespace": one.namespace,
        "UID": one.uid,
        "Source": one.source,
        "Status": word(pod, one.deleted_at),
        "Started": status.get("startTime", "-"),
        "IP": status.get("podIP", "-"),
        "QoS class": status.get("qosClass", "-"),
    }
    yield from lines(list(head.items()))
    if message := status.get("message"):
        yield f"Message: {message}"
    yield "Conditions:"
    yield from (f"  {line}" for line in lines([(each["type"], each["status"]) for each in status["conditions"]]))
    for title, key in (("Init containers", "initContainerStatuses"), ("Containers", "containerStatuses")):
        if status.get(key):
            yield f"{title}:"
        for found in status.get(key, []):
            ready = "ready" if found["ready"] else "not ready"
            yield f"  {found['name']}: {_state(found['state'])}, {ready}, {found['restartCount']} restarts"
            yield f"    {found['image']}  {found.get('containerID', '')}"
            if "lastState" in found:
                yield f"    before: {_state(found['lastState'])}"
    if one.volumes:
        yield "Volumes:"
        yield from (f"  {line}" for line in one.volumes)
    if one.events:
        yield "Events:"
        when = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.at // 10**9)) for event in one.events]
        rows = [(at, event.reason, event.message) for at, event in zip(when, one.events, strict=True)]
        yield from (f"  {line}" for line in lines(rows))


def _state(state: dict[str, Any]) -> str:
    ((kind, found),) = state.items()
    said = [kind, found.get("reason", ""), found.get("message", "")]
    if kind == "terminated":
        said.insert(1, f"with {found['exitCode']}")
    return " ".join(part for part in said if part)
