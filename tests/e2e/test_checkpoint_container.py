"""CheckpointContainer, and containers made from what it leaves: real processes, files and memory, through the CRI."""

import contextlib
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from kit import images
from kit.checkpoints import (
    COUNT,
    PRIVATE,
    checkpoint,
    checkpoint_pod,
    create,
    emptied,
    follow,
    lines,
    numbers,
    place,
    restore,
    run,
)
from kit.node import Node, node, until
from kit.registry import push, registry
from kit.tools import CHECKPOINTCTL, CRIU, needs_checkpointctl, needs_criu

from holdfast.checkpoint import sealed
from holdfast.linux import cgroup, mount, process
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_criu]

Code = grpc.StatusCode
KEPT = {"dev.holdfast.checkpoint.tcp": "established"}


@pytest.fixture(scope="module")
def made() -> Iterator[Node]:
    with node("auto", checkpoints=True, criu_path=CRIU) as one:
        yield one


@pytest.fixture
def one(made: Node) -> Iterator[Node]:
    with emptied(made):
        yield made


def refused(call: object, *codes: Code) -> str:
    """The reason given."""
    with pytest.raises(grpc.RpcError) as failure:
        call()  # type: ignore[operator]
    assert failure.value.code() in codes, failure.value
    return str(failure.value.details())


def goes_on(one: Node, container_id: str) -> None:
    """It counts, and has not missed a number."""
    at = len(numbers(one, container_id))
    until(lambda: len(numbers(one, container_id)) > at + 3, "the container to go on")
    assert follow(numbers(one, container_id))


def counts(one: Node, script: str = COUNT, **more: object) -> str:
    container_id = run(one, script, **more)
    until(lambda: len(lines(one, container_id)) > 5, "a few numbers")
    return container_id


# -- what goes on


def test_a_counter_goes_on_in_another_pod_and_the_first_one_never_stops(one: Node) -> None:
    first = counts(one, f"echo kept > /file; rm /bin/wget; exec 5</file; {COUNT}")
    archive = checkpoint(one, first)
    at = len(numbers(one, first))
    goes_on(one, first)
    second = restore(one, archive)
    until(lambda: len(numbers(one, second)) > 10)
    found = numbers(one, second)
    assert 5 < found[0] <= at + 3 and follow(found)
    assert one.exec(second, ["cat", "/file"]).stdout == b"kept\n"
    assert one.exec(second, ["ls", "/bin/wget"]).exit_code == 1
    status = one.status(second)
    assert (status.state, status.image.image) == (pb.CONTAINER_RUNNING, str(archive))
    assert status.image_ref == one.status(first).image_ref
    assert [one.info(each)["restoredFrom"] for each in (first, second)] == ["", str(archive)]
    one.stop_container(second)
    assert one.exited(second).exit_code == 137
    goes_on(one, first)


def test_memory_files_without_a_name_and_pipes_are_as_they_were(one: Node) -> None:
    script = """
        x=$(head -c 3000000 /dev/urandom | base64); exec 7<>/tmp/secret; echo "$x" >&7; rm /tmp/secret
        mkfifo /tmp/p; exec 8<>/tmp/p; echo in-the-pipe >&8
        echo ready; while [ ! -e /tmp/go ]; do sleep 0.01; done
        echo "$x" | md5sum; md5sum < /proc/$$/fd/7; read line <&8; echo $line; exit 42
    """
    first = run(one, script)
    until(lambda: "ready" in lines(one, first))
    second = restore(one, checkpoint(one, first))
    for container_id in (second, first):
        one.exec(container_id, ["touch", "/tmp/go"])
        assert one.exited(container_id).exit_code == 42
        *_, memory, file, pipe = lines(one, container_id)
        assert memory == file and pipe == "in-the-pipe"
    assert lines(one, first)[1:] == lines(one, second)


def test_a_volume_shared_memory_and_a_second_generation(one: Node) -> None:
    data = one.base / "data"
    data.mkdir(exist_ok=True)
    mounts = [pb.Mount(container_path="/data", host_path=str(data))]
    first = counts(one, f"exec 5>>/data/said; {COUNT.replace('echo $n', 'echo $n; echo $n >&5')}", mounts=mounts)
    archive = checkpoint(one, first)
    one.stop_container(first)
    second = restore(one, archive, mounts=mounts)
    until(lambda: len(lines(one, second)) > 5)
    one.exec(second, ["touch", "/later"])
    again = checkpoint(one, second)
    one.stop_container(second)
    third = restore(one, again, mounts=mounts)
    until(lambda: len(lines(one, third)) > 5)
    assert one.exec(third, ["ls", "/later"]).exit_code == 0
    assert numbers(one, third)[0] > numbers(one, second)[0] > 5
    assert int((data / "said").read_text().split()[-1]) > numbers(one, second)[0]
    one.exec(third, ["rm", "/data/said"])


