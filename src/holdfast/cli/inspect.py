"""inspect: everything about one thing, whatever it is."""

import json
from typing import Any

import click

from holdfast.cli.client import Client, client
from holdfast.cli.completion import all_names
from holdfast.cli.errors import Missing
from holdfast.cli.output import as_dict, output_option, show
from holdfast.proto import runtime_v1_pb2 as pb


@click.command("inspect")
@click.argument("name", shell_complete=all_names)
@output_option
@click.pass_context
def inspect_command(ctx: click.Context, name: str, output: str) -> None:
    """Show everything about a container, a pod or an image, in this order of preference.

    As JSON, unless YAML is asked for: `status` is the CRI's, `info` what the daemon adds, such as pid and OCI spec.

    \b
    holdfast inspect web
    holdfast inspect docker.io/library/busybox:latest -o yaml
    """
    daemon = client(ctx)
    for look in (_container, _pod, _image):
        try:
            found = look(daemon, name)
        except Missing:
            continue
        show(found, "json" if output == "table" else output)
        return
    raise Missing(f"cannot find {name!r}: there is no container, pod or image of that name or id")


def _container(daemon: Client, name: str) -> dict[str, Any]:
    request = pb.ContainerStatusRequest(container_id=daemon.find_container(name).id, verbose=True)
    return _details(daemon.call(daemon.runtime.ContainerStatus, request))


def _pod(daemon: Client, name: str) -> dict[str, Any]:
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=daemon.find_pod(name).id, verbose=True)
    return _details(daemon.call(daemon.runtime.PodSandboxStatus, request))


def _image(daemon: Client, name: str) -> dict[str, Any]:
    from holdfast.cli.images import image_details

    return image_details(daemon, name)


def _details(reply: Any) -> dict[str, Any]:
    return {"status": as_dict(reply.status), "info": json.loads(reply.info.get("info", "{}"))}
