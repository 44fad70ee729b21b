"""What a CRI configuration must be before anything is done with it. Pure; every error names its field."""

import posixpath
import re
from typing import Final

from holdfast.model.cgroups import CGROUPFS, check_parent
from holdfast.model.errors import InvalidArgument
from holdfast.oci import (
    capabilities,
    cdi,
    devices,
    lsm,
    masks,
    mounts,
    namespaces,
    process,
    resources,
    seccomp,
    sysctls,
    users,
)
from holdfast.oci.text import check_name, check_sound, check_words
from holdfast.proto import runtime_v1_pb2 as pb

FILE_LENGTH: Final = 255  # NAME_MAX, limits.h
HOSTNAME_LENGTH: Final = 64  # HOST_NAME_MAX, sethostname(2)
_HOSTNAME: Final = re.compile("[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def validate_pod(config: pb.PodSandboxConfig, cgroup_driver: str = CGROUPFS) -> None:
    """Raises InvalidArgument, or Unimplemented."""
    if not config.HasField("metadata"):
        raise InvalidArgument("config.metadata: must be set")
    for field in ("name", "namespace", "uid"):
        check_name(getattr(config.metadata, field), f"config.metadata.{field}")
    check_sound(config, "config")
    if len(config.hostname) > HOSTNAME_LENGTH:
        raise InvalidArgument(f"config.hostname: more than {HOSTNAME_LENGTH} characters")
    if config.hostname and not _HOSTNAME.fullmatch(config.hostname):
        raise InvalidArgument(f"config.hostname: {config.hostname!r} is not a host name")
    if config.log_directory and not config.log_directory.startswith("/"):
        raise InvalidArgument(f"config.log_directory: {config.log_directory!r} is not absolute")
    check_words(config.dns_config.servers, "config.dns_config.servers")
    check_words(config.dns_config.searches, "config.dns_config.searches")
    check_words(config.dns_config.options, "config.dns_config.options")
    sysctls.check(config)
    if config.linux.cgroup_parent:
        check_parent(config.linux.cgroup_parent, cgroup_driver, "config.linux.cgroup_parent")
    resources.check(config.linux.resources, "config.linux.resources")
    resources.check(config.linux.overhead, "config.linux.overhead")
    context = config.linux.security_context
    users.check(context, "config.linux.security_context", context.HasField("run_as_user"))
    seccomp.check(context, "config.linux.security_context")
    lsm.check(context, "config.linux.security_context")
    namespaces.check(context.namespace_options, "config.linux.security_context.namespace_options", pod=True)
    for number, mapping in enumerate(config.port_mappings):
        for field in ("container_port", "host_port"):
            if not 0 <= getattr(mapping, field) <= 65535:
                raise InvalidArgument(
                    f"config.port_mappings[{number}].{field}: {getattr(mapping, field)} is not a port"
                )


def validate_container(config: pb.ContainerConfig, pod: pb.PodSandboxConfig) -> None:
    """Raises InvalidArgument, or Unimplemented."""
    if not config.HasField("metadata"):
        raise InvalidArgument("config.metadata: must be set")
    check_name(config.metadata.name, "config.metadata.name")
    if not config.image.image:
        raise InvalidArgument("config.image.image: must not be empty")
    check_sound(config, "config")
    cdi.check(config)
    process.check(config)
    for number, mount in enumerate(config.mounts):
        mounts.check(mount, f"config.mounts[{number}]")
    for number, device in enumerate(config.devices):
        devices.check(device, f"config.devices[{number}]")
    _log_path(config.log_path)
    resources.check(config.linux.resources, "config.linux.resources")
    _security(config.linux.security_context, "config.linux.security_context", pod)


def _security(context: pb.LinuxContainerSecurityContext, field: str, pod: pb.PodSandboxConfig) -> None:
    if context.privileged and not pod.linux.security_context.privileged:
        raise InvalidArgument(f"{field}.privileged: the pod sandbox is not privileged")
    users.check(context, field, context.HasField("run_as_user") or bool(context.run_as_username))
    if context.HasField("run_as_user") and context.run_as_username:
        raise InvalidArgument(f"{field}.run_as_username: run_as_user is set as well")
    namespaces.check(context.namespace_options, f"{field}.namespace_options", pod=False)
    pod_options = pod.linux.security_context.namespace_options
    namespaces.check_same(context.namespace_options, pod_options, f"{field}.namespace_options")
    for concern in (capabilities, seccomp, lsm, masks):
        concern.check(context, field)


def _log_path(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        raise InvalidArgument(f"config.log_path: {path!r} leaves the log directory")
    if path and posixpath.basename(path) in ("", "."):
        raise InvalidArgument(f"config.log_path: {path!r} is not a file's name")
    if any(len(part.encode()) > FILE_LENGTH for part in path.split("/")):
        raise InvalidArgument(f"config.log_path: {path!r} has a name of more than {FILE_LENGTH} bytes")
