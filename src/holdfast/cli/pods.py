"""pods, stopp, rmp."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Final

import click

from holdfast.cli.client import Client, client, each, named
from holdfast.cli.completion import pod_names
from holdfast.cli.errors import CommandError
from holdfast.cli.output import ago, as_dict, lines, output_option, short, show, table
from holdfast.proto import runtime_v1_pb2 as pb

COLUMNS: Final = ("POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME")
MADE_BY_RUN: Final = "holdfast.io/run"  # annotation of pods whose logs are ours to remove


@click.command("pods")
@click.option("--quiet", "-q", is_flag=True, help="Print ids only.")
@click.option("--no-trunc", is_flag=True, help="Print ids in full.")
@click.option("--name", default="", help="Only pods whose name has this in it.")
@click.option("--namespace", default="", help="Only pods of this namespace.")
@click.option("--state", type=click.Choice(["ready", "notready"]), help="Only in this state.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Only with this label.")
@click.option("--watch", "-w", "watched", is_flag=True, help="Go on: print what changes, until interrupted.")
@output_option
@click.pass_context
def pods_command(
    ctx: click.Context, quiet: bool, no_trunc: bool, name: str, namespace: str, state: str | None,
    label: tuple[str, ...], watched: bool, output: str,
) -> None:  # fmt: skip
    """List pods.

    With --watch a pod is printed again whenever it changes, and once more, as Removed, when it is no more. The list is
    taken anew when the daemon was away, so what lasted is never missed; what came and went in between may be. JSON is
    then one line for each pod, {"type": "ADDED|MODIFIED|DELETED", "object": ...}, as YAML one document.

    \b
    holdfast pods --namespace default --state ready
    holdfast pods -o json
    holdfast pods --watch --name web
    """
    labels = dict(part.partition("=")[::2] for part in label)

    def wanted(one: pb.PodSandbox) -> bool:
        return (
            name in one.metadata.name
            and namespace in ("", one.metadata.namespace)
            and state in (None, "ready" if one.state == pb.SANDBOX_READY else "notready")
            and labels.items() <= dict(one.labels).items()
        )

    daemon = client(ctx)
    if watched:
        from holdfast.cli.watch import watch

        _print_changes(watch(daemon, wanted), quiet, no_trunc, output)
        return
    chosen = {"state": pb.PodSandboxStateValue(state=f"SANDBOX_{state.upper()}")} if state else {}
    found = sorted(filter(wanted, daemon.pods(label_selector=labels, **chosen)), key=lambda one: -one.created_at)
    if output != "table":
        show({"items": [as_dict(one) for one in found]}, output)
    elif quiet:
        click.echo("".join(f"{one.id}\n" for one in found), nl=False)
    else:
        table(COLUMNS, [_row(one, no_trunc) for one in found])


def _row(one: pb.PodSandbox, no_trunc: bool, state: str = "") -> tuple[str, ...]:
    cut = str if no_trunc else short
    return (
        cut(one.id), ago(one.created_at), state or ("Ready" if one.state == pb.SANDBOX_READY else "NotReady"),
        one.metadata.name, one.metadata.namespace, str(one.metadata.attempt), one.runtime_handler,
    )  # fmt: skip


def _print_changes(
    changes: Iterator[tuple[str, Sequence[pb.PodSandbox]]], quiet: bool, no_trunc: bool, output: str
) -> None:
    """Each as it comes. The columns of a table are as wide as its first rows need."""
    widths: list[int] = []
    for kind, pods in changes:
        rows = [_row(one, no_trunc, "Removed" if kind == "DELETED" else "") for one in pods]
        if output == "json":
            texts = [json.dumps({"type": kind, "object": as_dict(one)}) for one in pods]
        elif output == "yaml":
            import yaml

            texts = ["---\n" + yaml.safe_dump({"type": kind, "object": as_dict(one)}).rstrip() for one in pods]
        elif quiet:
            texts = [one.id for one in pods]
        else:
            rows = rows if widths else [COLUMNS, *rows]
            widths = widths or [max(map(len, cells)) for cells in zip(*rows, strict=True)]
            texts = lines(rows, widths)
        for line in texts:
            click.echo(line)
        sys.stdout.flush()


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
