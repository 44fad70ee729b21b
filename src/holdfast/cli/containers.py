"""ps, start, stop, rm."""

import click

from holdfast.cli.client import client, each, named
from holdfast.cli.completion import container_names
from holdfast.cli.errors import CommandError
from holdfast.cli.output import ago, as_dict, output_option, short, show, table
from holdfast.proto import runtime_v1_pb2 as pb

STATES = {pb.CONTAINER_CREATED: "Created", pb.CONTAINER_RUNNING: "Running", pb.CONTAINER_EXITED: "Exited"}
names_argument = click.argument("containers", nargs=-1, required=True, shell_complete=container_names)


@click.command("ps")
@click.option("--all", "-a", "everything", is_flag=True, help="Show containers in every state, not only running ones.")
@click.option("--quiet", "-q", is_flag=True, help="Print ids only.")
@click.option("--no-trunc", is_flag=True, help="Print ids in full.")
@click.option("--name", default="", help="Only containers whose name has this in it.")
@click.option("--pod", "-p", default="", help="Only containers of this pod.")
@click.option("--state", type=click.Choice(["created", "running", "exited", "unknown"]), help="Only in this state.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Only with this label.")
@output_option
@click.pass_context
def ps_command(
    ctx: click.Context, everything: bool, quiet: bool, no_trunc: bool, name: str, pod: str, state: str | None,
    label: tuple[str, ...], output: str,
) -> None:  # fmt: skip
    """List containers: the running ones, or with -a or --state others too.

    \b
    holdfast ps -a --pod web
    holdfast ps -a --state exited -q
    """
    daemon = client(ctx)
    wanted: dict[str, object] = {"label_selector": dict(part.partition("=")[::2] for part in label)}
    pods = {one.id: one for one in daemon.pods()}
    if pod:
        wanted["pod_sandbox_id"] = daemon.find_pod(pod).id
    if state or not everything:
        wanted["state"] = pb.ContainerStateValue(state=f"CONTAINER_{(state or 'running').upper()}")
    found = [one for one in daemon.containers(**wanted) if name in one.metadata.name]
    found.sort(key=lambda one: -one.created_at)
    if output != "table":
        show({"containers": [as_dict(one) for one in found]}, output)
    elif quiet:
        click.echo("".join(f"{one.id}\n" for one in found), nl=False)
    else:
        cut = str if no_trunc else short
        rows = [
            (
                cut(one.id), one.image.user_specified_image or one.image.image, ago(one.created_at),
                STATES.get(one.state, "Unknown"), one.metadata.name, str(one.metadata.attempt),
                cut(one.pod_sandbox_id), pods[one.pod_sandbox_id].metadata.name if one.pod_sandbox_id in pods else "",
            )
            for one in found
        ]  # fmt: skip
        table(("CONTAINER", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD"), rows)


@click.command("start")
@names_argument
@click.pass_context
def start_command(ctx: click.Context, containers: tuple[str, ...]) -> int:
    """Start created containers, and print the name of each that was started.

    Exit status: 0 when all were started, 1 when any was not.
    """
    daemon = client(ctx)

    def start(name: str) -> None:
        found = daemon.find_container(name)
        daemon.call(daemon.runtime.StartContainer, pb.StartContainerRequest(container_id=found.id))
        click.echo(name)

    return each(containers, start)


@click.command("stop")
@names_argument
@click.option(
    "--timeout", "-t", default=10, type=click.IntRange(min=0), show_default=True, help="Seconds before it is killed."
)
@click.pass_context
def stop_command(ctx: click.Context, containers: tuple[str, ...], timeout: int) -> int:
    """Stop containers: their stop signal first, SIGKILL after the timeout. One that has exited stays as it is.

    \b
    holdfast stop -t 30 web
    """
    daemon = client(ctx)

    def stop(name: str) -> None:
        request = pb.StopContainerRequest(container_id=daemon.find_container(name).id, timeout=timeout)
        daemon.call(daemon.runtime.StopContainer, request, timeout + 60)
        click.echo(name)

    return each(containers, stop)


@click.command("rm")
@click.argument("containers", nargs=-1, shell_complete=container_names)
@click.option("--force", "-f", is_flag=True, help="Kill it if it runs.")
@click.option("--all", "-a", "everything", is_flag=True, help="All containers.")
@click.pass_context
def rm_command(ctx: click.Context, containers: tuple[str, ...], force: bool, everything: bool) -> int:
    """Remove containers, with their writable layer. A running one is refused without --force.

    \b
    holdfast rm -f web
    holdfast rm --all
    """
    daemon = client(ctx)
    containers = named(containers, everything, daemon.containers)

    def remove(name: str) -> None:
        found = daemon.find_container(name)
        if found.state == pb.CONTAINER_RUNNING and not force:
            raise CommandError(f"cannot remove container {name}: it is running (hint: stop it first, or use --force)")
        daemon.call(daemon.runtime.RemoveContainer, pb.RemoveContainerRequest(container_id=found.id))
        click.echo(name)

    return each(containers, remove)