def test_a_terminal_and_what_is_typed(one: Node) -> None:
    with_terminal = counts(one, tty=True)
    second = restore(one, checkpoint(one, with_terminal), tty=True)
    until(lambda: len(lines(one, second)) > 3)
    assert int(lines(one, second)[0]) > 5
    reading = run(one, "echo ready; while read line; do echo got $line; done; exit 5", stdin=True)
    until(lambda: "ready" in lines(one, reading))
    third = restore(one, checkpoint(one, reading), stdin=True)
    stdin = next(one.state.glob(f"pods/*/{third}/stdin"))
    stdin.write_bytes(b"hello\n")
    until(lambda: "got hello" in lines(one, third))


def limited(user: int) -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(
        security_context=pb.LinuxContainerSecurityContext(
            run_as_user=pb.Int64Value(value=user), readonly_rootfs=True, no_new_privs=True,
            seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
        ),
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20),
    )  # fmt: skip


@pytest.mark.parametrize("user", [0, 1000])
def test_users_limits_and_a_read_only_root(one: Node, user: int) -> None:
    first = counts(one, COUNT.replace("echo $n", "echo $n > /dev/stdout"), linux=limited(user))
    if not process.may_see_limits(one.pid(first)):
        assert "CAP_SYS_RESOURCE" in refused(lambda: checkpoint(one, first), Code.FAILED_PRECONDITION)
        return
    second = restore(one, checkpoint(one, first), linux=limited(user))
    until(lambda: len(lines(one, second)) > 5)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{one.pid(second)}/status").read_text().splitlines())
    assert status["Uid"].split() == [str(user)] * 4
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    assert one.exec(second, ["touch", "/x"]).exit_code != 0
    assert one.status(second).resources.linux.memory_limit_in_bytes == 64 << 20
    path = cgroup.of_process(one.pid(second))
    limit = cgroup.read(path, "memory", "memory.limit_in_bytes") or cgroup.read(path, "", "memory.max")
    assert limit == str(64 << 20)


def test_connections_are_refused_or_kept(one: Node) -> None:
    listening = "until netstat -ltn | grep -q ':7000 '; do sleep 0.05; done"
    script = f"nc -l -p 7000 -e sleep 1000 & {{ {listening}; sleep 1000 | nc 127.0.0.1 7000; }} & {COUNT}"
    pod = one.run_pod(one.pod_config(**PRIVATE))
    first = one.run(pod, script, **PRIVATE)
    connected = lambda: "ESTABLISHED" in one.exec(first, ["netstat", "-tn"]).stdout.decode()  # noqa: E731
    until(connected, "a connection")
    target = place(one)
    assert "TCP connection" in refused(lambda: checkpoint(one, first, target), Code.FAILED_PRECONDITION)
    goes_on(one, first)
    assert not target.exists()
    second = run(one, script, annotations=KEPT)
    until(lambda: "ESTABLISHED" in one.exec(second, ["netstat", "-tn"]).stdout.decode(), "a connection")
    archive = checkpoint(one, second)
    goes_on(one, second)
    assert "ESTABLISHED" in one.exec(second, ["netstat", "-tn"]).stdout.decode()
    third = restore(one, archive, annotations=KEPT)
    assert "ESTABLISHED" in one.exec(third, ["netstat", "-tn"]).stdout.decode()


def test_a_restored_container_survives_the_daemon_and_the_shim(one: Node) -> None:
    second = restore(one, checkpoint(one, counts(one)))
    until(lambda: len(lines(one, second)) > 5)
    pid = one.pid(second)
    one.restart(signal.SIGKILL)
    assert one.pid(second) == pid
    goes_on(one, second)
    pod = next(found.pod_sandbox_id for found in one.containers() if found.id == second)
    shim = next(worker.pid for worker in keeper.workers(one.state) if worker.id == pod)
    os.kill(shim, signal.SIGKILL)
    until(lambda: shim not in {worker.pid for worker in keeper.workers(one.state)}, "another shim")
    goes_on(one, second)
    os.kill(pid, signal.SIGKILL)
    assert one.exited(second).exit_code == 137


