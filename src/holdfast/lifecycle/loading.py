"""The rows of pods and containers, as far as they can be read."""

import apsw

from holdfast.model.errors import Damaged
from holdfast.model.spec import ContainerMetadata, PodMetadata
from holdfast.model.state import ContainerStatus, PodStatus
from holdfast.network.network import NetworkResult
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.store import pods as rows

Pods = list[tuple[PodMetadata, PodStatus]]
Containers = list[tuple[ContainerMetadata, ContainerStatus]]


def load_rows(tx: apsw.Connection) -> tuple[Pods, Containers]:
    """All that can be read; what cannot is moved to the quarantine table."""
    pods = rows.load_pods(tx, _check_pod)
    known = {meta.id for meta, _ in pods}
    return pods, rows.load_containers(tx, lambda meta: _check_container(meta, known))


def _check_pod(meta: PodMetadata, status: PodStatus) -> None:
    pb.PodSandboxConfig.FromString(meta.config)
    if status.network:
        NetworkResult.from_json(status.network)


def _check_container(meta: ContainerMetadata, pods: set[str]) -> None:
    if meta.pod_id not in pods:
        raise Damaged(f"its pod sandbox {meta.pod_id} has no row")
    pb.ContainerConfig.FromString(meta.config)
