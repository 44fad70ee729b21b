"""Pods with users of their own, looked at from inside a container and from the host, with each OCI runtime."""

import errno
import fcntl
import gzip
import os
import signal
import socket
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from image import build_busybox_image
from kit import images
from kit.invariants import check
from kit.node import Node, node, until

from holdfast.linux import mount, sockets
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

NS_GET_USERNS = 0xB701  # linux/nsfs.h
UID, GID, COUNT = 300000, 400000, 65536


@pytest.fixture(scope="module")
def one() -> Iterator[Node]:
    with node() as made:
        yield made


@pytest.fixture(params=["crun", "runc"])
def handler(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_is_left(one: Node) -> Iterator[None]:
    yield
    for pod in one.pods():
        one.remove_pod(pod.id)
    assert not one.leftovers()


def users(uid: int = UID, gid: int = GID, count: int = COUNT) -> pb.UserNamespace:
    return pb.UserNamespace(
        mode=pb.POD,
        uids=[pb.IDMapping(host_id=uid, container_id=0, length=count)],
        gids=[pb.IDMapping(host_id=gid, container_id=0, length=count)],
    )


def pod_config(one: Node, **more: object) -> pb.PodSandboxConfig:
    config = one.pod_config(**{"network": pb.POD} | more)  # type: ignore[arg-type]
    config.linux.security_context.namespace_options.userns_options.CopyFrom(users())
    return config


def container_config(one: Node, script: str | list[str], name: str = "main", **more: object) -> pb.ContainerConfig:
    options = pb.NamespaceOption(
        network=more.pop("network", pb.POD),  # type: ignore[arg-type]
        pid=more.pop("pid", pb.CONTAINER),  # type: ignore[arg-type]
        userns_options=users(),
    )
    linux = pb.LinuxContainerConfig()
    linux.CopyFrom(more.pop("linux", linux))  # type: ignore[arg-type]
    linux.security_context.namespace_options.CopyFrom(options)
    return one.container_config(script, name, linux=linux, **more)


def run(one: Node, pod_id: str, script: str | list[str], name: str = "main", **more: object) -> str:
    container_id = one.create(pod_id, container_config(one, script, name, **more))
    one.start_container(container_id)
    return container_id


def said(one: Node, container_id: str, command: str) -> str:
    found = one.exec(container_id, ["/bin/sh", "-c", command])
    assert found.exit_code == 0, found.stderr.decode()
    return str(found.stdout.decode())


def test_who_is_who(one: Node, handler: str) -> None:
    pod_id = one.run_pod(pod_config(one), handler)
    container_id = run(one, pod_id, "echo again > /dev/stdout; id -u; sleep 1000")
    until(lambda: one.container_log(container_id).count(b"\n") == 2, "its log")
    assert [line.split()[3] for line in one.container_log(container_id).splitlines()] == [b"again", b"0"]
    assert said(one, container_id, "cat /proc/self/uid_map /proc/self/gid_map").split() == [
        *("0", str(UID), str(COUNT)),
        *("0", str(GID), str(COUNT)),
    ]
    assert said(one, container_id, "id -u; id -g; id -G; echo here > /dev/stdout").split() == ["0", "0", "0", "here"]
    assert said(one, container_id, "stat -c %u:%g /bin/busybox /etc/passwd / /tmp /dev/shm").split() == ["0:0"] * 5
    status = Path(f"/proc/{one.pid(container_id)}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}" in status
    assert f"Gid:\t{GID}\t{GID}\t{GID}\t{GID}" in status


def test_somebody_else_inside(one: Node, handler: str) -> None:
    pod_id = one.run_pod(pod_config(one), handler)
    context = pb.LinuxContainerSecurityContext(
        run_as_user=pb.Int64Value(value=1000), run_as_group=pb.Int64Value(value=2000), supplemental_groups=[3000]
    )
    script = "echo mine > /dev/stdout; echo mine > /tmp/file; sleep 1000"
    container_id = run(one, pod_id, script, linux=pb.LinuxContainerConfig(security_context=context))
    until(lambda: b"mine" in one.container_log(container_id), "its log")
    assert said(one, container_id, "id -u; id -g; stat -c %u:%g /tmp/file").split() == ["1000", "2000", "1000:2000"]
    assert "3000" in said(one, container_id, "id -G").split()
    assert f"Uid:\t{UID + 1000}\t" in Path(f"/proc/{one.pid(container_id)}/status").read_text()
    found = os.stat(f"/proc/{one.pid(container_id)}/root/tmp/file")
    assert (found.st_uid, found.st_gid) == (UID + 1000, GID + 2000)


def test_a_terminal(one: Node, handler: str) -> None:
    pod_id = one.run_pod(pod_config(one), handler)
    container_id = run(one, pod_id, "tty; stat -c %u $(tty); sleep 1000", tty=True)
    until(lambda: one.container_log(container_id).count(b"\n") == 2, "its log")
    assert [line.split()[3] for line in one.container_log(container_id).splitlines()] == [b"/dev/pts/0", b"0"]


def owner(path: str) -> int:
    """The user namespace that a namespace belongs to (ioctl_ns(2))."""
    with open(path) as file:
        found = fcntl.ioctl(file, NS_GET_USERNS)
    try:
        return os.fstat(found).st_ino
    finally:
        os.close(found)


def test_network_names_and_sysctls_are_theirs(one: Node, handler: str) -> None:
    config = pod_config(one, pid=pb.POD, hostname="within")
    config.linux.sysctls["net.ipv4.ip_unprivileged_port_start"] = "81"
    config.linux.sysctls["kernel.msgmax"] = "9000"
    pod_id = one.run_pod(config, handler)
    add = pb.Capability(add_capabilities=["NET_ADMIN", "SYS_ADMIN"])
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(capabilities=add))
    container_id = run(one, pod_id, "sleep 1000", pid=pb.POD, linux=linux)
    pid = one.pid(container_id)
    users = os.stat(f"/proc/{pid}/ns/user").st_ino
    assert users == os.stat(one.state / "pods" / pod_id / "ns" / "user").st_ino
    assert users != os.stat("/proc/self/ns/user").st_ino
    for kind in ("net", "ipc", "uts", "pid"):
        assert owner(str(one.state / "pods" / pod_id / "ns" / kind)) == users
    assert said(one, container_id, "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/msgmax").split() == [
        "81",
        "9000",
    ]
    here = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    change = (
        "echo 82 > /proc/sys/net/ipv4/ip_unprivileged_port_start; ip addr add 10.99.99.99/32 dev lo; hostname other"
    )
    shown = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ip addr show lo | grep -c 10.99.99.99; hostname"
    assert said(one, container_id, f"{change}; {shown}").split() == ["82", "1", "other"]
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == here
    assert os.uname().nodename != "other"
    assert said(one, container_id, "stat -c %u /proc/1; cat /proc/1/comm").split() == ["0", "hf-pod-init"]


def test_the_host_is_out_of_reach(one: Node, handler: str, tmp_path: Path) -> None:
    private, public = tmp_path / "private", tmp_path / "public"
    for place, mode in ((private, 0o700), (public, 0o777)):
        place.mkdir()
        place.chmod(mode)
    (private / "secret").write_text("of the host")
    (public / "secret").write_text("of the host")
    (public / "secret").chmod(0o600)
    pod_id = one.run_pod(pod_config(one), handler)
    add = pb.Capability(add_capabilities=["ALL"])
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(capabilities=add))
    mounts = [pb.Mount(container_path=f"/{place.name}", host_path=str(place)) for place in (private, public)]
    container_id = run(one, pod_id, "sleep 1000", linux=linux, mounts=mounts)

    def refused(command: str) -> bool:
        return bool(one.exec(container_id, ["/bin/sh", "-c", command]).exit_code != 0)

    assert said(one, container_id, "cd /public; touch file; stat -c %u file secret").split() == [
        "0",
        "65534",
    ]
    assert ((public / "file").stat().st_uid, (public / "file").stat().st_gid) == (UID, GID)
    for command in (
        "ls /private",
        "cat /public/secret",
        "chown 0 /public/secret",
        "chmod 666 /public/secret",
        "chmod 666 /dev/null",
        "mknod /tmp/disk b 254 0",
        f"chown {COUNT} /public/file",
        "echo 1 > /proc/sys/vm/drop_caches",
        "mount -t ext4 /dev/vda /tmp",
    ):
        assert refused(command), command
    assert said(one, container_id, "stat -c %u /dev/null") == "65534\n"
    one.exec(container_id, ["/bin/sh", "-c", "chmod 000 /proc/self/fd/0"])
    assert stat.S_IMODE(os.stat("/dev/null").st_mode) == 0o666


