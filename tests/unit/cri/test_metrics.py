"""Every metric that is sent has a descriptor, with a value for each of its labels."""

from pathlib import Path

from holdfast.cri import metrics
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.stats import ContainerSample, Interface, Layer, PodSample, Pressure, Sample
from holdfast.linux.usage import Usage
from holdfast.model.spec import ContainerMetadata, PodMetadata
from holdfast.model.state import ContainerStatus, PodStatus
from holdfast.proto import runtime_v1_pb2 as pb

STALLS = (Pressure(5_000_000, (0.0, 0.0, 0.0)), Pressure(2_000_000, (0.0, 0.0, 0.0)))
FULL = Usage(7_000_000_000, 100, 80, 60, 5, 1, 1000, 3, 9, 4, pressure=dict.fromkeys(("cpu", "memory", "io"), STALLS))
COUNTERS = dict.fromkeys(
    ("periods", "throttled", "cache", "mapped", "kernel", "peak", "failures", "cpu_quota", "cpu_period", "cpu_shares"),
    3,
) | {"cpu_user": 4_000_000_000, "cpu_system": 2_999_999_999, "throttled_time": 1_000_000_000}


def sample(usage: Usage | None) -> PodSample:
    pod = Pod(
        PodMetadata("p", "web", "default", "u", 0, "crun", b"", "/kubepods/x", False, 1),
        pb.PodSandboxConfig(),
        PodStatus(ready=True),
    )
    meta = ContainerMetadata("c", "p", "main", 0, b"", "busybox", "sha256:1", "k", "", "", 1)
    status = ContainerStatus(started_at=5_000_000_000, oom_kills=2)
    container = Container(meta, status, pb.ContainerConfig(), pod)
    inside = ContainerSample(container, Sample(9_000_000_000, usage), Layer(Path("/layer"), 4096, 2, 1))
    return PodSample(pod, Sample(9_000_000_000, usage), [Interface("eth0", *range(1, 9))], [inside])


def test_every_metric_has_a_descriptor_and_all_labels() -> None:
    known = {one.name: len(one.label_keys) for one in metrics.descriptors()}
    found = metrics.pod_metrics(sample(FULL), {"c": COUNTERS})
    sent = [*found.metrics, *found.container_metrics[0].metrics]
    assert {one.name: len(one.label_values) for one in sent} == known
    assert len(known) == len(list(metrics.descriptors()))


def test_values() -> None:
    (inside,) = metrics.pod_metrics(sample(FULL), {"c": COUNTERS}).container_metrics
    found = {(one.name, *one.label_values[6:]): one for one in inside.metrics}
    total = found["container_cpu_usage_seconds_total", "total"]
    assert (total.value.value, total.metric_type, total.timestamp) == (7, pb.COUNTER, 9_000_000_000)
    assert list(total.label_values) == ["main", "c", "busybox", "c", "default", "web", "total"]
    assert found["container_cpu_system_seconds_total",].value.value == 2
    assert found["container_memory_failures_total", "pgmajfault", "hierarchy"].value.value == 1
    assert found["container_fs_usage_bytes", "/layer"].value.value == 4096
    assert found["container_pressure_io_stalled_seconds_total",].value.value == 2
    assert found["container_start_time_seconds",].value.value == 5
    assert found["container_oom_events_total",].value.value == 2


def test_what_is_not_counted_is_not_sent() -> None:
    (inside,) = metrics.pod_metrics(sample(Usage()), {}).container_metrics
    assert {one.name for one in inside.metrics} == {
        "container_fs_usage_bytes",
        "container_fs_inodes_used",
        "container_last_seen",
        "container_start_time_seconds",
        "container_oom_events_total",
    }
