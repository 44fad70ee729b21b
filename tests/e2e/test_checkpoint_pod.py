"""Whole pods as archives, and pods made of them again: processes, layers, volumes and shared memory of one instant.

F38 (volumes are part of it, frozen at one instant, byte-identical) and F37 (what there is no room for).
"""

import contextlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.checkpoints import PRIVATE, checkpoint_pod, emptied, follow, lines, numbers
from kit.checkpoints import place as place_of
from kit.checkpoints import restore_pod as restore
from kit.node import IMAGE, Node, node, until
from kit.tools import CRIU, needs_criu
from kit.trees import fill, look

from holdfast.linux import mount
from holdfast.proto import node_pb2
from holdfast.proto import runtime_v1_pb2 as pb

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_criu]

SECONDS = 120.0
# Counts to the log, to both volumes, to /dev/shm and to its own layer, always in that order.
WRITER = """
exec 5>/work/open; echo held >&5
n=0
while :; do
  n=$((n+1))
  echo $n
  for f in /work/count /fast/count /dev/shm/count /count; do echo $n > $f.new; mv $f.new $f; done
done
"""
READER = "while :; do cat /work/count 2>/dev/null; usleep 20000; done"


@pytest.fixture(scope="module")
def made() -> Iterator[Node]:
    with node("auto", checkpoints=True, criu_path=CRIU) as one:
        yield one


@pytest.fixture
def one(made: Node) -> Iterator[Node]:
    with emptied(made):
        yield made


class TwoContainers:
    """A pod as a kubelet has it run: a writer and a reader share an emptyDir on disk, one in memory, and /dev/shm."""

    def __init__(self, one: Node, writer: str = WRITER, reader: str = READER, **config: Any) -> None:
        self.node = one
        self.config = one.pod_config(**PRIVATE, **config)
        volumes = one.base / "kubelet" / "pods" / self.config.metadata.uid / "volumes" / "kubernetes.io~empty-dir"
        self.disk, self.memory = volumes / "scratch", volumes / "fast"
        for place in (self.disk, self.memory):
            place.mkdir(parents=True)
            place.chmod(0o777)
        mount.mount("tmpfs", self.memory, "tmpfs", data="mode=0777,size=16m")
        self.id = one.run_pod(self.config)
        self.writer = self.run(writer, "writer")
        self.reader = self.run(reader, "reader")

    def run(self, script: str, name: str) -> str:
        mounts = [
            pb.Mount(host_path=str(self.disk), container_path="/work"),
            pb.Mount(host_path=str(self.memory), container_path="/fast"),
        ]
        return self.node.run(self.id, script, name, mounts=mounts, **PRIVATE)

    def counting(self) -> None:
        until(lambda: len(numbers(self.node, self.writer)) > 10 and len(numbers(self.node, self.reader)) > 2)


def checkpoint(one: Node, pod: str, name: str = "pod.tar", **how: Any) -> tuple[Path, node_pb2.CheckpointPodReply]:
    target = place_of(one, name)
    return target, checkpoint_pod(one, pod, target, **how)


def members(one: Node, pod: str) -> dict[str, str]:
    """Its containers by name."""
    return {found.metadata.name: found.id for found in one.containers() if found.pod_sandbox_id == pod}


def refused(one: Node, call: Any) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return str(raised.value.details())


def test_f38_a_pod_goes_on_elsewhere_with_all_that_it_has_written(one: Node) -> None:
    two = TwoContainers(one)
    two.counting()
    archive, reply = checkpoint(one, two.id, leave_running=True)
    assert reply.bytes == archive.stat().st_size
    assert 0 < reply.frozen_seconds < SECONDS
    at = numbers(one, two.writer)[-1]
    until(lambda: numbers(one, two.writer)[-1] > at + 5)  # it was left running
    assert one.status(two.reader).state == pb.CONTAINER_RUNNING
    pod = restore(one, archive, name="again")
    again = members(one, pod)
    until(lambda: len(numbers(one, again["writer"])) > 10 and len(numbers(one, again["reader"])) > 3)
    start, *rest = numbers(one, again["writer"])
    assert rest == list(range(start + 1, start + 1 + len(rest)))
    assert 10 < start <= at + 1
    read = numbers(one, again["reader"])
    # What it reads is what the other one writes, there too; that says a number first, and it may have been read before.
    assert read == sorted(read) and read[0] >= start - 3
    assert one.exec(again["writer"], ["cat", "/work/open"]).stdout == b"held\n"


