"""What a process finds itself to be: user, environment, directory, namespaces; and what is executed beside it."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit import images, inside
from kit.node import IMAGE, Node, node, until

from holdfast.proto import runtime_v1_pb2 as pb

FOREIGN = "runc-v2"
OURS = ["crun", "runc"]
ALL = [*OURS, FOREIGN]
PEOPLE = "test/people:latest"
PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:100:An App:/home/app:/bin/sh\n77:x:0:0::/root:/bin/sh\n"
GROUP = b"root:x:0:\nusers:x:100:\nvideo:x:44:app\nwheel:x:10:root,app\n"
KINDS = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
Context = pb.LinuxContainerSecurityContext


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(runtimes={FOREIGN: {"shim": "containerd-shim-runc-v2"}}) as one:
        layer = images.tar([
            images.entry("etc"), images.entry("etc/passwd", PASSWD), images.entry("etc/group", GROUP),
            images.entry("work"), images.entry("link", b"", type=b"2", linkname="/there"),
            images.entry("there"),
        ])  # fmt: skip
        people = {"User": "app", "WorkingDir": "/work", "Env": ["PATH=/bin", "A=image", "B=image", "EMPTY="]}
        bring(one, PEOPLE, layer, **people, StopSignal="SIGRTMIN+3")
        yield one


def bring(one: Node, name: str, layer: bytes, **config: Any) -> None:
    """An image of busybox with one more layer."""
    from image import build_busybox_image

    place = one.base / name.replace("/", "-")
    place.mkdir()
    one.import_image(build_busybox_image(place, name, extra_layer=images.pack(layer, "gzip"), **config))


@pytest.fixture(autouse=True)
def no_pods_are_left(life: Node) -> Iterator[None]:
    yield
    for one in life.pods():
        life.remove_pod(one.id)
    assert not life.leftovers()


def sh(life: Node, container_id: str, script: str) -> str:
    """What a script prints that is executed in a container."""
    reply = life.exec(container_id, ["/bin/sh", "-c", script])
    assert reply.exit_code == 0, reply.stderr
    return str(reply.stdout.decode())


def prints(life: Node, container_id: str, wanted: str) -> None:
    """And nothing else, until it ends. Of a foreign shim's container the log may be completed only after that."""
    life.exited(container_id)
    until(lambda: inside.output(life, container_id) == wanted, f"it to have written {wanted!r}")


def secured(**fields: Any) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=Context(**fields))


def user(uid: int | None = None, gid: int | None = None, **fields: Any) -> pb.LinuxContainerConfig:
    linux = secured(**fields)
    if uid is not None:
        linux.security_context.run_as_user.value = uid
    if gid is not None:
        linux.security_context.run_as_group.value = gid
    return linux


def refused(code: grpc.StatusCode, method: Any, *arguments: Any) -> str:
    with pytest.raises(grpc.RpcError) as failure:
        method(*arguments)
    assert failure.value.code() is code, failure.value.details()
    return str(failure.value.details())


# -- who it is: the matrix of CVE-2023-25173 and CVE-2022-2995, and the status that tells of it

USERS: dict[str, tuple[pb.LinuxContainerConfig, tuple[int, int, list[int]]]] = {
    "the image's": (user(), (1000, 100, [10, 44, 100])),
    "uid with groups of the image": (user(1000), (1000, 100, [10, 44, 100])),
    "group overridden": (user(1000, 5), (1000, 5, [5, 10, 44])),
    "uid that nobody knows": (user(4242), (4242, 0, [0])),
    "uid and group that nobody knows": (user(4242, 4243), (4242, 4243, [4243])),
    "by name": (user(run_as_username="app"), (1000, 100, [10, 44, 100])),
    "by name with a group": (user(gid=7, run_as_username="app"), (1000, 7, [7, 10, 44])),
    "a name that is a number": (user(run_as_username="77"), (77, 0, [0])),
    "root": (user(0), (0, 0, [0, 10])),
    "merge": (user(1000, supplemental_groups=[9]), (1000, 100, [9, 10, 44, 100])),
    "strict": (
        user(1000, supplemental_groups=[9], supplemental_groups_policy=pb.Strict), (1000, 100, [9, 100]),
    ),
    "strict, with a group": (user(1000, 5, supplemental_groups_policy=pb.Strict), (1000, 5, [5])),
}  # fmt: skip


