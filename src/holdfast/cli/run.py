"""run: a pod and its one container in one go."""

import contextlib
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from holdfast.cli.client import Client, client
from holdfast.cli.completion import image_names
from holdfast.cli.errors import RUN_FAILED, CommandError
from holdfast.cli.logs import Log, exited, follow_log, status_of
from holdfast.cli.pods import MADE_BY_RUN, log_directory, remove_pod
from holdfast.config import size_value
from holdfast.model.errors import InvalidArgument
from holdfast.model.hidden import MASKED, READ_ONLY
from holdfast.proto import runtime_v1_pb2 as pb

STOP_SECONDS = 10  # from the stop signal to SIGKILL, when a foreground run is interrupted
PID_MODES = {"pod": pb.POD, "container": pb.CONTAINER, "host": pb.NODE}


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option("--name", default="", help="Name of pod and container; made up if not given.")
@click.option("--detach", "-d", is_flag=True, help="Print the container's id and leave it running.")
@click.option("--rm", "remove", is_flag=True, help="Remove pod and container when it has exited.")
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="Set an environment variable.")
@click.option("--volume", "-v", multiple=True, metavar="SOURCE:TARGET[:ro]", help="Mount a host path.")
@click.option(
    "--mount", multiple=True, metavar="type=bind,source=...,target=...[,readonly]", help="The same at length."
)
@click.option("--tty", "-t", is_flag=True, help="Give it a terminal (its output is in the log).")
@click.option("--interactive", "-i", is_flag=True, help="Keep its stdin open.")
@click.option("--workdir", "-w", default="", help="Working directory.")
@click.option("--user", "-u", default="", metavar="USER[:GROUP]", help="User name or id, and group id.")
@click.option("--memory", "-m", default="", help="Memory limit, e.g. 64MiB.")
@click.option("--cpus", type=float, default=0.0, help="CPU limit, e.g. 0.5.")
@click.option("--hostname", default="", help="Host name of the pod.")
@click.option("--network", type=click.Choice(["host", "none"]), default="none", show_default=True, help="Its network.")
@click.option(
    "--pid", type=click.Choice(list(PID_MODES)), default="container", show_default=True, help="Its processes."
)
@click.option("--privileged", is_flag=True, help="All capabilities and devices.")
@click.option("--read-only", is_flag=True, help="A read-only root filesystem.")
@click.option("--label", "-l", multiple=True, metavar="NAME=VALUE", help="Set a label.")
@click.option("--stop-signal", default="", help="What `stop` sends first.")
@click.option("--runtime", default="", help="Runtime handler.")
@click.option("--pull", type=click.Choice(["missing", "always", "never"]), default="missing", show_default=True)
@click.argument("image", shell_complete=image_names)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run_command(ctx: click.Context, /, **options: Any) -> int:
    """Run IMAGE, with COMMAND in place of its own, in a pod of its own.

    In the foreground its output is shown until it exits; an interrupt stops it. Pod and container stay, unless --rm
    is given, until `rmp` removes them.

    Exit status: that of the container; 125 when it could not be run; 0 with --detach.

    \b
    holdfast run --rm docker.io/library/busybox echo hello
    holdfast run -d --name web -v /srv/www:/www:ro -m 64MiB example.org/httpd
    holdfast run --rm --network host --mount type=bind,source=/etc,target=/host,readonly busybox ls /host
    """
    if options["interactive"] and not options["detach"]:
        text = "cannot run with -i in the foreground (hint: use --detach, and then holdfast attach -i)"
        raise CommandError(text, RUN_FAILED)
    if options["detach"] and options["remove"]:
        text = "cannot run with --detach and --rm: nobody would be there to remove it (hint: rmp -f removes it)"
        raise CommandError(text, RUN_FAILED)
    daemon = client(ctx)
    try:
        return _run(daemon, options)
    except CommandError as exc:
        raise CommandError(str(exc), RUN_FAILED) from exc
    except InvalidArgument as exc:
        raise CommandError(f"cannot use {exc}", RUN_FAILED) from exc


def _run(daemon: Client, options: dict[str, Any]) -> int:
    _ensure_image(daemon, options["image"], options["pull"])
    name = options["name"] or f"{Path(options['image']).name.partition(':')[0]}-{secrets.token_hex(3)}"
    container = _container(name, options)
    pod = _pod(daemon, name, options)
    request = pb.RunPodSandboxRequest(config=pod, runtime_handler=options["runtime"])
    pod_id = daemon.call(daemon.runtime.RunPodSandbox, request).pod_sandbox_id
    made = pb.PodSandbox(id=pod_id, metadata=pod.metadata, annotations=pod.annotations)
    with contextlib.ExitStack() as undo:
        undo.callback(remove_pod, daemon, made)
        create = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=pod)
        container_id = daemon.call(daemon.runtime.CreateContainer, create).container_id
        daemon.call(daemon.runtime.StartContainer, pb.StartContainerRequest(container_id=container_id))
        if not options["remove"]:
            undo.pop_all()
        if not options["detach"]:
            return _foreground(daemon, container_id)
        click.echo(container_id)
        return 0


