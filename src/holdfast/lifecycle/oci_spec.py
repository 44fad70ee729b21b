"""The OCI runtime spec of a container, from the CRI's words, the image's defaults and this host's facts. Pure.

What containerd and CRI-O would make of it is what is made here. Seccomp: Unconfined and no profile are the same;
RuntimeDefault applies none yet; a Localhost profile is refused. The security and resource matrix is completed later,
and each concern is a function of its own for that.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from holdfast.lifecycle.users import ResolvedUser
from holdfast.lifecycle.validate import CAPABILITIES, capability_name, in_container, sysctl_namespace
from holdfast.model.errors import InvalidArgument, Unimplemented
from holdfast.model.image import Image
from holdfast.proto import runtime_v1_pb2 as pb

Spec = dict[str, Any]

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
)  # fmt: skip
_PROPAGATION: Final = {
    pb.PROPAGATION_PRIVATE: "rprivate",
    pb.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    pb.PROPAGATION_BIDIRECTIONAL: "rshared",
}
# major and minor of null, zero, full, random, urandom, tty, ptmx and all of pts (runtime-spec, config-linux.md)
_DEVICES: Final = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, None))


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What this host and this daemon can do; found once at start."""

    cgroup_mode: str = "v2"  # "v1", "hybrid" or "v2"
    oom_score_adj_min: int = -1000  # without CAP_SYS_RESOURCE it cannot be lowered below our own
    capabilities: frozenset[str] = frozenset(CAPABILITIES)  # what we could give away
    devices: tuple[tuple[str, str, int, int], ...] = ()  # (path, "c" or "b", major, minor) of the host's /dev
    hugetlb: bool = True  # whether the OCI runtime finds a hugetlb controller
    files: tuple[int, int] | None = None  # soft and hard limit on open files; runc's own raise the first


@dataclass(frozen=True, slots=True)
class SpecRequest:
    """Everything a spec is made from. Paths are the host's; a namespace without a path is made or not as CRI says."""

    pod_id: str
    container_id: str
    pod: pb.PodSandboxConfig
    container: pb.ContainerConfig
    image: Image
    user: ResolvedUser
    cgroups_path: str
    hostname: str
    namespaces: dict[str, str] = field(default_factory=dict)
    facts: HostFacts = HostFacts()
    resolv_conf: str = ""
    hosts: str = ""
    hostname_path: str = ""
    shm: str = ""


def build(request: SpecRequest) -> Spec:
    """The content of config.json. Raises InvalidArgument or Unimplemented that names the field."""
    context = request.container.linux.security_context
    _refuse_profiles(context)
    _check_image(request.image)
    spec: Spec = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": context.readonly_rootfs},
        "process": _process(request),
        "mounts": _mounts(request),
        "annotations": _annotations(request),
        "linux": _linux(request),
    }
    if "uts" in request.namespaces:
        spec["hostname"] = request.hostname
    return spec


def _process(request: SpecRequest) -> Spec:
    config, context, user = request.container, request.container.linux.security_context, request.user
    process: Spec = {
        "args": arguments(config, request.image),
        "env": environment(request),
        "cwd": in_container(config.working_dir or request.image.workdir),
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
        "noNewPrivileges": context.no_new_privs,
        "capabilities": capabilities(context, request.facts),
    }
    wanted = config.linux.resources.oom_score_adj
    process["oomScoreAdj"] = max(wanted, request.facts.oom_score_adj_min)
    if (limits := request.facts.files) is not None:
        process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": limits[0], "hard": limits[1]}]
    return process


def _refuse_profiles(context: pb.LinuxContainerSecurityContext) -> None:
    """Never run without a confinement that was asked for. A privileged container has none, whatever it asks for."""
    for name, old in (("seccomp", "seccomp_profile_path"), ("apparmor", "apparmor_profile")):
        local = getattr(context, name).profile_type == pb.SecurityProfile.Localhost
        if not context.HasField(name):
            local = getattr(context, old).startswith("localhost/")
        if local and not context.privileged:
            raise Unimplemented(f"config.linux.security_context.{name}: Localhost profiles cannot be used yet")


def _check_image(image: Image) -> None:
    """An image's config is anybody's: no NUL, which would cut a string short in the runtime's C."""
    if any("\0" in text for text in (*image.entrypoint, *image.cmd, *image.env, image.workdir)):
        raise InvalidArgument(f"config.image.image: the config of image {image.id} has a NUL in it")


def arguments(config: pb.ContainerConfig, image: Image) -> list[str]:
    """command replaces the image's entrypoint, and with it the image's cmd; args replace the cmd."""
    command, args = list(config.command), list(config.args)
    if not command:
        command = list(image.entrypoint)
        args = args or list(image.cmd)
    if not command and not args:
        raise InvalidArgument("config.command: it is empty, and so are the image's entrypoint and cmd")
    return command + args


def environment(request: SpecRequest) -> list[str]:
    """Defaults, then the image's, then the config's; the last one to set a name wins."""
    env = {"PATH": PATH, "HOSTNAME": request.hostname}
    if request.container.tty:
        env["TERM"] = "xterm"
    for entry in request.image.env:
        name, _, value = entry.partition("=")
        env[name] = value
    env.setdefault("HOME", request.user.home or "/")
    for one in request.container.envs:
        env[one.key] = one.value
    return [f"{name}={value}" for name, value in env.items() if name]


