"""F33: the filesystem of root turns read-only under a running daemon, and comes back, repaired and mounted anew."""

import contextlib
import os
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from kit import disk
from kit.invariants import check
from kit.node import Node, until
from kit.ports import free_port

from holdfast.linux import files, mount
from holdfast.proto import runtime_v1_pb2 as pb

EXIT_42 = "trap 'exit 42' TERM; > /tmp/ready; while :; do sleep 0.05; done"
CREATED, RUNNING, EXITED = pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED


class Sick:
    """A node whose root is on a disk in which the kernel finds an error."""

    def __init__(self, directory: Path) -> None:
        self.image = disk.device("ext4", directory, 100 << 20)
        self.node = Node(metrics_address=f"127.0.0.1:{free_port()}")

    def fail(self) -> None:
        root = str(self.node.root)
        mount.mount("", root, "", mount.MS_REMOUNT, "errors=remount-ro")
        source = next(entry.source for entry in mount.mountinfo() if entry.target == root)
        Path("/sys/fs/ext4", Path(source).name, "trigger_fs_error").write_text("1")
        with pytest.raises(OSError, match="Read-only"):
            (self.node.root / "probe").touch()

    def mend(self) -> None:
        """As an administrator does it; whoever has files open on the old filesystem has them still."""
        root = self.node.root
        subprocess.run(["umount", "--lazy", root], check=True)
        copy = self.image.with_suffix(".mended")
        subprocess.run(["cp", "--sparse=always", self.image, copy], check=True)
        subprocess.run(["e2fsck", "-fy", copy], check=False, capture_output=True)
        copy.rename(self.image)
        subprocess.run(["mount", "-o", "loop", self.image, root], check=True)


@pytest.fixture
def sick(tmp_path: Path) -> Iterator[Sick]:
    one = Sick(tmp_path)
    with disk.mounted(one.image, one.node.root):
        try:
            one.node.start()
            one.node.busybox()
            yield one
        finally:
            with contextlib.suppress(AssertionError):
                print(one.node.log()[-4000:])
            left = one.node.empty()
    files.remove_tree(one.node.base)
    assert not left


def metrics(life: Node, name: str, label: str) -> float:
    """One value, as Prometheus reads it."""
    address = tomllib.loads(life.config.read_text())["metrics_address"]
    lines = httpx.get(f"http://{address}/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}{{") and label in line]
    return float(line.split()[-1])


def conditions(life: Node) -> dict[str, pb.RuntimeCondition]:
    return {one.type: one for one in life.call("Status", pb.StatusRequest()).status.conditions}


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_f33_root_turns_read_only_and_comes_back(sick: Sick, restarted: bool) -> None:
    life = sick.node
    pod = life.run_pod()
    volume = life.base / "volume"
    volume.mkdir()
    mounts = [pb.Mount(container_path="/tmp", host_path=str(volume))]
    created = life.create(pod, life.container_config("exit 3", "created"))
    running = life.run(pod, EXIT_42, "running", mounts=mounts)
    stopped = life.run(pod, "trap 'exit 9' TERM; > /tmp/armed; while :; do sleep 0.05; done", "stopped", mounts=mounts)
    exited = life.run(pod, "exit 7", "exited")
    assert life.exited(exited).exit_code == 7
    until(lambda: (volume / "ready").exists() and (volume / "armed").exists(), "the traps to be set")
    pid = life.pid(running)
    sick.fail()
    if restarted:
        life.kill()
        life.start()
        assert {one.id: one.state for one in life.containers()} == {
            created: CREATED, running: RUNNING, stopped: RUNNING, exited: EXITED
        }  # fmt: skip
        assert life.pid(running) == pid
    until(lambda: not conditions(life)["StorageHealthy"].status, "it to be seen: a finding is good for two seconds")
    found = conditions(life)
    assert found["RuntimeReady"].status
    healthy = found["StorageHealthy"]
    assert (healthy.status, healthy.reason) == (False, "StorageReadOnly")
    assert str(life.root) in healthy.message
    assert life.exec(running, ["echo", "here"]).stdout == b"here\n"
    with pytest.raises(grpc.RpcError) as refused:
        life.create(pod, life.container_config("exit 0", "new"))
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "read-only" in refused.value.details()
    with pytest.raises(grpc.RpcError) as refused:
        life.create(pod, life.container_config("exit 0", "running"))
    assert len(life.containers()) == 4
    life.stop_container(stopped, 10)
    assert life.exited(stopped).exit_code == 9
    os.kill(pid, signal.SIGTERM)
    assert life.exited(running).exit_code == 42
    if restarted:
        life.kill()
        life.start()
        assert life.exited(running).exit_code == 42
        assert life.exited(stopped).exit_code == 9
    assert "more is known of 2 pods and containers than could be written" in conditions(life)["StorageHealthy"].message
    assert metrics(life, "holdfast_storage_healthy", f'path="{life.root}"') == 0.0
    sick.mend()
    until(lambda: conditions(life)["StorageHealthy"].status, "the disk to be healthy")
    assert metrics(life, "holdfast_storage_healthy", f'path="{life.root}"') == 1.0
    told = [
        line for line in life.cli("events", "--since", "0", "--no-follow").stdout.splitlines() if "filesystem" in line
    ]
    assert "unhealthy" in told[0] and "StorageReadOnly" in told[0]
    assert "filesystem healthy" in told[-1]
    assert life.exited(life.run(pod, "exit 5", "after", mounts=mounts)).exit_code == 5
    life.restart()
    life.restart()
    assert life.status(created).state == CREATED
    life.start_container(created)
    assert life.exited(created).exit_code == 3
    assert {one.id: life.status(one.id).exit_code for one in life.containers() if one.state == EXITED}.items() >= {
        running: 42,
        stopped: 9,
        exited: 7,
    }.items()
    life.remove_pod(pod)
    check(life)