def _foreground(daemon: Client, container_id: str) -> int:
    """Show the log until the container has exited. An interrupt stops it, and then its end is shown."""
    path, over = Path(status_of(daemon, container_id).log_path), exited(daemon, container_id)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Log(path) as log:
        try:
            follow_log(log, over)
        except KeyboardInterrupt:
            request = pb.StopContainerRequest(container_id=container_id, timeout=STOP_SECONDS)
            daemon.call(daemon.runtime.StopContainer, request, STOP_SECONDS + 60)
            follow_log(log, over)
    return status_of(daemon, container_id).exit_code


def _ensure_image(daemon: Client, image: str, policy: str) -> None:
    spec = pb.ImageSpec(image=image)
    there = daemon.call(daemon.images.ImageStatus, pb.ImageStatusRequest(image=spec)).HasField("image")
    if policy == "never" and not there:
        raise CommandError(f"cannot run {image!r}: it is not on this node, and --pull=never was said")
    if policy == "always" or not there:
        from holdfast.cli.images import pull_image

        pull_image(daemon, image, quiet=False)


def _pod(daemon: Client, name: str, options: dict[str, Any]) -> pb.PodSandboxConfig:
    metadata = pb.PodSandboxMetadata(name=name, namespace="default", uid=secrets.token_hex(16))
    return pb.PodSandboxConfig(
        metadata=metadata,
        hostname=options["hostname"],
        log_directory=log_directory(daemon, metadata),
        annotations={MADE_BY_RUN: "true"},
        labels=_pairs(options["label"], "--label"),
        linux=pb.LinuxPodSandboxConfig(
            security_context=pb.LinuxSandboxSecurityContext(
                namespace_options=_namespaces(options), privileged=options["privileged"]
            )
        ),
    )


def _container(name: str, options: dict[str, Any]) -> pb.ContainerConfig:
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(image=options["image"], user_specified_image=options["image"]),
        args=options["command"],
        working_dir=options["workdir"],
        envs=[pb.KeyValue(key=key, value=value) for key, value in _pairs(options["env"], "--env").items()],
        mounts=[_volume(text) for text in options["volume"]] + [_long_mount(text) for text in options["mount"]],
        labels=_pairs(options["label"], "--label"),
        log_path="0.log",
        stdin=options["interactive"],
        tty=options["tty"],
    )
    if options["stop_signal"]:
        config.stop_signal = _signal(options["stop_signal"])
    context = config.linux.security_context
    context.namespace_options.CopyFrom(_namespaces(options))
    context.privileged, context.readonly_rootfs = options["privileged"], options["read_only"]
    if not context.privileged:
        context.masked_paths.extend(MASKED)
        context.readonly_paths.extend(READ_ONLY)
    _user(context, options["user"])
    if options["memory"]:
        config.linux.resources.memory_limit_in_bytes = size_value("--memory", options["memory"])
    if options["cpus"]:
        config.linux.resources.cpu_period = 100_000
        config.linux.resources.cpu_quota = int(options["cpus"] * 100_000)
    return config


def _namespaces(options: dict[str, Any]) -> pb.NamespaceOption:
    network = pb.NODE if options["network"] == "host" else pb.POD
    return pb.NamespaceOption(network=network, pid=PID_MODES[options["pid"]], ipc=pb.POD)


def _user(context: pb.LinuxContainerSecurityContext, text: str) -> None:
    name, _, group = text.partition(":")
    if name.isdigit():
        context.run_as_user.value = int(name)
    else:
        context.run_as_username = name
    if group:
        if not group.isdigit():
            raise CommandError(f"cannot use --user {text!r}: the group must be a number")
        context.run_as_group.value = int(group)


def _signal(name: str) -> Any:
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    full = full.replace("+", "PLUS").replace("-", "MINUS")
    if full not in pb.Signal.keys():  # noqa: SIM118  (an enum wrapper, not a dict)
        raise CommandError(f"cannot use --stop-signal {name!r}: it is not a signal")
    return pb.Signal.Value(full)


def _pairs(entries: tuple[str, ...], option: str) -> dict[str, str]:
    """NAME=VALUE; a NAME alone takes our own environment's value."""
    found = {}
    for entry in entries:
        name, given, value = entry.partition("=")
        if not name:
            raise CommandError(f"cannot use {option} {entry!r}: it has no name")
        found[name] = value if given else os.environ.get(name, "")
    return found


def _volume(text: str) -> pb.Mount:
    source, _, rest = text.partition(":")
    target, _, flags = rest.partition(":")
    if not source or not target or flags not in ("", "ro", "rw"):
        raise CommandError(f"cannot use --volume {text!r}: it is not SOURCE:TARGET[:ro]")
    return pb.Mount(host_path=source, container_path=target, readonly=flags == "ro")


def _long_mount(text: str) -> pb.Mount:
    parts: dict[str, str] = dict(part.partition("=")[::2] for part in text.split(","))
    first: Callable[..., str] = lambda *keys: next((parts[key] for key in keys if key in parts), "")  # noqa: E731
    source, target = first("source", "src"), first("target", "destination", "dst")
    if first("type") not in ("", "bind") or not source or not target:
        raise CommandError(f"cannot use --mount {text!r}: it is not type=bind,source=...,target=...")
    read_only = any(key in parts and parts[key] != "false" for key in ("readonly", "ro"))
    return pb.Mount(host_path=source, container_path=target, readonly=read_only)
