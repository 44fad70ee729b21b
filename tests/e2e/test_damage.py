"""F20, F23: a store that is damaged or lost is set aside by renaming, never wiped; what it knew is brought back from
other witnesses; and nothing that runs is harmed."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import apsw
import grpc
import pytest
from image import build_busybox_image
from kit import images
from kit.invariants import check
from kit.node import Node, node, until

from holdfast.linux import files
from holdfast.proto import runtime_v1_pb2 as pb

CREATED, RUNNING, EXITED = pb.CONTAINER_CREATED, pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED


def _missing(store: Path) -> None:
    for part in ("", "-wal"):
        store.with_name(f"{store.name}{part}").unlink()


def _empty(store: Path) -> None:
    os.truncate(store, 0)


def _truncated(store: Path) -> None:
    os.truncate(store, store.stat().st_size // 3)


def _overwritten(store: Path) -> None:
    with store.open("r+b") as file:
        file.write(os.urandom(8192))


def _without_log(store: Path) -> None:
    """SQLite finds nothing wrong with it: the store is just older."""
    store.with_name(f"{store.name}-wal").unlink()


def _flipped_log(store: Path) -> None:
    """From its fifth frame on; SQLite takes what comes before for all there is."""
    with store.with_name(f"{store.name}-wal").open("r+b") as file:
        file.seek(32 + 4 * (24 + 4096) + 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def _newer(store: Path) -> None:
    """As a later release would leave it; that one can have it back."""
    connection = apsw.Connection(str(store))
    connection.execute("ALTER TABLE containers ADD COLUMN novelty TEXT; CREATE TABLE novelties (a)")
    connection.pragma("user_version", 99)
    connection.close()


def problems(one: Node) -> list[str]:
    found: list[str] = json.loads(one.cli("recovery", "--output", "json").stdout)["problems"]
    return found


def recovered(one: Node) -> None:
    until(lambda: "recovered" in one.log().rpartition(" serving ")[2], "the end of recovery")


def start_time(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().split()[21]


DAMAGES = [_missing, _empty, _truncated, _overwritten, _without_log, _flipped_log, _newer]


@pytest.mark.parametrize("damage", DAMAGES)
def test_f20_a_damaged_store_is_rebuilt(damage: Callable[[Path], None]) -> None:
    with node() as one:
        pod_id = one.run_pod()
        exited = one.run(pod_id, "exit 7", "exited")
        one.exited(exited)
        running = one.run(pod_id, "trap 'exit 42' TERM; while :; do sleep 0.1; done", "running")
        created = one.create(pod_id, one.container_config("sleep 1000", "created"))
        stopped = one.run_pod(one.pod_config("stopped"))
        one.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=stopped))
        removed = one.run_pod(one.pod_config("removed"))
        one.remove_pod(removed)
        pid = one.pid(running)
        started = start_time(pid)
        one.kill()
        damage(one.root / "holdfast.db")
        for _ in range(2):
            one.start()
            recovered(one)
            assert {container.id: container.state for container in one.containers()} == {
                exited: EXITED,
                running: RUNNING,
                created: CREATED,
            }, problems(one)
            states = {pod.id: pod.state for pod in one.pods()}
            assert states.pop(removed, pb.SANDBOX_NOTREADY) == pb.SANDBOX_NOTREADY  # its removal may be what was lost
            assert states == {pod_id: pb.SANDBOX_READY, stopped: pb.SANDBOX_NOTREADY}
            assert one.status(exited).exit_code == 7
            assert one.pid(running) == pid
            assert start_time(pid) == started
            one.kill()
        one.start()
        assert problems(one) == []
        one.start_container(created)
        one.stop_container(running, 10)
        assert one.status(running).exit_code == 42
        assert (one.root / "quarantine").exists() == (damage in (_empty, _truncated, _overwritten, _newer))
        for pod in one.pods():
            one.remove_pod(pod.id)
        check(one)


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_f23_an_image_that_has_lost_a_layer_is_not_there_until_it_comes_in_again(how: str) -> None:
    with node() as one:
        pod_id = one.run_pod()
        running = one.run(pod_id, "sleep 1000", "running")
        created = one.create(pod_id, one.container_config("exit 3", "created"))
        pid = one.pid(running)
        one.kill()
        (layer,) = (place for place in (one.root / "snapshots").iterdir() if not any((place / "work").iterdir()))
        (one.base / "was").mkdir()
        for entry in list((layer / "fs").iterdir()):
            entry.rename(one.base / "was" / entry.name)
        if how == "missing":
            files.remove_tree(layer)
        files.remove_tree(one.root / "content" / "sha256")
        one.start()
        recovered(one)
        assert any("has lost a layer" in line for line in problems(one))
        assert not one.images("ListImages", pb.ListImagesRequest()).images
        assert one.status(running).state == RUNNING
        assert one.pid(running) == pid
        for start in (lambda: one.start_container(created), lambda: one.run(pod_id, "true", "new")):
            with pytest.raises(grpc.RpcError, match="pull|not on this node"):
                start()
        one.busybox()
        assert one.images("ListImages", pb.ListImagesRequest()).images
        assert one.exited(one.run(pod_id, "exit 3", "again")).exit_code == 3
        one.remove_pod(pod_id)
        check(one)


def _lost(layer: Path) -> None:
    files.remove_tree(layer)


def _shortened(layer: Path) -> None:
    os.truncate(layer / "fs" / "deep" / "long", 0)


def _incomplete(layer: Path) -> None:
    (layer / "fs" / "deep" / "short").unlink()


def tags(one: Node) -> list[str]:
    return [tag for image in one.images("ListImages", pb.ListImagesRequest()).images for tag in image.repo_tags]


@pytest.mark.parametrize("with_blobs", [True, False])
@pytest.mark.parametrize("damage", [_lost, _shortened, _incomplete])
def test_f03_a_damaged_layer_is_unpacked_again_and_never_used(damage: Callable[[Path], None], with_blobs: bool) -> None:
    """From its blob by itself, or else when the image comes in again; what runs on it runs on."""
    entries = [images.entry("deep/long", b"l" * 500_000), images.entry("deep/short", b"s")]
    read = "wc -c < /deep/long; wc -c < /deep/short"
    with node() as one:
        extra = gzip.compress(images.tar(entries), mtime=0)
        archive = build_busybox_image(one.base, "test/layered:1", extra_layer=extra)
        one.import_image(archive)
        pod = one.run_pod()
        running = one.run(pod, "sleep 1000", "running", image="test/layered:1")
        pid = one.pid(running)
        one.kill()
        (layer,) = (place for place in (one.root / "snapshots").glob("*") if (place / "fs" / "deep").is_dir())
        damage(layer)
        if not with_blobs:
            files.remove_tree(one.root / "content" / "sha256")
        one.start()
        recovered(one)
        if not with_blobs:
            with pytest.raises(grpc.RpcError, match="pull it again|not on this node"):
                one.run(pod, read, "early", image="test/layered:1")
            assert "docker.io/test/layered:1" not in tags(one)
            one.import_image(archive)
            one.busybox()
        until(lambda: "docker.io/test/layered:1" in tags(one), "the image")
        reader = one.run(pod, read, "reader", image="test/layered:1")
        assert one.exited(reader).exit_code == 0
        lines = one.container_log(reader).decode().splitlines()
        assert [line.split(" ", 3)[3] for line in lines] == ["500000", "1"]
        assert one.pid(running) == pid
        assert one.exec(running, ["true"]).exit_code == 0
        aside = list((one.root / "quarantine").glob(f"{layer.name}-*")) if damage is not _lost else []
        assert len(aside) == (damage is not _lost)
        one.remove_pod(pod)
        check(one)
