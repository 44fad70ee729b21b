"""logs: a container's log in the CRI's format, printed and followed across rotation."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Self

import click

from holdfast.cli import targets
from holdfast.cli.client import Client
from holdfast.cli.completion import container_or_pod_names
from holdfast.cli.entries import Entries, Entry, last_lines, not_before, since_of
from holdfast.cli.errors import CommandError, Missing, Unreachable
from holdfast.proto import runtime_v1_pb2 as pb

POLL_SECONDS: Final = 0.1


@click.command("logs")
@click.argument("name", metavar="CONTAINER|POD", shell_complete=container_or_pod_names)
@targets.pod_options
@click.option("--previous", "-p", is_flag=True, help="Of the agent's pod: of the run before the last one.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the container has exited or is removed.")
@click.option(
    "--since",
    default="",
    metavar="DURATION|TIME",
    help="Only lines of so long ago (90s, 1h30m) or since then (RFC 3339).",
)
@click.option(
    "--tail", type=click.IntRange(min=-1), default=-1, show_default=True, help="Only so many last lines; -1 for all."
)
@click.option("--timestamps", "-t", is_flag=True, help="Print the time before each line.")
@click.pass_context
def logs_command(
    ctx: click.Context, name: str, container: str, namespace: str, agent: str, previous: bool, follow: bool, since: str,
    tail: int, timestamps: bool,
) -> None:  # fmt: skip
    """Print what a container has written: its stdout on stdout, its stderr on stderr.

    The log is read from the file itself. Following it goes on while the daemon is down, and across rotation; what was
    rotated away before is not shown. Lines that are long, and so in parts in the file, are whole again; --since and
    --tail hold for whole lines, and a time is that of a line's beginning.

    What no container is called is a pod of the agent's (pod/NAME always is), and its container that of -c, that of its
    annotation kubectl.kubernetes.io/default-container, or the first, which is told.

    \b
    holdfast logs --tail 20 -f web
    holdfast logs --since 5m -t web 2>/dev/null
    holdfast logs --since 2026-01-02T03:04:05Z web
    holdfast logs web -c httpd --previous
    """
    wanted = Wanted(since_of(since) if since else None, None if tail < 0 else tail, timestamps)
    daemon, found = targets.container(ctx, targets.Wanted(name, namespace, agent, container, previous))
    path = status_of(daemon, found).log_path
    if not path:
        raise CommandError(f"cannot read the log of container {name}: it has none")
    with Log(Path(path)) as log:
        follow_log(log, exited(daemon, found) if follow else lambda: True, wanted)


def status_of(daemon: Client, container_id: str) -> pb.ContainerStatus:
    request = pb.ContainerStatusRequest(container_id=container_id)
    status: pb.ContainerStatus = daemon.call(daemon.runtime.ContainerStatus, request).status
    return status


def exited(daemon: Client, container_id: str) -> Callable[[], bool]:
    """Whether a container is over. A daemon that does not answer is no sign of that: it is asked again."""

    def over() -> bool:
        try:
            return status_of(daemon, container_id).state == pb.CONTAINER_EXITED
        except Missing:
            return True
        except Unreachable:
            return False

    return over


class Wanted(NamedTuple):
    """What of a log is printed, and how."""

    since: int | None = None  # ns since the epoch
    tail: int | None = None
    timestamps: bool = False


def follow_log(log: "Log", ended: Callable[[], bool], wanted: Wanted = Wanted()) -> None:  # noqa: B008  (immutable)
    """Print the log until `ended` says so and everything there was until then has been printed."""
    entries = Entries()

    def more() -> Iterator[Entry]:
        found = entries.read(log.lines())
        return found if wanted.since is None else not_before(found, wanted.since)

    over = ended()  # asked before reading: what was written until then is read below
    _print(more() if wanted.tail is None else last_lines(more(), wanted.tail), wanted.timestamps)
    while not over:
        time.sleep(POLL_SECONDS)
        over = ended()
        _print(more(), wanted.timestamps)


class Log:
    """One log across rotation: the old file is read to its end before the new one, which has taken its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lines(self) -> Iterator[bytes]:
        """Whole lines written since the last call."""
        while True:
            # Looked up before the old file is read: once the new one is there, nobody writes to the old one.
            replaced = self._replaced()
            if self._file is not None:
                yield from self._new_lines(self._file)
            if not replaced:
                return
            self.close()
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._rest = None, b""

    def _replaced(self) -> bool:
        try:
            named = os.stat(self._path)
        except FileNotFoundError:  # renamed, and its successor is yet to be made; or there is no log yet
            return False
        if self._file is None:
            return True
        ours = os.fstat(self._file.fileno())
        return (named.st_dev, named.st_ino) != (ours.st_dev, ours.st_ino) or named.st_size < self._file.tell()

    def _new_lines(self, file: BinaryIO) -> Iterator[bytes]:
        for piece in file:
            self._rest += piece
            if self._rest.endswith(b"\n"):
                line, self._rest = self._rest[:-1], b""
                yield line


def _print(entries: Iterator[Entry], timestamps: bool) -> None:
    last = None
    for entry in entries:
        out = sys.stderr.buffer if entry.stream == b"stderr" else sys.stdout.buffer
        if last not in (None, out):
            last.flush()  # so that the two come in order on a terminal
        last = out
        moment = entry.moment + b" " if timestamps and entry.first else b""
        out.write(moment + entry.text + (b"\n" if entry.whole else b""))
    if last is not None:
        last.flush()