def capabilities(context: pb.LinuxContainerSecurityContext, facts: HostFacts) -> Spec:
    """The capability sets of capabilities(7). Dropping wins over adding, but for names added beside a dropped ALL."""
    add = {capability_name(name) for name in context.capabilities.add_capabilities}
    drop = {capability_name(name) for name in context.capabilities.drop_capabilities}
    ambient = {capability_name(name) for name in context.capabilities.add_ambient_capabilities}
    everything = set(CAPABILITIES) & facts.capabilities
    if "ALL" in ambient:
        ambient |= everything
    kept = everything if "ALL" in add else set(DEFAULT_CAPABILITIES)
    if "ALL" in drop:
        kept = set()
    kept = ((kept | add | ambient) - drop) & everything
    if context.privileged:
        kept = everything
    names = [f"CAP_{name}" for name in CAPABILITIES if name in kept]
    raised = [f"CAP_{name}" for name in CAPABILITIES if name in kept & ambient]
    sets: Spec = {"bounding": names, "effective": names, "permitted": names, "inheritable": raised}
    if raised:
        sets["ambient"] = raised
    return sets


def _mounts(request: SpecRequest) -> list[Spec]:
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


def _annotations(request: SpecRequest) -> dict[str, str]:
    """As containerd names them. Labels of the image never become annotations (CVE-2026-53488)."""
    prefix, pod = "io.kubernetes.cri", request.pod.metadata
    return {
        f"{prefix}.container-type": "container",
        f"{prefix}.container-name": request.container.metadata.name,
        f"{prefix}.image-name": request.container.image.image,
        f"{prefix}.sandbox-id": request.pod_id,
        f"{prefix}.sandbox-name": pod.name,
        f"{prefix}.sandbox-namespace": pod.namespace,
        f"{prefix}.sandbox-uid": pod.uid,
    }


def _linux(request: SpecRequest) -> Spec:
    config, context = request.container, request.container.linux.security_context
    linux: Spec = {
        "cgroupsPath": request.cgroups_path,
        "namespaces": namespaces(request),
        "resources": {**resources_to_oci(config.linux.resources, request.facts), "devices": _device_rules(request)},
        "devices": _devices(request),
    }
    if not context.privileged:
        linux["maskedPaths"] = list(context.masked_paths)
        linux["readonlyPaths"] = list(context.readonly_paths)
    shared = [mount.propagation for mount in config.mounts]
    if pb.PROPAGATION_BIDIRECTIONAL in shared:
        linux["rootfsPropagation"] = "rshared"
    elif pb.PROPAGATION_HOST_TO_CONTAINER in shared:
        linux["rootfsPropagation"] = "rslave"
    sysctls = {key.replace("/", "."): value for key, value in request.pod.linux.sysctls.items()}
    usable = {key: value for key, value in sysctls.items() if sysctl_namespace(key) in request.namespaces}
    if refused := sorted(sysctls.keys() - usable.keys()):
        raise InvalidArgument(f"config.linux.sysctls: {refused[0]!r} would change the host, not the pod")
    if usable:
        linux["sysctl"] = usable
    return linux


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
            raise Unimplemented("config.linux.security_context.namespace_options.pid: TARGET cannot be used yet")
        found.append({"type": "pid", "path": request.namespaces["target_pid"]})
    if request.facts.cgroup_mode == "v2" and not request.container.linux.security_context.privileged:
        found.append({"type": "cgroup"})
    return found


def resources_to_oci(resources: pb.LinuxContainerResources, facts: HostFacts = HostFacts()) -> Spec:
    """Limits, as far as they were given and this host can set them; 0 is "not given" in the CRI.

    A kubelet sends a limit for every size of huge page, whether or not this host has the controller.
    """
    cpu = {
        "shares": resources.cpu_shares,
        "quota": resources.cpu_quota,
        "period": resources.cpu_period,
        "cpus": resources.cpuset_cpus,
        "mems": resources.cpuset_mems,
    }
    memory = {"limit": resources.memory_limit_in_bytes, "swap": resources.memory_swap_limit_in_bytes}
    found: Spec = {}
    if cpu := {key: value for key, value in cpu.items() if value}:
        found["cpu"] = cpu
    if memory := {key: value for key, value in memory.items() if value}:
        found["memory"] = memory
    if resources.hugepage_limits and facts.hugetlb:
        found["hugepageLimits"] = [{"pageSize": one.page_size, "limit": one.limit} for one in resources.hugepage_limits]
    if resources.unified and facts.cgroup_mode == "v2":
        found["unified"] = dict(resources.unified)
    return found


def _devices(request: SpecRequest) -> list[Spec]:
    """Device nodes beyond the standard ones: all of the host's for a privileged container."""
    if request.container.linux.security_context.privileged:
        return [
            {"path": path, "type": kind, "major": major, "minor": minor}
            for path, kind, major, minor in request.facts.devices
        ]
    return [_device(device, number, request.facts) for number, device in enumerate(request.container.devices)]


def _device(device: pb.Device, number: int, facts: HostFacts) -> Spec:
    for path, kind, major, minor in facts.devices:
        if path == device.host_path:
            return {"path": device.container_path, "type": kind, "major": major, "minor": minor}
    raise InvalidArgument(f"config.devices[{number}].host_path: {device.host_path!r} is not a device of this host")


def _device_rules(request: SpecRequest) -> list[Spec]:
    """The device cgroup: everything for a privileged container, else the standard devices and those asked for."""
    if request.container.linux.security_context.privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[Spec] = [{"allow": False, "access": "rwm"}]
    rules += [{"allow": True, "type": kind, "access": "m"} for kind in ("c", "b")]
    for major, minor in _DEVICES:
        rules.append(
            {"allow": True, "type": "c", "major": major, "access": "rwm"} | ({} if minor is None else {"minor": minor})
        )
    for number, device in enumerate(request.container.devices):
        found = _device(device, number, request.facts)
        access = device.permissions or "rwm"
        rules.append(
            {"allow": True, "type": found["type"], "major": found["major"], "minor": found["minor"], "access": access}
        )
    return rules
