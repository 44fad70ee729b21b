"""From the CRI's words to the OCI runtime spec: whole specs, and each concern by itself."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.model.errors import InvalidArgument, Unimplemented
from holdfast.model.image import Image
from holdfast.model.spec import DeviceNode
from holdfast.oci import capabilities, lsm, seccomp
from holdfast.oci.build import build
from holdfast.oci.capabilities import CAPABILITIES, DEFAULT_CAPABILITIES
from holdfast.oci.cdi import Edits, Node
from holdfast.oci.devices import inside, owned
from holdfast.oci.namespaces import namespaces
from holdfast.oci.process import arguments, environment
from holdfast.oci.request import HostFacts, SpecRequest
from holdfast.oci.users import ResolvedUser
from holdfast.oci.validate import validate_container, validate_pod
from holdfast.proto import runtime_v1_pb2 as pb

FUSE = DeviceNode("/dev/fuse", "c", 10, 229, 0o660, 0, 104)
HOST = (DeviceNode("/dev/null", "c", 1, 3), FUSE, DeviceNode("/dev/vda", "b", 254, 0, 0o660, 0, 6))
FACTS = HostFacts(cgroup_mode="v1")
PINNED = {"net": "/run/ns/net", "ipc": "/run/ns/ipc", "uts": "/run/ns/uts"}
CONTEXT = r"config\.linux\.security_context"


def image(**fields: Any) -> Image:
    return Image(id="sha256:1", config=b"{}", size=1, **{"cmd": ("/bin/app",)} | fields)


def pod(**linux: Any) -> pb.PodSandboxConfig:
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="web", namespace="default", uid="u-1"),
        linux=pb.LinuxPodSandboxConfig(**linux),
    )


def container(**fields: Any) -> pb.ContainerConfig:
    return pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main"), image=pb.ImageSpec(image="app:1"), **fields)


def secured(**context: Any) -> pb.ContainerConfig:
    secure = pb.LinuxContainerSecurityContext(**context)
    return container(linux=pb.LinuxContainerConfig(security_context=secure))


def request(config: pb.ContainerConfig | None = None, **fields: Any) -> SpecRequest:
    one = SpecRequest(
        pod_id="pod1",
        container_id="c1",
        pod=pod(),
        container=config or container(),
        image=image(),
        user=ResolvedUser(0, 0, (0,), "/root"),
        cgroups_path="/pods/c1",
        hostname="web-0",
        facts=FACTS,
        devices=((),) * len(config.devices if config else ()),
    )
    return replace(one, **fields)


def mounts(one: SpecRequest) -> dict[str, Any]:
    return {mount["destination"]: mount for mount in build(one)["mounts"]}


ANNOTATIONS = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.container-name": "main",
    "io.kubernetes.cri.image-name": "app:1",
    "io.kubernetes.cri.sandbox-id": "pod1",
    "io.kubernetes.cri.sandbox-name": "web",
    "io.kubernetes.cri.sandbox-namespace": "default",
    "io.kubernetes.cri.sandbox-uid": "u-1",
}
SECURE = ["nosuid", "noexec", "nodev"]
PTS = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]


def mount(place: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": place, "type": kind, "source": source, "options": list(options)}


def node(path: str, kind: str, major: int, minor: int, mode: int = 0o666, gid: int = 0) -> dict[str, Any]:
    numbers = {"path": path, "type": kind, "major": major, "minor": minor}
    return numbers | {"fileMode": mode, "uid": 0, "gid": gid}


def standard(major: int, minor: int | None) -> dict[str, Any]:
    rule = {"allow": True, "type": "c", "major": major, "access": "rwm"}
    return rule if minor is None else rule | {"minor": minor}


def test_the_whole_spec_of_a_plain_container() -> None:
    caps = [f"CAP_{name}" for name in CAPABILITIES if name in DEFAULT_CAPABILITIES]
    spec = build(request(namespaces=PINNED, resolv_conf="/p/resolv.conf", hosts="/p/hosts", shm="/p/shm"))
    assert spec == {
        "ociVersion": "1.0.2",
        "hostname": "web-0",
        "root": {"path": "rootfs", "readonly": False},
        "process": {
            "args": ["/bin/app"],
            "cwd": "/",
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOSTNAME=web-0",
                "HOME=/root",
            ],
            "terminal": False,
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "noNewPrivileges": False,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps, "inheritable": []},
            "oomScoreAdj": 0,
        },
        "mounts": [
            mount("/proc", "proc", "proc", *SECURE),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/sys", "sysfs", "sysfs", *SECURE, "ro"),
            mount("/dev/pts", "devpts", "devpts", *PTS),
            mount("/dev/mqueue", "mqueue", "mqueue", *SECURE),
            mount("/dev/shm", "bind", "/p/shm", "rbind", "rprivate", *SECURE),
            mount("/etc/resolv.conf", "bind", "/p/resolv.conf", "rbind", "rprivate", "rw"),
            mount("/etc/hosts", "bind", "/p/hosts", "rbind", "rprivate", "rw"),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", *SECURE, "relatime", "ro"),
        ],
        "annotations": ANNOTATIONS,
        "linux": {
            "cgroupsPath": "/pods/c1",
            "namespaces": [
                {"type": "mount"},
                {"type": "network", "path": "/run/ns/net"},
                {"type": "ipc", "path": "/run/ns/ipc"},
                {"type": "uts", "path": "/run/ns/uts"},
                {"type": "pid"},
            ],
            "devices": [],
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "access": "m"},
                    {"allow": True, "type": "b", "access": "m"},
                    *[standard(1, minor) for minor in (3, 5, 7, 8, 9)],
                    standard(5, 0),
                    standard(5, 2),
                    standard(136, None),
                ]
            },
            "maskedPaths": [],
            "readonlyPaths": [],
        },
    }


def test_the_whole_spec_of_a_privileged_container_on_the_hosts_namespaces() -> None:
    config = secured(
        privileged=True,
        namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.NODE, ipc=pb.NODE),
        masked_paths=["/proc/kcore"],
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="/x"),
    )
    caps = [f"CAP_{name}" for name in CAPABILITIES if name != "SYS_RESOURCE"]
    facts = replace(FACTS, cgroup_mode="v2", capabilities=frozenset(CAPABILITIES) - {"SYS_RESOURCE"})
    assert build(request(config, facts=facts, user=ResolvedUser(5, 6, (6,)), host_devices=HOST)) == {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": False},
        "process": {
            "args": ["/bin/app"],
            "cwd": "/",
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "HOSTNAME=web-0",
                "HOME=/",
            ],
            "terminal": False,
            "user": {"uid": 5, "gid": 6, "additionalGids": [6]},
            "noNewPrivileges": False,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps, "inheritable": []},
            "oomScoreAdj": 0,
        },
        "mounts": [
            mount("/proc", "proc", "proc", *SECURE),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/sys", "sysfs", "sysfs", *SECURE),
            mount("/dev/pts", "devpts", "devpts", *PTS),
            mount("/dev/mqueue", "mqueue", "mqueue", *SECURE),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", *SECURE, "relatime"),
        ],
        "annotations": ANNOTATIONS,
        "linux": {
            "cgroupsPath": "/pods/c1",
            "namespaces": [{"type": "mount"}],
            "devices": [
                node("/dev/null", "c", 1, 3),
                node("/dev/fuse", "c", 10, 229, 0o660, 104),
                node("/dev/vda", "b", 254, 0, 0o660, 6),
            ],
            "resources": {"devices": [{"allow": True, "access": "rwm"}]},
        },
    }


@pytest.mark.parametrize(
    ("command", "args", "entrypoint", "cmd", "expected"),
    [
        ([], [], ("e",), ("c",), ["e", "c"]),
        ([], ["a"], ("e",), ("c",), ["e", "a"]),
        (["x"], [], ("e",), ("c",), ["x"]),
        (["x"], ["a"], ("e",), ("c",), ["x", "a"]),
        ([], [], (), ("c",), ["c"]),
        ([], ["a"], (), (), ["a"]),
    ],
)
def test_arguments(command: list[str], args: list[str], entrypoint: Any, cmd: Any, expected: list[str]) -> None:
    config = container(command=command, args=args)
    assert arguments(config, image(entrypoint=entrypoint, cmd=cmd)) == expected


def test_a_container_without_a_command_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="config.command: it is empty"):
        build(request(image=image(cmd=())))


def test_the_environment_of_the_config_wins_over_the_images_and_that_over_the_defaults() -> None:
    config = container(tty=True, envs=[pb.KeyValue(key="A", value="config"), pb.KeyValue(key="E", value="x=y")])
    one = request(config, image=image(env=("A=image", "B=b=c", "PATH=/p", "BARE", "=odd", "HOME=/h")))
    assert environment(one) == [
        "PATH=/p",
        "HOSTNAME=web-0",
        "TERM=xterm",
        "A=config",
        "B=b=c",
        "BARE=",
        "HOME=/h",
        "E=x=y",
    ]


def test_a_terminal() -> None:
    assert build(request(container(tty=True)))["process"]["terminal"]


@pytest.mark.parametrize(
    ("asked", "of_image", "expected"),
    [("", "", "/"), ("/a", "/b", "/a"), ("", "/b", "/b"), ("", "b/c", "/b/c"), ("", "/b/../../c", "/c")],
)
def test_the_working_directory(asked: str, of_image: str, expected: str) -> None:
    one = request(container(working_dir=asked), image=image(workdir=of_image))
    assert build(one)["process"]["cwd"] == expected


@pytest.mark.parametrize(
    "fields", [{"cmd": ("a\0",)}, {"entrypoint": ("a\0",)}, {"env": ("A=\0",)}, {"workdir": "/\0"}]
)
def test_an_image_with_a_nul_in_its_config_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="config of image sha256:1 has a NUL"):
        build(request(image=image(**fields)))


@pytest.mark.parametrize(("asked", "lowest", "expected"), [(500, 0, 500), (-900, 0, 0), (-900, -1000, -900), (0, 3, 3)])
def test_an_oom_score_is_clamped_to_what_we_may_set(asked: int, lowest: int, expected: int) -> None:
    config = container(linux=pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(oom_score_adj=asked)))
    one = request(config, facts=replace(FACTS, oom_score_adj_min=lowest))
    assert build(one)["process"]["oomScoreAdj"] == expected


DEFAULTS = set(DEFAULT_CAPABILITIES)
ALL = set(CAPABILITIES)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ([], [], DEFAULTS),
        (["NET_ADMIN"], [], DEFAULTS | {"NET_ADMIN"}),
        (["cap_net_admin"], ["CAP_MKNOD"], DEFAULTS | {"NET_ADMIN"} - {"MKNOD"} - {"X"}),
        (["ALL"], [], ALL),
        (["ALL"], ["SYS_ADMIN"], ALL - {"SYS_ADMIN"}),
        ([], ["all"], set()),
        (["KILL"], ["ALL"], {"KILL"}),
        (["KILL", "CHOWN"], ["ALL", "CHOWN"], {"KILL"}),
        (["ALL"], ["ALL"], set()),
        (["KILL"], ["KILL"], DEFAULTS - {"KILL"}),
    ],
)
def test_capabilities(add: list[str], drop: list[str], expected: set[str]) -> None:
    expected -= {"MKNOD"} if "CAP_MKNOD" in drop else set()
    context = pb.LinuxContainerSecurityContext(capabilities=pb.Capability(add_capabilities=add, drop_capabilities=drop))
    sets = capabilities.sets(context, FACTS.capabilities)
    assert {name.removeprefix("CAP_") for name in sets["bounding"]} == expected
    assert sets["bounding"] == sets["effective"] == sets["permitted"]
    assert sets["inheritable"] == []
    assert "ambient" not in sets


def test_ambient_capabilities_are_in_every_set() -> None:
    asked = pb.Capability(add_ambient_capabilities=["NET_BIND_SERVICE", "BPF"], drop_capabilities=["ALL", "BPF"])
    sets = capabilities.sets(pb.LinuxContainerSecurityContext(capabilities=asked), FACTS.capabilities)
    assert set(map(tuple, sets.values())) == {("CAP_NET_BIND_SERVICE",)}
    assert "ambient" in sets


def test_nobody_gets_a_capability_that_the_host_cannot_give() -> None:
    available = frozenset({"KILL", "CHOWN"})
    for asked in ({"add_capabilities": ["ALL"]}, {"add_ambient_capabilities": ["SYS_ADMIN"]}):
        context = pb.LinuxContainerSecurityContext(capabilities=pb.Capability(**asked))
        assert capabilities.sets(context, available)["bounding"] == ["CAP_CHOWN", "CAP_KILL"]


@pytest.mark.parametrize(
    ("pid", "pinned", "mode", "expected"),
    [
        (pb.CONTAINER, {}, "v1", [{"type": "pid"}]),
        (pb.CONTAINER, {"pid": "/ns/pid"}, "v1", [{"type": "pid"}]),
        (pb.POD, {"pid": "/ns/pid"}, "v1", [{"type": "pid", "path": "/ns/pid"}]),
        (pb.POD, {}, "v1", [{"type": "pid"}]),
        (pb.NODE, {"pid": "/ns/pid"}, "hybrid", []),
        (pb.TARGET, {"target_pid": "/proc/7/ns/pid"}, "v1", [{"type": "pid", "path": "/proc/7/ns/pid"}]),
        (pb.CONTAINER, {}, "v2", [{"type": "pid"}, {"type": "cgroup"}]),
    ],
)
def test_namespaces(pid: pb.NamespaceMode, pinned: dict[str, str], mode: str, expected: list[dict[str, str]]) -> None:
    config = secured(namespace_options=pb.NamespaceOption(pid=pid, target_id="c0"))
    one = request(config, namespaces=pinned, facts=replace(FACTS, cgroup_mode=mode))
    assert namespaces(one) == [{"type": "mount"}, *expected]


def test_a_target_that_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=rf"{CONTEXT}\.namespace_options\.target_id: it is not known"):
        build(request(secured(namespace_options=pb.NamespaceOption(pid=pb.TARGET, target_id="c0"))))


def test_devices() -> None:
    config = container(devices=[pb.Device(host_path="/dev/fuse", container_path="/dev/f", permissions="r")])
    linux = build(request(config, devices=((inside(config.devices[0], FUSE),),)))["linux"]
    assert linux["devices"] == [node("/dev/f", "c", 10, 229, 0o660, 104)]
    assert linux["resources"]["devices"][-1] == {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"}


@pytest.mark.parametrize("allowed", [True, False])
def test_a_privileged_container_without_the_hosts_devices(allowed: bool) -> None:
    linux = build(request(secured(privileged=True), host_devices=(), all_devices=allowed))["linux"]
    assert not linux["devices"]
    assert (linux["resources"]["devices"][0] == {"allow": True, "access": "rwm"}) is allowed


def test_what_was_asked_for_comes_before_what_the_host_has() -> None:
    config = secured(privileged=True)
    config.devices.add(host_path="/dev/fuse", container_path="/dev/null")
    one = request(config, devices=((inside(config.devices[0], FUSE),),), host_devices=HOST)
    assert [(each["path"], each["major"]) for each in build(one)["linux"]["devices"]] == [
        ("/dev/null", 10), ("/dev/fuse", 10), ("/dev/vda", 254),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("container_path", "below", "expected"),
    [("/dev/x", "", "/dev/x"), ("", "", "/dev/fuse"), ("/d/../e/", "sub/y", "/e/sub/y"), ("", "y", "/dev/fuse/y")],
)
def test_where_a_device_is_inside(container_path: str, below: str, expected: str) -> None:
    assert inside(pb.Device(host_path="/dev/fuse", container_path=container_path), FUSE, below).path == expected


def test_devices_that_a_runtime_would_take_for_others_are_mounted() -> None:
    config = container(devices=[pb.Device(host_path="/dev/fuse", container_path=path) for path in ("/dev/f", "")])
    found = tuple((inside(device, FUSE),) for device in config.devices)
    edits = Edits(nodes=(Node("/dev/v", "/dev/vda", "b", 254, 0),))
    one = request(config, devices=found, cdi=edits, bind_devices=True)
    mapped = [pb.IDMapping(host_id=65536, length=65536)]
    options = pb.NamespaceOption(userns_options=pb.UserNamespace(mode=pb.POD, uids=mapped, gids=mapped))
    users = pod(security_context=pb.LinuxSandboxSecurityContext(namespace_options=options))
    assert len(build(one)["linux"]["devices"]) == 3
    spec = build(replace(one, namespaces=PINNED | {"user": "/run/ns/user"}, pod=users))
    assert [each["path"] for each in spec["linux"]["devices"]] == ["/dev/fuse"]
    assert [each for each in spec["mounts"] if each["destination"] in ("/dev/f", "/dev/v")] == [
        mount("/dev/f", "bind", "/dev/fuse", "bind", "rprivate"),
        mount("/dev/v", "bind", "/dev/vda", "bind", "rprivate"),
    ]
    assert len(spec["linux"]["resources"]["devices"]) == len(build(one)["linux"]["resources"]["devices"])


def test_whom_a_device_belongs_to() -> None:
    context = pb.LinuxContainerSecurityContext(run_as_user=pb.Int64Value(value=7))
    assert (owned(FUSE, context).uid, owned(FUSE, context).gid) == (7, 104)
    assert owned(FUSE, pb.LinuxContainerSecurityContext()) == FUSE


def test_security_fields_are_passed_on() -> None:
    config = secured(no_new_privs=True, masked_paths=["/proc/kcore"], readonly_paths=["/proc/sys"])
    spec = build(request(config, user=ResolvedUser(7, 8, (8, 9))))
    assert spec["process"]["noNewPrivileges"]
    assert spec["process"]["user"] == {"uid": 7, "gid": 8, "additionalGids": [8, 9]}
    assert (spec["linux"]["maskedPaths"], spec["linux"]["readonlyPaths"]) == (["/proc/kcore"], ["/proc/sys"])


def test_profiles_go_where_the_runtime_reads_them() -> None:
    default = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
    spec = build(
        request(
            secured(seccomp=default, apparmor=default),
            facts=replace(FACTS, apparmor=True, selinux=("u:r:container_t:s0", "u:object_r:container_file_t:s0")),
            apparmor_default="holdfast",
            apparmor_loaded=frozenset({"holdfast"}),
        )
    )
    bounding = frozenset(spec["process"]["capabilities"]["bounding"])
    assert spec["linux"]["seccomp"] == seccomp.default(
        frozenset(map(capabilities.capability_name, bounding)), FACTS.machine
    )
    assert spec["process"]["apparmorProfile"] == "holdfast"
    level = lsm.level_of("pod1")
    assert spec["process"]["selinuxLabel"] == f"u:r:container_t:{level}"
    assert spec["linux"]["mountLabel"] == f"u:object_r:container_file_t:{level}"


def test_labels_and_annotations_of_others_never_become_annotations() -> None:
    config = container(labels={"a": "b"}, annotations={"run.oci.keep_original_groups": "1"})
    config.image.annotations["org.systemd.property.ExecStart"] = "x"
    one = request(config, image=image(), pod=pod())
    one.pod.annotations["io.kubernetes.cri.sandbox-id"] = "forged"
    assert build(one)["annotations"] == ANNOTATIONS


WORDS = st.text(alphabet="aZ0/._=-: \n\0é", max_size=12)
PATHS = st.one_of(WORDS, WORDS.map("/{}".format))
NUMBERS = st.integers(-(2**63), 2**63 - 1)
SMALL = st.integers(-1, 5)
CAPS = st.lists(st.sampled_from([*CAPABILITIES, "ALL", "cap_kill", "NONE"]), max_size=4)
PROFILES = st.builds(pb.SecurityProfile, profile_type=SMALL, localhost_ref=WORDS)
CONTEXTS = st.builds(
    pb.LinuxContainerSecurityContext,
    capabilities=st.builds(pb.Capability, add_capabilities=CAPS, drop_capabilities=CAPS, add_ambient_capabilities=CAPS),
    privileged=st.booleans(),
    namespace_options=st.builds(pb.NamespaceOption, network=SMALL, pid=SMALL, ipc=SMALL, target_id=WORDS),
    readonly_rootfs=st.booleans(),
    masked_paths=st.lists(PATHS, max_size=2),
    seccomp=PROFILES,
    apparmor_profile=WORDS,
)
RESOURCES = st.builds(
    pb.LinuxContainerResources,
    cpu_period=NUMBERS,
    cpu_quota=NUMBERS,
    memory_limit_in_bytes=NUMBERS,
    oom_score_adj=NUMBERS,
    cpuset_cpus=st.sampled_from(["", "0", "0-3,5", "x"]),
    unified=st.dictionaries(WORDS, WORDS, max_size=2),
    hugepage_limits=st.lists(st.builds(pb.HugepageLimit, page_size=st.sampled_from(["2MB", "x"])), max_size=2),
)
CONTAINERS = st.builds(
    pb.ContainerConfig,
    metadata=st.builds(pb.ContainerMetadata, name=st.sampled_from(["c", "", "a/b"])),
    image=st.builds(pb.ImageSpec, image=st.sampled_from(["i", "i:1"])),
    command=st.lists(WORDS, max_size=2),
    args=st.lists(WORDS, max_size=2),
    working_dir=st.sampled_from(["", "/", "/w", "w"]),
    envs=st.lists(st.builds(pb.KeyValue, key=WORDS, value=WORDS), max_size=2),
    mounts=st.lists(
        st.builds(
            pb.Mount,
            container_path=PATHS,
            host_path=PATHS,
            propagation=SMALL,
            readonly=st.booleans(),
            recursive_read_only=st.booleans(),
        ),
        max_size=3,
    ),
    devices=st.lists(
        st.builds(pb.Device, container_path=PATHS, host_path=st.sampled_from(["/dev/fuse", "/x"]), permissions=WORDS),
        max_size=2,
    ),
    log_path=PATHS,
    tty=st.booleans(),
    linux=st.builds(pb.LinuxContainerConfig, resources=RESOURCES, security_context=CONTEXTS),
)
PODS = st.builds(
    pod,
    sysctls=st.dictionaries(st.sampled_from(["net.core.somaxconn", "kernel.sem", "vm.x", "?"]), WORDS, max_size=2),
    security_context=st.builds(pb.LinuxSandboxSecurityContext, privileged=st.booleans()),
)
OF_IMAGE = st.lists(st.text(alphabet="aZ=/. ", max_size=8), max_size=3).map(tuple)
IMAGES = st.builds(
    image, entrypoint=OF_IMAGE, cmd=OF_IMAGE, env=OF_IMAGE, workdir=st.sampled_from(["", "/w", "w", ".."])
)


@settings(max_examples=300, deadline=None)
@given(
    config=CONTAINERS, of_pod=PODS, of_image=IMAGES, valid=st.booleans(), mode=st.sampled_from(["v1", "hybrid", "v2"])
)
def test_any_config_becomes_json_or_is_refused_in_words(
    config: pb.ContainerConfig, of_pod: pb.PodSandboxConfig, of_image: Image, valid: bool, mode: str
) -> None:
    """Half of the configs are brought into shape first, so that not all end at the first thing that is wrong."""
    if valid:
        config, of_pod = shaped(config), pod(sysctls={"kernel.sem": "1 2 3 4"})
    try:
        validate_pod(of_pod)
        validate_container(config, of_pod)
        facts = replace(FACTS, cgroup_mode=mode)
        spec = build(request(config, pod=of_pod, image=of_image, facts=facts, namespaces=PINNED))
    except (InvalidArgument, Unimplemented) as exc:
        assert str(exc).startswith("config.")
        return
    assert json.loads(json.dumps(spec)) == spec
    places = [one["destination"] for one in spec["mounts"]]
    assert len(set(places)) == len(places)
    assert all(not other.startswith(f"{place}/") for number, place in enumerate(places) for other in places[:number])


def shaped(config: pb.ContainerConfig) -> pb.ContainerConfig:
    """The nearest config that is mostly valid."""
    fixed = pb.ContainerConfig()
    fixed.CopyFrom(config)
    fixed.metadata.name, fixed.working_dir, fixed.log_path = "c", "/w", ""
    del fixed.envs[:], fixed.command[:], fixed.args[:], fixed.devices[:]
    fixed.command.append("/x")
    for one in fixed.mounts:
        one.container_path = f"/m{one.container_path}".replace("\0", "")
        one.host_path, one.recursive_read_only = "/h", False
        one.propagation = max(0, one.propagation) % 3
    resources = fixed.linux.resources
    resources.cpu_period, resources.cpu_quota = abs(resources.cpu_period) % 1000 + 1000, -1
    resources.memory_limit_in_bytes, resources.oom_score_adj = abs(resources.memory_limit_in_bytes) % 1000, 0
    resources.cpuset_cpus = ""
    resources.unified.clear()
    del resources.hugepage_limits[:]
    context = fixed.linux.security_context
    context.privileged, context.namespace_options.pid = False, pb.CONTAINER
    context.namespace_options.network = context.namespace_options.ipc = pb.POD
    context.ClearField("seccomp")
    context.ClearField("capabilities")
    del context.masked_paths[:]
    return fixed


def test_the_limit_on_open_files_is_said_and_not_inherited() -> None:
    limits = build(request(facts=replace(FACTS, files=(1024, 4096))))["process"]["rlimits"]
    assert limits == [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]
    assert "rlimits" not in build(request())["process"]
