"""What confines a process, as it sees it itself: seccomp, capabilities, no_new_privs, masks, a read-only root."""

import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.node import Node, node, until

from holdfast.oci.capabilities import CAPABILITIES, DEFAULT_CAPABILITIES
from holdfast.proto import runtime_v1_pb2 as pb

RUNTIMES = ("crun", "runc")
ALL_BUT_ADMIN = tuple(name for name in CAPABILITIES if name != "SYS_ADMIN")
DEFAULT = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
UNCONFINED = pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)
NO_MKDIR = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        {"names": ["mkdir", "mkdirat", "from_the_future"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
    ],
}
# (what, number on x86_64, arguments, what the default profile answers without any capability)
CALLS = (
    ("getpid", 39, (), ""),
    ("clone with a new user namespace", 56, (0x1000_0000 | 17, 0, 0, 0, 0), "EPERM"),
    ("clone3", 435, (0, 0), "ENOSYS"),
    ("unshare of the host name", 272, (0x400_0000,), "EPERM"),
    ("keyctl", 250, (0, -3, 0), "EPERM"),
    ("io_uring_setup", 425, (1, 0), "EPERM"),
    ("a socket of AF_ALG", 41, (38, 5, 0), "EPERM"),
    ("a socket of AF_VSOCK", 41, (40, 1, 0), "EPERM"),
    ("a socket of AF_INET", 41, (2, 1, 0), ""),
    ("personality as it is", 135, (0xFFFF_FFFF,), ""),
    ("chroot", 161, (0,), "EPERM"),
    ("a call that there is not yet", 999, (), "ENOSYS"),
)
ASK = """
import ctypes, errno, json
call = ctypes.CDLL(None, use_errno=True).syscall
said = []
for number, arguments in {}:
    failed = call(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0
    said.append(errno.errorcode[ctypes.get_errno()] if failed else "")
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seccomp").resolve()
    (root / "no-mkdir.json").write_text(json.dumps(NO_MKDIR))
    (root / "broken.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"]}]}')
    return root


@pytest.fixture(scope="module")
def life(profiles: Path) -> Iterator[Node]:
    with node(seccomp_root=str(profiles), runtimes={"runc-v2": {"shim": "/usr/bin/containerd-shim-runc-v2"}}) as one:
        yield one


@pytest.fixture(scope="module", params=RUNTIMES)
def shared(life: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    pod_id = life.run_pod(life.pod_config(privileged=True), request.param)
    yield pod_id
    life.remove_pod(pod_id)


@pytest.fixture
def pod(life: Node, shared: str) -> Iterator[str]:
    """The pod of a runtime, without containers afterwards."""
    yield shared
    for one in life.containers():
        life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one.id))


numbers = itertools.count(1)


def configured(life: Node, script: str, mounts: list[pb.Mount], context: dict[str, Any]) -> pb.ContainerConfig:
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**context))
    return life.container_config(script, f"c{next(numbers)}", linux=linux, mounts=mounts)


def run(
    life: Node, pod: str, say: str = "cat /proc/self/status", mounts: list[pb.Mount] | None = None, **context: Any
) -> str:
    """A container whose init says something and can then be asked."""
    script = f"{{ {say}; }} 2>&1; echo said; exec sleep 100000"
    config = configured(life, script, mounts or [], context)
    container = life.create(pod, config)
    life.start_container(container)
    return container


def said(life: Node, container: str) -> str:
    """What the init has said."""

    def text() -> str:
        lines = life.container_log(container).splitlines(keepends=True)
        return "".join(line.split(b" ", 3)[3].decode() for line in lines)

    until(lambda: text().endswith("said\n"), "the init to have said it")
    return text().removesuffix("said\n")


def both(life: Node, pod: str, say: str, mounts: list[pb.Mount] | None = None, **context: Any) -> list[str]:
    """What a container's init says, and what is executed beside it."""
    container = run(life, pod, say, mounts, **context)
    first = said(life, container)  # what one of them makes is in the other's way
    done = life.exec(container, ["/bin/sh", "-c", f"{{ {say}; }} 2>&1"])
    return [first, done.stdout.decode()]


def statuses(life: Node, pod: str, **context: Any) -> list[dict[str, str]]:
    """/proc/self/status of both, by key."""
    return [
        {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
        for text in both(life, pod, "cat /proc/self/status", **context)
    ]


def refused(life: Node, pod: str, **context: Any) -> str:
    """The message with which a container is not made."""
    before = len(life.containers())
    with pytest.raises(grpc.RpcError) as caught:
        life.create(pod, configured(life, "true", [], context))
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
    assert len(life.containers()) == before
    return str(caught.value.details())


def local(path: object) -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref=str(path))