def test_f38_no_container_goes_on_before_all_are_there(one: Node) -> None:
    """Or what it writes at once is not what the next one's images say of the files that it has open."""
    writer = "echo 0 > /work/lines; n=0; while :; do n=$((n+1)); echo $n >> /work/lines; echo $n; done"
    reader = "exec 4</work/lines; while :; do if read line <&4; then echo $line; else usleep 10000; fi; done"
    two = TwoContainers(one, writer, reader)
    two.counting()
    archive, _ = checkpoint(one, two.id)
    for name in ("first", "second"):
        pod = restore(one, archive, name=name)
        again = members(one, pod)
        before = len(numbers(one, again["reader"]))
        until(lambda again=again, before=before: len(numbers(one, again["reader"])) > before + 100)
        assert follow(numbers(one, again["writer"])) and follow(numbers(one, again["reader"]))


def captured(archive: Path, *names: str) -> dict[str, int]:
    """What was counted to, by where, as it is in the archive: NAME of a volume, "shm" or "layer"."""
    found = {}
    with tarfile.open(archive) as outer:
        for name in names:
            part = {"shm": "shm.tar", "layer": "containers/writer/rootfs-diff.tar"}.get(name, f"volumes/{name}.tar")
            with tarfile.open(fileobj=outer.extractfile(part)) as inner:
                file = inner.extractfile("./count")
                assert file is not None
                found[name] = int(file.read())
    return found


def test_f38_everything_is_of_one_instant(one: Node) -> None:
    """The writer counts to four places one after the other: none can be behind the next one, nor two ahead of it."""
    two = TwoContainers(one)
    two.counting()
    for number in range(5):
        archive, _ = checkpoint(one, two.id, f"{number}.tar", leave_running=True)
        found = captured(archive, "scratch", "fast", "shm", "layer")
        first, *others = found.values()
        assert list(found.values()) == sorted(found.values(), reverse=True), found
        assert first - others[-1] <= 1, found


def test_f38_a_pod_that_is_not_left_running_does_nothing_that_is_not_in_its_archive(one: Node) -> None:
    two = TwoContainers(one)
    two.counting()
    archive, _ = checkpoint(one, two.id, "pod.tar")
    assert {found.id: found.state for found in one.pods()} == {two.id: pb.SANDBOX_NOTREADY}
    status = one.exited(two.writer)
    assert (status.exit_code, status.reason) == (137, "Error")
    count = captured(archive, "scratch")["scratch"]
    assert int((two.disk / "count").read_text()) == count
    assert numbers(one, two.writer)[-1] - count in (0, 1)
    pod = restore(one, archive)
    writer = members(one, pod)["writer"]
    until(lambda: len(numbers(one, writer)) > 5)
    assert numbers(one, writer)[0] - count in (1, 2)


def test_f38_volumes_are_the_same_to_the_last_byte(one: Node) -> None:
    two = TwoContainers(one, "sleep 1000", "sleep 1000")
    for place in (two.disk, two.memory):
        fill(place)
    (two.disk / "large").write_bytes(os.urandom(20_000_000))
    archive, reply = checkpoint(one, two.id, "pod.tar", compress="zstd", leave_running=True)
    assert list(reply.left_out) == []
    assert archive.stat().st_size < 40_000_000  # of holes nothing was written
    before = [look(two.disk), look(two.memory)]
    one.remove_pod(two.id)
    pod = restore(one, archive)
    volumes = next((one.root / "volumes" / pod).glob("pods/*/volumes/kubernetes.io~empty-dir"))
    assert [look(volumes / "scratch"), look(volumes / "fast")] == before
    mounted = {entry.target: entry.fstype for entry in mount.mountinfo()}
    assert mounted[str(volumes / "fast")] == "tmpfs"
    assert os.statvfs(volumes / "fast").f_blocks * os.statvfs(volumes / "fast").f_frsize == 16 << 20
    assert (volumes / "scratch" / "hole").stat().st_blocks == 0
    for place in (volumes / "scratch", volumes / "fast"):
        assert (place / "sparse").stat().st_blocks * 512 < 1 << 20 < (place / "sparse").stat().st_size
    one.remove_pod(pod)
    assert not (one.root / "volumes" / pod).exists()


