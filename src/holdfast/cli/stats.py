"""stats: what containers use, once or as a table that goes on."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from holdfast.cli.client import Client, client
from holdfast.cli.completion import container_names
from holdfast.cli.errors import Unreachable
from holdfast.cli.output import as_dict, lines, output_option, short, show, size, table
from holdfast.cli.screen import Screen
from holdfast.proto import runtime_v1_pb2 as pb

COLUMNS = ("CONTAINER ID", "NAME", "POD", "CPU %", "MEM USAGE / LIMIT", "SWAP", "DISK", "INODES")
RATE_SECONDS = 1.05  # after which a daemon has a rate to tell that had none before
SORTS: Final[dict[str, Callable[[pb.ContainerStats], Any]]] = {
    "cpu": lambda one: -one.cpu.usage_nano_cores.value,
    "memory": lambda one: -one.memory.working_set_bytes.value,
    "disk": lambda one: -one.writable_layer.used_bytes.value,
    "name": lambda one: one.attributes.metadata.name,
}
KEYS: Final = {name[0]: name for name in SORTS}


@click.command("stats")
@click.argument("names", nargs=-1, shell_complete=container_names)
@click.option("--no-stream", is_flag=True, help="Print one table and end.")
@click.option(
    "--interval", type=click.FloatRange(1), default=2.0, show_default=True, help="Seconds between two tables."
)
@click.option("--sort", type=click.Choice(list(SORTS)), default="cpu", show_default=True, help="What comes first.")
@click.option("--no-trunc", is_flag=True, help="Print ids in full.")
@output_option
@click.pass_context
def stats_command(
    ctx: click.Context, names: tuple[str, ...], no_stream: bool, interval: float, sort: str, no_trunc: bool, output: str
) -> None:
    """Show what running containers use: of one CPU, of memory, and of disk for their own layer.

    On a terminal the table is kept up to date, until q or an interrupt; c, m, d and n sort it by CPU, memory, disk
    and name. It waits for a daemon that is down. Elsewhere one table follows the other. As JSON or YAML it is told
    once.

    \b
    holdfast stats
    holdfast stats --sort memory --interval 5
    holdfast stats --no-stream web
    """
    daemon = client(ctx)
    wanted = [daemon.find_container(name).id for name in names]
    if no_stream or output != "table":
        found = _with_rates(daemon, wanted)
        if output != "table":
            show({"stats": [as_dict(one) for one in found]}, output)
        else:
            table(COLUMNS, _rows(daemon, found, sort, no_trunc))
    elif sys.stdout.isatty():
        _live(lambda by: _rows(daemon, _ask(daemon, wanted), by, no_trunc), sort, interval)
    else:
        while True:
            table(COLUMNS, _rows(daemon, _ask(daemon, wanted), sort, no_trunc))
            sys.stdout.flush()
            time.sleep(interval)


def _live(rows: Callable[[str], Sequence[Sequence[str]]], sort: str, interval: float) -> None:
    shown = lines([COLUMNS])
    with contextlib.suppress(KeyboardInterrupt), Screen() as screen:
        while True:
            note = ""
            try:
                shown = lines([COLUMNS, *rows(sort)])
            except Unreachable as exc:
                note = f"  {exc}"
            moment = time.strftime("%H:%M:%S")
            head = f"holdfast stats  {moment}  {len(shown) - 1} containers, by {sort}  (q ends, c m d n sort){note}"
            screen.draw([head, "", *shown])
            key = screen.key(interval)
            if key == "q":
                return
            sort = KEYS.get(key, sort)


def _with_rates(daemon: Client, wanted: list[str]) -> list[pb.ContainerStats]:
    """A rate is of two samples: where the daemon has but one, it is asked again."""
    found = _ask(daemon, wanted)
    if any(one.HasField("cpu") and not one.cpu.HasField("usage_nano_cores") for one in found):
        time.sleep(RATE_SECONDS)
        found = _ask(daemon, wanted)
    return found


def _ask(daemon: Client, wanted: list[str]) -> list[pb.ContainerStats]:
    found = daemon.call(daemon.runtime.ListContainerStats, pb.ListContainerStatsRequest()).stats
    return [one for one in found if not wanted or one.attributes.id in wanted]


def _rows(daemon: Client, found: list[pb.ContainerStats], sort: str, no_trunc: bool) -> list[tuple[str, ...]]:
    cut = str if no_trunc else short
    pods = {one.id: one.pod_sandbox_id for one in daemon.containers()}
    names = {one.id: one.metadata.name for one in daemon.pods()}
    return [
        (
            cut(one.attributes.id),
            one.attributes.metadata.name,
            names.get(pods.get(one.attributes.id, ""), ""),
            f"{one.cpu.usage_nano_cores.value / 1e7:.2f}" if one.cpu.HasField("usage_nano_cores") else "-",
            _memory(one.memory),
            size(one.swap.swap_usage_bytes.value) if one.HasField("swap") else "-",
            size(one.writable_layer.used_bytes.value) if one.HasField("writable_layer") else "-",
            str(one.writable_layer.inodes_used.value) if one.HasField("writable_layer") else "-",
        )
        for one in sorted(found, key=SORTS[sort])
    ]


def _memory(memory: pb.MemoryUsage) -> str:
    """The working set, which is what a limit is held against by whoever evicts; and that limit."""
    used = memory.working_set_bytes.value
    if not memory.HasField("available_bytes"):
        return f"{size(used)} / -"
    return f"{size(used)} / {size(used + memory.available_bytes.value)}"
