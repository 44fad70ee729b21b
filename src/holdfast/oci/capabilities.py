"""The capability sets of capabilities(7)."""

from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.proto import runtime_v1_pb2 as pb

CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
DEFAULT_CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip


def check(context: pb.LinuxContainerSecurityContext, field: str) -> None:
    """Raises InvalidArgument."""
    for name in ("add_capabilities", "drop_capabilities", "add_ambient_capabilities"):
        for capability in getattr(context.capabilities, name):
            if capability_name(capability) not in ("ALL", *CAPABILITIES):
                raise InvalidArgument(f"{field}.capabilities.{name}: {capability!r} is not a capability")


def sets(context: pb.LinuxContainerSecurityContext, available: frozenset[str]) -> dict[str, list[str]]:
    """The sets of a process. Dropping wins over adding, but for names added beside a dropped ALL."""
    add = {capability_name(name) for name in context.capabilities.add_capabilities}
    drop = {capability_name(name) for name in context.capabilities.drop_capabilities}
    ambient = {capability_name(name) for name in context.capabilities.add_ambient_capabilities}
    everything = set(CAPABILITIES) & available
    if "ALL" in ambient:
        ambient |= everything
    kept = everything if "ALL" in add else set(DEFAULT_CAPABILITIES)
    if "ALL" in drop:
        kept = set()
    kept = ((kept | add | ambient) - drop) & everything
    if context.privileged:
        kept = everything
    names = [f"CAP_{name}" for name in CAPABILITIES if name in kept]
    raised = [f"CAP_{name}" for name in CAPABILITIES if name in kept & ambient]
    found = {"bounding": names, "effective": names, "permitted": names, "inheritable": raised}
    if raised:
        found["ambient"] = raised
    return found


def capability_name(text: str) -> str:
    return text.upper().removeprefix("CAP_")