def test_f38_a_second_generation(one: Node) -> None:
    """What was restored is checkpointed and restored again; its volumes are wherever somebody wants them."""
    two = TwoContainers(one)
    two.counting()
    first, _ = checkpoint(one, two.id, "first.tar")
    one.remove_pod(two.id)
    pod = restore(one, first)
    writer = members(one, pod)["writer"]
    until(lambda: len(numbers(one, writer)) > 5)
    second, _ = checkpoint(one, pod, "second.tar", compress="zstd")
    one.remove_pod(pod)
    place = one.base / "kubelet" / "mine"
    place.mkdir()
    pod = restore(one, second, name="third", volumes={"scratch": str(place)})
    again = members(one, pod)
    until(lambda: len(numbers(one, again["writer"])) > 5 and len(numbers(one, again["reader"])) > 1)
    assert int((place / "count").read_text()) >= numbers(one, again["writer"])[0]
    assert [found.metadata.name for found in one.pods()] == ["third"]
    one.remove_pod(pod)
    assert (place / "count").exists()  # it was not ours to remove


def test_f38_open_files_that_have_no_name_any_more(one: Node) -> None:
    keep = "rm /work/gone /fast/gone /gone; echo ready; sleep 1000"
    script = f"exec 5<>/work/gone 6<>/fast/gone 7<>/gone; echo disk >&5; echo memory >&6; echo layer >&7; {keep}"
    two = TwoContainers(one, script, "sleep 1000")
    until(lambda: lines(one, two.writer) == ["ready"], "it to have removed them")
    archive, _ = checkpoint(one, two.id, "pod.tar")
    one.remove_pod(two.id)
    again = members(one, restore(one, archive))["writer"]
    for descriptor, text in ((5, b"disk\n"), (6, b"memory\n"), (7, b"layer\n")):
        assert one.exec(again, ["cat", f"/proc/1/fd/{descriptor}"]).stdout == text
        link = one.exec(again, ["readlink", f"/proc/1/fd/{descriptor}"]).stdout
        assert b"deleted" in link or b".cr." in link


def test_f38_a_large_file_without_a_name(one: Node) -> None:
    script = "exec 5<>/work/gone; dd if=/dev/zero bs=1M count=8 >&5 2>/dev/null; rm /work/gone; sleep 1000"
    two = TwoContainers(one, script, "sleep 1000")
    until(lambda: one.exec(two.writer, ["readlink", "/proc/1/fd/5"]).stdout.endswith(b"(deleted)\n"))
    archive, _ = checkpoint(one, two.id, "pod.tar", leave_running=True)
    again = members(one, restore(one, archive, name="again"))["writer"]
    assert one.exec(again, ["wc", "-c", "/proc/1/fd/5"]).stdout.split()[0] == b"8388608"


@pytest.mark.parametrize("place", ["/work", "/fast", ""])
def test_f38_an_open_file_that_has_another_name_now_is_refused(one: Node, place: str) -> None:
    """CRIU would leave a name of its own beside it for the restore, in what is being packed."""
    keep = (
        f"exec 5<>{place}/old; ln {place}/old {place}/new; rm {place}/old; while :; do echo . >&5; usleep 20000; done"
    )
    two = TwoContainers(one, keep, "sleep 1000")
    renamed = ["sh", "-c", f"test -e {place}/new && ! test -e {place}/old"]
    until(lambda: one.exec(two.writer, renamed).exit_code == 0, "it to have another name")
    with pytest.raises(grpc.RpcError) as failure:
        checkpoint(one, two.id, "pod.tar")
    assert f"{place}/old" in str(failure.value.details()) and not list((one.base / "archives").iterdir())
    size = lambda: int(one.exec(two.writer, ["stat", "-c", "%s", f"{place}/new"]).stdout)  # noqa: E731
    before = size()
    until(lambda: size() > before, "it to go on")


def test_the_command_line(one: Node) -> None:
    two = TwoContainers(one, name="shop")
    two.counting()
    archive = one.base / "archives" / "shop.tar"
    archive.parent.mkdir()
    said = one.cli("checkpoint", "shop", "--output", str(archive), "--compress", "zstd", "--leave-running").stdout
    assert str(archive) in said and "stood still for" in said
    clash = one.cli("restore", str(archive), check=False)
    assert clash.returncode == 1 and "test/shop is there and runs; give this one another name" in clash.stderr
    assert [found.id for found in one.pods()] == [two.id]
    pod = one.cli("restore", str(archive), "--name", "shop-again").stdout.strip()
    assert {found.metadata.name: found.id for found in one.pods()}["shop-again"] == pod
    failed = one.cli("restore", str(archive), "--name", "../shop", check=False)
    assert failed.returncode == 1 and "cannot be a pod's" in failed.stderr
    failed = one.cli("restore", str(archive), "--volume", "scratch", check=False)
    assert failed.returncode == 1 and "NAME=PATH" in failed.stderr
    failed = one.cli("restore", str(archive), "--name", "third", "--volume", "other=/tmp", check=False)
    assert failed.returncode == 1 and "no container mounts other" in failed.stderr


