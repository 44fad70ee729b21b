"""From samples to the CRI's messages of statistics. Pure."""

from typing import TypeVar

from holdfast.cri.convert import pod_metadata
from holdfast.lifecycle.stats import ContainerSample, Layer, PodSample, Pressure, Sample
from holdfast.proto import runtime_v1_pb2 as pb

T = TypeVar("T", pb.CpuUsage, pb.MemoryUsage, pb.IoUsage)


def container_stats(one: ContainerSample) -> pb.ContainerStats:
    config = one.container.config
    found = pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=one.container.meta.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
        )
    )
    if one.sample.usage is not None:
        found.cpu.CopyFrom(_cpu(one.sample))
        found.memory.CopyFrom(_memory(one.sample))
        _swap(found, one.sample)
        _io(found, one.sample)
    if one.layer is not None:
        found.writable_layer.CopyFrom(_layer(one.layer))
    return found


def pod_stats(one: PodSample) -> pb.PodSandboxStats:
    config = one.pod.config
    found = pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=one.pod.meta.id, metadata=pod_metadata(one.pod), labels=config.labels, annotations=config.annotations
        )
    )
    found.linux.containers.extend(container_stats(container) for container in one.containers)
    if one.interfaces:
        shown = [
            pb.NetworkInterfaceUsage(
                name=each.name,
                rx_bytes=_value(each.rx_bytes),
                rx_errors=_value(each.rx_errors),
                tx_bytes=_value(each.tx_bytes),
                tx_errors=_value(each.tx_errors),
            )
            for each in one.interfaces
        ]
        default = next((each for each in shown if each.name == "eth0"), shown[0])
        others = [each for each in shown if each is not default]
        found.linux.network.CopyFrom(
            pb.NetworkUsage(timestamp=one.sample.at, default_interface=default, interfaces=others)
        )
    if one.sample.usage is not None:
        found.linux.cpu.CopyFrom(_cpu(one.sample))
        found.linux.memory.CopyFrom(_memory(one.sample))
        _io(found.linux, one.sample)
        if one.sample.usage.processes is not None:
            count = _value(one.sample.usage.processes)
            found.linux.process.CopyFrom(pb.ProcessUsage(timestamp=one.sample.at, process_count=count))
    return found


def _cpu(sample: Sample) -> pb.CpuUsage:
    assert sample.usage is not None
    found = pb.CpuUsage(timestamp=sample.at, usage_core_nano_seconds=_value(sample.usage.cpu))
    if sample.rate is not None:
        found.usage_nano_cores.value = sample.rate
    return _pressed(found, sample, "cpu")


def _memory(sample: Sample) -> pb.MemoryUsage:
    used = sample.usage
    assert used is not None
    available = None
    if used.memory_limit is not None and used.working_set is not None:
        available = max(0, used.memory_limit - used.working_set)
    found = pb.MemoryUsage(
        timestamp=sample.at,
        working_set_bytes=_value(used.working_set),
        available_bytes=_value(available),
        usage_bytes=_value(used.memory),
        rss_bytes=_value(used.rss),
        page_faults=_value(used.faults),
        major_page_faults=_value(used.major_faults),
    )
    return _pressed(found, sample, "memory")


def _swap(found: pb.ContainerStats, sample: Sample) -> None:
    used = sample.usage
    if used is None or used.swap is None:
        return
    left = None if used.swap_limit is None else max(0, used.swap_limit - used.swap)
    found.swap.CopyFrom(
        pb.SwapUsage(timestamp=sample.at, swap_available_bytes=_value(left), swap_usage_bytes=_value(used.swap))
    )


def _io(found: pb.ContainerStats | pb.LinuxPodSandboxStats, sample: Sample) -> None:
    if sample.usage is not None and sample.usage.pressure and "io" in sample.usage.pressure:
        found.io.CopyFrom(_pressed(pb.IoUsage(timestamp=sample.at), sample, "io"))


def _layer(layer: Layer) -> pb.FilesystemUsage:
    return pb.FilesystemUsage(
        timestamp=layer.at,
        fs_id=pb.FilesystemIdentifier(mountpoint=str(layer.place)),
        used_bytes=_value(layer.bytes),
        inodes_used=_value(layer.inodes),
    )


def _pressed(found: T, sample: Sample, kind: str) -> T:
    """The message with the stalls of that kind, where this host counts them."""
    pressures = sample.usage.pressure if sample.usage is not None else None
    if pressures and kind in pressures:
        some, full = pressures[kind]
        found.psi.Some.CopyFrom(_stalls(some))
        found.psi.Full.CopyFrom(_stalls(full))
    return found


def _stalls(pressure: Pressure) -> pb.PsiData:
    short, middle, long = pressure.averages
    return pb.PsiData(Total=pressure.total, Avg10=short, Avg60=middle, Avg300=long)


def _value(number: int | None) -> pb.UInt64Value | None:
    return None if number is None else pb.UInt64Value(value=number)