# -- archives


def test_the_archive_is_laid_out_as_others_expect_it(one: Node) -> None:
    first = counts(one, f"echo new > /etc/new; rm /bin/wget; {COUNT}")
    archive = checkpoint(one, first)
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        texts = {name: tar.extractfile(name).read() for name in names if "." in name and tar.getmember(name).isreg()}  # type: ignore[union-attr]
    assert {"checkpoint/inventory.img", "checkpoint/pstree.img", "checkpoint/descriptors.json"} <= set(names)
    config = json.loads(texts["config.dump"])
    assert (config["id"], config["name"], config["runtime"]) == (first, "main", "runc")
    assert config["rootfsImageRef"] == one.status(first).image_ref
    assert json.loads(texts["spec.dump"])["process"]["args"][0] == "/bin/sh"
    assert json.loads(texts["deleted.files"]) == ["/bin/wget"]
    assert json.loads(texts["network.status"]) == []
    answered = json.loads(texts["status.dump"])
    assert (answered["id"], answered["started_at"]) == (first, one.status(first).started_at)
    with tarfile.open(archive) as tar:
        record = json.load(tar.extractfile("status"))  # type: ignore[arg-type]
    assert (record["StartedAt"], record["Pid"]) == (one.status(first).started_at, one.pid(first))
    assert b"Dumping finished successfully" in texts["dump.log"]
    assert b" F 5\n" in texts["container.log"]
    assert b"etc/new" in texts["rootfs-diff.tar"]


@pytest.mark.parametrize("way", ["imported", "pulled"])
def test_an_image_that_holds_an_archive(one: Node, way: str) -> None:
    """As `buildah add` and a commit with an annotation make it from an archive."""
    archive = checkpoint(one, counts(one))
    made = images.image([(archive.read_bytes(), "gzip")])
    document = json.loads(made.blobs.pop(made.manifest))
    document["annotations"] = {"org.criu.checkpoint.container.name": "main"}
    made.manifest = made.add(json.dumps(document).encode())
    path = one.base / "held.tar"
    path.write_bytes(images.oci_archive([(made, "localhost/held:1")]))
    with contextlib.ExitStack() as stack:
        if way == "imported":
            name = "localhost/held:1"
            one.import_image(path)
        else:
            host = stack.enter_context(registry())
            push(host, "held", "1", path)
            name = f"{host}/held:1"
            one.images("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=name)))
    second = restore(one, name)
    until(lambda: len(numbers(one, second)) > 5)
    assert numbers(one, second)[0] > 5
    assert one.status(second).image.image == name
    one.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))


@pytest.mark.parametrize("damage", ["cut", "altered", "no archive", "directory"])
def test_damaged_archives_are_refused_and_nothing_is_left(one: Node, damage: str) -> None:
    archive = checkpoint(one, counts(one))
    data = bytearray(archive.read_bytes())
    if damage == "cut":
        archive.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        at = data.index(b"checkpoint/pages-1.img") + 512
        data[at + 100] ^= 0xFF
        archive.write_bytes(data)
    elif damage == "no archive":
        archive.write_bytes(b"nonsense" * 1000)
    else:
        archive.unlink()
        archive.mkdir()
    before = len(one.containers())
    assert str(archive) in refused(lambda: create(one, archive), Code.INVALID_ARGUMENT)
    assert len(one.containers()) == before


def test_configuration_is_that_of_the_request(one: Node) -> None:
    """What the archive says of itself is held against it, and never used instead of it."""
    archive = checkpoint(one, counts(one))
    (one.base / "volume").mkdir()
    volume = [pb.Mount(container_path="/data", host_path=str(one.base / "volume"))]
    assert "nothing mounted at /data" in refused(lambda: create(one, archive, mounts=volume), Code.INVALID_ARGUMENT)
    assert "without a terminal" in refused(lambda: create(one, archive, tty=True), Code.INVALID_ARGUMENT)
    assert "config.stdin" in refused(lambda: create(one, archive, stdin=True), Code.INVALID_ARGUMENT)
    second = counts(one, mounts=volume)
    mounted = checkpoint(one, second)
    assert "something mounted at /data" in refused(lambda: create(one, mounted), Code.INVALID_ARGUMENT)
    assert "there is no" in refused(lambda: create(one, one.base / "gone.tar"), Code.NOT_FOUND)
    assert "is not an absolute path" in refused(lambda: create(one, "/tmp/../etc/passwd"), Code.INVALID_ARGUMENT)
    third = restore(one, mounted, mounts=volume, annotations={"own": "word"}, envs=[pb.KeyValue(key="A", value="b")])
    assert one.status(third).annotations["own"] == "word"
    assert one.info(third)["runtimeSpec"]["process"]["env"][-1].startswith(("A=", "HOME=", "HOSTNAME="))


