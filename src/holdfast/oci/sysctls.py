"""Kernel parameters that belong to the namespaces of a pod, namespaces(7)."""

import re
from collections.abc import Container
from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.proto import runtime_v1_pb2 as pb

_WORD: Final = "[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?"
_SYSCTL: Final = re.compile(f"(?:{_WORD}[./])+{_WORD}")


def check(config: pb.PodSandboxConfig) -> None:
    options = config.linux.security_context.namespace_options
    own = {"net": options.network != pb.NODE, "uts": options.network != pb.NODE, "ipc": options.ipc != pb.NODE}
    for key in config.linux.sysctls:
        if not _SYSCTL.fullmatch(key):
            raise InvalidArgument(f"config.linux.sysctls: {key!r} is not a sysctl")
        if not own.get(sysctl_namespace(key)):
            raise InvalidArgument(f"config.linux.sysctls: {key!r} would change the host, not the pod")


def sysctls(config: pb.PodSandboxConfig, namespaces: Container[str]) -> dict[str, str]:
    """Names with dots, and their values. `namespaces` are the kinds that are the pod's own. Raises InvalidArgument."""
    found = {key.replace("/", "."): value for key, value in config.linux.sysctls.items()}
    for key in sorted(found):
        if sysctl_namespace(key) not in namespaces:
            raise InvalidArgument(f"config.linux.sysctls: {key!r} would change the host, not the pod")
    return found


def sysctl_namespace(key: str) -> str:
    """Which kind of namespace a sysctl belongs to: "net", "ipc" or "uts"; "" for one of the whole host."""
    key = key.replace("/", ".")
    if key.startswith("net."):
        return "net"
    if key.startswith(("fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm")):
        return "ipc"
    return "uts" if key in ("kernel.domainname", "kernel.hostname") else ""
