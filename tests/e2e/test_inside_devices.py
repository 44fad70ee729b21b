"""Devices, their cgroup, CDI and sysctls, as a process inside has them."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.node import Node, node

from holdfast.proto import runtime_v1_pb2 as pb

FOREIGN, BARE = "runc-v2", "bare"
ALL = ["crun", "runc", FOREIGN]
CONTROL = "/dev/loop-control"  # there, wherever these tests can run, and opening it does nothing
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories for CDI's files, and one with device nodes in it."""
    base = tmp_path_factory.mktemp("devices")
    found = {name: base / name for name in ("etc", "run", "nodes", "data")}
    for place in found.values():
        place.mkdir()
    nodes = found["nodes"]
    (nodes / "sub").mkdir()
    for name, mode, owner in (("one", 0o640, (1000, 5)), ("sub/two", 0o604, (0, 0))):
        os.mknod(nodes / name, stat.S_IFCHR | mode, os.makedev(1, 3))
        os.chown(nodes / name, *owner)
        (nodes / name).chmod(mode)
    os.mkfifo(nodes / "pipe")
    (nodes / "file").write_text("")
    (nodes / "link").symlink_to("/dev/zero")
    (found["data"] / "file").write_text("from the host\n")
    return found


@pytest.fixture(scope="module")
def life(places: dict[str, Path]) -> Iterator[Node]:
    runtimes = {
        FOREIGN: {"shim": "containerd-shim-runc-v2"},
        BARE: {"binary": "crun", "privileged_without_host_devices": True},
    }
    directories = (str(places["etc"]), str(places["run"]))
    with node(runtimes=runtimes, cdi_spec_dirs=directories, device_ownership_from_security_context=True) as one:
        yield one


@pytest.fixture(autouse=True)
def no_pods_are_left(life: Node, places: dict[str, Path]) -> Iterator[None]:
    yield
    for one in life.pods():
        life.remove_pod(one.id)
    assert not life.leftovers()
    for name in ("etc", "run"):
        for path in places[name].iterdir():
            path.unlink()


def sh(life: Node, container_id: str, script: str) -> str:
    reply = life.exec(container_id, ["/bin/sh", "-c", script])
    assert reply.exit_code == 0, reply.stderr
    return str(reply.stdout.decode())


def device(host: str | Path, inside: str = "", permissions: str = "rwm") -> pb.Device:
    return pb.Device(host_path=str(host), container_path=inside, permissions=permissions)


def nodes(life: Node, container: str, *paths: str) -> list[str]:
    return sh(life, container, f"stat -c '%n %t:%T %a %u:%g' {' '.join(paths)}").splitlines()


def refused(code: grpc.StatusCode, method: Any, *arguments: Any) -> str:
    with pytest.raises(grpc.RpcError) as failure:
        method(*arguments)
    assert failure.value.code() is code, failure.value.details()
    return str(failure.value.details())


def on_host(path: str | Path, inside: str = "") -> str:
    """As stat inside shows a node of the host."""
    found = os.lstat(path)
    numbers = f"{os.major(found.st_rdev):x}:{os.minor(found.st_rdev):x}"
    return f"{inside or path} {numbers} {stat.S_IMODE(found.st_mode):o} {found.st_uid}:{found.st_gid}"


@pytest.mark.parametrize("handler", ALL)
def test_a_device_and_what_may_be_done_with_it(life: Node, handler: str) -> None:
    read, write = "dd if=/dev/control count=0", "dd if=/dev/null of=/dev/control count=0 conv=notrunc"
    make = f"mknod /tmp/control c {os.major(os.stat(CONTROL).st_rdev)} {os.minor(os.stat(CONTROL).st_rdev)}"
    pod = life.run_pod(life.pod_config(), handler)
    for name, permissions, reads, writes in [("r", "r", True, False), ("w", "w", False, True), ("all", "", True, True)]:
        container = life.run(pod, "sleep 1000", name, devices=[device(CONTROL, "/dev/control", permissions)])
        assert nodes(life, container, "/dev/control") == [on_host(CONTROL, "/dev/control")]
        for script, allowed in ((read, reads), (write, writes)):
            reply = life.exec(container, ["/bin/sh", "-c", script])
            assert (reply.exit_code == 0) is allowed, (permissions, script, reply.stderr)
            assert allowed or b"Operation not permitted" in reply.stderr
    none = life.run(pod, "sleep 1000", "none")
    reply = life.exec(none, ["/bin/sh", "-c", f"{make} && dd if=/tmp/control count=0"])
    assert b"Operation not permitted" in reply.stderr  # made it may be (MKNOD is a default), but not used


