"""events: what happens to pods, containers and disks, as it happens or since a number."""

import json
from datetime import UTC, datetime

import click

from holdfast.cli.client import client
from holdfast.cli.output import as_dict
from holdfast.proto import node_pb2


@click.command("events")
@click.option("--since", type=int, help="Begin after the event of this number; 0 for all that is still known.")
@click.option("--no-follow", is_flag=True, help="End when there is nothing more to show now. Needs --since.")
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", help="text, or one JSON a line.")
@click.pass_context
def events_command(ctx: click.Context, since: int | None, no_follow: bool, output: str) -> None:
    """Show what happens to pods and containers: created, started, stopped, deleted.

    "oom" says that the kernel has killed a process of a container for want of memory, which need not be its end.
    A container that has stopped is "cleaned" once nothing of its task is left; a pod is "adopted" when its shim was
    dead and another one has taken over, and "detached" when something was taken out of its volumes that others had
    mounted there.

    Each event has a number; numbers grow, across restarts of the daemon too. Who comes back asks for what happened
    since the last number seen. "gap" says that events up to its number are not known any more: list anew.

    \b
    holdfast events
    holdfast events --since 0 --no-follow
    holdfast events --since 1795214012345678901 -o json
    """
    if no_follow and since is None:
        raise click.UsageError("--no-follow needs --since")
    daemon = client(ctx)
    request = node_pb2.EventsRequest(since=since, only_known=no_follow)
    with daemon.errors():
        for event in daemon.node().Events(request):
            click.echo(json.dumps(as_dict(event)) if output == "json" else line(event))


def line(event: node_pb2.Event) -> str:
    """One event for people."""
    if event.kind == "gap":
        return f"{event.number}  gap: what happened before is not known any more; list anew"
    at = datetime.fromtimestamp(event.at / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if event.kind == "storage":
        return f"{event.number}  {at}  filesystem {event.state}  {event.id} ({event.name}) {event.reason}".rstrip()
    about = f"pod={event.namespace}/{event.pod_name}" if event.object == "container" else f"namespace={event.namespace}"
    if event.kind == "oom":
        about += f", {event.oom_kills} killed so far" + (", its init too" if event.reason == "OOMKilled" else "")
    if event.kind == "detached":
        return (
            f"{event.number}  {at}  {event.object} {event.kind}  {event.name} ({event.id[:13]}, {about}) {event.reason}"
        )
    more = f" exit_code={event.exit_code} reason={event.reason}" if event.kind == "stopped" and event.reason else ""
    return f"{event.number}  {at}  {event.object} {event.kind}  {event.name} ({event.id[:13]}, {about}){more}"