def test_volumes_as_a_kubelet_gives_them(one: Node, handler: str, tmp_path: Path) -> None:
    """Shown through the pod's own mapping: what is root's there is root's inside, and the other way round."""
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    (volume / "roots").write_text("old")
    (volume / "roots").chmod(0o600)
    ids = users()
    mounts = [
        pb.Mount(container_path=path, host_path=str(source), uidMappings=ids.uids, gidMappings=ids.gids)
        for path, source in (("/volume", volume), ("/file", volume / "roots"))
    ]
    pod_id = one.run_pod(pod_config(one), handler)
    container_id = run(one, pod_id, "sleep 1000", mounts=mounts)
    script = "cat /volume/roots /file; stat -c %u:%g /volume/roots; echo new > /volume/new; chown 5:6 /volume/new"
    assert said(one, container_id, script) == "oldold0:0\n"
    found = (volume / "new").stat()
    assert (found.st_uid, found.st_gid, (volume / "new").read_text()) == (5, 6, "new\n")
    one.restart()
    second = run(one, pod_id, "stat -c %u:%g /volume/new", "second", mounts=mounts)
    assert one.exited(second).exit_code == 0
    assert one.container_log(second).split()[-1] == b"5:6"


def test_through_the_death_of_everybody(one: Node, handler: str) -> None:
    pod_id = one.run_pod(pod_config(one, pid=pb.POD), handler)
    script = "trap 'exit 9' TERM; while :; do sleep 0.1; done"
    container_id = run(one, pod_id, script, pid=pb.POD)
    pid, users = one.pid(container_id), os.stat(one.state / "pods" / pod_id / "ns" / "user").st_ino
    shim = next(worker.pid for worker in keeper.workers(one.state) if worker.id == pod_id)
    assert one.process is not None
    one.hang_up()
    for victim in (one.process.pid, shim, keeper_of(one)):
        os.kill(victim, signal.SIGKILL)
    one.process.wait()
    one.start()
    until(lambda: one.works(container_id), "its new shim")
    assert one.pid(container_id) == pid
    assert said(one, container_id, "cat /proc/self/uid_map").split() == ["0", str(UID), str(COUNT)]
    assert os.stat(f"/proc/{pid}/ns/user").st_ino == users
    second = run(one, pod_id, "echo new > /dev/stdout; readlink /proc/self/ns/user; sleep 1000", "second", pid=pb.POD)
    until(lambda: one.container_log(second).count(b"\n") == 2, "its log")
    assert str(users).encode() in one.container_log(second)
    check(one)
    one.stop_container(container_id, 20)
    assert one.exited(container_id).exit_code == 9
    one.remove_pod(pod_id)
    check(one)