@pytest.mark.parametrize("handler", ALL)
def test_a_directory_of_devices_and_a_link_to_one(life: Node, places: dict[str, Path], handler: str) -> None:
    place = places["nodes"]
    devices = [device(place, "/dev/mine"), device(place / "link", "/dev/linked"), device(place / "sub/two")]
    container = life.run(life.run_pod(life.pod_config(), handler), "sleep 1000", devices=devices)
    two = place / "sub/two"
    assert sorted(nodes(life, container, "$(find /dev/mine -type c)", "/dev/linked", str(two))) == sorted([
        on_host(place / "one", "/dev/mine/one"), on_host(two, "/dev/mine/sub/two"),
        on_host("/dev/zero", "/dev/linked"), on_host(two),
    ])  # fmt: skip
    assert sh(life, container, "find /dev/mine ! -type c ! -type d") == ""


@pytest.mark.parametrize("handler", ALL)
def test_devices_belong_to_who_uses_them_if_that_is_wanted(life: Node, places: dict[str, Path], handler: str) -> None:
    linux = pb.LinuxContainerConfig()
    linux.security_context.run_as_user.value = 1234
    linux.security_context.run_as_group.value = 4321
    one = device(places["nodes"] / "one", "/dev/one")
    container = life.run(life.run_pod(life.pod_config(), handler), "sleep 1000", devices=[one], linux=linux)
    assert nodes(life, container, "/dev/one") == ["/dev/one 1:3 640 1234:4321"]


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_a_device_in_a_pod_with_users_of_its_own_is_no_other(life: Node, places: dict[str, Path], handler: str) -> None:
    """There runc shows the host's node of the name that is asked for inside, whichever that is."""
    node = {"path": CONTROL, "hostPath": "/dev/zero"}
    write(places["etc"] / "v.json", "vendor.com/zero", {"name": "0", "containerEdits": {"deviceNodes": [node]}})
    config = life.pod_config(network=pb.POD)
    users = pb.UserNamespace(mode=pb.POD)
    for mappings in (users.uids, users.gids):
        mappings.add(host_id=300000, container_id=0, length=65536)
    config.linux.security_context.namespace_options.userns_options.CopyFrom(users)
    made = life.container_config("sleep 1000", CDI_devices=[pb.CDIDevice(name="vendor.com/zero=0")])
    made.devices.extend([device("/dev/zero", "/dev/kmsg"), device("/dev/zero", "/dev/none-such"), device("/dev/zero")])
    made.linux.security_context.namespace_options.CopyFrom(config.linux.security_context.namespace_options)
    life.base.chmod(0o711)  # else nobody but root gets to what is below it
    container = life.create(life.run_pod(config, handler), made)
    life.start_container(container)
    for path in ("/dev/kmsg", "/dev/none-such", "/dev/zero", CONTROL):
        assert sh(life, container, f"stat -c %t:%T {path}; head -c 4 {path} | od -An -tx1").split() == [
            "1:5",
            *["00"] * 4,
        ]


@pytest.mark.parametrize("path", ["/dev/no-such", "/etc/passwd"])
def test_what_is_no_device_is_refused(life: Node, path: str) -> None:
    config = life.container_config("exit 0", devices=[device("/dev/null", "/dev/n"), device(path, "/dev/x")])
    assert f"config.devices[1].host_path: '{path}' is not a device" in refused(
        INVALID, life.create, life.run_pod(), config
    )


@pytest.mark.parametrize("handler", [*ALL, BARE])
def test_a_privileged_container(life: Node, handler: str) -> None:
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(privileged=True))
    pod = life.run_pod(life.pod_config(privileged=True), handler)
    container = life.run(pod, "sleep 1000", linux=linux)
    seen = {line.split()[0] for line in nodes(life, container, "$(find /dev -type c -o -type b)")}
    wanted = {CONTROL, "/dev/kmsg", "/dev/full"}
    assert wanted <= seen if handler != BARE else seen.isdisjoint({CONTROL, "/dev/kmsg"})
    if handler != BARE:
        assert nodes(life, container, *sorted(wanted)) == [on_host(path) for path in sorted(wanted)]
    number = os.stat(CONTROL).st_rdev
    script = f"mknod /tmp/c c {os.major(number)} {os.minor(number)} && dd if=/tmp/c count=0"
    assert (life.exec(container, ["/bin/sh", "-c", script]).exit_code == 0) is (handler != BARE)


# -- CDI


def write(place: Path, kind: str, *devices: dict[str, Any], **common: Any) -> None:
    document = {"cdiVersion": "0.7.0", "kind": kind, "devices": devices, "containerEdits": common}
    place.write_text(json.dumps(document))


