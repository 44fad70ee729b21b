"""From the world to the CRI's messages. Pure."""

import json

from google.protobuf.json_format import MessageToDict

from holdfast.lifecycle.events import Gap, Happening, Notice
from holdfast.lifecycle.limits import asked_of
from holdfast.lifecycle.networks import network_result
from holdfast.lifecycle.objects import Container, Pod
from holdfast.model.image import Image
from holdfast.model.state import ContainerState, PodState
from holdfast.oci import signals
from holdfast.proto import node_pb2
from holdfast.proto import runtime_v1_pb2 as pb

CONTAINER_STATE = {
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.EXITED: pb.CONTAINER_EXITED,
    ContainerState.UNKNOWN: pb.CONTAINER_UNKNOWN,
}
POD_STATE = {PodState.READY: pb.SANDBOX_READY, PodState.NOTREADY: pb.SANDBOX_NOTREADY}


def pod_metadata(pod: Pod) -> pb.PodSandboxMetadata:
    meta = pod.meta
    return pb.PodSandboxMetadata(name=meta.name, uid=meta.uid, namespace=meta.namespace, attempt=meta.attempt)


def pod_item(pod: Pod) -> pb.PodSandbox:
    return pb.PodSandbox(
        id=pod.meta.id,
        metadata=pod_metadata(pod),
        state=POD_STATE[pod.state],
        created_at=pod.meta.created_at,
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.meta.handler,
    )


def pod_status(pod: Pod) -> pb.PodSandboxStatus:
    ips = () if pod.status.stopped_at else network_result(pod).ips
    options = pod.config.linux.security_context.namespace_options
    return pb.PodSandboxStatus(
        id=pod.meta.id,
        metadata=pod_metadata(pod),
        state=POD_STATE[pod.state],
        created_at=pod.meta.created_at,
        network=pb.PodSandboxNetworkStatus(
            ip=ips[0] if ips else "", additional_ips=[pb.PodIP(ip=ip) for ip in ips[1:]]
        ),
        linux=pb.LinuxPodSandboxStatus(namespaces=pb.Namespace(options=options)),
        labels=pod.config.labels,
        annotations=pod.config.annotations,
        runtime_handler=pod.meta.handler,
    )


def pod_info(pod: Pod) -> dict[str, str]:
    """The verbose half of PodSandboxStatus, each value JSON where it is more than a word."""
    asked = asked_of(pod)
    info = {
        "pid": pod.status.shim.pid if pod.status.shim else 0,
        "networkNamespace": pod.status.netns,
        "cgroupParent": pod.meta.cgroup_parent,
        "ownsCgroup": bool(pod.meta.owns_cgroup),
        "resources": MessageToDict(asked.resources),
        "overhead": MessageToDict(asked.overhead),
        "networkTrouble": pod.network_trouble,
        "reason": pod.status.reason,
        "underWay": sorted(pod.intents),
    }
    return {"info": json.dumps(info)}


def container_item(container: Container) -> pb.Container:
    config = container.config
    return pb.Container(
        id=container.meta.id,
        pod_sandbox_id=container.meta.pod_id,
        metadata=config.metadata,
        image=config.image,
        image_ref=container.meta.image_id,
        image_id=container.meta.image_id,
        state=CONTAINER_STATE[container.state],
        created_at=container.meta.created_at,
        labels=config.labels,
        annotations=config.annotations,
    )


def container_status(container: Container, image_ref: str, limits: pb.LinuxContainerResources) -> pb.ContainerStatus:
    """`image_ref` is the digest reference of the image, or its id; `limits` are in force."""
    config, status = container.config, container.status
    return pb.ContainerStatus(
        id=container.meta.id,
        metadata=config.metadata,
        state=CONTAINER_STATE[container.state],
        created_at=container.meta.created_at,
        started_at=status.started_at,
        finished_at=status.finished_at,
        exit_code=status.exit_code,
        image=_image_spec(container),
        image_ref=image_ref,
        image_id=container.meta.image_id,
        reason=status.reason,
        message=status.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=config.mounts,
        log_path=container.meta.log_path,
        resources=pb.ContainerResources(linux=limits),
        user=pb.ContainerUser.FromString(status.user) if status.user else None,
        stop_signal=config.stop_signal or signals.cri_signal(container.meta.stop_signal),
    )