def keeper_of(one: Node) -> int:
    with sockets.connect(one.state / "keeper.sock", socket.SOCK_SEQPACKET, 5.0) as line:
        return sockets.peer_pid(line)


def test_a_container_that_was_created_before_a_restart(one: Node, handler: str) -> None:
    pod_id = one.run_pod(pod_config(one), handler)
    container_id = one.create(pod_id, container_config(one, "stat -c %u /bin/busybox; touch /new"))
    one.restart()
    one.start_container(container_id)
    assert one.exited(container_id).exit_code == 0
    assert one.container_log(container_id).split()[-1] == b"0"


def test_the_hosts_network(one: Node, handler: str) -> None:
    pod_id = one.run_pod(pod_config(one, network=pb.NODE), handler)
    container_id = run(one, pod_id, "sleep 1000", network=pb.NODE)
    assert os.stat(f"/proc/{one.pid(container_id)}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
    assert said(one, container_id, "cat /proc/self/uid_map; ls /sys/class/net").split()[:3] == [
        "0",
        str(UID),
        str(COUNT),
    ]
    assert one.exec(container_id, ["/bin/ip", "addr", "add", "10.99.99.98/32", "dev", "lo"]).exit_code != 0
    assert one.exec(container_id, ["/bin/sh", "-c", "echo 1 > /sys/kernel/profiling"]).exit_code != 0


def test_privileges_are_those_of_the_pods_root(one: Node, handler: str) -> None:
    pod_id = one.run_pod(pod_config(one, privileged=True), handler)
    context = pb.LinuxContainerSecurityContext(privileged=True)
    container_id = run(one, pod_id, "sleep 1000", linux=pb.LinuxContainerConfig(security_context=context))
    assert said(
        one, container_id, "cat /proc/self/uid_map; mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo ok"
    ).split() == [
        *("0", str(UID), str(COUNT)),
        "ok",
    ]
    assert one.exec(container_id, ["/bin/sh", "-c", "cat /dev/vda | head -c 1"]).stdout == b""


def test_what_a_kubelet_asks_for_besides(one: Node, handler: str, tmp_path: Path) -> None:
    """A root that is read-only, paths that are hidden, a termination message, and mounts that come later."""
    message, volume = tmp_path / "message", tmp_path / "volume"
    message.touch()
    message.chmod(0o666)
    volume.mkdir()
    mount.bind(volume, volume)
    try:
        mount.set_propagation(volume, mount.MS_SHARED)
        (volume / "later").mkdir()
        context = pb.LinuxContainerSecurityContext(
            readonly_rootfs=True,
            masked_paths=["/proc/kcore", "/proc/keys", "/sys/firmware"],
            readonly_paths=["/proc/sys", "/proc/irq"],
            no_new_privs=True,
        )
        later = pb.PROPAGATION_HOST_TO_CONTAINER
        mounts = [
            pb.Mount(container_path="/dev/termination-log", host_path=str(message)),
            pb.Mount(container_path="/data", host_path=str(volume), readonly=True, propagation=later),
        ]
        pod_id = one.run_pod(pod_config(one), handler)
        linux = pb.LinuxContainerConfig(security_context=context)
        container_id = run(one, pod_id, "echo bye > /dev/termination-log; sleep 1000", linux=linux, mounts=mounts)
        until(lambda: message.read_text() == "bye\n", "the message")
        for command in ("touch /file", "touch /data/file", "echo 1 > /proc/sys/net/ipv4/ip_forward", "cat /proc/kcore"):
            assert one.exec(container_id, ["/bin/sh", "-c", f"{command} | grep -q ."]).exit_code != 0, command
        mount.mount("none", volume / "later", "tmpfs")
        (volume / "later" / "file").touch()
        assert said(one, container_id, "ls /data/later") == "file\n"
    finally:
        mount.unmount_tree(volume)


def features(one: Node) -> dict[str, bool]:
    status = one.call("Status", pb.StatusRequest())
    assert status.features.user_namespaces_host_network
    return {each.name: each.features.user_namespaces for each in status.runtime_handlers}


def test_status_says_who_can(one: Node) -> None:
    until(lambda: features(one) == {"": True, "crun": True, "runc": True}, "both runtimes to be tried")


def test_what_is_refused(one: Node, handler: str) -> None:
    config = pod_config(one)
    config.linux.security_context.namespace_options.userns_options.uids[0].host_id = 0
    with pytest.raises(grpc.RpcError, match=r"userns_options.uids\[0\].host_id: 0 is root of the host"):
        one.run_pod(config, handler)
    pod_id = one.run_pod(pod_config(one), handler)
    other = container_config(one, "true")
    other.linux.security_context.namespace_options.userns_options.uids[0].host_id = UID + 1
    with pytest.raises(grpc.RpcError, match="userns_options: they are not those of the pod sandbox"):
        one.create(pod_id, other)
    with pytest.raises(grpc.RpcError, match="userns_options: they are not those of the pod sandbox"):
        one.create(pod_id, one.container_config("true"))
    nobody = container_config(one, "true")
    nobody.linux.security_context.run_as_user.value = COUNT
    with pytest.raises(grpc.RpcError, match="run_as_user: 65536 has no id in the pod's user namespace"):
        one.create(pod_id, nobody)
    assert not one.containers()


def image(one: Node) -> str:
    """Busybox, and files such as a copy might get wrong."""
    capability = bytes.fromhex("0100000200040000000000000000000000000000").decode("latin-1")  # CAP_NET_BIND_SERVICE+ep
    entries = [
        images.entry("opt", type=tarfile.DIRTYPE, mode=0o2750, uid=5, gid=6),
        images.entry("opt/set-id", b"x", mode=0o6755, uid=7, gid=8),
        images.entry("opt/able", b"x", mode=0o755, pax={"SCHILY.xattr.security.capability": capability}),
        images.entry("opt/also", type=tarfile.LNKTYPE, linkname="opt/set-id"),
        images.entry("opt/link", type=tarfile.SYMTYPE, linkname="/host", uid=9, gid=9),
        images.entry("opt/stranger", b"x", uid=COUNT, gid=0),
    ]
    layer = gzip.compress(images.tar(entries), 1, mtime=0)
    place = one.base / "more"
    place.mkdir()
    one.import_image(build_busybox_image(place, "test/owners:1", extra_layer=layer))
    return "test/owners:1"


def owners(one: Node, container_id: str) -> str:
    command = "cd /opt; stat -c '%n %u:%g %a' . set-id able also link stranger; ls -a /"
    return said(one, container_id, command)


def test_an_image_looks_the_same_shown_and_copied() -> None:
    """A filesystem that cannot be mapped: every call that would do so fails, in the daemon's and its shims' eyes."""
    with node(inject=True) as one:
        name = image(one)
        shown: dict[str, str] = {}
        for how in ("shown", "copied"):
            if how == "copied":
                one.end(signal.SIGTERM)
                (one.inject / "fail-idmap-bind").write_text(f"1 {errno.EINVAL} 1000000")
                one.start()
            pod_id = one.run_pod(pod_config(one))
            container_id = run(one, pod_id, "sleep 1000", image=name)
            shown[how] = owners(one, container_id)
            marks = list((one.root / "snapshots").glob("*/shifted"))
            assert bool(marks) == (how == "copied")
            root = Path(f"/proc/{one.pid(container_id)}/root")
            found = os.stat(root / "opt" / "set-id")
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (UID + 7, GID + 8, 0o6755)
            value = os.getxattr(root / "opt" / "able", "security.capability")
            assert (value[3], value[4:20], value[20:]) == (
                3,
                bytes.fromhex("00040000" + "00" * 12),
                UID.to_bytes(4, "little"),
            )
            assert said(one, container_id, "echo more >> /etc/passwd; mkdir /opt/new; stat -c %u /opt/new") == "0\n"
            one.remove_pod(pod_id)
            check(one)
            assert not one.leftovers()
        assert shown["shown"] == shown["copied"]
        assert "set-id 7:8 6755" in shown["copied"]
        assert "also 7:8 6755" in shown["copied"]
        assert "able 0:0 755" in shown["copied"]
        assert "stranger 65534:0" in shown["copied"]


def test_layers_stay_what_they_are_under_a_copy() -> None:
    with node(inject=True) as one:
        (one.inject / "fail-idmap-bind").write_text(f"1 {errno.EINVAL} 1000000")
        assert not any(features(one).values())  # a kubelet means volumes, too
        pod_id = one.run_pod(pod_config(one))
        container_id = run(one, pod_id, "stat -c %u /bin/busybox /etc/passwd")
        assert one.exited(container_id).exit_code == 0
        plain = one.run(one.run_pod(), "stat -c %u /bin/busybox /etc/passwd")
        assert one.exited(plain).exit_code == 0
        for each in (container_id, plain):
            assert [line.split()[3] for line in one.container_log(each).splitlines()] == [b"0", b"0"]
        (one.inject / "fail-idmap-bind").unlink()


def test_a_way_in_that_is_closed_is_named() -> None:
    with node() as one:
        one.base.chmod(0o700)
        with pytest.raises(grpc.RpcError, match=f"{one.base} lets nobody but its owner through") as refused:
            one.run_pod(pod_config(one))
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert not one.pods()
        assert not any(features(one).values())
        assert stat.S_IMODE(one.state.stat().st_mode) == 0o700
