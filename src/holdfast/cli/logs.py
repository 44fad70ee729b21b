"""logs: a container's log in the CRI's format, printed and followed across rotation."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from holdfast.cli.client import Client, client
from holdfast.cli.completion import container_names
from holdfast.cli.errors import CommandError
from holdfast.proto import runtime_v1_pb2 as pb

POLL_SECONDS = 0.1


@click.command("logs")
@click.argument("container", shell_complete=container_names)
@click.option("--follow", "-f", is_flag=True, help="Go on until the container exits.")
@click.option("--tail", default=-1, help="Only the last lines.")
@click.option("--timestamps", "-t", is_flag=True, help="Print the time of each line.")
@click.pass_context
def logs_command(ctx: click.Context, container: str, follow: bool, tail: int, timestamps: bool) -> None:
    """Print what a container has written, stdout and stderr apart."""
    daemon = client(ctx)
    found = daemon.find_container(container)
    path = status_of(daemon, found.id).log_path
    if not path:
        raise CommandError(f"cannot read the log of container {container}: it has none")
    ended = (lambda: status_of(daemon, found.id).state != pb.CONTAINER_RUNNING) if follow else (lambda: True)
    follow_log(Path(path), ended, tail, timestamps)


def status_of(daemon: Client, container_id: str) -> pb.ContainerStatus:
    request = pb.ContainerStatusRequest(container_id=container_id)
    status: pb.ContainerStatus = daemon.call(daemon.runtime.ContainerStatus, request).status
    return status


def follow_log(path: Path, ended: Callable[[], bool], tail: int = -1, timestamps: bool = False) -> None:
    """Print the log until `ended` says so and everything there was has been printed."""
    lines: list[bytes] = []
    inode, position, rest = 0, 0, b""
    first = True
    while True:
        over = ended()  # asked before reading: what was written until then is read below
        inode, position, rest, lines = _read_on(path, inode, position, rest)
        if first and tail >= 0:
            lines = lines[-tail:] if tail else []
        first = False
        for line in lines:
            _print(line, timestamps)
        sys.stdout.flush()
        if over:
            return
        if not lines:
            time.sleep(POLL_SECONDS)


def _read_on(path: Path, inode: int, position: int, rest: bytes) -> tuple[int, int, bytes, list[bytes]]:
    """New whole lines; from the start when the file was replaced."""
    try:
        with path.open("rb") as file:
            now = os.fstat(file.fileno()).st_ino
            if now != inode:
                inode, position, rest = now, 0, b""
            file.seek(position)
            data = file.read()
    except FileNotFoundError:
        return inode, position, rest, []
    *lines, rest_now = (rest + data).split(b"\n")
    return inode, position + len(data), rest_now, lines


def _print(line: bytes, timestamps: bool) -> None:
    """One entry: "<time> <stream> <F|P> <text>"."""
    parts = line.split(b" ", 3)
    if len(parts) < 4:
        return
    moment, stream, tag, text = parts
    out = sys.stderr.buffer if stream == b"stderr" else sys.stdout.buffer
    prefix = moment + b" " if timestamps else b""
    out.write(prefix + text + (b"\n" if tag.startswith(b"F") else b""))
    out.flush()
