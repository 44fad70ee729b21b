"""info, config show, recovery, version."""

import json
from typing import Any

import click

from holdfast import __version__
from holdfast.cli.client import client
from holdfast.cli.output import as_dict, output_option, show, size, table
from holdfast.proto import node_pb2
from holdfast.proto import runtime_v1_pb2 as pb


@click.command("version")
@click.pass_context
def version_command(ctx: click.Context) -> None:
    """Show the versions of client and daemon."""
    click.echo(f"Client:   {__version__}")
    daemon = client(ctx)
    found = daemon.call(daemon.runtime.Version, pb.VersionRequest())
    click.echo(
        f"Daemon:   {found.runtime_version}\nRuntime:  {found.runtime_name}\nCRI:      {found.runtime_api_version}"
    )


@click.command("info")
@output_option
@click.pass_context
def info_command(ctx: click.Context, output: str) -> None:
    """Show the state of the runtime: conditions, handlers, places, disk use."""
    daemon = client(ctx)
    status = daemon.call(daemon.runtime.Status, pb.StatusRequest(verbose=True))
    disk = daemon.call(daemon.images.ImageFsInfo, pb.ImageFsInfoRequest()).image_filesystems[0]
    config = json.loads(status.info["config"])
    if output != "table":
        show({"status": as_dict(status.status), "config": config, "images": as_dict(disk)}, output)
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


@click.group("config")
def config_command() -> None:
    """Show the configuration of the daemon."""


@config_command.command("show")
@click.pass_context
def show_config(ctx: click.Context) -> None:
    """Print the daemon's configuration as the TOML file that would give it."""
    daemon = client(ctx)
    click.echo(daemon.call(daemon.node().Config, node_pb2.ConfigRequest()).toml)


@click.command("recovery")
@output_option
@click.pass_context
def recovery_command(ctx: click.Context, output: str) -> None:
    """Show what the daemon's last start found, what it settled and why, and how long that took."""
    daemon = client(ctx)
    report: dict[str, Any] = json.loads(daemon.call(daemon.node().Recovery, node_pb2.RecoveryRequest()).json)
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
