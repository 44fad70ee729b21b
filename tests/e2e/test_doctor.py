"""`holdfast doctor`: everything that is ours is found, with its owner or why it has none; only orphans are removed."""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit import invariants
from kit.node import Node, node, until

from holdfast.linux import cgroup, files, mount, namespace, process
from holdfast.model.spec import new_id
from holdfast.model.witness import INIT_FILE, InitRecord, encode
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handler
from holdfast.runtime.keeper import Keeper, workers


@dataclass
class Ward:
    """A node with a pod of each kind, and a container in each state."""

    node: Node
    pods: list[str]
    running: list[str]
    over: str
    waiting: str

    def bundle(self, container_id: str) -> Path:
        (found,) = (self.node.state / "pods").glob(f"*/{container_id}")
        return found


@pytest.fixture(scope="module")
def ward() -> Iterator[Ward]:
    with node() as one:
        pods = [one.run_pod(), one.run_pod(one.pod_config(network=pb.POD, pid=pb.POD))]
        running = [one.run(pod, "sleep 1000") for pod in pods]
        over = one.run(pods[0], "exit 3", name="over")
        one.exited(over)
        waiting = one.create(pods[1], one.container_config("exit 0", name="waiting"))
        invariants.check(one)
        yield Ward(one, pods, running, over, waiting)


@dataclass
class Plant:
    """An orphan made by hand: how the doctor is to call it, and whether it is still there."""

    kind: str
    where: str
    why: str
    there: Callable[[], bool]


def sleeper(stack: ExitStack, name: str = "sh", *more: str) -> subprocess.Popen[bytes]:
    """A process that waits for input which never comes."""
    one = subprocess.Popen([name, "-c", "read x", *more], executable="/bin/sh", stdin=subprocess.PIPE)
    stack.enter_context(one)
    stack.callback(one.kill)
    return one


def process_in_cgroup(ward: Ward, stack: ExitStack) -> list[Plant]:
    path = f"{ward.node.cgroup}/{new_id()}"
    cgroup.create(path)
    one = sleeper(stack)
    cgroup.enter(path, one.pid)
    why = "no pod or container has the id of its cgroup"
    return [
        Plant("process", f"pid {one.pid} (sh)", why, lambda: one.poll() is None),
        Plant("cgroup", path, "no pod or container has the id", lambda: cgroup.exists(path)),
    ]


def cgroup_in_a_pod(ward: Ward, stack: ExitStack) -> list[Plant]:
    path = f"{ward.node.cgroup}/{ward.pods[0]}/{new_id()}"
    cgroup.create(path)
    return [Plant("cgroup", path, "no pod or container has the id", lambda: cgroup.exists(path))]


def directory_with_mount(ward: Ward, stack: ExitStack) -> list[Plant]:
    """Somebody's data is mounted below what is to be deleted."""
    directory = ward.node.state / "pods" / new_id()
    (directory / "volume").mkdir(parents=True)
    (directory / "left.txt").write_text("left")
    precious = ward.node.base / "precious"
    precious.mkdir()
    (precious / "data").write_text("mine")
    mount.bind(precious, directory / "volume")

    def check() -> None:
        assert (precious / "data").read_text() == "mine"
        files.remove_tree(precious)

    stack.callback(check)
    volume = str(directory / "volume")
    return [
        Plant("mount", volume, "no pod or container", lambda: bool(mount.mounts_below(volume))),
        Plant("pod directory", str(directory), "no pod or container has the id", directory.exists),
    ]


def pinned_namespace(ward: Ward, stack: ExitStack) -> list[Plant]:
    directory = ward.node.state / "pods" / new_id() / "ns"
    directory.mkdir(parents=True)
    namespace.pin(["net"], directory)
    pin = str(directory / "net")
    return [
        Plant("namespace", pin, "no pod or container has the id", lambda: bool(mount.mounts_below(pin))),
        Plant("pod directory", str(directory.parent), "no pod or container", directory.exists),
    ]


def bundle(ward: Ward, stack: ExitStack) -> list[Plant]:
    path = ward.node.state / "pods" / ward.pods[1] / new_id()
    path.mkdir()
    (path / "config.json").write_text("{}")
    return [Plant("bundle", str(path), "no pod or container has the id", path.exists)]


def process_of_a_bundle(ward: Ward, stack: ExitStack) -> list[Plant]:
    """A container's init in a cgroup that is not below ours; only its bundle tells whose it is."""
    one = sleeper(stack)
    path = ward.node.state / "pods" / ward.pods[1] / new_id()
    path.mkdir()
    started = process.start_time(one.pid)
    assert started is not None
    (path / INIT_FILE).write_bytes(encode(InitRecord(one.pid, started, process.boot_id(), "/", 0)))
    return [
        Plant("process", f"pid {one.pid} (sh)", "it was started from the bundle", lambda: one.poll() is None),
        Plant("bundle", str(path), "no pod or container has the id", path.exists),
    ]


