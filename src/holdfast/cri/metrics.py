"""Metrics of pods and containers by the names that cAdvisor gave them, as kubelets expect them. Pure.

One table feeds the descriptors and the values: a metric that has no descriptor cannot be sent. Values are whole
numbers, times seconds, for the CRI has no others.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from holdfast.lifecycle.stats import ContainerSample, Interface, PodSample
from holdfast.proto import runtime_v1_pb2 as pb

LABELS: Final = ("container", "id", "image", "name", "namespace", "pod")  # of everything; a pod's own have no container
SECOND: Final = 1_000_000_000

Value = tuple[tuple[str, ...], int]  # of the labels beyond those of all, and the value
Counters = Mapping[str, int]
Fields = dict[str, Any]  # of a Metric: a list of them makes one message sooner than messages do


@dataclass(frozen=True, slots=True)
class ContainerMetric:
    """`values` gives those that are known; none for what this host does not count."""

    name: str
    help: str
    kind: pb.MetricType
    values: Callable[[ContainerSample, Counters], list[Value]]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PodMetric:
    name: str
    help: str
    of: Callable[[Interface], int]


def _counted(key: str, divisor: int = 1) -> Callable[[ContainerSample, Counters], list[Value]]:
    return lambda _, counters: [((), counters[key] // divisor)] if key in counters else []


def _used(key: str) -> Callable[[ContainerSample, Counters], list[Value]]:
    def values(one: ContainerSample, _: Counters) -> list[Value]:
        value = getattr(one.sample.usage, key, None)
        return [((), value)] if value is not None else []

    return values


def _cpu(one: ContainerSample, _: Counters) -> list[Value]:
    used = one.sample.usage
    return [(("total",), used.cpu // SECOND)] if used is not None and used.cpu is not None else []


def _faults(one: ContainerSample, _: Counters) -> list[Value]:
    used = one.sample.usage
    known = {} if used is None else {"pgfault": used.faults, "pgmajfault": used.major_faults}
    return [((key, "hierarchy"), value) for key, value in known.items() if value is not None]


def _layer(key: str) -> Callable[[ContainerSample, Counters], list[Value]]:
    return lambda one, _: [((str(one.layer.place),), int(getattr(one.layer, key)))] if one.layer is not None else []


def _stalled(kind: str, which: int) -> Callable[[ContainerSample, Counters], list[Value]]:
    """`which`: 0 for some of its tasks, 1 for all of them."""

    def values(one: ContainerSample, _: Counters) -> list[Value]:
        pressures = one.sample.usage.pressure if one.sample.usage is not None else None
        return [((), pressures[kind][which].total // 1_000_000)] if pressures and kind in pressures else []

    return values


_COUNTER, _GAUGE = pb.COUNTER, pb.GAUGE
CONTAINER: Final = (
    ContainerMetric("container_cpu_usage_seconds_total", "CPU time used.", _COUNTER, _cpu, ("cpu",)),
    ContainerMetric("container_cpu_user_seconds_total", "CPU time in code.", _COUNTER, _counted("cpu_user", SECOND)),
    ContainerMetric(
        "container_cpu_system_seconds_total", "CPU time in the kernel.", _COUNTER, _counted("cpu_system", SECOND)
    ),
    ContainerMetric(
        "container_cpu_cfs_periods_total", "Periods of its CPU limit.", _COUNTER, _counted("periods")
    ),
    ContainerMetric(
        "container_cpu_cfs_throttled_periods_total", "Those in which it was held back.", _COUNTER, _counted("throttled")
    ),
    ContainerMetric(
        "container_cpu_cfs_throttled_seconds_total", "How long it was.", _COUNTER, _counted("throttled_time", SECOND)
    ),
    ContainerMetric("container_memory_usage_bytes", "Memory in use, caches too.", _GAUGE, _used("memory")),
    ContainerMetric(
        "container_memory_working_set_bytes", "Memory without what could be given up at once.", _GAUGE,
        _used("working_set"),
    ),
    ContainerMetric("container_memory_rss", "Anonymous memory.", _GAUGE, _used("rss")),
    ContainerMetric("container_memory_cache", "Pages of files.", _GAUGE, _counted("cache")),
    ContainerMetric("container_memory_mapped_file", "Pages of files that are mapped.", _GAUGE, _counted("mapped")),
    ContainerMetric("container_memory_kernel_usage", "Memory the kernel has for it.", _GAUGE, _counted("kernel")),
    ContainerMetric("container_memory_swap", "Swap in use.", _GAUGE, _used("swap")),
    ContainerMetric("container_memory_max_usage_bytes", "The most it ever had in use.", _GAUGE, _counted("peak")),
    ContainerMetric("container_memory_failcnt", "How often its limit was hit.", _COUNTER, _counted("failures")),
    ContainerMetric(
        "container_memory_failures_total", "Page faults.", _COUNTER, _faults, ("failure_type", "scope")
    ),
    ContainerMetric("container_fs_usage_bytes", "Bytes of its writable layer.", _GAUGE, _layer("bytes"), ("device",)),
    ContainerMetric("container_fs_inodes_used", "Its inodes.", _GAUGE, _layer("inodes"), ("device",)),
    ContainerMetric("container_threads", "Threads of all its processes.", _GAUGE, _used("processes")),
    ContainerMetric(
        "container_last_seen", "When it was looked at.", _GAUGE, lambda one, _: [((), one.sample.at // SECOND)]
    ),
    ContainerMetric(
        "container_start_time_seconds", "When it was started.", _GAUGE,
        lambda one, _: [((), one.container.status.started_at // SECOND)],
    ),
    ContainerMetric(
        "container_oom_events_total", "Processes of it that were killed for want of memory.", _COUNTER,
        lambda one, _: [((), one.container.status.oom_kills)],
    ),
    ContainerMetric("container_spec_memory_limit_bytes", "Its limit of memory.", _GAUGE, _used("memory_limit")),
    ContainerMetric("container_spec_cpu_quota", "Its CPU time in a period, in us.", _GAUGE, _counted("cpu_quota")),
    ContainerMetric("container_spec_cpu_period", "That period, in us.", _GAUGE, _counted("cpu_period")),
    ContainerMetric("container_spec_cpu_shares", "Its share of CPU time.", _GAUGE, _counted("cpu_shares")),
    *(
        ContainerMetric(f"container_pressure_{kind}_{word}_seconds_total", help, _COUNTER, _stalled(kind, which))
        for kind in ("cpu", "memory", "io")
        for which, (word, help) in enumerate(
            (("waiting", "Time in which some of its tasks had to wait."), ("stalled", "Time in which all of them had."))
        )
    ),
)  # fmt: skip
NETWORK: Final = tuple(
    PodMetric(f"container_network_{way}_{what}_total", f"{what.capitalize()} that were {way}d.", of)
    for way, what, of in (
        ("receive", "bytes", lambda one: one.rx_bytes),
        ("receive", "packets", lambda one: one.rx_packets),
        ("receive", "errors", lambda one: one.rx_errors),
        ("receive", "packets_dropped", lambda one: one.rx_dropped),
        ("transmit", "bytes", lambda one: one.tx_bytes),
        ("transmit", "packets", lambda one: one.tx_packets),
        ("transmit", "errors", lambda one: one.tx_errors),
        ("transmit", "packets_dropped", lambda one: one.tx_dropped),
    )
)


def descriptors() -> Iterator[pb.MetricDescriptor]:
    """Of every metric that may come."""
    for one in CONTAINER:
        yield pb.MetricDescriptor(name=one.name, help=one.help, label_keys=[*LABELS, *one.labels])
    for other in NETWORK:
        yield pb.MetricDescriptor(name=other.name, help=other.help, label_keys=[*LABELS, "interface"])


def pod_metrics(one: PodSample, counters: Mapping[str, Counters]) -> pb.PodSandboxMetrics:
    """`counters` are those of each container by its id."""
    meta = one.pod.meta
    labels = ["", meta.cgroup_parent, "", meta.id, meta.namespace, meta.name]
    return pb.PodSandboxMetrics(
        pod_sandbox_id=meta.id,
        metrics=[
            _metric(metric.name, one.sample.at, _COUNTER, [*labels, interface.name], metric.of(interface))
            for metric in NETWORK
            for interface in one.interfaces
        ],
        container_metrics=[_container(inside, counters.get(inside.container.meta.id, {})) for inside in one.containers],
    )


def _container(one: ContainerSample, counters: Counters) -> pb.ContainerMetrics:
    meta, pod = one.container.meta, one.container.pod.meta
    labels = [meta.name, meta.id, meta.image_ref, meta.id, pod.namespace, pod.name]
    return pb.ContainerMetrics(
        container_id=meta.id,
        metrics=[
            _metric(metric.name, one.sample.at, metric.kind, [*labels, *extra], value)
            for metric in CONTAINER
            for extra, value in metric.values(one, counters)
        ],
    )


def _metric(name: str, at: int, kind: pb.MetricType, labels: list[str], value: int) -> Fields:
    return {
        "name": name, "timestamp": at, "metric_type": kind, "label_values": labels, "value": {"value": max(0, value)},
    }  # fmt: skip
