"""The seam to pod networking: what a network does for a pinned namespace, and the loopback-only one.

What will be attached is planned first, by what is known at that moment, and recorded; only then is the network asked
to `add`, and with the same record to `delete`, again and again until that succeeds. So it can be undone wherever it was
cut off, and whatever has been configured since. `delete` must work when the namespace is gone.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from holdfast.model.errors import FailedPrecondition
from holdfast.model.tally import Measure


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the host that leads to one of the pod. `host` is 0 where none is asked for."""

    protocol: str  # "tcp", "udp" or "sctp"
    container: int
    host: int
    address: str = ""


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """What a network needs to know of a pod. `cgroup` is for what is executed on its behalf."""

    id: str
    name: str
    namespace: str
    uid: str
    cgroup: str
    ports: tuple[Port, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str = ""
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attachment:
    """One interface of a pod in one network. `result` is the network's answer, None until it has given one."""

    interface: str
    network: Mapping[str, Any]  # the network configuration list as it was when it was planned
    arguments: Mapping[str, Any] = field(default_factory=dict)  # what it was told of the pod, by capability
    result: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return str(self.network["name"])

    @property
    def addresses(self) -> list[str]:
        """Of the interface, each with the length of its prefix, as the network has answered."""
        found = (self.result or {}).get("ips", ())
        return [str(one["address"]) for one in found if isinstance(one, Mapping) and "address" in one]


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """The addresses a pod was given, the primary one first, and what was attached, or was about to be."""

    ips: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "NetworkResult":
        """Raises ValueError for anything but the output of to_json(), of this release or an earlier one."""
        try:
            raw = json.loads(text)
            attachments = tuple(_attachment(**one) for one in raw.get("attachments", ()))
            return NetworkResult(tuple(str(ip) for ip in raw["ips"]), attachments)
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"{text[:100]!r} is no network result") from exc

    def without(self) -> "NetworkResult":
        """The plan alone."""
        return NetworkResult((), tuple(replace(one, result=None) for one in self.attachments))


def _attachment(network: Mapping[str, Any], **more: Any) -> Attachment:
    """Raises KeyError, TypeError for what is none."""
    made = Attachment(network={**network, "name": network["name"]}, **more)
    return replace(made, arguments={**made.arguments})


Record = Callable[[NetworkResult], Awaitable[None]]


class Network(Protocol):
    pod_cidrs: tuple[str, ...]
    measures: tuple[Measure, ...]

    async def plan(self, pod: PodNetwork) -> NetworkResult:
        """What to attach. Raises FailedPrecondition and Unavailable."""
        ...

    async def add(self, pod: PodNetwork, namespace: Path, planned: NetworkResult, record: Record) -> NetworkResult:
        """Attach what was planned. Raises Unavailable, DeadlineExceeded: delete undoes what was done by then.

        Before each step that depends on what those before it have said, that is given to `record`.
        """
        ...

    async def delete(self, pod: PodNetwork, namespace: Path, attached: NetworkResult) -> None:
        """Undo all of it, whatever became of the namespace. Idempotent. Raises Unavailable, DeadlineExceeded."""
        ...

    async def check(self, pod: PodNetwork, namespace: Path, attached: NetworkResult) -> None:
        """Whether all is still as `add` has left it. Raises Unavailable with what is missing."""
        ...

    async def collect(self, alive: Iterable[tuple[str, Attachment]]) -> None:
        """Release what none of these attachments has, each with its pod's id. Failures are logged."""
        ...

    async def ready(self) -> tuple[bool, str, str]:
        """(whether pods can be given a network, reason, message) for the CRI's NetworkReady condition."""
        ...

    def write_template(self) -> None:
        """Write the configuration that is made from `pod_cidrs`, where one is asked for. Blocks. Raises OSError."""
        ...


class LoopbackOnly:
    """Pods that are not on the host network have nothing but `lo`, which is up since the namespace was made."""

    pod_cidrs: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()

    async def plan(self, pod: PodNetwork) -> NetworkResult:
        for number, port in enumerate(pod.ports):
            if port.host:
                why = "there is no network but loopback; set cni_conf_dir"
                raise FailedPrecondition(f"config.port_mappings[{number}].host_port: {why}")
        return NetworkResult()

    async def add(self, pod: PodNetwork, namespace: Path, planned: NetworkResult, record: Record) -> NetworkResult:
        return NetworkResult()

    async def delete(self, pod: PodNetwork, namespace: Path, attached: NetworkResult) -> None:
        return None

    async def check(self, pod: PodNetwork, namespace: Path, attached: NetworkResult) -> None:
        return None

    async def collect(self, alive: Iterable[tuple[str, Attachment]]) -> None:
        return None

    def write_template(self) -> None:
        return None

    async def ready(self) -> tuple[bool, str, str]:
        return True, "", "pods have the host's network or loopback only"
