"""Which namespaces a container shares with its pod, and which with the host."""

from holdfast.model.errors import InvalidArgument, Unimplemented
from holdfast.oci.request import Spec, SpecRequest
from holdfast.proto import runtime_v1_pb2 as pb


def check(options: pb.NamespaceOption, field: str, *, pod: bool) -> None:
    allowed: dict[str, tuple[pb.NamespaceMode, ...]] = {"network": (pb.POD, pb.NODE), "ipc": (pb.POD, pb.NODE)}
    allowed["pid"] = (pb.POD, pb.CONTAINER, pb.NODE) if pod else (pb.POD, pb.CONTAINER, pb.NODE, pb.TARGET)
    for name, modes in allowed.items():
        mode = getattr(options, name)
        if mode not in modes:
            shown = pb.NamespaceMode.Name(mode) if mode in pb.NamespaceMode.values() else str(mode)
            raise InvalidArgument(f"{field}.{name}: {shown} is not possible here")
    if options.HasField("userns_options") and options.userns_options.mode != pb.NODE:
        # Never run without what was asked for: it would be root of the host.
        raise Unimplemented(f"{field}.userns_options: user namespaces cannot be used yet")
    if options.pid == pb.TARGET and not options.target_id:
        raise InvalidArgument(f"{field}.target_id: it is needed for TARGET")


def namespaces(request: SpecRequest) -> list[Spec]:
    """Of its own: mount, pid where it is not shared, cgroup on v2. The pod's by path. The host's are not listed."""
    options = request.container.linux.security_context.namespace_options
    found: list[Spec] = [{"type": "mount"}]
    for kind, name in (("net", "network"), ("ipc", "ipc"), ("uts", "uts")):
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
