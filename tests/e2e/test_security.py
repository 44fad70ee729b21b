"""What has been a hole in a container runtime is none here: each as it was reported, through the real daemon.

Of an OCI runtime's own holes those are played that we can keep shut ourselves; its version is another matter.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from image import build_busybox_image
from kit import images
from kit.node import Node, until

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime import keeper

INVALID = grpc.StatusCode.INVALID_ARGUMENT
LIMIT = 16 << 20
ROOM = 192 << 20  # of memory that the daemon may need for one ExecSync, whatever its output is


@pytest.fixture(params=["crun", "runc"])
def handler(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pod(life: Node, handler: str) -> Iterator[str]:
    pod_id = life.run_pod(life.pod_config(network=pb.POD), handler)
    yield pod_id
    life.remove_pod(pod_id)
    assert not life.leftovers()


@pytest.fixture
def plain(life: Node) -> Iterator[str]:
    """A pod for what no OCI runtime gets to see."""
    pod_id = life.run_pod()
    yield pod_id
    life.remove_pod(pod_id)
    assert not life.leftovers()


@pytest.fixture
def hostile(life: Node) -> Iterator[Any]:
    """Make an image that is busybox with one more layer and such a config; it is removed afterwards."""
    made: list[str] = []

    def make(*members: Any, layer: bytes = b"", **config: Any) -> str:
        name = f"test/hostile-{len(list(life.base.glob('hostile-*')))}:latest"
        place = life.base / name.partition("/")[2].partition(":")[0]
        place.mkdir()
        layer = layer or images.pack(images.tar(members or [images.entry("x")]), "gzip")
        life.import_image(build_busybox_image(place, name, extra_layer=layer, **config))
        made.append(name)
        return name

    yield make
    for name in made:
        life.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))


def link(name: str, target: str) -> Any:
    return images.entry(name, b"", type=tarfile.SYMTYPE, linkname=target)


def sh(life: Node, container_id: str, script: str) -> str:
    reply = life.exec(container_id, ["/bin/sh", "-c", script])
    assert reply.exit_code == 0, reply.stderr
    return str(reply.stdout.decode())


def refused(life: Node, pod: str, config: pb.ContainerConfig) -> str:
    with pytest.raises(grpc.RpcError) as failure:
        life.create(pod, config)
    assert failure.value.code() is INVALID, failure.value.details()
    return str(failure.value.details())


def test_cve_2019_5736_the_runtimes_binary_cannot_be_written_from_inside(
    life: Node, pod: str, handler: str, hostile: Any
) -> None:
    """A process that the runtime starts in a container is, for a moment, the runtime's own program."""
    binary = Path(str(shutil.which(handler)))
    before = hashlib.sha256(binary.read_bytes()).digest()
    trap = images.entry("bin/trap", b"#!/proc/self/exe\n", mode=0o755)
    image = hostile(trap)
    script = "while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || echo x 2>/dev/null >> $p/exe; done; done"
    container = life.run(pod, ["/bin/sh", "-c", f"({script}) 2>/dev/null"], image=image)
    for command in ("/bin/trap", "/proc/self/exe", "/bin/true") * 3:
        try:
            life.exec(container, [command])
        except grpc.RpcError as exc:
            assert exc.code() is grpc.StatusCode.UNKNOWN, exc  # it could not be executed
    assert hashlib.sha256(binary.read_bytes()).digest() == before