# What is refused, before anything is frozen; the pod goes on as if nobody had asked.


def unharmed(two: TwoContainers) -> None:
    one = two.node
    at = len(numbers(one, two.writer))
    until(lambda: len(numbers(one, two.writer)) > at + 3)
    with contextlib.suppress(FileNotFoundError):
        assert [name for name in os.listdir(one.base / "archives") if not name.startswith("mine")] == []


def test_what_cannot_be_brought_back_is_refused(one: Node) -> None:
    two = TwoContainers(one)
    two.counting()
    (two.disk / "below").mkdir()
    mount.mount("other", two.disk / "below", "tmpfs")
    why = refused(one, lambda: checkpoint(one, two.id))
    assert "below" in why and "mounted" in why
    mount.unmount(two.disk / "below")
    os.setxattr(two.memory, "trusted.odd", b"x")
    assert "trusted.odd" in refused(one, lambda: checkpoint(one, two.id))
    os.removexattr(two.memory, "trusted.odd")
    unharmed(two)


def test_what_cannot_be_an_archive_is_refused(one: Node) -> None:
    two = TwoContainers(one)
    two.counting()
    mine = one.base / "archives" / "mine.tar"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    assert "exists" in refused(one, lambda: checkpoint(one, two.id, "mine.tar"))
    assert mine.read_bytes() == b"mine"
    assert "compress" in refused(one, lambda: checkpoint(one, two.id, compress="lzma"))
    for location in ("pod.tar", "/tmp/../pod.tar", "", "/", "/nowhere/pod.tar"):
        assert "location" in refused(one, lambda location=location: checkpoint_pod(one, two.id, Path(location)))
    assert "does not exist" in refused(one, lambda: checkpoint(one, "f" * 64))
    unharmed(two)


def test_pods_that_cannot_be_captured_are_refused(one: Node) -> None:
    pod = one.run_pod(one.pod_config(**PRIVATE))
    assert "none of its containers runs" in refused(one, lambda: checkpoint(one, pod))
    config = one.container_config("sleep 1000", **PRIVATE)
    uid = next(found.metadata.uid for found in one.pods() if found.id == pod)
    part = one.base / "kubelet" / "pods" / uid / "volume-subpaths" / "scratch" / "main" / "0"
    part.mkdir(parents=True)
    config.mounts.add(host_path=str(part), container_path="/part")
    one.start_container(one.create(pod, config))
    assert "subPath" in refused(one, lambda: checkpoint(one, pod))


