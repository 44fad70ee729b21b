"""The CRI's list filters: every part that is given must match. Pure."""

from collections.abc import Mapping

from holdfast.cri.convert import CONTAINER_STATE, POD_STATE
from holdfast.lifecycle.world import Container, Pod
from holdfast.proto import runtime_v1_pb2 as pb


def pod_matches(pod: Pod, wanted: pb.PodSandboxFilter) -> bool:
    if not pod.acknowledged or not pod.meta.id.startswith(wanted.id):
        return False
    if wanted.HasField("state") and POD_STATE[pod.state] != wanted.state.state:
        return False
    return labels_match(pod.config.labels, wanted.label_selector)


def container_matches(container: Container, wanted: pb.ContainerFilter) -> bool:
    if not container.acknowledged or not container.meta.id.startswith(wanted.id):
        return False
    if not container.meta.pod_id.startswith(wanted.pod_sandbox_id):
        return False
    if wanted.HasField("state") and CONTAINER_STATE[container.state] != wanted.state.state:
        return False
    return labels_match(container.config.labels, wanted.label_selector)


def labels_match(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())
