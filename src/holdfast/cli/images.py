"""image ls, pull, import, rm, inspect."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from holdfast.cli.client import Client, client, each, named
from holdfast.cli.completion import image_names
from holdfast.cli.errors import Missing
from holdfast.cli.output import as_dict, output_option, short, show, size, table
from holdfast.proto import node_pb2
from holdfast.proto import runtime_v1_pb2 as pb

CHUNK = 1024 * 1024
HOURS = 24 * 3600.0


@click.group("image")
def image_command() -> None:
    """Manage images."""


@image_command.command("ls")
@click.option("--quiet", "-q", is_flag=True, help="Print ids only.")
@click.option("--digests", is_flag=True, help="Show digests.")
@output_option
@click.pass_context
def ls(ctx: click.Context, quiet: bool, digests: bool, output: str) -> None:
    """List images, one line for each name.

    \b
    holdfast image ls --digests
    holdfast image ls -o json
    """
    daemon = client(ctx)
    found = daemon.call(daemon.images.ListImages, pb.ListImagesRequest()).images
    if output != "table":
        show({"images": [as_dict(one) for one in found]}, output)
        return
    if quiet:
        click.echo("".join(f"{one.id}\n" for one in found), nl=False)
        return
    rows = []
    for one in found:
        for tag in one.repo_tags or ["<none>:<none>"]:
            name, _, version = tag.rpartition(":")
            digest = [one.repo_digests[0].rpartition("@")[2] if one.repo_digests else "<none>"] if digests else []
            rows.append((name, version, *digest, short(one.id), size(one.size)))
    table(("IMAGE", "TAG", *(["DIGEST"] if digests else []), "IMAGE ID", "SIZE"), rows)


@image_command.command("pull")
@click.argument("image")
@click.option("--quiet", "-q", is_flag=True, help="No progress; print the name only.")
@click.pass_context
def pull(ctx: click.Context, image: str, quiet: bool) -> None:
    """Pull an image from its registry, by tag or by digest, and print its name.

    \b
    holdfast image pull docker.io/library/busybox:1.36
    holdfast image pull 127.0.0.1:5000/app@sha256:...
    """
    pull_image(client(ctx), image, quiet)


def pull_image(daemon: Client, image: str, quiet: bool) -> None:
    request = node_pb2.NodePullRequest(image=image)
    with daemon.errors():
        _follow(daemon.node().PullImage(request, timeout=HOURS), quiet)


@image_command.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--quiet", "-q", is_flag=True, help="No progress; print the names only.")
@click.pass_context
def import_(ctx: click.Context, file: Path, quiet: bool) -> None:
    """Import an OCI layout archive, or what `docker save` writes, and print the names of its images.

    \b
    podman save --format oci-archive -o app.tar example.org/app && holdfast image import app.tar
    """
    daemon = client(ctx)
    with daemon.errors():
        _follow(daemon.node().ImportImage(_chunks(file), timeout=HOURS), quiet)


@image_command.command("rm")
@click.argument("images", nargs=-1, shell_complete=image_names)
@click.option("--all", "-a", "everything", is_flag=True, help="All images.")
@click.pass_context
def rm(ctx: click.Context, images: tuple[str, ...], everything: bool) -> int:
    """Remove images with all their names. Containers made from them go on.

    Exit status: 0 when all were removed, 1 when any was not.
    """
    daemon = client(ctx)
    images = named(images, everything, lambda: daemon.call(daemon.images.ListImages, pb.ListImagesRequest()).images)

    def remove(name: str) -> None:
        spec = pb.ImageSpec(image=name)
        if not daemon.call(daemon.images.ImageStatus, pb.ImageStatusRequest(image=spec)).HasField("image"):
            raise Missing(f"cannot remove image {name!r}: it is not on this node")
        daemon.call(daemon.images.RemoveImage, pb.RemoveImageRequest(image=spec))
        click.echo(name)

    return each(images, remove)


@image_command.command("inspect")
@click.argument("image", shell_complete=image_names)
@output_option
@click.pass_context
def inspect(ctx: click.Context, image: str, output: str) -> None:
    """Show everything about an image."""
    show(image_details(client(ctx), image), "json" if output == "table" else output)


def image_details(daemon: Client, name: str) -> dict[str, Any]:
    """Status and config of an image. Raises Missing when there is none."""
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=True)
    reply = daemon.call(daemon.images.ImageStatus, request)
    if not reply.HasField("image"):
        raise Missing(f"cannot find image {name!r}: it is not on this node")
    return {"status": as_dict(reply.image), "info": json.loads(reply.info.get("info", "{}"))}


def _chunks(file: Path) -> Iterator[node_pb2.ImportChunk]:
    with file.open("rb") as source:
        yield node_pb2.ImportChunk(name=file.name)
        while data := source.read(CHUNK):
            yield node_pb2.ImportChunk(data=data)


def _follow(steps: Iterable[node_pb2.Progress], quiet: bool) -> None:
    """A bar for every layer, then the names of what came."""
    if quiet or not sys.stdout.isatty():
        for step in steps:
            for name in step.images:
                click.echo(name)
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    names: list[str] = []
    with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn()) as bars:
        tasks: dict[str, Any] = {}
        for step in steps:
            names += step.images
            if step.item:
                label = f"{short(step.item)} {step.phase}"
                if label not in tasks:
                    tasks[label] = bars.add_task(label, total=step.total)
                bars.update(tasks[label], completed=step.done)
    for name in names:
        click.echo(name)
