"""Which namespaces a container shares with its pod, and which with the host; who is who in those of users."""

from typing import Final

from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.model.userns import UserNamespace
from holdfast.oci.request import Spec, SpecRequest
from holdfast.oci.users import ResolvedUser
from holdfast.proto import runtime_v1_pb2 as pb

NO_ID: Final = 2**32 - 1  # means "leave as it is" to chown(2), and is nobody's


def check(options: pb.NamespaceOption, field: str, *, pod: bool) -> None:
    allowed: dict[str, tuple[pb.NamespaceMode, ...]] = {"network": (pb.POD, pb.NODE), "ipc": (pb.POD, pb.NODE)}
    allowed["pid"] = (pb.POD, pb.CONTAINER, pb.NODE) if pod else (pb.POD, pb.CONTAINER, pb.NODE, pb.TARGET)
    for name, modes in allowed.items():
        mode = getattr(options, name)
        if mode not in modes:
            shown = pb.NamespaceMode.Name(mode) if mode in pb.NamespaceMode.values() else str(mode)
            raise InvalidArgument(f"{field}.{name}: {shown} is not possible here")
    if options.HasField("userns_options"):
        _check_users(options, field)
    if options.pid == pb.TARGET and not options.target_id:
        raise InvalidArgument(f"{field}.target_id: it is needed for TARGET")


def check_same(options: pb.NamespaceOption, pod: pb.NamespaceOption, field: str) -> None:
    """The user namespace of a container is its pod's."""
    if user_namespace(options) != user_namespace(pod):
        raise InvalidArgument(f"{field}.userns_options: they are not those of the pod sandbox")


def user_namespace(options: pb.NamespaceOption) -> UserNamespace | None:
    """That of the pod's own, from options that were checked; None where it is the host's."""
    wanted = options.userns_options
    if not options.HasField("userns_options") or wanted.mode == pb.NODE:
        return None
    (uids,), (gids,) = wanted.uids, wanted.gids
    return UserNamespace(uids.host_id, gids.host_id, uids.length, gids.length)


def _check_users(options: pb.NamespaceOption, field: str) -> None:
    """One range of users and one of groups, root first, and nobody of them root of the host.

    The host's processes and IPC objects belong to the host's users, so that /proc and /dev/mqueue cannot be mounted.
    """
    wanted, where = options.userns_options, f"{field}.userns_options"
    if wanted.mode not in (pb.POD, pb.NODE):
        raise InvalidArgument(f"{where}.mode: {pb.NamespaceMode.Name(wanted.mode)} is not possible here")
    for name in ("uids", "gids"):
        mappings = getattr(wanted, name)
        if wanted.mode == pb.NODE:
            if mappings:
                raise InvalidArgument(f"{where}.{name}: there are no mappings with NODE")
            continue
        if len(mappings) != 1:
            raise InvalidArgument(f"{where}.{name}: one mapping is needed, not {len(mappings)}")
        _check_mapping(mappings[0], f"{where}.{name}[0]")
    if wanted.mode == pb.POD:
        for name in ("pid", "ipc"):
            if getattr(options, name) == pb.NODE:
                raise InvalidArgument(f"{field}.{name}: NODE is not possible in a user namespace of the pod's own")


def _check_mapping(mapping: pb.IDMapping, field: str) -> None:
    if mapping.length < 1:
        raise InvalidArgument(f"{field}.length: {mapping.length} is no number of ids")
    if mapping.container_id != 0:
        raise InvalidArgument(f"{field}.container_id: {mapping.container_id} leaves the container without a root")
    if mapping.host_id == 0:
        raise InvalidArgument(f"{field}.host_id: 0 is root of the host")
    if mapping.host_id + mapping.length > NO_ID:
        raise InvalidArgument(
            f"{field}.host_id: {mapping.length} ids from {mapping.host_id} on are more than there are"
        )


def id_mappings(request: SpecRequest) -> Spec:
    """The part of a container in a user namespace: runc wants it told, even of one that is joined by its path.

    Raises InvalidArgument for a user that has no id there, FailedPrecondition rather than run as one of the host's.
    """
    users = user_namespace(request.pod.linux.security_context.namespace_options)
    if users is None:
        return {}
    if "user" not in request.namespaces:
        raise FailedPrecondition("the user namespace of the pod sandbox is gone")
    _check_user(request.user, users)
    return {
        "uidMappings": [{"containerID": 0, "hostID": users.uid, "size": users.uids}],
        "gidMappings": [{"containerID": 0, "hostID": users.gid, "size": users.gids}],
    }


def _check_user(user: ResolvedUser, users: UserNamespace) -> None:
    where = "config.linux.security_context"
    if user.uid >= users.uids:
        raise InvalidArgument(f"{where}.run_as_user: {user.uid} has no id in the pod's user namespace")
    if user.gid >= users.gids:
        raise InvalidArgument(f"{where}.run_as_group: {user.gid} has no id in the pod's user namespace")
    for group in user.additional_gids:
        if group >= users.gids:
            raise InvalidArgument(f"{where}.supplemental_groups: {group} has no id in the pod's user namespace")


def suited(mounts: list[Spec], request: SpecRequest) -> list[Spec]:
    """Mounts, but that sysfs can be mounted by the users of its network only: others are shown the host's."""
    options = request.pod.linux.security_context.namespace_options
    if user_namespace(options) is None or options.network != pb.NODE:
        return mounts
    bound = {"type": "bind", "source": "/sys"}
    return [
        {**one, **bound, "options": ["rbind", "rprivate", *one["options"]]} if one["type"] == "sysfs" else one
        for one in mounts
    ]


def namespaces(request: SpecRequest) -> list[Spec]:
    """Of its own: mount, pid where it is not shared, cgroup on v2. The pod's by path. The host's are not listed."""
    options = request.container.linux.security_context.namespace_options
    found: list[Spec] = [{"type": "mount"}]
    joined = [("net", "network"), ("ipc", "ipc"), ("uts", "uts")]
    if user_namespace(request.pod.linux.security_context.namespace_options) is not None:
        joined.append(("user", "user"))
    for kind, name in joined:
        if path := request.namespaces.get(kind):
            found.append({"type": name, "path": path})
    if options.pid == pb.CONTAINER or (options.pid == pb.POD and "pid" not in request.namespaces):
        found.append({"type": "pid"})
    elif options.pid == pb.POD:
        found.append({"type": "pid", "path": request.namespaces["pid"]})
    elif options.pid == pb.TARGET:
        if "target_pid" not in request.namespaces:
            raise InvalidArgument("config.linux.security_context.namespace_options.target_id: it is not known")
        found.append({"type": "pid", "path": request.namespaces["target_pid"]})
    if request.facts.cgroup_mode == "v2" and not request.container.linux.security_context.privileged:
        found.append({"type": "cgroup"})
    return found
