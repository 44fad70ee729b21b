"""`holdfast agent`: the agent is a process of its own, which takes the place of this one."""

import os
import sys

import click

from holdfast.model.cgroups import DRIVERS


@click.command("agent")
@click.option("--root", default="/var/lib/holdfast-agent", show_default=True, help="Records of pods, and volumes.")
@click.option("--manifests", default="/etc/holdfast/manifests", show_default=True, help="Directory of Pod manifests.")
@click.option("--log-root", default="/var/log/pods", show_default=True, help="Logs of containers.")
@click.option(
    "--container-log-max-size",
    default="10Mi",
    show_default=True,
    help="Size from which on a container's log is rotated; 0 for never.",
)
@click.option(
    "--container-log-max-files",
    default=5,
    type=click.IntRange(min=2),
    show_default=True,
    help="Files that a container's log may have, older ones packed.",
)
@click.option(
    "--container-log-monitor-interval",
    default=10.0,
    type=click.FloatRange(min=0.1),
    show_default=True,
    help="Seconds between looks at the logs.",
)
@click.option("--cgroup-root", default="/holdfast-agent", show_default=True, help="Cgroup below which the pods' are.")
@click.option("--checkpoint-quota", default="10Gi", show_default=True, help="Bytes of checkpoints kept; 0 for any.")
@click.option("--checkpoint-days", default="0", show_default=True, help="For how many days they are; 0 for ever.")
@click.option(
    "--cgroup-driver",
    type=click.Choice(DRIVERS),
    help="Whether systemd makes cgroups. [default: as the runtime says; cgroupfs for one that does not]",
)
@click.option("--node-name", default="", help="What pods are told this machine is called. [default: its host name]")
@click.option(
    "--metrics-address",
    default="",
    help="Where metrics are served over http, e.g. 127.0.0.1:9114. [default: nowhere]",
)
@click.option(
    "--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"])
)
@click.pass_context
def agent_command(ctx: click.Context, /, **options: object) -> None:
    """Run the pods of a directory of manifests, and those that are applied, without Kubernetes.

    It is a client of the CRI runtime at --socket, Holdfast or another one. It ends by SIGTERM or SIGINT; pods run on,
    whatever ends it, and the next one knows them. One runs for each --root at a time.

    Manifests are files *.yaml, *.yml and *.json with Pods, ConfigMaps and Secrets. One that cannot be read takes
    nothing back of what it said before; one that is removed ends its pods. What was applied is in --root.

    Metrics are for whoever can reach their address: there is neither TLS nor authentication.

    \b
    holdfast agent --manifests /srv/pods --metrics-address 127.0.0.1:9114
    holdfast --socket /run/containerd/containerd.sock agent
    """
    told = {f"--{key.replace('_', '-')}": str(value) for key, value in options.items() if value is not None}
    given = [part for option in told.items() for part in option]
    own = [sys.executable, "-P", "-m", "holdfast.agent", "--socket", ctx.find_root().obj["socket"]]
    os.execv(sys.executable, [*own, *given])