@pytest.mark.parametrize("handler", ALL)
def test_cdi_devices(life: Node, places: dict[str, Path], handler: str) -> None:
    told = places["data"] / f"hook-{handler}"
    hook = {"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", f"cat > {told}"]}
    mount = {"hostPath": str(places["data"]), "containerPath": "/vendor/data", "options": ["bind", "ro"]}
    node = {"path": "/dev/vendor0", "hostPath": CONTROL, "permissions": "r", "fileMode": 0o640}
    gpu = {"name": "gpu0", "containerEdits": {"env": ["VENDOR=gpu0"], "deviceNodes": [node], "mounts": [mount]}}
    write(places["etc"] / "v.json", "vendor.com/gpu", gpu, env=["COMMON=1"], hooks=[hook], additionalGids=[777])
    (places["run"] / "n.yaml").write_text(
        "cdiVersion: 0.5.0\nkind: vendor.com/net\ndevices:\n- name: '0'\n  containerEdits: {env: [NET=0]}\n"
    )
    linux = pb.LinuxContainerConfig()
    linux.security_context.run_as_user.value = 1000
    asked = {
        "CDI_devices": [pb.CDIDevice(name="vendor.com/gpu=gpu0")],
        "annotations": {"cdi.k8s.io/n": "vendor.com/net=0"},
    }
    pod = life.run_pod(life.pod_config(), handler)
    container = life.run(pod, "sleep 1000", linux=linux, **asked)
    found = sh(life, container, "echo $VENDOR $COMMON $NET; cat /vendor/data/file; id -G").splitlines()
    assert found == ["gpu0 1 0", "from the host", "0 777"]
    assert list(life.status(container).user.linux.supplemental_groups) == [0, 777]
    assert nodes(life, container, "/dev/vendor0") == [
        f"{on_host(CONTROL, '/dev/vendor0').rsplit(' ', 2)[0]} 640 1000:0"
    ]
    assert life.exec(container, ["/bin/dd", "if=/dev/vendor0", "count=0"]).exit_code == 0
    assert life.exec(container, ["/bin/sh", "-c", "dd if=/dev/null of=/dev/vendor0 count=0"]).exit_code != 0
    assert life.exec(container, ["/bin/touch", "/vendor/data/new"]).exit_code != 0
    assert json.loads(told.read_text())["id"] == container


def test_cdi_devices_that_cannot_be_had(life: Node, places: dict[str, Path]) -> None:
    def ask(name: str) -> str:
        return refused(
            INVALID, life.create, pod, life.container_config("exit 0", CDI_devices=[pb.CDIDevice(name=name)])
        )

    pod = life.run_pod()
    (places["etc"] / "torn.json").write_text('{"cdiVersion": ')
    message = ask("vendor.com/gpu=0")
    assert "config.CDI_devices[0].name: there is no CDI device vendor.com/gpu=0; " in message
    assert f"{places['etc']}/torn.json: Expecting value" in message
    for name in ("a", "b"):
        write(places["run"] / f"{name}.json", "vendor.com/gpu", {"name": "0", "containerEdits": {"env": ["A=1"]}})
    assert "is defined more than once: by " in ask("vendor.com/gpu=0")
    missing = {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such"}]}}
    write(places["run"] / "c.json", "vendor.com/missing", missing)
    assert "config.CDI_devices: '/dev/no-such' is not a device of this host" in ask("vendor.com/missing=0")
    assert "'gpu' is not of the form" in ask("gpu")
    assert not life.containers()


# -- sysctls


@pytest.mark.parametrize("handler", ALL)
def test_sysctls(life: Node, handler: str) -> None:
    asked = {"net.ipv4.ip_unprivileged_port_start": "81", "kernel/shm_rmid_forced": "1", "fs.mqueue.msg_max": "9",
             "kernel.domainname": "example.net"}  # fmt: skip
    paths = [f"/proc/sys/{key.replace('.', '/')}" for key in asked]
    before = [Path(path).read_text() for path in paths]
    config = life.pod_config(network=pb.POD)
    config.linux.sysctls.update(asked)
    pod = life.run_pod(config, handler)
    for name in ("one", "two"):
        container = life.run(pod, "sleep 1000", name, network=pb.POD)
        assert sh(life, container, f"cat {' '.join(paths)}").split() == list(asked.values())
    assert [Path(path).read_text() for path in paths] == before


@pytest.mark.parametrize(
    ("key", "value", "options", "message"),
    [
        ("net.ipv4.ip_forward", "1", {"network": pb.NODE}, "would change the host, not the pod"),
        ("kernel.domainname", "x", {"network": pb.NODE}, "would change the host, not the pod"),
        ("kernel.shmmax", "1", {"network": pb.POD, "ipc": pb.NODE}, "would change the host, not the pod"),
        ("fs.mqueue.msg_max", "9", {"network": pb.POD, "ipc": pb.NODE}, "would change the host, not the pod"),
        ("kernel.hostname", "x", {"network": pb.POD}, "is what config.hostname is for"),
        ("vm.swappiness", "1", {"network": pb.POD}, "would change the host, not the pod"),
        ("net.no.such", "1", {"network": pb.POD}, "cannot set 'net.no.such' to '1': No such file or directory"),
        ("net.core.somaxconn", "many", {"network": pb.POD}, "cannot set 'net.core.somaxconn' to 'many': Invalid arg"),
    ],
)
def test_sysctls_that_cannot_be_set(life: Node, key: str, value: str, options: dict[str, Any], message: str) -> None:
    config = life.pod_config(**options)
    config.linux.sysctls[key] = value
    assert message in refused(INVALID, life.run_pod, config)
    assert not life.pods()