def _image_spec(container: Container) -> pb.ImageSpec:
    """What the client has said about the image, under the name that its user gave it."""
    spec = pb.ImageSpec()
    spec.CopyFrom(container.config.image)
    spec.image = container.meta.image_ref
    return spec


def container_info(container: Container, spec: dict[str, object] | None) -> dict[str, str]:
    """The verbose half of ContainerStatus."""
    process = container.status.process
    info = {
        "sandboxID": container.meta.pod_id,
        "pid": process.pid if process and container.state is ContainerState.RUNNING else 0,
        "snapshotKey": container.meta.snapshot_key,
        "oomKills": container.status.oom_kills,
        "underWay": sorted(container.intents),
        "restoredFrom": container.meta.checkpoint,
        "runtimeSpec": spec,
    }
    return {"info": json.dumps(info)}


def pod_entry(pod: Pod) -> bytes:
    """One element of ListPodSandboxResponse on the wire, made once for a status."""
    if pod.shown is None or pod.shown[0] is not pod.status:
        pod.shown = (pod.status, pb.ListPodSandboxResponse(items=[pod_item(pod)]).SerializeToString())
    return pod.shown[1]


def container_entry(container: Container) -> bytes:
    """One element of ListContainersResponse on the wire, made once for a status.

    A repeated field is the concatenation of its elements, so that a list is a join of these.
    """
    if container.shown is None or container.shown[0] is not container.status:
        reply = pb.ListContainersResponse(containers=[container_item(container)])
        container.shown = (container.status, reply.SerializeToString())
    return container.shown[1]


def event(one: Happening | Notice | Gap) -> node_pb2.Event:
    """What happened, in words; a gap is told as an event of its own."""
    if isinstance(one, Gap):
        return node_pb2.Event(number=one.until, kind="gap")
    if isinstance(one, Notice):
        state = "unhealthy" if one.reason else "healthy"
        return node_pb2.Event(
            number=one.number,
            at=one.at,
            kind="storage",
            object="filesystem",
            id=one.path,
            name=one.use,
            state=state,
            reason=one.reason,
        )
    pod = one.pod
    found = node_pb2.Event(
        number=one.number,
        at=one.at,
        kind=one.kind.name.lower(),
        object="container" if one.container else "pod",
        id=one.id,
        name=pod.meta.name,
        pod_id=pod.meta.id,
        pod_name=pod.meta.name,
        namespace=pod.meta.namespace,
        state=str(pod.state),
        reason=one.reason or pod.status.reason,
    )
    if one.container is not None:
        container = one.container
        found.name, found.state = container.meta.name, str(container.state)
        found.exit_code, found.reason = container.status.exit_code, container.status.reason
        found.oom_kills = container.status.oom_kills
    return found


def image_item(image: Image) -> pb.Image:
    uid, name = image_user(image.user)
    return pb.Image(
        id=image.id,
        repo_tags=image.tags,
        repo_digests=image.digests,
        size=image.size,
        uid=pb.Int64Value(value=uid) if uid is not None else None,
        username=name,
        spec=pb.ImageSpec(image=image.id),
        pinned=image.pinned,
    )


def image_user(user: str) -> tuple[int | None, str]:
    """(uid, "") or (None, name) from an image's "user[:group]"; root when it says nothing."""
    name = user.partition(":")[0]
    if not name:
        return 0, ""
    return (int(name), "") if name.isdigit() else (None, name)


def image_info(image: Image) -> dict[str, str]:
    return {"info": json.dumps({"imageSpec": json.loads(image.config), "diffIDs": list(image.diff_ids)})}
