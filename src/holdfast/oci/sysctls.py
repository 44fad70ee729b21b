"""Kernel parameters that belong to the namespaces of a pod, namespaces(7). They are set once, when the pod is made.

Which of them a pod may ask for is the client's to say (a kubelet knows "safe" ones); those of the host are refused.
"""

import re
from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.proto import runtime_v1_pb2 as pb

_WORD: Final = "[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?"
_SYSCTL: Final = re.compile(f"(?:{_WORD}[./])+{_WORD}")
_IPC: Final = frozenset(
    f"kernel.{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)  # fmt: skip
_SWAPPED: Final = str.maketrans("./", "/.")


def check(config: pb.PodSandboxConfig) -> None:
    options = config.linux.security_context.namespace_options
    own = {"net": options.network != pb.NODE, "uts": options.network != pb.NODE, "ipc": options.ipc != pb.NODE}
    for key in config.linux.sysctls:
        if not _SYSCTL.fullmatch(key):
            raise InvalidArgument(f"config.linux.sysctls: {key!r} is not a sysctl")
        if _dotted(key) == "kernel.hostname":
            raise InvalidArgument(f"config.linux.sysctls: {key!r} is what config.hostname is for")
        if not own.get(sysctl_namespace(key)):
            raise InvalidArgument(f"config.linux.sysctls: {key!r} would change the host, not the pod")


def files(config: pb.PodSandboxConfig) -> dict[str, tuple[str, str]]:
    """For each file in /proc/sys what to write to it, and the sysctl as it was asked for."""
    asked = sorted(config.linux.sysctls.items())
    return {f"/proc/sys/{_dotted(key).translate(_SWAPPED)}": (value, key) for key, value in asked}


def sysctl_namespace(key: str) -> str:
    """Which kind of namespace a sysctl belongs to: "net", "ipc" or "uts"; "" for one of the whole host."""
    key = _dotted(key)
    if key.startswith("net."):
        return "net"
    if key in _IPC or key.startswith("fs.mqueue."):
        return "ipc"
    return "uts" if key == "kernel.domainname" else ""


def _dotted(key: str) -> str:
    """With dots between its parts, and slashes for dots in a name: whichever comes first separates, sysctl(8)."""
    first = min((key.find(mark) for mark in "./" if mark in key), default=0)
    return key.translate(_SWAPPED) if key[first] == "/" else key
