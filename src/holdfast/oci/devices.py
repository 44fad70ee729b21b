"""Device nodes, and the device cgroup."""

from dataclasses import replace
from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.model.spec import DeviceNode
from holdfast.oci.request import Spec, SpecRequest
from holdfast.oci.text import in_container
from holdfast.proto import runtime_v1_pb2 as pb

# major and minor of null, zero, full, random, urandom, tty, ptmx and all of pts (runtime-spec, config-linux.md)
_STANDARD: Final = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))


def check(device: pb.Device, field: str) -> None:
    for name in ("container_path", "host_path"):
        path = getattr(device, name)
        if not path.startswith("/") and (path or name == "host_path"):
            raise InvalidArgument(f"{field}.{name}: {path!r} is not absolute")
    if set(device.permissions) - set("rwm"):
        raise InvalidArgument(f"{field}.permissions: {device.permissions!r} is not made of r, w and m")


def inside(device: pb.Device, found: DeviceNode, below: str = "") -> DeviceNode:
    """A node of the host as the container is to have it; `below` is its name in a directory that was asked for."""
    path = device.container_path or device.host_path
    return replace(found, path=in_container(f"{path}/{below}"), source=found.path)


def owned(node: DeviceNode, context: pb.LinuxContainerSecurityContext) -> DeviceNode:
    """The same, belonging to the user and group that the config says, but never to root for that."""
    uid, gid = context.run_as_user.value, context.run_as_group.value
    return replace(node, uid=uid or node.uid, gid=gid or node.gid)


def devices(request: SpecRequest) -> list[Spec]:
    """Device nodes beyond the standard ones: those asked for, and all of the host's for a privileged container."""
    found: dict[str, Spec] = {}
    for node in (*(one for nodes in request.devices for one in nodes), *request.host_devices):
        found.setdefault(node.path, _node(node))
    return list(found.values())


def bind(spec: Spec, request: SpecRequest) -> None:
    """In a spec that nobody else has yet, mount the nodes that a runtime would take for others.

    Where there is a user namespace nobody can make nodes. runc then shows the host's node of the same name, whatever
    the spec says it is; crun makes them before. So what has another name here than inside is mounted.
    """
    sources = {node.path: node.source for nodes in request.devices for node in nodes}
    sources |= {node.path: node.host_path for node in request.cdi.nodes}
    moved = [one["path"] for one in spec["linux"]["devices"] if sources.get(one["path"], one["path"]) != one["path"]]
    spec["linux"]["devices"] = [one for one in spec["linux"]["devices"] if one["path"] not in moved]
    spec["mounts"] += [
        {"destination": path, "type": "bind", "source": sources[path], "options": ["bind", "rprivate"]}
        for path in moved
    ]


def rules(request: SpecRequest) -> list[Spec]:
    """The device cgroup: everything for a privileged container, else the standard devices and those asked for."""
    if request.container.linux.security_context.privileged and request.all_devices:
        return [{"allow": True, "access": "rwm"}]
    found: list[Spec] = [{"allow": False, "access": "rwm"}]
    found += [{"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")]
    for major, minor in _STANDARD:
        found.append(
            {"allow": True, "type": "c", "major": major, "access": "rwm"} | ({} if minor is None else {"minor": minor})
        )
    for device, nodes in zip(request.container.devices, request.devices, strict=True):
        access = device.permissions or "rwm"
        found += [
            {"allow": True, "type": node.type, "major": node.major, "minor": node.minor, "access": access}
            for node in nodes
            if node.type in ("c", "b")  # others are no matter of the device cgroup, whose file refuses them
        ]
    return found


def _node(node: DeviceNode) -> Spec:
    return {
        "path": node.path, "type": node.type, "major": node.major, "minor": node.minor,
        "fileMode": node.mode, "uid": node.uid, "gid": node.gid,
    }  # fmt: skip