def test_cve_2024_21626_a_working_directory_that_leads_out(life: Node, plain: str, hostile: Any) -> None:
    links = [
        images.entry("a"), link("a/out", "../proc/self/fd/8"), link("b", "/proc/self/fd"), link("c", "/d"),
        link("d", "proc/1/cwd"),
    ]  # fmt: skip
    image = hostile(*links)
    for directory in ("/proc/self/fd/7", "/proc/self/../self/fd/3", "/proc", "/a/out", "/b/3", "/c"):
        message = refused(life, plain, life.container_config("exit 0", image=image, working_dir=directory))
        assert f"config.working_dir: {directory!r} leads to '/proc" in message
    moved = hostile(images.entry(".wh.proc", b""), link("proc", "elsewhere"), images.entry("elsewhere"))
    message = refused(life, plain, life.container_config("exit 0", image=moved, working_dir="/proc/self/fd/7"))
    assert "leads to '/proc/self/fd/7'" in message
    for directory in ("/proc/self/fd/7", "/b/3"):
        of_image = hostile(*links, WorkingDir=directory)
        message = refused(life, plain, life.container_config("exit 0", image=of_image))
        assert f"config.working_dir: {directory!r} leads to '/proc" in message


def test_cve_2024_21626_no_descriptor_leaks_into_a_container(life: Node, pod: str) -> None:
    container = life.run(pod, ["/bin/sleep", "1000"])
    init = life.pid(container)
    until(lambda: comm(init) == "sleep", "the runtime's own program to be over")
    assert sorted(os.listdir(f"/proc/{init}/fd"), key=int) == ["0", "1", "2"]
    own = sh(life, container, "ls -l /proc/$$/fd; :").splitlines()[1:]
    assert sorted(line.split()[-3] for line in own) == ["0", "1", "2"]
    assert sh(life, container, "test -c /dev/fd/0 && test -p /dev/fd/1 && test -p /dev/fd/2 && echo so") == "so\n"
    terminal = life.pid(life.run(pod, ["/bin/sleep", "1000"], "terminal", tty=True))
    until(lambda: comm(terminal) == "sleep", "the runtime's own program to be over")
    assert sorted(os.listdir(f"/proc/{terminal}/fd"), key=int) == ["0", "1", "2"]
    assert os.readlink(f"/proc/{terminal}/fd/0").startswith("/dev/")


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