@pytest.mark.parametrize("handler", ALL)
def test_users_and_groups(life: Node, handler: str) -> None:
    pod = life.run_pod(life.pod_config(), handler)
    for number, (linux, expected) in enumerate(USERS.values()):
        container = life.run(pod, "sleep 1000", f"user-{number}", image=PEOPLE, linux=linux)
        init = life.pid(container)
        for status in (Path(f"/proc/{init}/status").read_text(), sh(life, container, "cat /proc/self/status")):
            found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert set(found["Uid"].split()) == {str(expected[0])}, list(USERS)[number]
            assert set(found["Gid"].split()) == {str(expected[1])}
            assert sorted(map(int, found["Groups"].split())) == expected[2]
        assert told(life, container) == expected


def told(life: Node, container: str) -> tuple[int, int, list[int]]:
    linux = life.status(container).user.linux
    return linux.uid, linux.gid, list(linux.supplemental_groups)


@pytest.mark.parametrize(
    ("linux", "message"),
    [
        (user(run_as_username="nobody-here"), "run_as_username: user 'nobody-here' is not in the image's /etc/passwd"),
        (user(run_as_username="4294967296"), "run_as_username: user 4294967296 is out of range"),
        (user(gid=5), "run_as_group: it needs a user"),
        (user(1, run_as_username="app"), "run_as_username: run_as_user is set as well"),
        (user(1, supplemental_groups=[2**31]), "supplemental_groups[0]: 2147483648 is out of range"),
    ],
)
def test_a_user_that_cannot_be_is_refused(life: Node, linux: pb.LinuxContainerConfig, message: str) -> None:
    pod = life.run_pod()
    config = life.container_config("exit 0", image=PEOPLE, linux=linux)
    assert message in refused(grpc.StatusCode.INVALID_ARGUMENT, life.create, pod, config)


def test_who_it_is_outlives_the_daemon_its_image_and_its_store() -> None:
    with node() as one:
        bring(one, PEOPLE, images.tar([images.entry("etc/passwd", PASSWD), images.entry("etc/group", GROUP)]))
        pod = one.run_pod()
        states = [one.create(pod, one.container_config("exit 0", "created", image=PEOPLE, linux=user(1000)))]
        states.append(one.run(pod, "sleep 1000", "running", image=PEOPLE, linux=user(1000)))
        states.append(one.run(pod, "exit 0", "exited", image=PEOPLE, linux=user(1000), stop_signal=pb.SIGUSR1))
        one.exited(states[2])
        one.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=PEOPLE)))
        for damage in (False, True):
            one.kill()
            if damage:
                os.truncate(one.root / "holdfast.db", 0)
            one.start()
            for container in states:
                assert told(one, container) == (1000, 100, [10, 44, 100])
            assert [one.status(id).stop_signal for id in states] == [pb.SIGTERM, pb.SIGTERM, pb.SIGUSR1]


# -- environment, directory, input and output


@pytest.mark.parametrize("handler", ALL)
def test_environment(life: Node, handler: str) -> None:
    pod = life.run_pod(life.pod_config("envs", network=pb.POD, hostname="inside"), handler)
    envs = [pb.KeyValue(key="B", value="config"), pb.KeyValue(key="C", value="a=b c"), pb.KeyValue(key="D", value="")]
    container = life.run(pod, ["/bin/sleep", "1000"], image=PEOPLE, envs=envs)
    until(lambda: sh(life, container, "cat /proc/1/comm") == "sleep\n", "the runtime's own program to be over")
    for pid in ("1", "$$"):
        found = sh(life, container, f"cat /proc/{pid}/environ; :").split("\0")[:-1]
        expected = {"PATH": "/bin", "HOSTNAME": "inside", "A": "image", "B": "config", "C": "a=b c", "D": ""}
        assert dict(one.split("=", 1) for one in found) == expected | {"EMPTY": "", "HOME": "/home/app"}


