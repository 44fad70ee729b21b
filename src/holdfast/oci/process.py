"""What is executed: arguments, environment, directory, user and limits."""

from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.model.image import Image
from holdfast.oci import capabilities, lsm
from holdfast.oci.request import Spec, SpecRequest
from holdfast.oci.text import in_container
from holdfast.proto import runtime_v1_pb2 as pb

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def check(config: pb.ContainerConfig) -> None:
    """Raises InvalidArgument."""
    for number, env in enumerate(config.envs):
        if not env.key or "=" in env.key:
            raise InvalidArgument(f"config.envs[{number}].key: {env.key!r} is not a name")
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidArgument(f"config.working_dir: {config.working_dir!r} is not absolute")


def check_image(image: Image) -> None:
    """An image's config is anybody's: no NUL, which would cut a string short in the runtime's C."""
    if any("\0" in text for text in (*image.entrypoint, *image.cmd, *image.env, image.workdir)):
        raise InvalidArgument(f"config.image.image: the config of image {image.id} has a NUL in it")


def check_directory(asked: str, leads_to: str) -> None:
    """/proc has ways out of the root, to whatever the runtime has open (CVE-2024-21626)."""
    if (leads_to + "/").startswith("/proc/"):
        raise InvalidArgument(f"config.working_dir: {asked!r} leads to {leads_to!r}, where nothing can work")


def process(request: SpecRequest) -> Spec:
    config, context, user = request.container, request.container.linux.security_context, request.user
    found: Spec = {
        "args": arguments(config, request.image),
        "env": environment(request),
        "cwd": in_container(config.working_dir or request.image.workdir),
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
        "noNewPrivileges": context.no_new_privs,
        "capabilities": capabilities.sets(context, request.facts.capabilities),
        **lsm.of_container(request)[0],
    }
    wanted = config.linux.resources.oom_score_adj
    found["oomScoreAdj"] = max(wanted, request.facts.oom_score_adj_min)
    if (limits := request.facts.files) is not None:
        found["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": limits[0], "hard": limits[1]}]
    return found


def arguments(config: pb.ContainerConfig, image: Image) -> list[str]:
    """command replaces the image's entrypoint, and with it the image's cmd; args replace the cmd."""
    command, args = list(config.command), list(config.args)
    if not command:
        command = list(image.entrypoint)
        args = args or list(image.cmd)
    if not command and not args:
        raise InvalidArgument("config.command: it is empty, and so are the image's entrypoint and cmd")
    return command + args


def environment(request: SpecRequest) -> list[str]:
    """Defaults, then the image's, then the config's; the last one to set a name wins."""
    env = {"PATH": PATH, "HOSTNAME": request.hostname}
    if request.container.tty:
        env["TERM"] = "xterm"
    for entry in request.image.env:
        name, _, value = entry.partition("=")
        env[name] = value
    env.setdefault("HOME", request.user.home or "/")
    for one in request.container.envs:
        env[one.key] = one.value
    return [f"{name}={value}" for name, value in env.items() if name]
