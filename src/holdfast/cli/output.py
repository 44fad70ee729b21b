"""Tables, JSON and YAML; rich and yaml are imported only when they are needed."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
from google.protobuf.message import Message

FORMATS = click.Choice(["table", "json", "yaml"])


def output_option(command: Any) -> Any:
    return click.option("--output", "-o", type=FORMATS, default="table", help="table, json or yaml.")(command)


def as_dict(message: Message) -> dict[str, Any]:
    """A message as plain data, with its own field names, and fields that are empty."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def show(value: Any, form: str) -> None:
    """Print data as JSON or YAML."""
    if form == "yaml":
        import yaml

        click.echo(yaml.safe_dump(value, sort_keys=False), nl=False)
    else:
        click.echo(json.dumps(value, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as other container tools have them: no frame, headings in capitals, nothing cut."""
    if not sys.stdout.isatty():
        for line in lines([columns, *rows]):  # a script does not see what rich can do, and need not wait for its import
            click.echo(line)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in columns:
        drawn.add_column(column, no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console(width=10_000, highlight=False).print(drawn)  # an id that was cut is of no use


def lines(rows: Sequence[Sequence[str]], widths: Sequence[int] = (), gap: int = 3) -> list[str]:
    """A table's lines, as plain text; columns are as wide as they need to be if nobody says how wide."""
    widths = widths or [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    between = " " * gap
    return [between.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def ago(moment: int) -> str:
    """ "3 minutes ago", from ns since the epoch."""
    seconds = max(0, int(time.time() - moment / 1e9))
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return f"{seconds} second{'s' if seconds != 1 else ''} ago"


def size(count: int) -> str:
    """ "12.3MB", as image listings have it."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.3g}{unit}" if unit != "B" else f"{count}B"
        amount /= 1000
    return f"{count}B"


def short(object_id: str) -> str:
    return object_id.removeprefix("sha256:")[:13]