GROUPS: dict[str, tuple[dict[str, Any], str]] = {
    "CVE-2023-25173: groups of the image are not lost": ({"run_as_user": 1000}, "1000 100 10 44 100"),
    "CVE-2022-2995: the primary group is among them": ({"run_as_user": 1000, "run_as_group": 3}, "1000 3 3 10 44"),
    "CVE-2022-2995: no image's group where none is wanted": (
        {"run_as_user": 1000, "supplemental_groups_policy": pb.Strict}, "1000 100 100",
    ),
    "CVE-2026-30892: an exec is nobody else": ({"run_as_user": 1001, "run_as_group": 0}, "1001 0 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPS)
def test_users_and_groups_of_an_exec(life: Node, pod: str, hostile: Any, case: str) -> None:
    fields, expected = GROUPS[case]
    image = hostile(
        images.entry("etc/passwd", b"root:x:0:0::/root:\napp:x:1000:100::/:\n"),
        images.entry("etc/group", b"users:x:100:\nvideo:x:44:app\nwheel:x:10:root,app\n"),
    )
    context = pb.LinuxContainerSecurityContext()
    for name, value in fields.items():
        if name.startswith("run_as"):
            getattr(context, name).value = value
        else:
            setattr(context, name, value)
    container = life.run(pod, "sleep 1000", image=image, linux=pb.LinuxContainerConfig(security_context=context))
    uid, gid, *groups = expected.split()
    assert sh(life, container, "id -u; id -g").split() == [uid, gid]
    for pid in ("1", "$$"):
        status = dict(line.split(":\t") for line in sh(life, container, f"cat /proc/{pid}/status").splitlines())
        assert set(status["Uid"].split()) == {uid}
        assert sorted(status["Groups"].split(), key=int) == sorted(groups, key=int)


def test_cve_2024_40635_a_uid_that_wraps_around_to_root(life: Node, plain: str, hostile: Any) -> None:
    for user in ("4294967296", "2147483648", "4294967295:0", "0:4294967296", "-1", "9" * 400):
        message = refused(life, plain, life.container_config("id -u", image=hostile(User=user)))
        assert "out of range" in message or "is not in the image's /etc/passwd" in message


def test_cve_2022_31030_output_of_an_exec_without_end(life: Node, pod: str) -> None:
    """Of a GiB on each stream no more is kept than is returned, by the daemon or by the shim."""
    assert life.process is not None
    container = life.run(pod, "sleep 1000")
    shims = [worker.pid for worker in keeper.workers(life.state) if worker.kind == "shim"]
    peaks = {pid: peak(pid) for pid in (life.process.pid, *shims)}
    script = "dd if=/dev/zero bs=1M count=1024 >&2 2>/dev/null & dd if=/dev/zero bs=1M count=1024 2>/dev/null; wait"
    reply = life.exec(container, ["/bin/sh", "-c", script], 120)
    assert (reply.exit_code, len(reply.stdout), len(reply.stderr)) == (0, LIMIT, LIMIT)
    assert len(peaks) > 1
    assert all(peak(pid) - before < ROOM for pid, before in peaks.items())


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def test_cve_2022_4318_a_home_or_directory_with_a_line_in_it(life: Node, pod: str, hostile: Any) -> None:
    line = "/x\nevil::0:0::/:/bin/sh"
    before = sh(life, life.run(pod, "sleep 1000", "plain"), "cat /etc/passwd /etc/group")
    image = hostile(Env=["PATH=/bin", f"HOME={line}"], WorkingDir=line)
    configs = [{"image": image}, {"envs": [pb.KeyValue(key="HOME", value=line)], "working_dir": line}]
    for number, config in enumerate(configs):
        container = life.run(pod, "sleep 1000", f"c{number}", **config)
        assert sh(life, container, "cat /etc/passwd /etc/group") == before
        assert sh(life, container, 'echo "$HOME"; pwd').splitlines() == [*line.splitlines(), *line.splitlines()]


@pytest.mark.parametrize("name", ["etc/hosts", "etc/resolv.conf", "etc/hostname", "etc", "data"])
@pytest.mark.parametrize("climbs", [False, True])
def test_cve_2024_5154_links_in_the_image_where_files_are_mounted(
    life: Node, pod: str, hostile: Any, name: str, climbs: bool
) -> None:
    victim = life.base / "victim"
    victim.write_text("the host's")
    target = str(victim) if "/" in name else str(life.base)
    etc = [] if name == "etc" else [images.entry("etc")]
    opaque = [images.entry("etc/.wh..wh..opq", b"")] if name.startswith("etc/") else [images.entry(f".wh.{name}", b"")]
    image = hostile(*etc, *opaque, link(name, "../" * 12 * climbs + target.lstrip("/") if climbs else target))
    mounts = [pb.Mount(host_path=str(life.base), container_path="/data/x/victim")] if name == "data" else []
    container = life.create(
        pod, life.container_config("echo gone > /etc/hosts; sleep 1000", image=image, mounts=mounts)
    )
    try:
        life.start_container(container)
    except grpc.RpcError as exc:
        assert "StartError" in life.status(container).reason, exc
    assert victim.read_text() == "the host's"
    assert (
        sorted(path.name for path in life.base.iterdir() if path.name in ("hosts", "resolv.conf", "hostname", "x"))
        == []
    )


@pytest.mark.parametrize(("name", "size"), [("passwd", 1 << 30), ("group", 64 << 20)])
def test_cve_2026_47262_a_huge_file_of_users_is_not_read(
    life: Node, plain: str, hostile: Any, name: str, size: int
) -> None:
    assert life.process is not None
    image = hostile(layer=of_zeros(f"etc/{name}", size))
    before = peak(life.process.pid)
    config = life.container_config("exit 0", "huge", image=image)
    config.linux.security_context.run_as_user.value = 65534
    assert f"/etc/{name} has more than" in refused(life, plain, config)
    assert peak(life.process.pid) - before < 32 << 20
    assert not life.containers()


def of_zeros(name: str, size: int) -> bytes:
    """A layer with such a file, sparse in the archive's gzip only."""
    raw = io.BytesIO()
    info = tarfile.TarInfo(name)
    info.size = size
    with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) as out, tarfile.open(fileobj=out, mode="w|") as archive:
        archive.addfile(info, Zeros(size))
    return raw.getvalue()


class Zeros(io.RawIOBase):
    """So many zero bytes, made as they are read."""

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, size: int = -1) -> bytes:
        count = self._left if size < 0 else min(size, self._left)
        self._left -= count
        return bytes(count)


