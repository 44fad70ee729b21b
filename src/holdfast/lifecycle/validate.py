"""What a CRI configuration must be before anything is done with it. Pure; every error names its field."""

import posixpath
import re
from collections.abc import Iterable
from typing import Final

from google.protobuf.message import Message

from holdfast.lifecycle.users import ID_LIMIT
from holdfast.model.errors import InvalidArgument, Unimplemented
from holdfast.proto import runtime_v1_pb2 as pb

CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
NAME_LENGTH: Final = 253
HOSTNAME_LENGTH: Final = 64  # HOST_NAME_MAX, sethostname(2)
_WORD: Final = "[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?"
_SYSCTL: Final = re.compile(f"(?:{_WORD}[./])+{_WORD}")
_HOSTNAME: Final = re.compile("[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_PAGE_SIZE: Final = re.compile("[1-9][0-9]*[KMG]B")
_CGROUP_FILE: Final = re.compile(r"[a-z0-9_]+(?:\.[A-Za-z0-9_]+)+")


def validate_pod(config: pb.PodSandboxConfig) -> None:
    """Raises InvalidArgument, or Unimplemented."""
    if not config.HasField("metadata"):
        raise InvalidArgument("config.metadata: must be set")
    for field in ("name", "namespace", "uid"):
        _name(getattr(config.metadata, field), f"config.metadata.{field}")
    _sound(config, "config")
    if len(config.hostname) > HOSTNAME_LENGTH:
        raise InvalidArgument(f"config.hostname: more than {HOSTNAME_LENGTH} characters")
    if config.hostname and not _HOSTNAME.fullmatch(config.hostname):
        raise InvalidArgument(f"config.hostname: {config.hostname!r} is not a host name")
    if config.log_directory and not config.log_directory.startswith("/"):
        raise InvalidArgument(f"config.log_directory: {config.log_directory!r} is not absolute")
    _words(config.dns_config.servers, "config.dns_config.servers")
    _words(config.dns_config.searches, "config.dns_config.searches")
    _words(config.dns_config.options, "config.dns_config.options")
    parent = config.linux.cgroup_parent
    if parent and (not parent.startswith("/") or ".." in parent.split("/") or in_container(parent) == "/"):
        raise InvalidArgument(f"config.linux.cgroup_parent: {parent!r} is not a path below the cgroup root")
    _sysctls(config)
    validate_resources(config.linux.resources, "config.linux.resources")
    validate_resources(config.linux.overhead, "config.linux.overhead")
    context = config.linux.security_context
    _ids(context, "config.linux.security_context", context.HasField("run_as_user"))
    _namespaces(context.namespace_options, "config.linux.security_context.namespace_options", pod=True)
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
    _name(config.metadata.name, "config.metadata.name")
    if not config.image.image:
        raise InvalidArgument("config.image.image: must not be empty")
    _sound(config, "config")
    if config.CDI_devices:
        raise Unimplemented("config.CDI_devices: CDI devices cannot be used yet")
    for number, env in enumerate(config.envs):
        if not env.key or "=" in env.key:
            raise InvalidArgument(f"config.envs[{number}].key: {env.key!r} is not a name")
    for number, mount in enumerate(config.mounts):
        _mount(mount, f"config.mounts[{number}]")
    for number, device in enumerate(config.devices):
        _device(device, f"config.devices[{number}]")
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidArgument(f"config.working_dir: {config.working_dir!r} is not absolute")
    _log_path(config.log_path)
    validate_resources(config.linux.resources, "config.linux.resources")
    context, field = config.linux.security_context, "config.linux.security_context"
    _ids(context, field, context.HasField("run_as_user") or bool(context.run_as_username))
    if context.HasField("run_as_user") and context.run_as_username:
        raise InvalidArgument(f"{field}.run_as_username: run_as_user is set as well")
    _namespaces(context.namespace_options, f"{field}.namespace_options", pod=False)
    for name in ("add_capabilities", "drop_capabilities", "add_ambient_capabilities"):
        for capability in getattr(context.capabilities, name):
            if capability_name(capability) not in ("ALL", *CAPABILITIES):
                raise InvalidArgument(f"{field}.capabilities.{name}: {capability!r} is not a capability")
    for name in ("masked_paths", "readonly_paths"):
        for number, path in enumerate(getattr(context, name)):
            if not path.startswith("/"):
                raise InvalidArgument(f"{field}.{name}[{number}]: {path!r} is not absolute")
    if context.privileged and not pod.linux.security_context.privileged:
        raise InvalidArgument(f"{field}.privileged: the pod sandbox is not privileged")


def validate_resources(resources: pb.LinuxContainerResources, field: str) -> None:
    """Raises InvalidArgument."""
    for name in ("cpu_period", "cpu_shares", "memory_limit_in_bytes"):
        if getattr(resources, name) < 0:
            raise InvalidArgument(f"{field}.{name}: {getattr(resources, name)} is negative")
    for name in ("cpu_quota", "memory_swap_limit_in_bytes"):
        if getattr(resources, name) < -1:
            raise InvalidArgument(f"{field}.{name}: {getattr(resources, name)} is less than -1")
    if not -1000 <= resources.oom_score_adj <= 1000:
        raise InvalidArgument(f"{field}.oom_score_adj: {resources.oom_score_adj} is not within -1000 and 1000")
    for name in ("cpuset_cpus", "cpuset_mems"):
        if not re.fullmatch("[0-9,-]*", getattr(resources, name)):
            raise InvalidArgument(f"{field}.{name}: {getattr(resources, name)!r} is not a list of numbers")
    # Both become parts of file names in the cgroup.
    for number, limit in enumerate(resources.hugepage_limits):
        if not _PAGE_SIZE.fullmatch(limit.page_size):
            raise InvalidArgument(f"{field}.hugepage_limits[{number}].page_size: {limit.page_size!r} is not a size")
    for key in resources.unified:
        if not _CGROUP_FILE.fullmatch(key):
            raise InvalidArgument(f"{field}.unified: {key!r} is not a file of a cgroup")


def in_container(path: str) -> str:
    """An absolute path without ".", ".." and doubled slashes; nothing is above the root."""
    return posixpath.normpath("/" + path.lstrip("/"))


def sysctl_namespace(key: str) -> str:
    """Which kind of namespace a sysctl belongs to: "net", "ipc" or "uts"; "" for one of the whole host."""
    key = key.replace("/", ".")
    if key.startswith("net."):
        return "net"
    if key.startswith(("fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm")):
        return "ipc"
    return "uts" if key in ("kernel.domainname", "kernel.hostname") else ""


def capability_name(text: str) -> str:
    return text.upper().removeprefix("CAP_")


def _sysctls(config: pb.PodSandboxConfig) -> None:
    options = config.linux.security_context.namespace_options
    own = {"net": options.network != pb.NODE, "uts": options.network != pb.NODE, "ipc": options.ipc != pb.NODE}
    for key in config.linux.sysctls:
        if not _SYSCTL.fullmatch(key):
            raise InvalidArgument(f"config.linux.sysctls: {key!r} is not a sysctl")
        if not own.get(sysctl_namespace(key)):
            raise InvalidArgument(f"config.linux.sysctls: {key!r} would change the host, not the pod")


def _mount(mount: pb.Mount, field: str) -> None:
    for name in ("container_path", "host_path"):
        path = getattr(mount, name)
        if not path.startswith("/") and not (name == "host_path" and mount.HasField("image")):
            raise InvalidArgument(f"{field}.{name}: {path!r} is not absolute")
    if in_container(mount.container_path) == "/":
        raise InvalidArgument(f"{field}.container_path: the root itself cannot be mounted over")
    if mount.recursive_read_only and (not mount.readonly or mount.propagation != pb.PROPAGATION_PRIVATE):
        raise InvalidArgument(f"{field}.recursive_read_only: it needs readonly, and private propagation")


def _device(device: pb.Device, field: str) -> None:
    for name in ("container_path", "host_path"):
        if not getattr(device, name).startswith("/"):
            raise InvalidArgument(f"{field}.{name}: {getattr(device, name)!r} is not absolute")
    if set(device.permissions) - set("rwm"):
        raise InvalidArgument(f"{field}.permissions: {device.permissions!r} is not made of r, w and m")


def _log_path(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        raise InvalidArgument(f"config.log_path: {path!r} leaves the log directory")
    if path and posixpath.basename(path) in ("", "."):
        raise InvalidArgument(f"config.log_path: {path!r} is not a file's name")


def _ids(context: Message, field: str, has_user: bool) -> None:
    """The fields that sandbox and container security contexts have in common."""
    for name in ("run_as_user", "run_as_group"):
        if context.HasField(name) and not 0 <= (value := getattr(context, name).value) <= ID_LIMIT:
            raise InvalidArgument(f"{field}.{name}.value: {value} is out of range")
    if context.HasField("run_as_group") and not has_user:
        raise InvalidArgument(f"{field}.run_as_group: it needs a user")
    for number, group in enumerate(context.supplemental_groups):  # type: ignore[attr-defined]
        if not 0 <= group <= ID_LIMIT:
            raise InvalidArgument(f"{field}.supplemental_groups[{number}]: {group} is out of range")


def _namespaces(options: pb.NamespaceOption, field: str, *, pod: bool) -> None:
    allowed: dict[str, tuple[pb.NamespaceMode, ...]] = {"network": (pb.POD, pb.NODE), "ipc": (pb.POD, pb.NODE)}
    allowed["pid"] = (pb.POD, pb.CONTAINER, pb.NODE) if pod else (pb.POD, pb.CONTAINER, pb.NODE, pb.TARGET)
    for name, modes in allowed.items():
        mode = getattr(options, name)
        if mode not in modes:
            shown = pb.NamespaceMode.Name(mode) if mode in pb.NamespaceMode.values() else str(mode)
            raise InvalidArgument(f"{field}.{name}: {shown} is not possible here")
    if options.HasField("userns_options") and options.userns_options.mode != pb.NODE:
        # Never run without what was asked for: it would be root of the host.
        raise Unimplemented(f"{field}.userns_options: user namespaces cannot be used yet")
    if options.pid == pb.TARGET and not options.target_id:
        raise InvalidArgument(f"{field}.target_id: it is needed for TARGET")


def _name(text: str, field: str) -> None:
    if not text:
        raise InvalidArgument(f"{field}: must not be empty")
    if len(text) > NAME_LENGTH:
        raise InvalidArgument(f"{field}: more than {NAME_LENGTH} characters")
    if "/" in text or not text.isprintable():
        raise InvalidArgument(f"{field}: {text!r} has characters that a name cannot have")


def _words(values: Iterable[str], field: str) -> None:
    for number, value in enumerate(values):
        if not value or not value.isprintable() or (" " in value and "options" not in field):
            raise InvalidArgument(f"{field}[{number}]: {value!r} is not one word")


def _sound(message: Message, field: str) -> None:
    """No NUL in any text, which no system call could take, and no value that an enum does not have."""
    for descriptor, value in message.ListFields():
        if descriptor.enum_type is not None and value not in descriptor.enum_type.values_by_number:
            raise InvalidArgument(f"{field}.{descriptor.name}: {value} is not a {descriptor.enum_type.name}")
        _sound_value(value, f"{field}.{descriptor.name}")


def _sound_value(value: object, field: str) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidArgument(f"{field}: it has a NUL in it")
    elif isinstance(value, Message):
        _sound(value, field)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        items = value.items() if hasattr(value, "items") else enumerate(value)
        for key, item in items:
            _sound_value(key, field)
            _sound_value(item, f"{field}[{key}]")