def mask(names: tuple[str, ...]) -> str:
    """As /proc has it, of what this test itself could give away."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = int(next(line.split()[1] for line in lines if line.startswith("CapBnd:")), 16)
    return f"{sum(1 << CAPABILITIES.index(name) for name in names) & held:016x}"


@pytest.mark.parametrize(
    ("context", "mode"),
    [
        ({}, "0"),
        ({"seccomp": UNCONFINED}, "0"),
        ({"seccomp": DEFAULT}, "2"),
        ({"seccomp": DEFAULT, "privileged": True}, "0"),
        ({"seccomp_profile_path": "runtime/default"}, "2"),
        ({"seccomp_profile_path": "unconfined"}, "0"),
    ],
)
def test_whether_there_is_a_filter(life: Node, pod: str, context: dict[str, Any], mode: str) -> None:
    for found in statuses(life, pod, **context):
        assert found["Seccomp"] == mode


def test_who_names_no_profile_has_the_one_that_is_configured() -> None:
    with node(unset_seccomp_profile="runtime/default") as one:
        for runtime in RUNTIMES:
            pod = one.run_pod(one.pod_config(privileged=True), runtime)
            for context, mode in (({}, "2"), ({"seccomp": UNCONFINED}, "0"), ({"privileged": True}, "0")):
                assert [found["Seccomp"] for found in statuses(one, pod, **context)] == [mode, mode], (runtime, context)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of system calls are those of x86_64")
def test_what_the_default_profile_answers(life: Node, pod: str) -> None:
    """Asked by the host's own Python, whose files are mounted."""
    here = {os.path.realpath(path): path for path in ("/usr", "/lib", "/lib64", sys.base_prefix)}
    mounts = [pb.Mount(host_path=real, container_path=path, readonly=True) for real, path in here.items()]
    wanted = json.dumps([(number, arguments) for _, number, arguments, _ in CALLS])
    python = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    say = f"PYTHONHOME={sys.base_prefix} {python} -S -c '{ASK.format(wanted)}'"
    for text in both(life, pod, say, mounts, seccomp=DEFAULT, capabilities=pb.Capability(drop_capabilities=["ALL"])):
        assert dict(zip([one[0] for one in CALLS], json.loads(text), strict=True)) == {one[0]: one[3] for one in CALLS}


def test_the_default_profile_goes_by_capabilities(life: Node, pod: str) -> None:
    say = "unshare -u true && echo yes"
    for text in both(life, pod, say, seccomp=DEFAULT):
        assert "Operation not permitted" in text
    admin = pb.Capability(add_capabilities=["SYS_ADMIN"])
    assert both(life, pod, say, seccomp=DEFAULT, capabilities=admin) == ["yes\n", "yes\n"]


def test_a_profile_from_a_file(life: Node, pod: str, profiles: Path) -> None:
    path = profiles / "no-mkdir.json"
    for context in ({"seccomp": local(path)}, {"seccomp_profile_path": f"localhost/{path}"}):
        for text in both(life, pod, "mkdir /tmp/x; grep Seccomp: /proc/self/status", **context):
            assert "mkdir: can't create directory '/tmp/x': Permission denied" in text
            assert "Seccomp:\t2" in text


@pytest.mark.parametrize(
    ("profile", "mode"), [(None, "0"), (UNCONFINED, "0"), (DEFAULT, "2"), (local("no-mkdir.json"), "2")]
)
def test_a_sandbox_container_has_the_pods_profile(life: Node, profile: pb.SecurityProfile | None, mode: str) -> None:
    """Under a foreign shim, which knows a pod by that container. Its containers have their own."""
    config = life.pod_config()
    if profile is not None:
        config.linux.security_context.seccomp.CopyFrom(profile)
    pod = life.run_pod(config, "runc-v2")
    try:
        init = json.loads((life.state / "pods" / pod / pod / "init.json").read_bytes())
        status = Path(f"/proc/{init['pid']}/status")
        until(lambda: f"Seccomp:\t{mode}" in status.read_text().splitlines(), "runc to be through with it")
        assert [found["Seccomp"] for found in statuses(life, pod, seccomp=DEFAULT)] == ["2", "2"]
        assert [found["Seccomp"] for found in statuses(life, pod)] == ["0", "0"]
    finally:
        life.remove_pod(pod)


