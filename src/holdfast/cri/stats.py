"""From samples to the CRI's messages of statistics. Pure.

A message is made at once, from plain dictionaries of what is below it: for hundreds of containers that is several times
cheaper than a message for each number.
"""

from typing import Any

from holdfast.cri.convert import pod_metadata
from holdfast.lifecycle.objects import Container, Pod
from holdfast.lifecycle.stats import ContainerSample, Layer, PodSample, Pressure, Sample
from holdfast.proto import runtime_v1_pb2 as pb

Fields = dict[str, Any]  # of a message, as its constructor takes them


def container_stats(one: ContainerSample) -> pb.ContainerStats:
    return pb.ContainerStats(**_container(one))


def pod_stats(one: PodSample) -> pb.PodSandboxStats:
    linux: Fields = {"containers": [_container(container) for container in one.containers], **_used(one.sample)}
    linux.pop("swap", None)  # the CRI has it of containers only
    if one.interfaces:
        linux["network"] = _network(one)
    if one.sample.usage is not None and one.sample.usage.processes is not None:
        linux["process"] = {"timestamp": one.sample.at, **_values(process_count=one.sample.usage.processes)}
    return pb.PodSandboxStats(attributes=_pod_attributes(one.pod), linux=linux)


def _container(one: ContainerSample) -> Fields:
    found: Fields = {"attributes": _attributes(one.container), **_used(one.sample)}
    if one.layer is not None:
        found["writable_layer"] = _layer(one.layer)
    return found


def _attributes(container: Container) -> pb.ContainerAttributes:
    """Made once, since they never change: to copy maps takes longer than all else here."""
    if (found := container.attributes) is None:
        config = container.config
        found = container.attributes = pb.ContainerAttributes(
            id=container.meta.id, metadata=config.metadata, labels=config.labels, annotations=config.annotations
        )
    return found


def _pod_attributes(pod: Pod) -> pb.PodSandboxAttributes:
    if (found := pod.attributes) is None:
        config = pod.config
        found = pod.attributes = pb.PodSandboxAttributes(
            id=pod.meta.id, metadata=pod_metadata(pod), labels=config.labels, annotations=config.annotations
        )
    return found


def _network(one: PodSample) -> Fields:
    shown = [
        {
            "name": each.name,
            **_values(
                rx_bytes=each.rx_bytes, rx_errors=each.rx_errors, tx_bytes=each.tx_bytes, tx_errors=each.tx_errors
            ),
        }
        for each in one.interfaces
    ]
    default = next((each for each in shown if each["name"] == "eth0"), shown[0])
    others = [each for each in shown if each is not default]
    return {"timestamp": one.sample.at, "default_interface": default, "interfaces": others}


def _used(sample: Sample) -> Fields:
    """cpu, memory, and swap and io where this host counts them; nothing of what is not there any more."""
    used, at = sample.usage, sample.at
    if used is None:
        return {}
    available = swap_left = None
    if used.memory_limit is not None and used.working_set is not None:
        available = max(0, used.memory_limit - used.working_set)
    if used.swap_limit is not None and used.swap is not None:
        swap_left = max(0, used.swap_limit - used.swap)
    found: Fields = {
        "cpu": {"timestamp": at, **_values(usage_core_nano_seconds=used.cpu, usage_nano_cores=sample.rate)},
        "memory": {
            "timestamp": at,
            **_values(
                working_set_bytes=used.working_set,
                available_bytes=available,
                usage_bytes=used.memory,
                rss_bytes=used.rss,
                page_faults=used.faults,
                major_page_faults=used.major_faults,
            ),
        },
    }
    if used.swap is not None:
        swap = _values(swap_available_bytes=swap_left, swap_usage_bytes=used.swap)
        found["swap"] = {"timestamp": at, **swap}
    for kind, (some, full) in (used.pressure or {}).items():
        found.setdefault(kind, {"timestamp": at})["psi"] = {"Some": _stalls(some), "Full": _stalls(full)}
    return found


def _layer(layer: Layer) -> Fields:
    place = {"mountpoint": str(layer.place)}
    return {"timestamp": layer.at, "fs_id": place, **_values(used_bytes=layer.bytes, inodes_used=layer.inodes)}


def _stalls(pressure: Pressure) -> Fields:
    short, middle, long = pressure.averages
    return {"Total": pressure.total, "Avg10": short, "Avg60": middle, "Avg300": long}


def _values(**numbers: int | None) -> Fields:
    """UInt64Values; what is not known is left out."""
    return {name: {"value": number} for name, number in numbers.items() if number is not None}
