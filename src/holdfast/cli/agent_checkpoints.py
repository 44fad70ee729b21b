"""checkpoints: those that the agent keeps of its pods."""

import click

from holdfast.cli.agent_client import DEFAULT, Agent, agent_of, agent_option, completing, name_of, namespace_option
from holdfast.cli.checkpoint import SECONDS
from holdfast.cli.client import each
from holdfast.cli.completion import SECONDS as COMPLETION_SECONDS
from holdfast.cli.output import ago, as_dict, output_option, show, size, table
from holdfast.proto import agent_pb2 as pb


@click.group("checkpoints")
def checkpoints_command() -> None:
    """Make, list and remove checkpoints that the agent keeps of its pods, as long as its quota and their age allow.

    `holdfast restore PATH` makes a pod of one again, which is not the agent's then.
    """


@checkpoints_command.command("make")
@click.argument("pod", shell_complete=completing(COMPLETION_SECONDS))
@namespace_option
@click.option("--compress", type=click.Choice(["none", "zstd"]), default="none", show_default=True)
@agent_option
def make_command(pod: str, namespace: str, compress: str, agent: str) -> None:
    """Make a checkpoint of a pod, which goes on, and print where it is.

    \b
    holdfast checkpoints make web --compress zstd
    """
    asked = pb.CheckpointRequest(
        namespace=namespace or DEFAULT, name=name_of(pod), compress="" if compress == "none" else compress
    )
    made = Agent(agent, SECONDS).call("Checkpoint", asked)
    click.echo(f"{made.path}: {size(made.bytes)}, the pod stood still for {made.frozen_seconds:.3f} s")


@checkpoints_command.command("list")
@output_option
@agent_option
@click.pass_context
def list_command(ctx: click.Context, output: str, agent: str) -> None:
    """List them, the oldest first."""
    found = agent_of(ctx, agent).call("ListCheckpoints", pb.ListCheckpointsRequest()).checkpoints
    if output == "table":
        rows = [(one.name, ago(one.at), size(one.bytes), one.path) for one in found]
        table(("NAME", "CREATED", "SIZE", "PATH"), rows)
    else:
        show({"items": [as_dict(one) for one in found]}, output)


@checkpoints_command.command("remove")
@click.argument("names", nargs=-1, required=True)
@agent_option
@click.pass_context
def remove_command(ctx: click.Context, names: tuple[str, ...], agent: str) -> int:
    """Remove some, by name.

    Exit status: 0 when all were removed, 1 when any was not.
    """
    server = agent_of(ctx, agent)

    def remove(name: str) -> None:
        server.call("RemoveCheckpoint", pb.RemoveCheckpointRequest(name=name))
        click.echo(name)

    return each(names, remove)
