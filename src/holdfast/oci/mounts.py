"""What is mounted into a container.

Most are binds that the OCI runtime makes from a path of the host. What not every runtime can make is *staged*: made by
us below the bundle right before the runtime is called, bound from there by the runtime, and taken away as soon as the
container is created. See docs/adr/0026-mounts.md.
"""

from collections.abc import Iterable
from typing import Final

from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.oci.request import Spec, SpecRequest
from holdfast.oci.text import in_container
from holdfast.proto import runtime_v1_pb2 as pb

ID_LIMIT: Final = 1 << 32
MAP_LINES: Final = 340  # user_namespaces(7)
_PROPAGATION: Final = {
    pb.PROPAGATION_PRIVATE: "rprivate",
    pb.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    pb.PROPAGATION_BIDIRECTIONAL: "rshared",
}
# What the mount that holds a source must be for each, as mountinfo has it: containerd asks for the same.
_NEEDED: Final = {
    pb.PROPAGATION_HOST_TO_CONTAINER: ("shared", "slave"),
    pb.PROPAGATION_BIDIRECTIONAL: ("shared",),
}


def check(mount: pb.Mount, field: str) -> None:
    """Raises InvalidArgument that names the field."""
    if not mount.container_path.startswith("/"):
        raise InvalidArgument(f"{field}.container_path: {mount.container_path!r} is not absolute")
    if in_container(mount.container_path) == "/":
        raise InvalidArgument(f"{field}.container_path: the root itself cannot be mounted over")
    if mount.HasField("image"):
        _check_image(mount, field)
    elif mount.image_sub_path:
        raise InvalidArgument(f"{field}.image_sub_path: it needs an image")
    elif not mount.host_path.startswith("/"):
        raise InvalidArgument(f"{field}.host_path: {mount.host_path!r} is not absolute")
    if mount.recursive_read_only and (not mount.readonly or mount.propagation != pb.PROPAGATION_PRIVATE):
        raise InvalidArgument(f"{field}.recursive_read_only: it needs readonly, and private propagation")
    _check_mappings(mount, field)


def _check_image(mount: pb.Mount, field: str) -> None:
    if mount.host_path:
        raise InvalidArgument(f"{field}.host_path: it must be empty where an image is mounted")
    if not mount.image.image:
        raise InvalidArgument(f"{field}.image.image: must not be empty")
    if not mount.readonly:
        raise InvalidArgument(f"{field}.readonly: an image can be mounted read-only only")
    if mount.propagation != pb.PROPAGATION_PRIVATE:
        raise InvalidArgument(f"{field}.propagation: that of an image can be private only")
    path = mount.image_sub_path
    if path.startswith("/") or ".." in path.split("/"):
        raise InvalidArgument(f"{field}.image_sub_path: {path!r} is not a path below the image's root")


def _check_mappings(mount: pb.Mount, field: str) -> None:
    if bool(mount.uidMappings) != bool(mount.gidMappings):
        name, other = ("uidMappings", "gidMappings") if mount.uidMappings else ("gidMappings", "uidMappings")
        raise InvalidArgument(f"{field}.{name}: it needs {other}")
    for name in ("uidMappings", "gidMappings"):
        mappings = list(getattr(mount, name))
        if len(mappings) > MAP_LINES:
            raise InvalidArgument(f"{field}.{name}: more than {MAP_LINES} of them")
        for side in ("container_id", "host_id"):
            end = 0
            for first, length in sorted((getattr(one, side), one.length) for one in mappings):
                if not length or first + length > ID_LIMIT:
                    raise InvalidArgument(f"{field}.{name}: {length} from {side} {first} on are no ids")
                if first < end:
                    raise InvalidArgument(f"{field}.{name}: {side} {first} is mapped twice")
                end = first + length


