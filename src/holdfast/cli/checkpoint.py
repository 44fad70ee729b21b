"""checkpoint and restore: whole pods, with what runs in them and what they have written."""

from pathlib import Path
from typing import Final

import click

from holdfast.cli.client import client
from holdfast.cli.completion import pod_names
from holdfast.cli.errors import CommandError
from holdfast.cli.output import size
from holdfast.proto import node_pb2

SECONDS: Final = 3600.0  # that an archive may take, however short --timeout is


@click.command("checkpoint")
@click.argument("pod", shell_complete=pod_names)
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The archive, a new file.")
@click.option("--leave-running", is_flag=True, help="Let the pod go on; without it, it is stopped.")
@click.option("--compress", type=click.Choice(["none", "zstd"]), default="none", show_default=True)
@click.pass_context
def checkpoint_command(ctx: click.Context, pod: str, output: Path, leave_running: bool, compress: str) -> None:
    """Leave an archive of a pod: its processes, writable layers, emptyDirs on disk and in memory, and /dev/shm.

    All of it is as it was at one instant, for which the pod stands still. What cannot be brought back is refused before
    that. Needs a runtime that can do it: runc with CRIU, or gVisor.

    \b
    holdfast checkpoint web --output /var/backups/web.tar --leave-running
    holdfast checkpoint web -o web.tar.zst --compress zstd
    """
    daemon = client(ctx)
    request = node_pb2.CheckpointPodRequest(
        pod_id=daemon.find_pod(pod).id,
        location=str(output.absolute()),
        compress="" if compress == "none" else compress,
        leave_running=leave_running,
    )
    done = daemon.call(daemon.node().CheckpointPod, request, SECONDS)
    for one in done.left_out:
        click.echo(f"holdfast: not in the archive: {one}", err=True)
    click.echo(f"{output}: {size(done.bytes)}, the pod stood still for {done.frozen_seconds:.3f} s")


@click.command("restore")
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--name", default="", help="Name of the pod, instead of its own.")
@click.option("--runtime", default="", help="Runtime handler, instead of its own.")
@click.option(
    "--volume", multiple=True, metavar="NAME=PATH",
    help="Where a volume is to be, by name, or what else was mounted, by the path it had.",
)  # fmt: skip
@click.option("--trusted", is_flag=True, help="Give the pod what it asks of the host: you answer for the archive.")
@click.pass_context
def restore_command(
    ctx: click.Context, archive: Path, name: str, runtime: str, volume: tuple[str, ...], trusted: bool
) -> None:
    """Make a pod again from its archive, here or on another node, and print its id. Its images have to be there.

    Ids, address and the places of its volumes are new. Volumes that are not named are made, and removed with the pod.

    \b
    holdfast restore /var/backups/web.tar --name web-again
    holdfast restore web.tar.zst --volume cache=/srv/cache
    """
    daemon = client(ctx)
    volumes = dict(one.partition("=")[::2] for one in volume)
    if wrong := [key for key, place in volumes.items() if not place.startswith("/")]:
        raise CommandError(f"cannot use --volume {wrong[0]!r}: it is not NAME=PATH with an absolute path")
    request = node_pb2.RestorePodRequest(
        location=str(archive.absolute()), name=name, runtime_handler=runtime, volumes=volumes, trusted=trusted
    )
    click.echo(daemon.call(daemon.node().RestorePod, request, SECONDS).pod_id)
