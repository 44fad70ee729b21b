"""Which quality of service a pod has, and what follows from it for cgroups: a kubelet's formulas. Pure.

Sources: Kubernetes, "Pod Quality of Service Classes"; k8s.io/kubernetes pkg/kubelet/cm (shares, quota) and
pkg/kubelet/qos (oom_score_adj) for the numbers.
"""

from collections.abc import Callable
from typing import Final, Literal, get_args

from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.quantity import Quantity
from holdfast.agent.pod.spec import Pod
from holdfast.model import cgroups

Class = Literal["Guaranteed", "Burstable", "BestEffort"]

COUNTED: Final = ("cpu", "memory")
CPU_PERIOD: Final = 100_000  # microseconds
LEAST_QUOTA: Final = 1_000
LEAST_SHARES: Final = 2
MOST_SHARES: Final = 262_144
OOM_GUARANTEED: Final = -997
OOM_BEST_EFFORT: Final = 1000
NOTHING: Final = Quantity(0)
HUGE_PAGES: Final = "hugepages-"  # and a size, as a resource


def class_of(pod: Pod) -> Class:
    """Guaranteed if every container has the same limit and request of both, BestEffort if none has any."""
    all_equal, any_set = True, False
    for one in (*pod.spec.init_containers, *pod.spec.containers):
        for resource in COUNTED:
            limit, request = one.resources.limits.get(resource), requested(one, resource)
            any_set |= bool((limit or NOTHING).milli or request.milli)
            all_equal &= limit is not None and limit.milli == request.milli > 0
    return "Guaranteed" if all_equal else "Burstable" if any_set else "BestEffort"


def requested(container: Container, resource: str) -> Quantity:
    """What is not requested is requested as it is limited."""
    found = container.resources.requests.get(resource, container.resources.limits.get(resource, NOTHING))
    return Quantity(found.milli)


def total(pod: Pod, resource: str) -> Quantity:
    """What the pod requests as a whole."""
    return _whole(pod, lambda one: requested(one, resource))


def limit(pod: Pod, resource: str) -> Quantity | None:
    """What the pod may have as a whole: nothing is said of it while one of its containers has no limit."""
    if any(resource not in one.resources.limits for one in (*pod.spec.init_containers, *pod.spec.containers)):
        return None
    return _whole(pod, lambda one: Quantity(one.resources.limits[resource].milli))


def _whole(pod: Pod, amount: Callable[[Container], Quantity]) -> Quantity:
    """Its containers and sidecars, or the init container that needs most, with the sidecars before it."""
    mains = sum(amount(one).milli for one in pod.spec.containers)
    beside, most = 0, 0
    for one in pod.spec.init_containers:
        if one.sidecar:
            beside += amount(one).milli
        most = max(most, beside + (0 if one.sidecar else amount(one).milli))
    return Quantity(max(mains + beside, most))


def page_size(resource: str) -> str:
    """As cgroups have it: that of "hugepages-2Mi" is "2MB"."""
    return resource.removeprefix(HUGE_PAGES).removesuffix("i") + "B"


def shares(cpu: Quantity) -> int:
    """cpu.shares of cgroups(7), version 1: 1024 for a whole processor."""
    return min(max(cpu.milli * 1024 // 1000, LEAST_SHARES), MOST_SHARES)


def quota(cpu: Quantity) -> int:
    """Microseconds of processor time in a period of CPU_PERIOD; 0 for no limit."""
    return max(cpu.milli * CPU_PERIOD // 1000, LEAST_QUOTA) if cpu.milli else 0


def oom_score_adj(pod: Pod, container: Container, memory: int) -> int:
    """The less of the machine's `memory` (bytes) a container has requested, the sooner it is killed for want of it."""
    match class_of(pod):
        case "Guaranteed":
            return OOM_GUARANTEED
        case "BestEffort":
            return OOM_BEST_EFFORT
    amount = requested(container, "memory").whole
    if container.sidecar:  # it is not killed before those whom it serves
        amount = max(amount, min(requested(one, "memory").whole for one in pod.spec.containers))
    found = 1000 - 1000 * amount // max(memory, 1)
    return min(max(found, 1000 + OOM_GUARANTEED), OOM_BEST_EFFORT - 1)


def class_path(kind: Class, root: str) -> str:
    """Where the pods of a class are below `root`, "/..." without an end: as a kubelet's, the guaranteed at the top."""
    return root if kind == "Guaranteed" else f"{root}/{kind.lower()}"


def cgroup_path(pod: Pod, root: str) -> str:
    return f"{class_path(class_of(pod), root)}/pod{pod.metadata.uid}"


def cgroup_paths(uid: str, root: str) -> list[str]:
    """Wherever the cgroup of a pod may be: it was made as its class and the driver were then."""
    classes: tuple[Class, ...] = get_args(Class)
    paths = [f"{class_path(kind, root)}/pod{uid}" for kind in classes]
    return [*paths, *(cgroups.slice_path(cgroups.as_slice(path)) for path in paths)]


def parent(path: str, driver: str) -> str:
    """The cgroup at `path` as CRI's cgroup_parent has it: with systemd it is a slice."""
    return cgroups.as_slice(path) if driver == cgroups.SYSTEMD else path