def remains_of_a_task(ward: Ward, stack: ExitStack) -> list[Plant]:
    """FIFO, socket and exec directory in the bundle of a container that is over."""
    where = ward.bundle(ward.over)
    files.fifo(where / "stdout")
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(where)
        try:
            one.bind("console.sock")
        finally:
            os.chdir("/")
    (where / "exec" / "e1").mkdir(parents=True)
    why = "the task of container over is over"
    return [
        Plant("fifo", str(where / "stdout"), why, (where / "stdout").exists),
        Plant("socket", str(where / "console.sock"), why, (where / "console.sock").exists),
        Plant("exec", str(where / "exec" / "e1"), why, (where / "exec" / "e1").exists),
    ]


def runtime_state(ward: Ward, stack: ExitStack) -> list[Plant]:
    path = ward.node.state / "oci" / "crun" / new_id()
    path.mkdir()
    (path / "status").write_text("{}")
    return [Plant("runtime state", str(path), "no pod or container has the id", path.exists)]


def runtime_command(ward: Ward, stack: ExitStack) -> list[Plant]:
    one = sleeper(stack, "crun", "--root", str(ward.node.state / "oci" / "crun"))
    return [Plant("runtime command", f"pid {one.pid} (sh)", "whoever ran it is gone: crun", lambda: one.poll() is None)]


def shim_without_row(ward: Ward, stack: ExitStack) -> list[Plant]:
    id = new_id()
    directory = ward.node.state / "pods" / id
    directory.mkdir()

    async def fork() -> int:
        keeper = await Keeper.connect(ward.node.state)
        handler = Handler("crun", "/usr/bin/crun", str(ward.node.state / "oci" / "crun"))
        args = {"id": id, "directory": str(directory), "runtime": handler.to_args(), "pid_namespace": False}
        ref = await keeper.fork("shim", id, args, listen=directory / "shim.sock")
        await keeper.aclose()
        return ref.pid

    pid = asyncio.run(fork())
    return [
        Plant("shim", f"pid {pid} (hf-shim)", f"no pod has the id {id}", lambda: process.state(pid) not in ("", "Z")),
        Plant("pod directory", str(directory), "no pod or container", directory.exists),
    ]


def snapshot_directory(ward: Ward, stack: ExitStack) -> list[Plant]:
    path = ward.node.root / "snapshots" / "7777"
    (path / "fs").mkdir(parents=True)
    (path / "fs" / "file").write_text("a layer's")
    return [Plant("snapshot directory", str(path), "no snapshot has it", path.exists)]


def ingest_file(ward: Ward, stack: ExitStack) -> list[Plant]:
    path = ward.node.root / "ingest" / "0123456789abcdef"
    path.write_text("part of a blob")
    return [Plant("transfer", str(path), "nobody is transferring it", path.exists)]


def temporary_file(ward: Ward, stack: ExitStack) -> list[Plant]:
    path = ward.node.state / "pods" / ward.pods[0] / files.temporary_name("hosts")
    path.write_text("half")
    return [Plant("temporary file", str(path), "whoever was writing it is gone", path.exists)]


PLANTS = (
    process_in_cgroup, cgroup_in_a_pod, directory_with_mount, pinned_namespace, bundle, process_of_a_bundle,
    remains_of_a_task, runtime_state, runtime_command, shim_without_row, snapshot_directory, ingest_file,
    temporary_file,
)  # fmt: skip