@pytest.mark.parametrize("handler", ALL)
def test_a_working_directory_is_made_and_is_roots(life: Node, handler: str) -> None:
    pod = life.run_pod(life.pod_config(), handler)
    cases = {"": "/work", "/made/by/../deep": "/made/deep", "/link/below": "/there/below", "/": "/"}
    for number, (asked, leads_to) in enumerate(cases.items()):
        container = life.run(pod, "sleep 1000", f"in-{number}", image=PEOPLE, working_dir=asked)
        assert sh(life, container, "readlink /proc/self/cwd; stat -c '%u:%g %a' .").split() == [leads_to, "0:0", "755"]


@pytest.mark.parametrize("handler", ALL)
def test_input_and_terminal(life: Node, handler: str) -> None:
    pod = life.run_pod(life.pod_config(), handler)
    prints(life, life.run(pod, "cat; test -t 0 || echo none", "none"), "none\n")
    container = life.run(pod, "read line; echo got $line", "given", stdin=True, stdin_once=True)
    fifo = life.state / "pods" / pod / container / "stdin"
    until(fifo.is_fifo, "its stdin")
    with fifo.open("wb") as stdin:
        stdin.write(b"this\n")
    prints(life, container, "got this\n")
    script = "test -t 0 && test -t 1 && test -t 2 && echo terminal $TERM"
    prints(life, life.run(pod, script, "terminal", tty=True), "terminal xterm\r\n")


# -- what is executed is as confined as the container is


@pytest.mark.parametrize("handler", ALL)
def test_an_exec_is_where_the_init_is_and_may_no_more(life: Node, handler: str) -> None:
    linux = user(1000, 2000, supplemental_groups=[3000], no_new_privs=True)
    linux.security_context.capabilities.add_capabilities.append("NET_ADMIN")
    linux.security_context.capabilities.drop_capabilities.append("CHOWN")
    linux.resources.oom_score_adj = 321
    pod = life.run_pod(life.pod_config(), handler)
    container = life.run(pod, ["/bin/sleep", "1000"], linux=linux, working_dir="/tmp")
    until(lambda: sh(life, container, "cat /proc/1/comm") == "sleep\n", "the runtime's own program to be over")
    kept = "Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp"
    script = f"cat /proc/$p/cgroup; grep -E '^({kept}):' /proc/$p/status; cat /proc/$p/oom_score_adj /proc/$p/environ"
    script += "; grep Umask /proc/$p/status; cat /proc/$p/limits; readlink /proc/$p/cwd"
    script += "; for n in /proc/$p/ns/*; do readlink $n; done"
    init, executed = (sh(life, container, f"p={pid}; {script}") for pid in ("1", "$$"))
    assert executed == init
    assert "NoNewPrivs:\t1" in init
    assert "Umask:\t0022" in init
    assert "\n321\n" in init
    assert container in init.splitlines()[0]


# -- namespaces


def own(life: Node, container: str) -> dict[str, str]:
    """The namespaces of a container's init, by kind, as a process inside reads them."""
    lines = sh(life, container, "for n in /proc/self/ns/*; do readlink $n; done").split()
    found = dict(line.split(":") for line in lines)
    init = life.pid(container)
    assert all(found[kind] == here(kind, init) for kind in KINDS)
    return found


def here(kind: str, pid: int | str = "self") -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}").partition(":")[2]


@pytest.mark.parametrize("handler", ALL)
@pytest.mark.parametrize(
    ("network", "ipc", "pid", "shared"),
    [
        (pb.POD, pb.POD, pb.CONTAINER, {"net", "ipc", "uts"}),
        (pb.POD, pb.POD, pb.POD, {"net", "ipc", "uts", "pid"}),
        (pb.NODE, pb.POD, pb.CONTAINER, {"ipc"}),
        (pb.POD, pb.NODE, pb.NODE, {"net", "uts"}),
        (pb.NODE, pb.NODE, pb.NODE, set()),
    ],
)
def test_namespaces(life: Node, handler: str, network: int, ipc: int, pid: int, shared: set[str]) -> None:
    pod = life.run_pod(life.pod_config(network=network, ipc=ipc, pid=pid), handler)
    options = pb.NamespaceOption(network=network, ipc=ipc, pid=pid)
    found = [
        own(life, life.run(pod, "sleep 1000", name, linux=secured(namespace_options=options))) for name in ("a", "b")
    ]
    hosts = {"cgroup"} if Path("/sys/fs/cgroup/memory").exists() else set()  # on v1 it is the host's, as in containerd
    hosts |= {"net", "uts"} if network == pb.NODE else set()
    hosts |= {kind for kind, mode in (("ipc", ipc), ("pid", pid)) if mode == pb.NODE}
    for kind in KINDS:
        one, other = found[0][kind], found[1][kind]
        assert (one == here(kind)) is (kind in hosts), kind
        assert (one == other) is (kind in hosts | shared), kind


