"""What is mounted into a container."""

from typing import Final

from holdfast.model.errors import InvalidArgument, Unimplemented
from holdfast.oci.request import Spec, SpecRequest
from holdfast.oci.text import in_container
from holdfast.proto import runtime_v1_pb2 as pb

_PROPAGATION: Final = {
    pb.PROPAGATION_PRIVATE: "rprivate",
    pb.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    pb.PROPAGATION_BIDIRECTIONAL: "rshared",
}


def check(mount: pb.Mount, field: str) -> None:
    for name in ("container_path", "host_path"):
        path = getattr(mount, name)
        if not path.startswith("/") and not (name == "host_path" and mount.HasField("image")):
            raise InvalidArgument(f"{field}.{name}: {path!r} is not absolute")
    if in_container(mount.container_path) == "/":
        raise InvalidArgument(f"{field}.container_path: the root itself cannot be mounted over")
    if mount.recursive_read_only and (not mount.readonly or mount.propagation != pb.PROPAGATION_PRIVATE):
        raise InvalidArgument(f"{field}.recursive_read_only: it needs readonly, and private propagation")


def mounts(request: SpecRequest) -> list[Spec]:
    """Defaults first, replaced by what is asked for at the same place; parents come before what is below them."""
    privileged = request.container.linux.security_context.privileged
    wanted = [_bind(mount, f"config.mounts[{number}]") for number, mount in enumerate(request.container.mounts)]
    found = {mount["destination"]: mount for mount in _default_mounts(request, privileged)}
    if any(mount["destination"] == "/dev" for mount in wanted):
        # What is mounted there is a /dev as somebody wants it: nothing of ours goes into it.
        found = {place: mount for place, mount in found.items() if not place.startswith("/dev/")}
    for mount in wanted:
        found.pop(mount["destination"], None)
        found[mount["destination"]] = mount
    return sorted(found.values(), key=lambda mount: mount["destination"].count("/"))


def rootfs_propagation(config: pb.ContainerConfig) -> str:
    """That of the container's root, which bounds that of its mounts; "" for the runtime's own choice."""
    asked = [mount.propagation for mount in config.mounts]
    if pb.PROPAGATION_BIDIRECTIONAL in asked:
        return "rshared"
    return "rslave" if pb.PROPAGATION_HOST_TO_CONTAINER in asked else ""


def _default_mounts(request: SpecRequest, privileged: bool) -> list[Spec]:
    secure = ["nosuid", "noexec", "nodev"]
    access = [] if privileged else ["ro"]
    mounts = [
        _mount("/proc", "proc", "proc", secure),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", secure),
        _mount("/sys", "sysfs", "sysfs", [*secure, *access]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*secure, "relatime", *access]),
    ]
    if request.shm:
        mounts.append(_mount("/dev/shm", "bind", request.shm, ["rbind", "nosuid", "noexec", "nodev"]))
    read_only = ["ro"] if request.container.linux.security_context.readonly_rootfs else ["rw"]
    files = {
        "/etc/resolv.conf": request.resolv_conf,
        "/etc/hosts": request.hosts,
        "/etc/hostname": request.hostname_path,
    }
    mounts += [_mount(place, "bind", path, ["rbind", "rprivate", *read_only]) for place, path in files.items() if path]
    return mounts


def _bind(mount: pb.Mount, where: str) -> Spec:
    if mount.HasField("image"):
        raise Unimplemented(f"{where}.image: image volumes cannot be used yet")
    if mount.uidMappings or mount.gidMappings:
        raise Unimplemented(f"{where}.uidMappings: id-mapped mounts cannot be used yet")
    if mount.recursive_read_only:
        raise InvalidArgument(f"{where}.recursive_read_only: the OCI runtime here cannot do it")
    options = ["rbind", _PROPAGATION[mount.propagation], "ro" if mount.readonly else "rw"]
    return _mount(in_container(mount.container_path), "bind", mount.host_path, options)


def _mount(destination: str, kind: str, source: str, options: list[str]) -> Spec:
    return {"destination": destination, "type": kind, "source": source, "options": options}