@pytest.mark.parametrize(
    ("reference", "code"),
    [("docker.io/library/other:latest", Code.INVALID_ARGUMENT), ("sha256:" + "0" * 64, Code.NOT_FOUND), (7, None)],
)
def test_foreign_references_to_images_are_refused(one: Node, reference: object, code: Code | None) -> None:
    """In an archive of others, which nobody has sealed: a name may be another's by now, and nothing is pulled."""
    archive = checkpoint(one, counts(one))
    forged = place(one, "forged.tar")
    with tarfile.open(archive) as old, tarfile.open(forged, "w") as new:
        for member in old.getmembers():
            if member.name in ("holdfast.json", "holdfast.seal") or not member.isreg():
                continue
            data = old.extractfile(member).read()  # type: ignore[union-attr]
            if member.name == "config.dump":
                data = json.dumps({**json.loads(data), "rootfsImageRef": reference}).encode()
            info, _ = images.entry(member.name, data)
            new.addfile(info, io.BytesIO(data))
    refused(lambda: create(one, forged), code or Code.INVALID_ARGUMENT)


def test_images_that_criu_does_not_take_end_the_start_and_nobody_is_left(one: Node) -> None:
    archive = checkpoint(one, counts(one))
    forged = place(one, "forged.tar")
    with tarfile.open(archive) as old, tarfile.open(forged, "w") as new:
        for member in old.getmembers():
            if member.isreg() and not member.name.startswith(("holdfast.", "checkpoint/pages-")):
                new.addfile(member, old.extractfile(member))
    second = create(one, forged)
    assert "CRIU: " in refused(lambda: one.start_container(second), Code.UNKNOWN, Code.INTERNAL)
    status = one.status(second)
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    until(lambda: not [entry for entry in mount.mountinfo() if second in entry.target], "its root to be unmounted")


@pytest.mark.parametrize("shared", [False, True])
def test_what_others_have_mounted_in_a_volume_stays_where_it_is(one: Node, shared: bool) -> None:
    """runc binds the volume to the rootfs for a restore, and takes that away again, and with it what is shared."""
    volume = one.base / "kubelet" / "data"
    (volume / "nas").mkdir(parents=True)
    mount.mount("data", volume, "tmpfs")
    if shared:
        mount.set_propagation(volume, mount.MS_SHARED)
    mounts = [pb.Mount(host_path=str(volume), container_path="/data")]
    archive = checkpoint(one, counts(one, mounts=mounts))
    (volume / "nas").mkdir()
    mount.mount("nas", volume / "nas", "tmpfs")
    (volume / "nas" / "canary").write_text("alive")
    second = restore(one, archive, mounts=mounts)
    until(lambda: len(numbers(one, second)) > 3)
    assert (volume / "nas" / "canary").read_text() == "alive"
    one.remove_pod(next(found.pod_sandbox_id for found in one.containers() if found.id == second))
    assert (volume / "nas" / "canary").read_text() == "alive"


# -- what is refused before anything is frozen


