"""doctor: what is ours, whose it is, and what nobody owns. Works with the daemon down, too."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click

from holdfast.cli.client import client
from holdfast.cli.errors import CommandError, Unreachable
from holdfast.cli.output import show, table
from holdfast.proto import node_pb2

LEFT_BY_DAEMON: Final = "holdfastd.toml"  # in its state directory, where by default its socket is
CONFIGURATION: Final = Path("/etc/holdfast/config.toml")
SECONDS: Final = 120.0


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Remove orphans, and nothing else.")
@click.option("--all", "everything", is_flag=True, help="Show also what is as it should be.")
@click.option("--output", "-o", type=click.Choice(["text", "json", "yaml"]), default="text", help="text, json or yaml.")
@click.option("--config", type=click.Path(path_type=Path), help="The daemon's configuration, if it is down.")
@click.pass_context
def doctor_command(ctx: click.Context, fix: bool, everything: bool, output: str, config: Path | None) -> None:
    """Find what nobody owns, and what is not as it should be.

    Looks at processes, mounts, namespaces, cgroups, directories, sockets, FIFOs, snapshots, blobs and rows. An orphan
    is Holdfast's and has no owner; what is inconsistent does not agree with its owner's row; what is unknown could not
    be looked at, or is not known to be Holdfast's. Nothing is changed without --fix, which removes orphans only.

    Known escapes of the OCI runtimes, and programs that are missing for some features, are told as well, and change
    nothing about the exit status.

    With the daemon down its store is read. Where it was started with another configuration than the default one, and
    its state directory is gone, say which with --config. With --fix no daemon can start meanwhile.

    \b
    Exit status: 0 nothing is wrong, or all of it was fixed; 1 something is, or it could not be found out.

    \b
    holdfast doctor
    holdfast doctor --all -o json
    holdfast doctor --fix
    """
    daemon = client(ctx)
    try:
        request = node_pb2.DoctorRequest(fix=fix)
        found: dict[str, Any] = json.loads(daemon.call(daemon.node().Doctor, request, SECONDS).json)
    except Unreachable as exc:
        found = without_daemon(ctx, "doctor", exc, config, *(["--fix"] if fix else []))
    if output == "text":
        _print(found, everything)
    else:
        show(found, output)
    fixed = Counter(found["fixed"])
    left = [one for one in _wrong(found) if not fixed[f"{one['kind']} {one['where']}"]]
    ctx.exit(1 if left or found["problems"] else 0)


def _wrong(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in found["findings"] if one["verdict"] != "ok"]


def _print(found: dict[str, Any], everything: bool) -> None:
    shown = found["findings"] if everything else _wrong(found)
    if shown:
        rows = [(one["verdict"], one["kind"], one["where"], one["owner"] or "-", one["why"]) for one in shown]
        table(("VERDICT", "KIND", "WHERE", "OWNER", "WHY"), rows)
    for text in found["fixed"]:
        click.echo(f"removed: {text}")
    for text in found["problems"]:
        click.echo(f"problem: {text}")
    for one in found.get("runtimes", ()):
        if one["note"]:
            known = ", ".join(escape["cve"] for escape in one["escapes"])
            what = f"{one['version']} has known escapes: {known}; {one['note']}" if known else one["note"]
            click.echo(f"runtime {one['handler']}: {what}")
    for one in found.get("tools", ()):
        if one["problem"]:
            click.echo(f"tool {one['name']}: {one['problem']}; without it: no {one['feature']}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found["counts"].items())
    click.echo(f"looked at {len(found['findings'])} things with the daemon {found['daemon']}: {counts or 'none'}")


def without_daemon(
    ctx: click.Context, verb: str, why: Unreachable, config: Path | None = None, *arguments: str
) -> dict[str, Any]:
    """Have holdfast.offline find out; `why` is what the daemon did not answer with."""
    left = Path(ctx.find_root().obj["socket"]).parent / LEFT_BY_DAEMON
    path = config or next((one for one in (left, CONFIGURATION) if one.exists()), None)
    command = [sys.executable, "-I", "-m", "holdfast.offline", verb, *arguments]
    if path is not None:
        command += ["--config", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as exc:
        raise CommandError(f"{why}; cannot do without it: no end after {SECONDS:g} s") from exc
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"it ended with status {done.returncode}"]
        raise CommandError(f"{why}; cannot do without it: {reason[0]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
