"""Shell completion, with names from the daemon."""

from collections.abc import Callable, Iterable
from typing import Any

import click

from holdfast.cli.agent_client import completing
from holdfast.cli.client import Client
from holdfast.cli.errors import CommandError

SECONDS = 1.0  # a shell that waits longer feels broken
Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _completing(*sources: Callable[[Client], Iterable[str]]) -> Complete:
    """A completion that asks the daemon; without one there is nothing to offer."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        daemon = Client(ctx.find_root().params["socket"], SECONDS)
        try:
            names = {name for source in sources for name in source(daemon)}
        except CommandError:
            return []
        return sorted(name for name in names if name.startswith(incomplete))

    return complete


def _containers(daemon: Client) -> Iterable[str]:
    return _names_and_ids(daemon.containers())


def _pods(daemon: Client) -> Iterable[str]:
    return _names_and_ids(daemon.pods())


def _names_and_ids(objects: Iterable[Any]) -> Iterable[str]:
    return [name for one in objects for name in (one.metadata.name, one.id)]


def _images(daemon: Client) -> Iterable[str]:
    from holdfast.proto import runtime_v1_pb2 as pb

    found = daemon.call(daemon.images.ListImages, pb.ListImagesRequest()).images
    return [name for one in found for name in (*one.repo_tags, one.id)]


container_names = _completing(_containers)
pod_names = _completing(_pods)
_agent_pods = completing(SECONDS)
image_names = _completing(_images)
all_names = _completing(_containers, _pods, _images)


def container_or_pod_names(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Of the runtime's containers and the agent's pods."""
    found = {*container_names(ctx, parameter, incomplete), *_agent_pods(ctx, parameter, incomplete)}
    return sorted(found)


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print a completion script for a shell; names of containers, pods and images come from the daemon.

    \b
    holdfast completion bash > /etc/bash_completion.d/holdfast
    holdfast completion zsh > /usr/local/share/zsh/site-functions/_holdfast
    holdfast completion fish > /etc/fish/completions/holdfast.fish
    """
    from click.shell_completion import get_completion_class

    from holdfast.cli.main import root

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root, {}, "holdfast", "_HOLDFAST_COMPLETE").source())
