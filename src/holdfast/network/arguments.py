"""What plugins are told of a pod, by the capabilities of the CNI conventions (CONVENTIONS.md). Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.network.network import PodNetwork

INGRESS: Final = "kubernetes.io/ingress-bandwidth"
EGRESS: Final = "kubernetes.io/egress-bandwidth"
PREFIX: Final = "network.holdfast.io/"  # annotations for what Kubernetes has no field for
BURST: Final = (1 << 32) - 1
LEAST_RATE, MOST_RATE = 10**3, 10**15  # bits a second, as Kubernetes bounds them
_QUANTITY: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    f"{name}i": 1 << 10 * (power + 1) for power, name in enumerate("KMGTP")
}


def arguments(pod: PodNetwork, capabilities: frozenset[str], pod_cidrs: tuple[str, ...]) -> dict[str, Any]:
    """By capability, those that are asked for and there is something to say about.

    Raises InvalidArgument for an annotation that says nothing, FailedPrecondition for a host's port that nobody maps.
    """
    ports = [number for number, port in enumerate(pod.ports) if port.host]
    if ports and "portMappings" not in capabilities:
        raise FailedPrecondition(
            f"config.port_mappings[{ports[0]}].host_port: no plugin of the network maps ports of the host; "
            "a portmap plugin with the capability portMappings does"
        )
    found: dict[str, Any] = {
        "portMappings": [
            {"hostPort": one.host, "containerPort": one.container, "protocol": one.protocol}
            | ({"hostIP": one.address} if one.address else {})
            for one in pod.ports
            if one.host
        ],
        "bandwidth": _bandwidth(pod.annotations),
        "dns": _filled({"servers": pod.servers, "searches": pod.searches, "options": pod.options}),
        "ipRanges": _ranges(pod.annotations) or [[{"subnet": cidr}] for cidr in pod_cidrs],
        "ips": _listed(pod.annotations, "ips"),
        "mac": pod.annotations.get(f"{PREFIX}mac", ""),
        "aliases": _listed(pod.annotations, "aliases"),
        "cgroupPath": pod.cgroup_parent,
        "io.kubernetes.cri.pod-annotations": dict(pod.annotations),
    }
    return {name: value for name, value in found.items() if value and name in capabilities}


def environment(pod: PodNetwork) -> str:
    """CNI_ARGS, as kubelets' runtimes set it."""
    told = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod.namespace,
        "K8S_POD_NAME": pod.name,
        "K8S_POD_INFRA_CONTAINER_ID": pod.id,
        "K8S_POD_UID": pod.uid,
    }
    return ";".join(f"{key}={value.translate(_SEPARATORS)}" for key, value in told.items())


_SEPARATORS: Final = str.maketrans(dict.fromkeys(";=", "_"))


def _filled(values: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    return {name: list(value) for name, value in values.items() if value}


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, name in ((INGRESS, "ingress"), (EGRESS, "egress")):
        if key in annotations:
            found |= {f"{name}Rate": _rate(annotations[key], key), f"{name}Burst": BURST}
    return found


def _rate(text: str, key: str) -> int:
    """Bits a second from a Kubernetes quantity such as "10M"."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"config.annotations[{key}]: {text[:40]!r} is not a quantity such as '10M'")
    unit, part = _UNITS[match[3] or ""], match[2] or "0"
    rate: int = int(match[1]) * unit + int(part) * unit // 10 ** len(part)
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise InvalidArgument(f"config.annotations[{key}]: {text!r} is not within 1k and 1P")
    return rate


def _listed(annotations: Mapping[str, str], name: str) -> list[str]:
    return [word for word in annotations.get(f"{PREFIX}{name}", "").replace(",", " ").split() if word]


def _ranges(annotations: Mapping[str, str]) -> list[Any]:
    key = f"{PREFIX}ip-ranges"
    if key not in annotations:
        return []
    try:
        found = json.loads(annotations[key])
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, list) for one in found):
        raise InvalidArgument(f"config.annotations[{key}]: it is not a JSON list of lists of ranges")
    return found