def test_cve_2026_53488_labels_of_an_image_are_nobodys_orders(life: Node, pod: str, hostile: Any) -> None:
    done = life.base / "label-was-obeyed"
    labels = {
        "run.oci.hooks.stderr": str(done), "run.oci.handler": "wasm", "io.containerd.runc.v2.group": "x",
        "io.kubernetes.cri.container-type": "sandbox", "containerd.io/restart.loguri": f"binary:///bin/touch?{done}",
    }  # fmt: skip
    container = life.run(pod, "sleep 1000", image=hostile(Labels=labels))
    annotations = life.info(container)["runtimeSpec"]["annotations"]
    assert annotations["io.kubernetes.cri.container-type"] == "container"
    assert not {key for key in labels if key in annotations} - {"io.kubernetes.cri.container-type"}
    status = life.status(container)
    assert (dict(status.labels), dict(status.annotations)) == ({}, {})
    assert not done.exists()


def test_cve_2022_23648_a_volume_of_the_image_that_climbs(life: Node, pod: str, hostile: Any) -> None:
    volumes = ["/../../../../../../etc", "../../../etc", "/data/../../../../etc", "/proc/self/root/etc"]
    container = life.run(pod, "sleep 1000", image=hostile(Volumes={volume: {} for volume in volumes}))
    assert sh(life, container, "cat /etc/passwd").startswith("root:x:0:0:root:/root:/bin/sh\nnobody")
    assert sh(life, container, "test -e /etc/debian_version || echo no") == "no\n"
    mounted = {line.split()[4] for line in sh(life, container, "cat /proc/self/mountinfo").splitlines()}
    assert "/etc" not in mounted


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kernel.core_pattern", "|/bin/x"),
        ("kernel/core_pattern", "|/bin/x"),
        ("net.../../kernel/core_pattern", "|/bin/x"),
        ("net/../kernel/core_pattern", "|/bin/x"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "1+|/bin/x"),
    ],
)
def test_cve_2022_0811_sysctls_do_not_reach_the_host(life: Node, key: str, value: str) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    config = life.pod_config(network=pb.POD)
    config.linux.sysctls[key] = value
    with pytest.raises(grpc.RpcError) as failure:
        life.run_pod(config)
    assert failure.value.code() is INVALID
    config.linux.sysctls.clear()
    config.linux.sysctls["kernel.shm_rmid_forced"] = f"1+kernel.core_pattern={value}"
    with pytest.raises(grpc.RpcError) as failure:
        life.run_pod(config)
    assert failure.value.code() is INVALID
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    until(lambda: not life.pods(), "the pods to be gone")


def test_cve_2022_0532_sysctls_of_namespaces_that_are_the_hosts(life: Node) -> None:
    for key, options in [("net.ipv4.ip_forward", {"network": pb.NODE}), ("kernel.shmmax", {"ipc": pb.NODE})]:
        path = Path("/proc/sys", key.replace(".", "/"))
        before = path.read_text()
        config = life.pod_config(**options)
        config.linux.sysctls[key] = "4242"
        with pytest.raises(grpc.RpcError) as failure:
            life.run_pod(config)
        assert failure.value.code() is INVALID
        assert path.read_text() == before
