"""stats: what containers use, once or as a table that goes on."""

import itertools
import sys
import time
from collections.abc import Iterator

import click

from holdfast.cli.client import Client, client
from holdfast.cli.completion import container_names
from holdfast.cli.output import as_dict, output_option, short, show, size, table
from holdfast.proto import runtime_v1_pb2 as pb

COLUMNS = ("CONTAINER ID", "NAME", "POD", "CPU %", "MEM USAGE / LIMIT", "SWAP", "DISK", "INODES")
RATE_SECONDS = 1.05  # after which a daemon has a rate to tell that had none before


@click.command("stats")
@click.argument("names", nargs=-1, shell_complete=container_names)
@click.option("--no-stream", is_flag=True, help="Print one table and end.")
@click.option(
    "--interval", type=click.FloatRange(1), default=2.0, show_default=True, help="Seconds between two tables."
)
@click.option("--no-trunc", is_flag=True, help="Print ids in full.")
@output_option
@click.pass_context
def stats_command(
    ctx: click.Context, names: tuple[str, ...], no_stream: bool, interval: float, no_trunc: bool, output: str
) -> None:
    """Show what running containers use: of one CPU, of memory, and of disk for their own layer.

    As JSON or YAML it is told once.

    \b
    holdfast stats
    holdfast stats --no-stream web
    """
    daemon = client(ctx)
    wanted = [daemon.find_container(name).id for name in names]
    if no_stream or output != "table":
        found = _with_rates(daemon, wanted)
        if output != "table":
            show({"stats": [as_dict(one) for one in found]}, output)
        else:
            table(COLUMNS, _rows(daemon, found, no_trunc))
        return
    tables = (_rows(daemon, _ask(daemon, wanted), no_trunc) for _ in itertools.count())
    _go_on(tables, interval)


def _go_on(tables: Iterator[list[tuple[str, ...]]], interval: float) -> None:
    """In place on a terminal, one below the other elsewhere; until interrupted."""
    for rows in tables:
        if sys.stdout.isatty():
            click.clear()
        table(COLUMNS, rows)
        sys.stdout.flush()
        time.sleep(interval)


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


def _rows(daemon: Client, found: list[pb.ContainerStats], no_trunc: bool) -> list[tuple[str, ...]]:
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
        for one in sorted(found, key=lambda one: -one.cpu.usage_nano_cores.value)
    ]


def _memory(memory: pb.MemoryUsage) -> str:
    """The working set, which is what a limit is held against by whoever evicts; and that limit."""
    used = memory.working_set_bytes.value
    if not memory.HasField("available_bytes"):
        return f"{size(used)} / -"
    return f"{size(used)} / {size(used + memory.available_bytes.value)}"
