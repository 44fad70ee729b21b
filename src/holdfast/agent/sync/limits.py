"""The cgroups that are the agent's: those of its pods, and of the classes that share what nobody has requested.

They are made, weighed and limited as a kubelet does, by ourselves or by systemd, whichever the runtime has.
"""

import errno
import os
from collections.abc import Iterable
from typing import Final

from holdfast.agent.pod import qos
from holdfast.agent.pod.quantity import Quantity
from holdfast.agent.pod.spec import Pod
from holdfast.linux import cgroup
from holdfast.model import cgroups
from holdfast.oci.cgroup_files import writes
from holdfast.oci.unit_properties import properties
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.systemd import units

DESCRIPTION: Final = "Pods of holdfast agent"


def of_pod(pod: Pod) -> pb.LinuxContainerResources:
    """What it may have as a whole."""
    found = pb.LinuxContainerResources(cpu_shares=qos.shares(qos.total(pod, "cpu")))
    if (cpu := qos.limit(pod, "cpu")) and cpu.milli:
        found.cpu_period, found.cpu_quota = qos.CPU_PERIOD, qos.quota(cpu)
    if (memory := qos.limit(pod, "memory")) and memory.whole:
        found.memory_limit_in_bytes = memory.whole
    every = (*pod.spec.init_containers, *pod.spec.containers)
    for name in sorted({name for one in every for name in one.resources.limits if name.startswith(qos.HUGE_PAGES)}):
        found.hugepage_limits.add(page_size=qos.page_size(name), limit=qos.total(pod, name).whole)
    return found


def of_classes(pods: Iterable[Pod], root: str, driver: str) -> dict[str, pb.LinuxContainerResources]:
    """By cgroup, as CRI's cgroup_parent has it: the burstable weigh as much as they request, the others nothing."""
    cpu = sum(qos.total(pod, "cpu").milli for pod in pods if qos.class_of(pod) == "Burstable")
    weights: dict[qos.Class, int] = {"Burstable": qos.shares(Quantity(cpu)), "BestEffort": qos.LEAST_SHARES}
    return {
        qos.parent(qos.class_path(kind, root), driver): pb.LinuxContainerResources(cpu_shares=weight)
        for kind, weight in weights.items()
    }


def make(parent: str, limits: pb.LinuxContainerResources) -> None:
    """Idempotent. Raises OSError and what systemd says. What a host has no controller for is not limited."""
    if cgroups.is_slice(parent):
        units.start_slice(parent, DESCRIPTION)
    cgroup.create(cgroups.parent_path(parent))
    change(parent, limits)


def change(parent: str, limits: pb.LinuxContainerResources) -> None:
    """Of a cgroup that is there and is not limited so yet."""
    path, mode = cgroups.parent_path(parent), cgroup.mode()
    wanted = [(one.controller, one.name, one.value) for one in writes(limits, mode)]
    late = [one for one in wanted if cgroup.has(path, *one[:2]) and cgroup.read(path, *one[:2]) != one[2]]
    if late and cgroups.is_slice(parent):
        units.start_slice(parent, DESCRIPTION)  # one that systemd has made for those below it is not started
        units.set_properties(parent, properties(limits, mode))
    cgroup.change(path, late)


def remove(uid: str, root: str) -> None:
    """The cgroup of a pod, wherever it may be. Idempotent. Raises OSError, EBUSY while a process is in it.

    So go those above it that nobody uses now, but for slices: who starts one below them has to find them.
    """
    for path in qos.cgroup_paths(uid, root):
        if (unit := cgroups.unit_of(path)) and cgroup.exists(path):
            if cgroup.populated(path):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
            units.stop(unit)
        cgroup.remove(path)
        if not unit:
            for above in dict.fromkeys((path.rpartition("/")[0], root)):
                cgroup.remove_if_empty(above)
