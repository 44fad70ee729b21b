"""Shell completion, with names from the daemon."""

import click

from holdfast.cli.client import Client
from holdfast.cli.errors import CommandError


def _daemon(ctx: click.Context) -> Client:
    parameters = ctx.find_root().params
    return Client(parameters.get("socket") or "/run/holdfast/holdfast.sock", 1.0)


def _matching(names: list[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


def container_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    try:
        found = _daemon(ctx).containers()
    except CommandError:
        return []
    return _matching([name for one in found for name in (one.id, one.metadata.name)], incomplete)


def pod_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    try:
        found = _daemon(ctx).pods()
    except CommandError:
        return []
    return _matching([name for one in found for name in (one.id, one.metadata.name)], incomplete)


def image_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    from holdfast.proto import runtime_v1_pb2 as pb

    daemon = _daemon(ctx)
    try:
        found = daemon.call(daemon.images.ListImages, pb.ListImagesRequest()).images
    except CommandError:
        return []
    return _matching([tag for one in found for tag in one.repo_tags], incomplete)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print a completion script; e.g. holdfast completion bash > /etc/bash_completion.d/holdfast"""
    from click.shell_completion import get_completion_class

    from holdfast.cli.main import root

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root, {}, "holdfast", "_HOLDFAST_COMPLETE").source())