def test_what_cannot_be_done_is_refused_with_the_reason(one: Node) -> None:
    target = place(one)
    plain = one.run_pod(one.pod_config(**PRIVATE), "crun")
    under_crun = one.run(plain, COUNT, **PRIVATE)
    shared = one.run_pod(one.pod_config(pid=pb.POD, **PRIVATE))
    with_shared = one.run(shared, COUNT, pid=pb.POD, **PRIVATE)
    created = create_plain(one)
    stopped = run(one, f"sh -c 'kill -STOP $$' & {COUNT}")
    both_ways = run(one, mounts=[shared_volume(one)])
    until(lambda: any(process.is_stopped(pid) for pid in process.children(one.pid(stopped))), "a process to stop")
    for container_id, why in (
        (under_crun, "crun cannot do it"),
        (with_shared, "pid namespace is that of its pod"),
        (stopped, "was stopped by a signal"),
        (both_ways, "at /data is shared with the host both ways"),
    ):
        assert why in refused(lambda id=container_id: checkpoint(one, id, target), Code.FAILED_PRECONDITION)  # type: ignore[misc]
    assert "CREATED" in refused(lambda: checkpoint(one, created, target), Code.FAILED_PRECONDITION)
    refused(lambda: checkpoint(one, "f" * 64, target), Code.NOT_FOUND)
    first = counts(one)
    for place_, code in (
        (Path("relative.tar"), Code.INVALID_ARGUMENT),
        (one.base / "nowhere" / "x.tar", Code.INVALID_ARGUMENT),
        (one.base / "config.toml", Code.ALREADY_EXISTS),
    ):
        assert "location" in refused(lambda at=place_: checkpoint(one, first, at), code)  # type: ignore[misc]
    assert "timeout" in refused(lambda: checkpoint(one, first, target, -1), Code.INVALID_ARGUMENT)
    assert not os.listdir(target.parent)
    for container_id in (under_crun, with_shared, stopped, both_ways, first):
        goes_on(one, container_id)


def shared_volume(one: Node) -> pb.Mount:
    volume = one.base / "kubelet" / "shared"
    volume.mkdir(parents=True)
    mount.mount("shared", volume, "tmpfs")
    mount.set_propagation(volume, mount.MS_SHARED)
    return pb.Mount(host_path=str(volume), container_path="/data", propagation=pb.PROPAGATION_BIDIRECTIONAL)


def create_plain(one: Node) -> str:
    return one.create(one.run_pod(one.pod_config(**PRIVATE)), one.container_config("exit 0", **PRIVATE))


def test_too_little_room_is_said_before_anything_is_frozen(one: Node, tmp_path: Path) -> None:
    script = "x=$(head -c 6000000 /dev/zero | tr '\\0' x); " + COUNT
    first = counts(one, script)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(small)], check=True)
    try:
        why = refused(lambda: checkpoint(one, first, small / "x.tar"), Code.RESOURCE_EXHAUSTED)
        assert str(small) in why
        assert not os.listdir(small)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    goes_on(one, first)


def test_without_the_setting_nothing_is_made_from_archives(one: Node) -> None:
    archive = checkpoint(one, counts(one))
    with node("runc", criu_path=CRIU) as other:
        assert "`checkpoints`" in refused(lambda: create(other, archive), Code.FAILED_PRECONDITION)
        first = run(other)
        until(lambda: len(lines(other, first)) > 3)
        checkpoint(other, first)  # that may be done all the same
        for pod in other.pods():
            other.remove_pod(pod.id)


def checkpointctl(*arguments: str | Path) -> str:
    done = subprocess.run([CHECKPOINTCTL, *map(str, arguments)], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


@needs_checkpointctl
def test_checkpointctl_reads_our_archives(one: Node) -> None:
    container_id = counts(one, "exec 3<>/etc/group; " + COUNT)
    found = next(each for each in one.containers() if each.id == container_id)
    archive = checkpoint(one, container_id)
    (said,) = json.loads(checkpointctl("inspect", "--all", "--format", "json", archive))
    assert (said["container_name"], said["id"], said["image"]) == ("main", container_id, found.image.image)
    assert said["runtime"] == "runc"
    assert said["statistics"]["pages_written"] > 0
    assert said["checkpoint_size"]["memory_pages_size"] > 0
    assert (said["process_tree"]["pid"], said["process_tree"]["command"]) == (1, "sh")
    files = next(each["open_files"] for each in said["file_descriptors"] if each["pid"] == 1)
    assert "/etc/group" in [file["path"] for file in files]
    assert "/dev/shm" in [each["destination"] for each in said["mounts"]]
    packed = place(one, "packed.tar.zst")
    checkpoint_pod(one, found.pod_sandbox_id, packed, leave_running=True, compress="zstd")
    sealed.unpack(packed, unpacked := one.base / "archives/unpacked", "pod", 1 << 30)
    taken = place(one, "taken.tar.zst")  # what docs/CHECKPOINTS.md says of a container of a pod's archive
    subprocess.run(["tar", "--zstd", "-cf", taken, "-C", unpacked / "containers/main", "."], check=True)
    for each in (archive, taken):
        row = checkpointctl("show", each).splitlines()[-1].split()
        assert row[:4] == ["main", found.image.image, container_id[:12], "runc"]