def check_propagation(mount: pb.Mount, field: str, found: str, place: str) -> None:
    """Whether mounts can go where they are to, out of or into a source whose own mount is `found`, at `place`.

    Raises FailedPrecondition.
    """
    needed = _NEEDED.get(mount.propagation, ())
    if needed and found not in needed:
        why = f"{mount.host_path} is on the mount at {place}, which is {found} and not {' or '.join(needed)}"
        raise FailedPrecondition(f"{field}.propagation: {why}")


def image_volumes(config: pb.ContainerConfig) -> list[int]:
    """Which of the mounts are images."""
    return [number for number, mount in enumerate(config.mounts) if mount.HasField("image")]


def is_staged(mount: pb.Mount, recursive_read_only: bool) -> bool:
    """Whether it is made by us and not by the OCI runtime, which may know of `recursive_read_only` mounts."""
    return bool(mount.HasField("image") or mount.uidMappings or (mount.recursive_read_only and not recursive_read_only))


def mounts(request: SpecRequest) -> list[Spec]:
    """The kernel's filesystems, the pod's files and what is asked for; parents come before what is below them.

    What is asked for replaces what has the same place and whatever of the kernel's is below it. Of two at one place the
    later counts. Nothing of ours goes into a /dev of somebody's own, nor to where it would come out on the host.
    """
    wanted = {
        mount["destination"]: mount
        for mount in (_bind(request, number, mount) for number, mount in enumerate(request.container.mounts))
    }
    foreign = [place for place, mount in wanted.items() if place == "/dev" or "rshared" in mount["options"]]
    found = [mount for mount in _defaults(request) if not _is_covered(mount, wanted)]
    ours = [mount for mount in _pod_mounts(request) if not _is_covered(mount, foreign)]
    ours = [mount for mount in ours if mount["destination"] not in wanted]
    return sorted([*found, *ours, *wanted.values()], key=lambda mount: mount["destination"].count("/"))


def rootfs_propagation(config: pb.ContainerConfig) -> str:
    """That of the container's root, which bounds that of its mounts; "" for the runtime's own choice."""
    asked = [mount.propagation for mount in config.mounts]
    if pb.PROPAGATION_BIDIRECTIONAL in asked:
        return "rshared"
    return "rslave" if pb.PROPAGATION_HOST_TO_CONTAINER in asked else ""


def _is_covered(mount: Spec, tops: Iterable[str]) -> bool:
    """Whether it would be at one of these places, or below."""
    return any(f"{mount['destination']}/".startswith(f"{top}/") for top in tops)


def _defaults(request: SpecRequest) -> list[Spec]:
    secure = ["nosuid", "noexec", "nodev"]
    access = [] if request.container.linux.security_context.privileged else ["ro"]
    return [
        _mount("/proc", "proc", "proc", secure),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", secure),
        _mount("/sys", "sysfs", "sysfs", [*secure, *access]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*secure, "relatime", *access]),
    ]


def _pod_mounts(request: SpecRequest) -> list[Spec]:
    """What the containers of a pod have in common."""
    read_only = "ro" if request.container.linux.security_context.readonly_rootfs else "rw"
    files = {
        "/etc/resolv.conf": request.resolv_conf,
        "/etc/hosts": request.hosts,
        "/etc/hostname": request.hostname_path,
    }
    binds = [_mount(place, "bind", path, ["rbind", "rprivate", read_only]) for place, path in files.items() if path]
    if request.shm:
        options = ["rbind", "rprivate", "nosuid", "noexec", "nodev"]
        binds.insert(0, _mount("/dev/shm", "bind", request.shm, options))
    return binds


def _bind(request: SpecRequest, number: int, mount: pb.Mount) -> Spec:
    access = "ro" if mount.readonly else "rw"
    if mount.recursive_read_only and not is_staged(mount, request.sources.recursive_read_only):
        access = "rro"
    source = request.sources.paths[number] if request.sources.paths else mount.host_path
    options = ["rbind", _PROPAGATION[mount.propagation], access]
    return _mount(in_container(mount.container_path), "bind", source, options)


def _mount(destination: str, kind: str, source: str, options: list[str]) -> Spec:
    return {"destination": destination, "type": kind, "source": source, "options": options}