@pytest.mark.parametrize(
    ("ref", "why"),
    [
        ("ROOT/missing.json", "No such file or directory"),
        ("ROOT/broken.json", "syscalls[0].action: it is missing"),
        ("/etc/passwd", "is not below ROOT"),
        ("ROOT/../../etc/passwd", "it leaves ROOT"),
    ],
)
def test_nothing_runs_without_its_profile(life: Node, pod: str, profiles: Path, ref: str, why: str) -> None:
    root = str(profiles)
    message = refused(life, pod, seccomp=local(ref.replace("ROOT", root)))
    assert message.startswith("config.linux.security_context.seccomp.localhost_ref: ")
    assert message.endswith(why.replace("ROOT", root))


def test_apparmor_by_name_needs_apparmor(life: Node, pod: str) -> None:
    host = json.loads(life.call("Status", pb.StatusRequest(verbose=True)).info["config"])
    message = refused(life, pod, apparmor=local("no-such-profile"))
    why = "AppArmor profile 'no-such-profile' is not loaded" if host["apparmor"] else "this host has no AppArmor"
    assert message.startswith("config.linux.security_context.apparmor.localhost_ref: ")
    assert message.endswith(why)
    assert (host["seccomp"], host["selinux"]) == (True, os.path.exists("/sys/fs/selinux/enforce"))
    if not host["apparmor"]:
        assert [found["Seccomp"] for found in statuses(life, pod, apparmor=DEFAULT)] == ["0", "0"]


@pytest.mark.parametrize(
    ("asked", "bounding", "ambient"),
    [
        ({}, DEFAULT_CAPABILITIES, ()),
        ({"drop_capabilities": ["ALL"]}, (), ()),
        ({"drop_capabilities": ["ALL"], "add_capabilities": ["NET_ADMIN", "CAP_KILL"]}, ("NET_ADMIN", "KILL"), ()),
        ({"add_capabilities": ["all"], "drop_capabilities": ["SYS_ADMIN"]}, ALL_BUT_ADMIN, ()),
        ({"drop_capabilities": ["ALL"], "add_ambient_capabilities": ["CHOWN"]}, ("CHOWN",), ("CHOWN",)),
    ],
)
@pytest.mark.parametrize("uid", [0, 1000])
def test_capabilities(
    life: Node, pod: str, asked: dict[str, Any], bounding: tuple[str, ...], ambient: tuple[str, ...], uid: int
) -> None:
    """Who is not root has what is ambient only, execve(2) takes the rest."""
    user = pb.Int64Value(value=uid)
    for found in statuses(life, pod, capabilities=pb.Capability(**asked), run_as_user=user):
        have = bounding if uid == 0 else ambient
        assert found["CapBnd"] == mask(bounding)
        assert (found["CapEff"], found["CapPrm"]) == (mask(have), mask(have))
        assert (found["CapAmb"], found["CapInh"]) == (mask(ambient), mask(ambient))


def test_privileged_has_all_there_is(life: Node, pod: str) -> None:
    drop = pb.Capability(drop_capabilities=["ALL"])
    for found in statuses(life, pod, privileged=True, capabilities=drop):
        assert found["CapEff"] == found["CapBnd"] == mask(CAPABILITIES)


@pytest.mark.parametrize("wanted", [False, True])
def test_no_new_privileges(life: Node, pod: str, wanted: bool) -> None:
    for found in statuses(life, pod, no_new_privs=wanted):
        assert found["NoNewPrivs"] == str(int(wanted))


MASKED = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/no-such-thing"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def test_paths_that_are_masked_or_read_only(life: Node, pod: str) -> None:
    say = (
        "wc -c </proc/timer_list; ls /sys/firmware | wc -l; echo x >/proc/timer_list && echo lost;"
        "echo 0 >/proc/sys/kernel/panic; echo 60 >/proc/sys/vm/swappiness"
    )
    for text in both(life, pod, say, masked_paths=MASKED, readonly_paths=READ_ONLY):
        seen, names, written, *errors = text.splitlines()
        assert (seen, names, written) == ("0", "0", "lost")
        assert len(errors) == 2
        assert all("Read-only file system" in line for line in errors)


@pytest.mark.parametrize("privileged", [False, True])
def test_nothing_is_masked_where_nothing_is_to_be(life: Node, pod: str, privileged: bool) -> None:
    """Unmasked by who asked for it; and for who is privileged, whatever is asked."""
    paths = {"masked_paths": MASKED, "readonly_paths": READ_ONLY} if privileged else {}
    for text in both(life, pod, "cut -d' ' -f5 /proc/self/mountinfo", privileged=privileged, **paths):
        assert not set(text.split()) & {*MASKED, *READ_ONLY}


def test_a_read_only_root(life: Node, pod: str) -> None:
    for text in both(life, pod, "touch /x /dev/shm/y; rm /dev/shm/y && echo written", readonly_rootfs=True):
        assert "touch: /x: Read-only file system" in text
        assert text.endswith("written\n")
