"""What a pod may have as a whole: its cgroup, which is the agent's to make, limited as a kubelet does."""

from collections.abc import Iterator
from typing import Final

from holdfast.agent.pod import qos
from holdfast.agent.pod.spec import Pod
from holdfast.linux import cgroup

Write = tuple[str, str, str]  # controller, file and value, as linux.cgroup takes them
WEIGHTS: Final = 9999  # of cpu.weight, for the 262142 shares of version 1


def make_cgroup(pod: Pod, path: str) -> None:
    """Idempotent. Raises OSError. What a host has no controller for is not limited."""
    cgroup.create(path)
    found = writes(pod, cgroup.mode() == "v2")
    cgroup.change(path, [one for one in found if cgroup.has(path, one[0], one[1])])


def writes(pod: Pod, unified: bool) -> Iterator[Write]:
    """For one hierarchy or for several."""
    shares = qos.shares(qos.total(pod, "cpu"))
    if unified:
        yield (
            "cpu",
            "cpu.weight",
            str(1 + (shares - qos.LEAST_SHARES) * WEIGHTS // (qos.MOST_SHARES - qos.LEAST_SHARES)),
        )
    else:
        yield "cpu", "cpu.shares", str(shares)
    if (cpu := qos.limit(pod, "cpu")) and cpu.milli:
        quota = qos.quota(cpu)
        if unified:
            yield "cpu", "cpu.max", f"{quota} {qos.CPU_PERIOD}"
        else:
            yield "cpu", "cpu.cfs_period_us", str(qos.CPU_PERIOD)
            yield "cpu", "cpu.cfs_quota_us", str(quota)
    if (memory := qos.limit(pod, "memory")) and memory.whole:
        yield "memory", "memory.max" if unified else "memory.limit_in_bytes", str(memory.whole)
