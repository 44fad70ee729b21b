"""Device nodes, and the device cgroup."""

from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.oci.request import HostFacts, Spec, SpecRequest
from holdfast.proto import runtime_v1_pb2 as pb

# major and minor of null, zero, full, random, urandom, tty, ptmx and all of pts (runtime-spec, config-linux.md)
_STANDARD: Final = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))


def check(device: pb.Device, field: str) -> None:
    for name in ("container_path", "host_path"):
        if not getattr(device, name).startswith("/"):
            raise InvalidArgument(f"{field}.{name}: {getattr(device, name)!r} is not absolute")
    if set(device.permissions) - set("rwm"):
        raise InvalidArgument(f"{field}.permissions: {device.permissions!r} is not made of r, w and m")


def devices(request: SpecRequest) -> list[Spec]:
    """Device nodes beyond the standard ones: all of the host's for a privileged container."""
    if request.container.linux.security_context.privileged:
        return [
            {"path": path, "type": kind, "major": major, "minor": minor}
            for path, kind, major, minor in request.facts.devices
        ]
    return [_device(device, number, request.facts) for number, device in enumerate(request.container.devices)]


def rules(request: SpecRequest) -> list[Spec]:
    """The device cgroup: everything for a privileged container, else the standard devices and those asked for."""
    if request.container.linux.security_context.privileged:
        return [{"allow": True, "access": "rwm"}]
    found: list[Spec] = [{"allow": False, "access": "rwm"}]
    found += [{"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")]
    for major, minor in _STANDARD:
        found.append(
            {"allow": True, "type": "c", "major": major, "access": "rwm"} | ({} if minor is None else {"minor": minor})
        )
    for number, device in enumerate(request.container.devices):
        one = _device(device, number, request.facts)
        access = device.permissions or "rwm"
        found.append(
            {"allow": True, "type": one["type"], "major": one["major"], "minor": one["minor"], "access": access}
        )
    return found


def _device(device: pb.Device, number: int, facts: HostFacts) -> Spec:
    for path, kind, major, minor in facts.devices:
        if path == device.host_path:
            return {"path": device.container_path, "type": kind, "major": major, "minor": minor}
    raise InvalidArgument(f"config.devices[{number}].host_path: {device.host_path!r} is not a device of this host")
