"""info, config show, recovery, version."""

import json
from typing import Any

import click

from holdfast import __version__
from holdfast.cli.client import client
from holdfast.cli.doctor import without_daemon
from holdfast.cli.errors import CommandError, Unreachable
from holdfast.cli.output import as_dict, output_option, show, size, table
from holdfast.proto import node_pb2
from holdfast.proto import runtime_v1_pb2 as pb


@click.command("version")
@output_option
@click.pass_context
def version_command(ctx: click.Context, output: str) -> None:
    """Show the versions of client and daemon. The client's is shown without a daemon too."""
    daemon = client(ctx)
    versions = {"client": __version__}
    try:
        found = daemon.call(daemon.runtime.Version, pb.VersionRequest())
        versions |= {"daemon": found.runtime_version, "runtime": found.runtime_name, "cri": found.runtime_api_version}
    finally:
        if output == "table":
            click.echo("".join(f"{key.capitalize() + ':':<10}{value}\n" for key, value in versions.items()), nl=False)
        else:
            show(versions, output)


@click.command("info")
@output_option
@click.pass_context
def info_command(ctx: click.Context, output: str) -> None:
    """Show the state of the runtime: conditions, handlers, places, disk use, OCI runtimes and what is known of them.

    \b
    holdfast info
    holdfast info -o json
    """
    daemon = client(ctx)
    status = daemon.call(daemon.runtime.Status, pb.StatusRequest(verbose=True))
    disk = daemon.call(daemon.images.ImageFsInfo, pb.ImageFsInfoRequest()).image_filesystems[0]
    config = json.loads(status.info["config"])
    runtimes = json.loads(status.info.get("runtimes", "[]"))
    if output != "table":
        found = {"status": as_dict(status.status), "config": config, "runtimes": runtimes, "images": as_dict(disk)}
        show(found, output)
        return
    rows = [(one.type, str(one.status).lower(), one.reason or "-", one.message) for one in status.status.conditions]
    table(("CONDITION", "STATUS", "REASON", "MESSAGE"), rows)
    click.echo()
    handlers = ", ".join(one.name for one in status.runtime_handlers if one.name)
    facts = {
        **config,
        "handlers": handlers,
        "images": f"{size(disk.used_bytes.value)}, {disk.inodes_used.value} inodes",
    }
    table(("SETTING", "VALUE"), [(key, str(value)) for key, value in facts.items()])
    if runtimes:
        click.echo()
        rows = [
            (
                one["handler"],
                one["version"],
                " ".join(each["cve"] for each in one["escapes"]) or "-",
                one["note"] or "-",
            )
            for one in runtimes
        ]
        table(("RUNTIME", "VERSION", "KNOWN ESCAPES", "NOTE"), rows)


@click.group("config")
def config_command() -> None:
    """Show the configuration of the daemon."""


@config_command.command("show")
@click.pass_context
def show_config(ctx: click.Context) -> None:
    """Print the daemon's configuration as the TOML file that would give it, each setting with its meaning.

    \b
    holdfast config show > /etc/holdfast/config.toml
    """
    daemon = client(ctx)
    click.echo(daemon.call(daemon.node().Config, node_pb2.ConfigRequest()).toml)


@click.command("recovery")
@output_option
@click.pass_context
def recovery_command(ctx: click.Context, output: str) -> None:
    """Show what the daemon's last start found, what it settled and why, and how long that took.

    With the daemon down the report is read from its store.

    \b
    holdfast recovery
    holdfast recovery -o json
    """
    daemon = client(ctx)
    try:
        report: dict[str, Any] = json.loads(daemon.call(daemon.node().Recovery, node_pb2.RecoveryRequest()).json)
    except Unreachable as exc:
        report = without_daemon(ctx, "recovery", exc)
        if not report:
            raise CommandError("cannot show the last recovery: none has come to its end yet") from exc
    if output != "table":
        show(report, output)
        return
    click.echo(
        f"{report['pods']} pods and {report['containers']} containers in {report['total_milliseconds']:g} ms "
        f"(rows loaded in {report['load_milliseconds']:g} ms){', after a reboot' if report['rebooted'] else ''}"
    )
    rows = [
        (one["kind"], one["id"][:13], one["name"], one["before"], one["after"], one["why"])
        for one in report["findings"]
    ]
    if rows:
        table(("KIND", "ID", "NAME", "BEFORE", "AFTER", "WHY"), rows)
    for text in report["swept"]:
        click.echo(f"swept: {text}")
    for text in report["problems"]:
        click.echo(f"problem: {text}")
