"""A pod's life through the real interface, with each OCI runtime."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kit.node import Node, node, until

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.proto.runtime_v1_pb2_grpc import RuntimeServiceStub


@pytest.fixture(scope="module", params=["crun", "runc"])
def life(request: pytest.FixtureRequest) -> Iterator[Node]:
    with node(request.param) as one:
        yield one


@pytest.fixture(autouse=True)
def no_pods_are_left(life: Node) -> Iterator[None]:
    """A test that fails half-way must not fail the next one."""
    yield
    for one in life.pods():
        life.remove_pod(one.id)


def test_whole_cycle(life: Node) -> None:
    pod_id = life.run_pod()
    assert [one.state for one in life.pods() if one.id == pod_id] == [pb.SANDBOX_READY]
    container_id = life.create(pod_id, life.container_config("sleep 1000"))
    assert life.status(container_id).state == pb.CONTAINER_CREATED
    life.start_container(container_id)
    status = life.status(container_id)
    assert status.state == pb.CONTAINER_RUNNING
    assert b"sleep" in Path(f"/proc/{life.pid(container_id)}/cmdline").read_bytes()
    life.stop_container(container_id)
    status = life.status(container_id)
    assert (status.state, status.exit_code) == (pb.CONTAINER_EXITED, 137)
    assert status.created_at <= status.started_at <= status.finished_at
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container_id))
    assert not life.containers()
    life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    assert life.pods()[0].state == pb.SANDBOX_NOTREADY
    life.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
    assert not life.pods()
    assert not life.leftovers()


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("exit 0", 0, "Completed"),
        ("exit 7", 7, "Error"),
        ("kill -TERM $$", 128 + signal.SIGTERM, "Error"),
        ("kill -KILL $$", 128 + signal.SIGKILL, "Error"),
        ("kill -SEGV $$", 128 + signal.SIGSEGV, "Error"),
    ],
)
def test_exit_codes_are_exact(life: Node, pod: str, script: str, code: int, reason: str) -> None:
    # A shell that is process 1 of its namespace is spared by signals it sends itself, so it sends them from a child.
    inner = ["/bin/sh", "-c", f"sh -c '{script}'; exit $?"] if "kill" in script else script
    status = life.exited(life.run(pod, inner))
    assert (status.exit_code, status.reason) == (code, reason)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_to_the_init_is_told(life: Node, pod: str, number: signal.Signals) -> None:
    # Not as process 1 of a namespace, which the kernel spares from signals it does not handle (pid_namespaces(7)).
    container_id = life.run(pod, ["/bin/sleep", "1000"], pid=pb.NODE)
    os.kill(life.pid(container_id), number)
    status = life.exited(container_id)
    assert status.exit_code == 128 + number


def test_out_of_memory_is_told(life: Node, pod: str) -> None:
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=16 << 20))
    status = life.exited(life.run(pod, ["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=64M"], linux=linux))
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_the_grace_period_is_kept(life: Node, pod: str) -> None:
    container_id = life.run(pod, 'trap "exit 5" TERM; echo ready; while :; do sleep 0.05; done')
    until(lambda: b"ready" in life.container_log(container_id))
    life.stop_container(container_id, 20)
    assert life.status(container_id).exit_code == 5


def test_a_deaf_container_is_killed_at_its_deadline(life: Node, pod: str) -> None:
    container_id = life.run(pod, 'trap "" TERM; echo ready; while :; do sleep 0.05; done')
    until(lambda: b"ready" in life.container_log(container_id))
    life.stop_container(container_id, 1)
    status = life.status(container_id)
    assert status.exit_code == 137
    assert status.finished_at - status.started_at > 1_000_000_000


def test_stop_signal_of_the_config(life: Node, pod: str) -> None:
    script = 'trap "exit 9" USR1; echo ready; while :; do sleep 0.05; done'
    container_id = life.run(pod, script, stop_signal=pb.SIGUSR1)
    until(lambda: b"ready" in life.container_log(container_id))
    life.stop_container(container_id, 20)
    assert life.status(container_id).exit_code == 9


def test_stop_and_remove_of_what_is_gone_succeed(life: Node) -> None:
    life.stop_container("no-such-container")
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id="no-such-container"))
    life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id="no-such-pod"))
    life.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id="no-such-pod"))


def test_remove_kills_a_running_container(life: Node, pod: str) -> None:
    container_id = life.run(pod, "sleep 1000")
    pid = life.pid(container_id)
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container_id))
    assert not Path(f"/proc/{pid}").exists()


def test_logs_of_both_streams(life: Node, pod: str) -> None:
    container_id = life.run(pod, "echo one; echo two >&2; printf three")
    life.exited(container_id)
    lines = [line.split(b" ", 3)[1:] for line in life.container_log(container_id).splitlines()]
    assert sorted(lines) == [[b"stderr", b"F", b"two"], [b"stdout", b"F", b"one"], [b"stdout", b"P", b"three"]]


def test_a_long_line_is_cut_at_16_kib(life: Node, pod: str) -> None:
    container_id = life.run(pod, "head -c 40000 /dev/zero | tr '\\0' x; echo")
    life.exited(container_id)
    parts = [line.split(b" ", 3)[2:] for line in life.container_log(container_id).splitlines()]
    assert [tag for tag, _ in parts] == [b"P", b"P", b"F"]
    assert [len(text) for _, text in parts] == [16384, 16384, 40000 - 2 * 16384]


def test_the_log_is_reopened(life: Node, pod: str) -> None:
    container_id = life.run(pod, "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done")
    path = Path(life.status(container_id).log_path)
    until(lambda: len(path.read_bytes().splitlines()) > 5)
    rotated = path.with_suffix(".1")
    path.rename(rotated)
    life.call("ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=container_id))
    until(lambda: path.exists() and len(path.read_bytes().splitlines()) > 5)
    life.stop_container(container_id)
    numbers = [int(line.split()[3]) for line in (rotated.read_bytes() + path.read_bytes()).splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_terminal(life: Node, pod: str) -> None:
    container_id = life.run(pod, "test -t 1 && echo terminal; exit 3", tty=True)
    assert life.exited(container_id).exit_code == 3
    assert b"stdout F terminal" in life.container_log(container_id)


def test_exec(life: Node, pod: str) -> None:
    container_id = life.run(pod, "sleep 1000")
    reply = life.exec(container_id, ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (reply.stdout, reply.stderr, reply.exit_code) == (b"out\n", b"err\n", 3)


def test_exec_ends_at_its_timeout_and_its_output_is_bounded(life: Node, pod: str) -> None:
    container_id = life.run(pod, "sleep 1000")
    with pytest.raises(grpc.RpcError) as failure:
        life.exec(container_id, ["/bin/sleep", "100"], seconds=1)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    reply = life.exec(container_id, ["/bin/sh", "-c", "head -c 20000000 /dev/zero"])
    assert len(reply.stdout) == 16 << 20


def test_an_exec_that_leaves_a_child_behind_returns(life: Node, pod: str) -> None:
    container_id = life.run(pod, "sleep 1000")
    assert life.exec(container_id, ["/bin/sh", "-c", "sleep 500 & echo done"]).stdout == b"done\n"


def test_what_a_process_inside_sees(life: Node) -> None:
    config = life.pod_config(network=pb.POD, hostname="inside")
    config.dns_config.servers.append("192.0.2.1")
    pod_id = life.run_pod(config)
    linux = pb.LinuxContainerConfig()
    context = linux.security_context
    context.run_as_user.value, context.run_as_group.value = 1000, 2000
    context.supplemental_groups.append(3000)
    context.readonly_rootfs = True
    context.namespace_options.CopyFrom(pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER))
    envs = [pb.KeyValue(key="WHO", value="me")]
    script = "id -u; id -g; id -G; hostname; echo $WHO; cat /etc/resolv.conf; ls /sys/class/net; touch /x; echo $?; pwd"
    container_id = life.run(pod_id, script, linux=linux, envs=envs, working_dir="/tmp")
    life.exited(container_id)
    lines = [line.split(b" ", 3)[3] for line in life.container_log(container_id).splitlines() if b" stdout " in line]
    assert lines == [b"1000", b"2000", b"2000 3000", b"inside", b"me", b"nameserver 192.0.2.1", b"lo", b"1", b"/tmp"]
    life.remove_pod(pod_id)


def test_a_shared_pid_namespace(life: Node) -> None:
    pod_id = life.run_pod(life.pod_config(pid=pb.POD))
    one = life.run(pod_id, "sleep 1000", "one", pid=pb.POD)
    two = life.run(pod_id, "sleep 1000", "two", pid=pb.POD)
    until(lambda: life.exec(one, ["/bin/ps", "-o", "args"]).stdout.count(b"sleep 1000") >= 2, "both to be seen")
    pid = life.pid(two)
    life.stop_container(two)
    assert not Path(f"/proc/{pid}").exists()
    life.remove_pod(pod_id)
    assert not life.leftovers()


def test_a_volume_and_its_read_only_twin(life: Node, pod: str) -> None:
    shared = life.base / "shared"
    shared.mkdir()
    mounts = [
        pb.Mount(host_path=str(shared), container_path="/rw"),
        pb.Mount(host_path=str(shared), container_path="/ro", readonly=True),
    ]
    container_id = life.run(pod, "echo x > /rw/a; echo y > /ro/b; cat /ro/a", mounts=mounts)
    life.exited(container_id)
    assert (shared / "a").read_text() == "x\n"
    assert not (shared / "b").exists()


def test_limits_are_applied_and_changed(life: Node, pod: str) -> None:
    linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20))
    container_id = life.run(pod, "sleep 1000", linux=linux)
    limit = ["/bin/sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"]
    assert int(life.exec(container_id, limit).stdout) == 64 << 20
    change = pb.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
    life.call("UpdateContainerResources", pb.UpdateContainerResourcesRequest(container_id=container_id, linux=change))
    assert int(life.exec(container_id, limit).stdout) == 96 << 20
    assert life.status(container_id).resources.linux.memory_limit_in_bytes == 96 << 20


def test_a_command_that_does_not_exist(life: Node, pod: str) -> None:
    container_id = life.create(pod, life.container_config(["/no/such/program"]))
    with pytest.raises(grpc.RpcError):
        life.start_container(container_id)
    status = life.status(container_id)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert "no/such/program" in status.message


def test_filters(life: Node) -> None:
    pods = [life.run_pod(life.pod_config(f"f{number}", labels={"n": str(number)})) for number in range(2)]
    container_id = life.run(pods[0], "sleep 1000", labels={"a": "b"})
    life.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pods[1]))

    def listed(**wanted: object) -> list[str]:
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**wanted))
        return [one.id for one in life.call("ListPodSandbox", request).items]

    assert listed(id=pods[0]) == [pods[0]]
    assert listed(label_selector={"n": "1"}) == [pods[1]]
    assert listed(state=pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)) == [pods[1]]
    for wanted, expected in [
        ({"label_selector": {"a": "b"}}, [container_id]),
        ({"label_selector": {"a": "c"}}, []),
        ({"pod_sandbox_id": pods[1]}, []),
        ({"state": pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)}, [container_id]),
        ({"id": container_id[:12]}, [container_id]),
    ]:
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**wanted))
        assert [one.id for one in life.call("ListContainers", request).containers] == expected
    for pod_id in pods:
        life.remove_pod(pod_id)


def test_a_client_that_goes_away_ends_nothing_early_but_its_exec(life: Node, pod: str) -> None:
    container_id = life.run(pod, 'trap "" TERM; echo ready; while :; do sleep 0.05; done')
    until(lambda: b"ready" in life.container_log(container_id))
    other = life.run(pod, "sleep 1000", "other")
    command = ["/bin/sleep", "543"]
    call = RuntimeServiceStub(life.channel).ExecSync.future(pb.ExecSyncRequest(container_id=other, cmd=command))
    until(lambda: b"sleep 543" in life.exec(other, ["/bin/ps", "-o", "args"]).stdout, "the exec to begin")
    call.cancel()
    until(lambda: b"sleep 543" not in life.exec(other, ["/bin/ps", "-o", "args"]).stdout, "the exec to end")
    began = time.time_ns()
    stop = pb.StopContainerRequest(container_id=container_id, timeout=3)
    with pytest.raises(grpc.RpcError):
        life.call("StopContainer", stop, 0.5)
    status = life.exited(container_id)
    assert status.exit_code == 137
    assert status.finished_at - began > 2_900_000_000


def test_a_creation_whose_client_goes_away_is_carried_out(life: Node) -> None:
    request = pb.RunPodSandboxRequest(config=life.pod_config("forsaken"))
    pods = life.state / "pods"
    call = RuntimeServiceStub(life.channel).RunPodSandbox.future(request)
    until(lambda: call.done() or (pods.exists() and any(pods.iterdir())), "the creation to begin")
    call.cancel()
    until(lambda: [one.state for one in life.pods()] == [pb.SANDBOX_READY], "the pod to be ready all the same")
    life.remove_pod(life.pods()[0].id)
    assert not life.leftovers()
