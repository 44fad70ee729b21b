"""pods, stopp, rmp."""

import contextlib
import os
from typing import Final

import click

from holdfast.cli.client import Client, client, each, named
from holdfast.cli.completion import pod_names
from holdfast.cli.errors import CommandError
from holdfast.cli.output import ago, as_dict, output_option, short, show, table
from holdfast.proto import runtime_v1_pb2 as pb

MADE_BY_RUN: Final = "holdfast.io/run"  # annotation of pods whose logs are ours to remove


@click.command("pods")
@click.option("--quiet", "-q", is_flag=True, help="Print ids only.")
@click.option("--no-trunc", is_flag=True, help="Print ids in full.")
@click.option("--name", default="", help="Only pods whose name has this in it.")
@click.option("--namespace", default="", help="Only pods of this namespace.")
@click.option("--state", type=click.Choice(["ready", "notready"]), help="Only in this state.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Only with this label.")
@output_option
@click.pass_context
def pods_command(
    ctx: click.Context, quiet: bool, no_trunc: bool, name: str, namespace: str, state: str | None,
    label: tuple[str, ...], output: str,
) -> None:  # fmt: skip
    """List pods.

    \b
    holdfast pods --namespace default --state ready
    holdfast pods -o json
    """
    wanted: dict[str, object] = {"label_selector": dict(part.partition("=")[::2] for part in label)}
    if state:
        wanted["state"] = pb.PodSandboxStateValue(state=f"SANDBOX_{state.upper()}")
    found = [
        one
        for one in client(ctx).pods(**wanted)
        if name in one.metadata.name and namespace in ("", one.metadata.namespace)
    ]
    found.sort(key=lambda one: -one.created_at)
    if output != "table":
        show({"items": [as_dict(one) for one in found]}, output)
    elif quiet:
        click.echo("".join(f"{one.id}\n" for one in found), nl=False)
    else:
        cut = str if no_trunc else short
        rows = [
            (
                cut(one.id), ago(one.created_at), "Ready" if one.state == pb.SANDBOX_READY else "NotReady",
                one.metadata.name, one.metadata.namespace, str(one.metadata.attempt), one.runtime_handler,
            )
            for one in found
        ]  # fmt: skip
        table(("POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"), rows)


@click.command("stopp")
@click.argument("pods", nargs=-1, required=True, shell_complete=pod_names)
@click.pass_context
def stopp_command(ctx: click.Context, pods: tuple[str, ...]) -> int:
    """Stop pods: their containers are ended, their namespaces and addresses given back. Records and logs stay.

    Exit status: 0 when all were stopped, 1 when any was not.
    """
    daemon = client(ctx)

    def stop(name: str) -> None:
        request = pb.StopPodSandboxRequest(pod_sandbox_id=daemon.find_pod(name).id)
        daemon.call(daemon.runtime.StopPodSandbox, request)
        click.echo(name)

    return each(pods, stop)


@click.command("rmp")
@click.argument("pods", nargs=-1, shell_complete=pod_names)
@click.option("--force", "-f", is_flag=True, help="Stop it first if it is ready.")
@click.option("--all", "-a", "everything", is_flag=True, help="All pods.")
@click.pass_context
def rmp_command(ctx: click.Context, pods: tuple[str, ...], force: bool, everything: bool) -> int:
    """Remove pods with their containers, and the logs of those that `run` has made. A ready one needs --force.

    \b
    holdfast rmp -f web
    holdfast rmp -f --all
    """
    daemon = client(ctx)
    pods = named(pods, everything, daemon.pods)

    def remove(name: str) -> None:
        found = daemon.find_pod(name)
        if found.state == pb.SANDBOX_READY and not force:
            raise CommandError(f"cannot remove pod {name}: it is ready (hint: stop it first, or use --force)")
        remove_pod(daemon, found)
        click.echo(name)

    return each(pods, remove)


def remove_pod(daemon: Client, pod: pb.PodSandbox) -> None:
    """Stop and remove a pod; the logs of a pod that `run` has made go with it, those of others are their owners'."""
    daemon.call(daemon.runtime.StopPodSandbox, pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
    daemon.call(daemon.runtime.RemovePodSandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
    if pod.annotations.get(MADE_BY_RUN) == "true":
        from holdfast.linux.files import remove_tree

        with contextlib.suppress(FileNotFoundError):
            remove_tree(log_directory(daemon, pod.metadata))


def log_directory(daemon: Client, pod: pb.PodSandboxMetadata) -> str:
    """Where the logs of a pod made by `run` are. Raises CommandError for a name that leads elsewhere."""
    name = f"{pod.namespace}_{pod.name}_{pod.uid}"
    if "/" in name or "\0" in name:
        raise CommandError(f"cannot use the name {pod.name!r}: it has a slash in it")
    return os.path.join(daemon.facts()["log_root"], name)