def test_system_v_objects_of_the_pod_are_refused(one: Node) -> None:
    two = TwoContainers(one)
    two.counting()
    ipc = one.state / "pods" / two.id / "ns" / "ipc"
    done = subprocess.run(["nsenter", f"--ipc={ipc}", "ipcmk", "-S", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "semaphores of System V" in refused(one, lambda: checkpoint(one, two.id))
    unharmed(two)


def test_f37_no_room_is_seen_before_anything_is_frozen(one: Node) -> None:
    two = TwoContainers(one)
    two.counting()
    (two.disk / "large").write_bytes(os.urandom(8_000_000))
    small = one.base / "archives"
    small.mkdir()
    mount.mount("small", small, "tmpfs", data="size=4m")
    why = refused(one, lambda: checkpoint(one, two.id))
    assert "free" in why or "space" in why, why
    unharmed(two)


def test_f37_what_reaches_for_the_host_is_given_to_who_answers_for_it(one: Node) -> None:
    pod = one.run_pod(one.pod_config(**PRIVATE))
    place = one.base / "kubelet" / "data"
    place.mkdir(parents=True)
    mounts = [pb.Mount(host_path=str(place), container_path="/data")]
    one.run(pod, "sleep 1000", mounts=mounts, **PRIVATE)
    made, _ = checkpoint(one, pod)
    assert f"mounts {place}" in refused(one, lambda: restore(one, made))
    again = restore(one, made, trusted=True)
    assert one.exec(members(one, again)["main"], ["touch", "/data/now"]).exit_code == 0
    assert (place / "now").exists()
    one.remove_pod(again)
    place.rename(place.with_name("moved"))
    assert "say what is to be there" in refused(one, lambda: restore(one, made, trusted=True))
    restore(one, made, trusted=True, volumes={str(place): str(place.with_name("moved"))})


def test_f38_what_a_kubelet_puts_beside_an_empty_dir_comes_along(one: Node) -> None:
    """/etc/hosts and a termination message, and a secret in memory, whose files a process has open."""
    config = one.pod_config(**PRIVATE)
    top = one.base / "kubelet" / "pods" / config.metadata.uid
    secret = top / "volumes" / "kubernetes.io~secret" / "key"
    secret.mkdir(parents=True)
    mount.mount("tmpfs", secret, "tmpfs", data="size=1m")
    (secret / "..data").symlink_to("first")
    (secret / "first").mkdir()
    (secret / "first" / "key").write_text("secret")
    (secret / "key").symlink_to("..data/key")
    (top / "etc-hosts").write_text("10.0.0.1 old\n")
    (top / "containers" / "main").mkdir(parents=True)
    (top / "containers" / "main" / "0").touch()
    mounts = [
        pb.Mount(host_path=str(secret), container_path="/key", readonly=True),
        pb.Mount(host_path=str(top / "etc-hosts"), container_path="/etc/hosts"),
        pb.Mount(host_path=str(top / "containers" / "main" / "0"), container_path="/dev/termination-log"),
    ]
    pod = one.run_pod(config)
    script = "exec 5</key/key 6>/dev/termination-log; echo said >&6; sleep 1000"
    main = one.run(pod, script, mounts=mounts, **PRIVATE)
    until(lambda: one.exec(main, ["cat", "/dev/termination-log"]).stdout == b"said\n")
    made, _ = checkpoint(one, pod)
    one.remove_pod(pod)
    mount.unmount(secret)
    shutil.rmtree(top)  # noqa: TID251
    again = members(one, restore(one, made))["main"]
    for path, text in (
        ("/key/key", b"secret"), ("/proc/1/fd/5", b"secret"), ("/etc/hosts", b"10.0.0.1 old\n"),
        ("/dev/termination-log", b"said\n"),
    ):  # fmt: skip
        assert one.exec(again, ["cat", path]).stdout == text


@pytest.mark.soak
def test_f38_two_hundred_mebibytes_over_five_generations(one: Node) -> None:
    """One writes them to the volume that the other reads; each generation is made of the one before."""
    size = 200 << 20
    write = f"head -c {size} /dev/urandom > /work/blob; sha256sum < /work/blob > /work/sum; {WRITER}"
    read = "until test -s /work/sum; do sleep 0.1; done; while :; do sha256sum < /work/blob; sleep 1; done"
    two = TwoContainers(one, write, read)
    until(lambda: (two.disk / "sum").exists() and (two.disk / "sum").stat().st_size, "the blob", SECONDS)
    wanted = (two.disk / "sum").read_text()
    pod, last = two.id, 0
    for generation in range(5):
        made, reply = checkpoint(one, pod, f"{generation}.tar")
        print(f"generation {generation}: {reply.bytes} bytes, frozen for {reply.frozen_seconds:.3f} s")
        one.remove_pod(pod)
        pod = restore(one, made, name=f"generation-{generation}")
        made.unlink()
        again = members(one, pod)
        until(lambda again=again: len(numbers(one, again["writer"])) > 10, "the writer to go on", SECONDS)
        found = numbers(one, again["writer"])
        assert follow(found) and found[0] > last
        last = found[0]
        until(lambda again=again: one.container_log(again["reader"]), "the reader to go on", SECONDS)
        assert lines(one, again["reader"])[0] == wanted.strip()


def test_f38_a_pod_moves_to_another_node_that_has_its_image(one: Node) -> None:
    two = TwoContainers(one)
    two.counting()
    made, _ = checkpoint(one, two.id, compress="zstd")
    count = captured_by(two)
    one.remove_pod(two.id)
    with node("auto", checkpoints=True, criu_path=CRIU) as other:
        other.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=IMAGE)))
        why = refused(other, lambda: restore(other, made))
        assert "is not here; pull it first" in why and IMAGE in why
        assert other.pods() == [] and other.leftovers() == []
        other.busybox()
        again = members(other, restore(other, made))
        until(lambda: len(numbers(other, again["writer"])) > 5 and len(numbers(other, again["reader"])) > 1)
        assert numbers(other, again["writer"])[0] - count in (1, 2)


def captured_by(two: TwoContainers) -> int:
    """To what the writer had counted when it was stopped by its checkpoint."""
    return int((two.disk / "count").read_text())
