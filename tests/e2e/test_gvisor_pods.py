"""gVisor pods under our own shim, with the real runsc: what they do, and what becomes of them when something dies."""

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from kit import invariants
from kit.checkpoints import emptied
from kit.cni import network
from kit.gvisor import COUNT, RUNTIMES, gvisor_node, kill_sentry, last_number, lines, shim
from kit.node import Node, until
from kit.ports import SECONDS, check_forwarding, forwarded
from kit.terminal import Terminal
from kit.tools import needs_runsc

from holdfast.proto import runtime_v1_pb2 as pb

pytestmark = needs_runsc

SLEEP = ["/bin/sleep", "100000"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Node]:
    with gvisor_node() as one:
        yield one


@pytest.fixture
def one(shared: Node) -> Iterator[Node]:
    """The shared node, without pods, and with nothing left of them afterwards."""
    with emptied(shared):
        yield shared


def counting(one: Node, container: str) -> None:
    """It goes on, and is heard."""
    before = last_number(one, container)
    until(lambda: last_number(one, container) > before + 2, "it to go on")


def ready(one: Node, pod: str) -> bool:
    found = one.call("PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
    return bool(found.state == pb.SANDBOX_READY)


@pytest.mark.parametrize("handler", ["runsc", "ptrace"])
def test_a_pod_of_two_containers(one: Node, handler: str) -> None:
    pod = one.run_pod(handler=handler)
    first = one.run(pod, "echo out; echo err >&2; dmesg | head -1; exit 5", "first")
    second = one.run(pod, SLEEP, "second", envs=[pb.KeyValue(key="WHO", value="me")])
    assert one.exited(first).exit_code == 5
    said = lines(one, first)
    assert "out" in said and "err" in said and any("Starting gVisor" in line for line in said)
    assert one.exec(second, ["/bin/sh", "-c", "echo $WHO; id -u; cat /proc/version"]).stdout.startswith(b"me\n0\nLinux")
    assert ready(one, pod) and one.status(second).state == pb.CONTAINER_RUNNING
    invariants.check(one)
    one.call("RemoveContainer", pb.RemoveContainerRequest(container_id=first))
    assert one.works(second)


def test_commands_end_with_their_code_by_a_signal_or_in_time(one: Node) -> None:
    container = one.run(one.run_pod(), SLEEP)
    assert one.exec(container, ["/bin/sh", "-c", "cat; echo said; exit 3"]).exit_code == 3
    assert one.exec(container, ["/bin/sh", "-c", "kill -9 $$"]).exit_code == 137
    with pytest.raises(grpc.RpcError) as late:
        one.exec(container, ["/bin/sleep", "4711"], seconds=1)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert b"4711" not in one.exec(container, ["/bin/ps"]).stdout


def test_signals_reach_whom_they_are_for(one: Node) -> None:
    pod = one.run_pod()
    polite = one.run(pod, "trap 'exit 7' TERM; echo ready; while true; do sleep 0.05; done", "polite")
    deaf = one.run(pod, "trap '' TERM; echo ready; while true; do sleep 0.05; done", "deaf")
    other = one.run(pod, COUNT, "other")
    until(lambda: lines(one, polite) == lines(one, deaf) == ["ready"], "them to listen")
    with ThreadPoolExecutor() as pool:
        list(pool.map(one.stop_container, (polite, deaf), (30, 2)))
    assert (one.status(polite).exit_code, one.status(deaf).exit_code) == (7, 137)
    counting(one, other)


def test_containers_of_a_pod_may_share_their_processes(one: Node) -> None:
    pod = one.run_pod(one.pod_config(pid=pb.POD))
    first = one.run(pod, ["/bin/sleep", "4711"], "first", pid=pb.POD)
    second = one.run(pod, ["/bin/sleep", "4712"], "second", pid=pb.POD)
    alone = one.run(pod, ["/bin/sleep", "4713"], "alone")
    assert all(text in one.exec(second, ["/bin/ps"]).stdout for text in (b"4711", b"4712"))
    assert b"4711" not in one.exec(alone, ["/bin/ps"]).stdout
    one.stop_container(first)
    assert one.works(second)


def test_statistics_are_of_each_container(one: Node) -> None:
    pod = one.run_pod()
    busy, idle = one.run(pod, "while true; do :; done", "busy"), one.run(pod, SLEEP, "idle")

    def used(container: str) -> pb.ContainerStats:
        """Once runsc has told in time."""

        def told() -> pb.ContainerStats | None:
            found = one.call("ContainerStats", pb.ContainerStatsRequest(container_id=container)).stats
            return found if found.HasField("cpu") else None

        return until(told, "it to be told")

    def of_pod() -> pb.LinuxPodSandboxStats | None:
        found = one.call("PodSandboxStats", pb.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats.linux
        return found if len(found.containers) == 2 else None

    until(lambda: used(busy).cpu.usage_core_nano_seconds.value > 300_000_000, "it to be counted")
    assert used(idle).cpu.usage_core_nano_seconds.value < used(busy).cpu.usage_core_nano_seconds.value
    assert used(idle).memory.usage_bytes.value > 0
    whole = until(of_pod, "both to be told")
    assert whole.memory.usage_bytes.value > used(idle).memory.usage_bytes.value


@pytest.mark.parametrize("handler", ["runsc", "isolated"])
def test_a_network_of_its_own_with_loopback_only(one: Node, handler: str) -> None:
    pod = one.run_pod(one.pod_config(network=pb.POD), handler)
    server = one.run(pod, "while true; do nc -l -p 8080 -e /bin/echo hello; done", "server", network=pb.POD)
    client = one.run(pod, SLEEP, "client", network=pb.POD)
    ask = ["/bin/sh", "-c", "nc 127.0.0.1 8080"]
    until(lambda: one.exec(client, ask).stdout == b"hello\n", "an answer over the pod's own loopback")
    assert b"eth0" not in one.exec(server, ["/bin/cat", "/proc/net/dev"]).stdout


def test_the_network_of_the_host(one: Node) -> None:
    container = one.run(one.run_pod(one.pod_config(network=pb.NODE)), SLEEP)
    with open("/proc/net/dev") as file:
        names = {line.split(":")[0].strip() for line in file.readlines()[2:]}
    found = one.exec(container, ["/bin/cat", "/proc/net/dev"]).stdout.decode()
    assert names <= {line.split(":")[0].strip() for line in found.splitlines()[2:]}


def test_pods_on_a_bridge_reach_each_other() -> None:
    with network(default_runtime="runsc", runtimes=RUNTIMES) as net:
        serving, asking = (net.node.run_pod(net.node.pod_config(name, network=pb.POD)) for name in ("server", "client"))
        net.node.run(serving, "while true; do nc -l -p 80 -e /bin/echo hello; done", network=pb.POD)
        client = net.node.run(asking, SLEEP, network=pb.POD)
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=serving)
        address = net.node.call("PodSandboxStatus", request).status.network.ip
        ask = ["/bin/sh", "-c", f"nc {address} 80"]
        until(lambda: net.node.exec(client, ask).stdout == b"hello\n", "an answer from the other pod")


def test_the_death_of_the_daemon_changes_nothing(one: Node) -> None:
    pod = one.run_pod()
    running, ending = one.run(pod, COUNT, "running"), one.run(pod, "sleep 1; exit 9", "ending")
    one.restart(signal.SIGKILL)
    counting(one, running)
    assert one.exited(ending).exit_code == 9
    assert one.works(running) and ready(one, pod)


def test_the_death_of_the_shim_is_not_the_containers(one: Node) -> None:
    pod = one.run_pod()
    running, ending = one.run(pod, COUNT, "running"), one.run(pod, "sleep 1; exit 9", "ending")
    os.kill(shim(one, pod), signal.SIGKILL)
    until(lambda: one.works(running), "another shim to have adopted the pod")
    counting(one, running)
    assert one.exited(ending).exit_code == 9
    late = one.run(pod, "exit 11", "late")
    assert one.exited(late).exit_code == 11
    one.stop_container(running, 30)
    assert one.status(running).exit_code == 143


def test_what_ends_while_shim_and_daemon_are_dead_is_told_exactly(one: Node) -> None:
    pod = one.run_pod()
    running, ending = one.run(pod, COUNT, "running"), one.run(pod, "sleep 1; exit 12", "ending")
    os.kill(shim(one, pod), signal.SIGKILL)
    one.kill()
    one.start()
    assert one.exited(ending).exit_code == 12
    counting(one, running)


@pytest.mark.parametrize("before", ["", "shim", "daemon", "shim and daemon"])
def test_the_death_of_the_sentry_is_that_of_all(one: Node, before: str) -> None:
    pod = one.run_pod()
    first, second = one.run(pod, COUNT, "first"), one.run(pod, SLEEP, "second")
    over = one.run(pod, "exit 3", "over")
    assert one.exited(over).exit_code == 3
    sentry = one.pid(first)
    if "shim" in before:
        os.kill(shim(one, pod), signal.SIGKILL)
    if "daemon" in before:
        one.kill()
        os.kill(sentry, signal.SIGKILL)
        one.start()
    else:
        kill_sentry(one, first)
    assert [one.exited(container).exit_code for container in (first, second, over)] == [137, 137, 3]
    until(lambda: not ready(one, pod), "the pod to be not ready")
    one.remove_pod(pod)
    assert not one.leftovers()


def test_a_sentry_that_hangs_holds_up_its_own_pod_only(one: Node) -> None:
    sick, well = one.run_pod(), one.run_pod()
    stuck, other = one.run(sick, SLEEP), one.run(well, COUNT)
    os.kill(one.pid(stuck), signal.SIGSTOP)
    one.remove_pod(sick)
    counting(one, other)
    assert [pod.id for pod in one.pods()] == [well]


def test_ports_are_forwarded_to_the_pods_addresses() -> None:
    """Into gVisor's own network no namespace leads."""
    with network(default_runtime="runsc", runtimes=RUNTIMES) as net, net.inside():
        check_forwarding(net.node)


def test_ports_of_a_pod_without_addresses_are_refused(one: Node) -> None:
    pod = one.run_pod(one.pod_config(network=pb.POD))
    with pytest.raises(grpc.RpcError) as refused:
        one.call("PortForward", pb.PortForwardRequest(pod_sandbox_id=pod, port=[80]))
    assert "its network is gVisor's, into which only addresses lead, and it has none" in str(refused.value.details())


def test_ports_of_a_pod_on_the_hosts_network_are_the_hosts(one: Node) -> None:
    pod = one.run_pod(one.pod_config("served", network=pb.NODE))
    with socket.create_server(("127.0.0.1", 0)) as server, forwarded(one, "served", server.getsockname()[1]) as made:
        terminal, ports = made
        with socket.create_connection(("127.0.0.1", *ports.values()), timeout=SECONDS) as client:
            client.sendall(b"hello")
            with server.accept()[0] as here:
                assert here.recv(100) == b"hello"
        one.remove_pod(pod)
        terminal.expect("cannot forward to pod served any more")


def test_a_terminal(one: Node) -> None:
    pod = one.run_pod()
    container = one.run(pod, "stty size; read line; echo got $line; exit 6", tty=True, stdin=True)
    until(lambda: lines(one, container), "it to begin")
    with open(one.state / "pods" / pod / container / "stdin", "wb", buffering=0) as keyboard:
        keyboard.write(b"this\n")
    assert one.exited(container).exit_code == 6
    assert "got this" in [line.rstrip("\r") for line in lines(one, container)]


def test_streams_of_a_terminal_outlive_the_daemon(one: Node) -> None:
    one.run(one.run_pod(), "read line; echo got $line; exit 6", "shell", tty=True, stdin=True)
    with Terminal(one.command("exec", "-it", "shell", "sh")) as terminal:
        terminal.expect("# ")
        for columns, rows in ((80, 24), (132, 43)):
            terminal.resize(columns, rows)
            terminal.type(f"while [ \"$(stty size)\" != '{rows} {columns}' ]; do :; done; echo fi''ts\n")
            terminal.expect("fits")
        one.restart()
        terminal.type("exit 7\n")
        assert terminal.end() == 7
    with Terminal(one.command("attach", "-i", "shell")) as terminal:
        until(lambda: terminal.settings() != terminal.before, "the session")
        one.restart()
        terminal.type("this\n")
        terminal.expect("got this")
        assert terminal.end() == 6


def test_limits_are_the_pods_alone(one: Node) -> None:
    container = one.run(one.run_pod(), SLEEP)
    request = pb.UpdateContainerResourcesRequest(container_id=container)
    request.linux.memory_limit_in_bytes = 64 << 20
    with pytest.raises(grpc.RpcError) as refused:
        one.call("UpdateContainerResources", request)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert one.works(container)


def test_users_of_its_own_are_refused(one: Node) -> None:
    config = one.pod_config()
    options = config.linux.security_context.namespace_options
    mapping = pb.IDMapping(host_id=100000, container_id=0, length=65536)
    options.userns_options.CopyFrom(pb.UserNamespace(mode=pb.POD, uids=[mapping], gids=[mapping]))
    with pytest.raises(grpc.RpcError) as refused:
        one.run_pod(config)
    assert "gVisor" in str(refused.value.details())


def test_an_image_as_a_volume(one: Node) -> None:
    mount = pb.Mount(image=pb.ImageSpec(image="test/busybox:latest"), container_path="/image", readonly=True)
    container = one.run(one.run_pod(), SLEEP, mounts=[mount])
    assert b"busybox" in one.exec(container, ["/bin/ls", "/image/bin"]).stdout
    assert one.exec(container, ["/bin/touch", "/image/x"]).exit_code != 0


def test_where_a_shims_death_is_to_be_that_of_its_pod() -> None:
    with gvisor_node(on_shim_death="cleanup") as alone:
        pod = alone.run_pod()
        container = alone.run(pod, COUNT)
        os.kill(shim(alone, pod), signal.SIGKILL)
        assert alone.exited(container).exit_code == 137
        until(lambda: not ready(alone, pod), "the pod to be not ready")
        alone.remove_pod(pod)
        assert not alone.leftovers()


def test_a_root_that_cannot_be_written(one: Node) -> None:
    context = pb.LinuxContainerSecurityContext(
        readonly_rootfs=True, namespace_options=pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)
    )
    place = one.base / "mounted"
    place.mkdir(exist_ok=True)
    mounts = [pb.Mount(host_path=str(place), container_path="/nowhere/below")]
    linux = pb.LinuxContainerConfig(security_context=context)
    container = one.run(one.run_pod(), SLEEP, linux=linux, mounts=mounts)
    assert one.exec(container, ["/bin/touch", "/x"]).exit_code != 0
    assert one.exec(container, ["/bin/touch", "/nowhere/below/x"]).exit_code == 0