def sharing(life: Node, pod: str, target: str, name: str = "debug", **more: Any) -> pb.ContainerConfig:
    options = pb.NamespaceOption(network=pb.NODE, pid=pb.TARGET, target_id=target)
    return life.container_config("echo up; sleep 1000", name, linux=secured(namespace_options=options), **more)


@pytest.mark.parametrize("handler", ALL)
@pytest.mark.parametrize("shared", [pb.CONTAINER, pb.POD, pb.NODE])
def test_the_processes_of_a_target(life: Node, handler: str, shared: int) -> None:
    pod = life.run_pod(life.pod_config(pid=shared), handler)
    options = pb.NamespaceOption(network=pb.NODE, pid=shared)
    target = life.run(pod, "sleep 4321", "target", linux=secured(namespace_options=options))
    other = life.run(pod, "sleep 1000", "other")
    debug = life.create(pod, sharing(life, pod, target))
    life.start_container(debug)
    assert own(life, debug)["pid"] == own(life, target)["pid"] != own(life, other)["pid"]
    assert "sleep 4321" in sh(life, debug, "ps -o args")
    assert not (life.state / "pods" / pod / debug / "target").exists()
    pid = life.pid(debug)
    life.stop_container(target)
    if shared == pb.CONTAINER:  # its init was process 1: the kernel ends whoever is with it
        status = life.exited(debug)
        assert (status.exit_code, status.reason) == (137, "Error")
    else:
        assert "sleep 1000" in sh(life, debug, "ps -o args")
        life.stop_container(debug)
    assert not Path(f"/proc/{pid}").exists()


def test_a_target_has_to_run_in_the_same_pod(life: Node) -> None:
    pod, another = life.run_pod(), life.run_pod()
    invalid, precondition = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
    for target in (life.run(another, "sleep 1000"), "f" * 64, "../x"):
        message = refused(invalid, life.create, pod, sharing(life, pod, target))
        assert f"namespace_options.target_id: pod sandbox {pod} has no container" in message
    created = life.create(pod, life.container_config("sleep 1000", "created"))
    message = refused(precondition, life.create, pod, sharing(life, pod, created))
    assert f"cannot share the processes of container {created}: it is CREATED" in message
    life.start_container(created)
    debug = life.create(pod, sharing(life, pod, created))
    life.stop_container(created)
    message = refused(precondition, life.start_container, debug)
    assert "it is EXITED" in message
    status = life.status(debug)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")


# -- signals, names, files and logs


@pytest.mark.parametrize("handler", ALL)
def test_stop_signals(life: Node, handler: str) -> None:
    pod = life.run_pod(life.pod_config(), handler)
    script = f"trap 'exit 3' {signal.SIGRTMIN + 3}; trap 'exit 4' USR2; echo up; while :; do sleep 0.02; done"
    for name, asked, told_as, code in [
        ("image", pb.RUNTIME_DEFAULT, pb.SIGRTMINPLUS3, 3), ("config", pb.SIGUSR2, pb.SIGUSR2, 4),
    ]:  # fmt: skip
        container = life.run(pod, script, name, image=PEOPLE, stop_signal=asked)
        assert life.status(container).stop_signal == told_as
        until(lambda one=container: b"up" in life.container_log(one), "its trap to be set")  # type: ignore[misc]
        life.stop_container(container, 20)
        assert life.status(container).exit_code == code
    assert life.status(life.create(pod, life.container_config("exit 0", "none"))).stop_signal == pb.SIGTERM


