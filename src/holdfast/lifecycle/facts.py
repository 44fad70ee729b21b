"""What this host and this daemon can do, found once at start."""

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup
from holdfast.oci.capabilities import CAPABILITIES
from holdfast.oci.request import HostFacts

SECCOMP_ACTIONS: Final = Path("/proc/sys/kernel/seccomp/actions_avail")  # there with CONFIG_SECCOMP_FILTER
APPARMOR_ENABLED: Final = Path("/sys/module/apparmor/parameters/enabled")
SELINUX_ENFORCE: Final = Path("/sys/fs/selinux/enforce")
SELINUX_CONFIG: Final = Path("/etc/selinux/config")
CAP_SYS_RESOURCE = CAPABILITIES.index("SYS_RESOURCE")


def detect(files: int) -> HostFacts:
    """Missing capabilities are worked around, never fatal. `files` is the soft limit on open files for containers."""
    held = _bounding_set()
    lowest = -1000 if held >> CAP_SYS_RESOURCE & 1 else int(Path("/proc/self/oom_score_adj").read_text())
    return HostFacts(
        cgroup_mode=cgroup.mode(),
        oom_score_adj_min=lowest,
        capabilities=frozenset(name for number, name in enumerate(CAPABILITIES) if held >> number & 1),
        hugetlb=_hugetlb(),
        swap=_swap(),
        files=(files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
        machine=os.uname().machine,
        kernel=kernel_version(os.uname().release),
        seccomp=SECCOMP_ACTIONS.exists(),
        apparmor=_says(APPARMOR_ENABLED, "Y"),
        selinux=_selinux(),
    )


def report(facts: HostFacts) -> dict[str, object]:
    """What an administrator is told of it."""
    return {
        "cgroup_mode": facts.cgroup_mode,
        "seccomp": facts.seccomp,
        "apparmor": facts.apparmor,
        "selinux": facts.selinux is not None,
    }


def kernel_version(release: str) -> tuple[int, int]:
    match = re.match(r"([0-9]+)\.([0-9]+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_text().startswith(text)
    except OSError:
        return False


def _selinux() -> tuple[str, str] | None:
    """The labels that the host's policy has for containers, lxc_contexts(5); None where SELinux is not enabled."""
    if not SELINUX_ENFORCE.exists():
        return None
    found = {"process": "system_u:system_r:container_t:s0", "file": "system_u:object_r:container_file_t:s0"}
    with contextlib.suppress(OSError):
        policy = dict(_assignments(SELINUX_CONFIG)).get("SELINUXTYPE", "targeted")
        found |= dict(_assignments(SELINUX_CONFIG.parent / policy / "contexts" / "lxc_contexts"))
    return found["process"], found["file"]


def _assignments(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not name.startswith("#"):
            yield name.strip(), value.strip().strip('"')


def _hugetlb() -> bool:
    """Whether the OCI runtimes find the controller: on a hybrid host they look at v1 only."""
    found = cgroup.hierarchies()
    if cgroup.mode() != "v2":
        return "hugetlb" in found
    return "hugetlb" in (found[""] / "cgroup.controllers").read_text().split()


def _swap() -> bool:
    """Whether the kernel counts swap, which it can be told not to (swapaccount=0). The root of v2 has no such file."""
    found = cgroup.hierarchies()
    if cgroup.mode() != "v2":
        return (found.get("memory", cgroup.ROOT) / "memory.memsw.limit_in_bytes").exists()
    return any(found[""].glob("*/memory.swap.max"))


def _bounding_set() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapBnd:"))
