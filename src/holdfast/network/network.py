"""The seam to pod networking: what a network does for a pinned namespace, and the loopback-only one.

A network is asked to `add` a namespace after the intent to do so is on disk, and to `delete` until that succeeds;
both are idempotent, and `delete` must work when the namespace is gone.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """The addresses a pod was given, the primary one first."""

    ips: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "NetworkResult":
        """Raises ValueError for anything but the output of to_json()."""
        raw = json.loads(text)
        return NetworkResult(tuple(str(ip) for ip in raw["ips"]))


class Network(Protocol):
    async def add(self, pod_id: str, namespace: Path) -> NetworkResult: ...

    async def delete(self, pod_id: str, namespace: Path) -> None: ...

    def ready(self) -> tuple[bool, str, str]:
        """(whether pods can be given a network, reason, message) for the CRI's NetworkReady condition."""
        ...


class LoopbackOnly:
    """Pods that are not on the host network have nothing but `lo`, which is up since the namespace was made."""

    async def add(self, pod_id: str, namespace: Path) -> NetworkResult:
        return NetworkResult()

    async def delete(self, pod_id: str, namespace: Path) -> None:
        return None

    def ready(self) -> tuple[bool, str, str]:
        return True, "", "pods have the host's network or loopback only"