def test_an_image_whose_stop_signal_is_none_is_refused(life: Node) -> None:
    bring(life, "test/signal:latest", images.tar([images.entry("x")]), StopSignal="SIGNOTHING")
    config = life.container_config("exit 0", image="test/signal:latest")
    message = refused(grpc.StatusCode.INVALID_ARGUMENT, life.create, life.run_pod(), config)
    assert "stop_signal: 'SIGNOTHING' is not a signal" in message


@pytest.mark.parametrize("handler", ALL)
def test_host_name_and_its_files(life: Node, handler: str) -> None:
    longest = ".".join(["a" * 31, "b" * 32])  # 64, HOST_NAME_MAX; a kubelet makes such ones of setHostnameAsFQDN
    config = life.pod_config(network=pb.POD, hostname=longest)
    config.dns_config.CopyFrom(pb.DNSConfig(servers=["192.0.2.1", "::1"], searches=["a.b", "c"], options=["ndots:5"]))
    pod = life.run_pod(config, handler)
    container = life.run(pod, "sleep 1000", linux=user(1000))
    files = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
    assert sh(life, container, f"hostname; stat -c '%a %u:%g' {' '.join(files)}").split() == [
        longest,
        *["644", "0:0"] * 3,
    ]
    assert sh(life, container, "cat /etc/hostname") == f"{longest}\n"
    assert f"127.0.0.1\t{longest}\n" in sh(life, container, "cat /etc/hosts")
    expected = "search a.b c\nnameserver 192.0.2.1\nnameserver ::1\noptions ndots:5\n"
    assert sh(life, container, "cat /etc/resolv.conf") == expected


def test_host_names_that_nobody_has_chosen(life: Node) -> None:
    for name, expected in [("x" * 62 + ".y", "x" * 62), ("a b_c", "a-b-c"), ("...", "pod")]:
        pod = life.run_pod(life.pod_config(name, network=pb.POD))
        assert sh(life, life.run(pod, "sleep 1000"), "hostname") == f"{expected}\n"
    host = life.run_pod(life.pod_config(network=pb.NODE))
    container = life.run(host, "sleep 1000")
    assert (
        sh(life, container, "hostname; cat /etc/hosts") == f"{socket.gethostname()}\n{Path('/etc/hosts').read_text()}"
    )


@pytest.mark.parametrize("handler", ALL)
def test_a_termination_message(life: Node, handler: str) -> None:
    message = life.base / f"message-{handler}"
    message.write_text("")
    message.chmod(0o666)
    mounts = [pb.Mount(host_path=str(message), container_path="/dev/termination-log")]
    linux = user(1000, readonly_rootfs=True)
    pod = life.run_pod(life.pod_config(), handler)
    container = life.run(pod, "printf 'all is lost' > /dev/termination-log; exit 3", linux=linux, mounts=mounts)
    assert life.exited(container).exit_code == 3
    assert message.read_text() == "all is lost"


@pytest.mark.parametrize("handler", ALL)
def test_a_log_is_opened_anew_only_while_somebody_writes_it(life: Node, handler: str) -> None:
    def reopen(container: str) -> None:
        life.call("ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=container))

    pod = life.run_pod(life.pod_config(), handler)
    container = life.create(pod, life.container_config("while [ ! -e /end ]; do echo on; sleep 0.02; done"))
    assert "it is CREATED" in refused(grpc.StatusCode.FAILED_PRECONDITION, reopen, container)
    life.start_container(container)
    path = Path(life.status(container).log_path)
    until(lambda: path.exists() and path.stat().st_size, "its log")
    path.rename(path.with_suffix(".rotated"))
    reopen(container)
    until(lambda: path.exists() and path.stat().st_size, "its new log")
    sh(life, container, "> /end")
    life.exited(container)
    assert "it is EXITED" in refused(grpc.StatusCode.FAILED_PRECONDITION, reopen, container)
    refused(grpc.StatusCode.NOT_FOUND, reopen, "f" * 64)
    assert json.dumps(life.info(container)["runtimeSpec"]["process"]["args"]).startswith('["/bin/sh"')


def test_the_standard_image_says_nothing_of_users(life: Node) -> None:
    container = life.create(life.run_pod(), life.container_config("exit 0", image=IMAGE))
    assert told(life, container) == (0, 0, [0])