def doctor(node: Node, *arguments: str, status: int = 0) -> dict[str, Any]:
    """What the command prints as JSON; it must end with this status."""
    done = node.cli("doctor", "--output", "json", *arguments, check=False)
    assert done.returncode == status, (done.returncode, done.stdout[-3000:], done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def wrong(found: dict[str, Any]) -> dict[tuple[str, str], str]:
    return {(one["kind"], one["where"]): one["why"] for one in found["findings"] if one["verdict"] != "ok"}


def without_runtimes(text: str) -> list[str]:
    """Its lines, but for what is known of OCI runtimes and other tools, which depends on which ones this host has."""
    return [line for line in text.splitlines() if not line.startswith(("runtime ", "tool "))]


def test_a_healthy_node_has_nothing_to_show(ward: Ward) -> None:
    found = doctor(ward.node)
    assert found["counts"].keys() == {"ok"}, found
    kinds = {one["kind"] for one in found["findings"]}
    assert kinds >= {"shim", "process", "cgroup", "mount", "namespace", "pod directory", "bundle", "runtime state"}
    assert kinds >= {"snapshot", "snapshot directory", "blob", "image", "pod", "container", "file"}
    owners = {one["owner"] for one in found["findings"] if one["kind"] == "shim"}
    assert owners == {"pod test/pod-1", "pod test/pod-2"}
    text = without_runtimes(ward.node.cli("doctor").stdout)
    assert len(text) == 1 and "with the daemon up" in text[0]
    assert len(without_runtimes(ward.node.cli("doctor", "--all").stdout)) == len(found["findings"]) + 2


@pytest.mark.parametrize("daemon", ["up", "down"])
def test_f32_orphans_of_every_kind_are_found_and_only_they_are_removed(ward: Ward, daemon: str) -> None:
    node = ward.node
    pids = [node.pid(one) for one in ward.running]
    with ExitStack() as stack:
        if daemon == "down":
            node.kill()
            stack.callback(node.start)
        before = doctor(node)
        assert (before["daemon"], before["counts"].keys()) == (daemon, {"ok"})
        plants = [plant for make in PLANTS for plant in make(ward, stack)]
        expected = {(plant.kind, plant.where): plant.why for plant in plants}

        def all_seen() -> bool:
            return expected.keys() <= wrong(doctor(node, status=1)).keys()

        until(all_seen, "the doctor to see all of it")  # a temporary file has to be there for a while
        found = doctor(node, status=1)
        assert wrong(found).keys() == expected.keys()
        assert {one["verdict"] for one in found["findings"]} == {"ok", "orphan"}
        for key, why in wrong(found).items():
            assert expected[key] in why, key
        assert [plant for plant in plants if not plant.there()] == [], "it was only looked at"
        assert "orphan" in node.cli("doctor", check=False).stdout

        fixed = doctor(node, "--fix")
        assert sorted(fixed["fixed"]) == sorted(f"{plant.kind} {plant.where}" for plant in plants)
        assert fixed["problems"] == []
        until(lambda: not [plant for plant in plants if plant.there()], "the orphans to go")
        after = doctor(node)
        assert after["counts"] == before["counts"]
        assert [process.state(pid) for pid in pids] == ["S", "S"]
    assert [node.status(one).state for one in ward.running] == [pb.CONTAINER_RUNNING] * 2
    assert node.status(ward.over).exit_code == 3
    assert node.status(ward.waiting).state == pb.CONTAINER_CREATED
    invariants.check(node)


def test_what_is_not_known_to_be_ours_is_shown_and_left_alone(ward: Ward) -> None:
    node, pod = ward.node, ward.pods[0]
    strangers = [node.state / "somebody", node.state / "pods" / "somebody", node.root / "snapshots" / "notes"]
    with ExitStack() as stack:
        for path in strangers:
            path.mkdir()
            stack.callback(path.rmdir)
        inside = f"{node.cgroup}/somebody"
        cgroup.create(inside)
        stack.callback(cgroup.remove, inside)
        one = sleeper(stack)
        cgroup.enter(inside, one.pid)
        stack.callback(one.wait)  # before its cgroup can go
        stack.callback(one.kill)
        mount.mount("none", strangers[0], "tmpfs")
        stack.callback(mount.unmount, strangers[0])
        found = doctor(node, "--fix", status=1)
        assert found["fixed"] == [] and found["problems"] == []
        assert found["counts"].keys() == {"ok", "unknown"}
        assert {where for _, where in wrong(found)} == {*map(str, strangers), inside, f"pid {one.pid} (sh)"}
        assert one.poll() is None and all(path.exists() for path in strangers)
        assert mount.mounts_below(strangers[0])
    assert node.status(ward.running[0]).state == pb.CONTAINER_RUNNING and pod


def test_a_daemon_that_is_down_is_said_in_one_line_where_nothing_can_be_read(ward: Ward, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'root = "{tmp_path}/root"\nstate = "{tmp_path}/state"\n')
    command = ["--socket", str(tmp_path / "none.sock"), "doctor", "--fix", "--config", str(config)]
    done = ward.node.cli(*command, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "cannot reach the daemon" in done.stderr
    (tmp_path / "root").mkdir()
    done = ward.node.cli(*command, check=False)
    assert done.returncode == 1 and "there is no store" in done.stderr, "nothing is an orphan of an unknown owner"


def test_a_daemon_that_hangs_is_not_worked_around(ward: Ward) -> None:
    assert ward.node.process is not None
    ward.node.process.send_signal(signal.SIGSTOP)
    try:
        config = str(ward.node.state / "holdfastd.toml")
        for arguments in (("doctor",), ("doctor", "--fix")):
            done = ward.node.cli("--socket", "/nowhere.sock", *arguments, "--config", config, check=False)
            assert done.returncode == 1 and "is using it" in done.stderr
    finally:
        ward.node.process.send_signal(signal.SIGCONT)


def test_the_report_of_the_last_recovery_with_the_daemon_down(ward: Ward) -> None:
    up = json.loads(ward.node.cli("recovery", "-o", "json").stdout)
    ward.node.kill()
    try:
        assert json.loads(ward.node.cli("recovery", "-o", "json").stdout) == up
        assert workers(ward.node.state), "looking has ended nobody"
    finally:
        ward.node.start()
