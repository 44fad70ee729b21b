"""What is mounted into containers, seen from inside them and from the host, under each OCI runtime."""

import contextlib
import gzip
import itertools
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from image import build_busybox_image
from kit.images import entry, tar
from kit.node import Node, node, until

from holdfast.linux import files, mount
from holdfast.model.escapes import known
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.versions import Versions

OLD = "old"  # a runtime that knows of no recursive read-only mounts
FOREIGN = "runc-v2"
LINKS = "test/links:latest"
EROFS = "Read-only file system"
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    script = tmp_path_factory.mktemp("old") / "old-runc"
    script.write_text('#!/bin/sh\ntest "$1" = features && exit 1\nexec runc "$@"\n')
    script.chmod(0o755)
    with node(runtimes={OLD: {"binary": str(script)}, FOREIGN: {"shim": "containerd-shim-runc-v2"}}) as one:
        (one.base / "old-runc").symlink_to(script)
        one.remove_pod(one.run_pod(handler=FOREIGN))
        yield one


@pytest.fixture(params=["crun", "runc", FOREIGN])
def pod(life: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    pod_id = life.run_pod(life.pod_config(privileged=True), request.param)
    yield pod_id
    life.remove_pod(pod_id)


@pytest.fixture
def place(life: Node, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the test's own on the host; what is mounted below it goes with it."""
    found = life.base / f"{request.node.originalname}-{len(os.listdir(life.base))}"
    found.mkdir()
    yield found
    mount.unmount_tree(found)


def shared(place: Path) -> Path:
    """A tmpfs that hands on what is mounted in it."""
    place.mkdir()
    mount.mount("shared", place, "tmpfs")
    mount.set_propagation(place, mount.MS_SHARED)
    return place


def bind(source: Path, target: str, **fields: object) -> pb.Mount:
    return pb.Mount(host_path=str(source), container_path=target, **fields)


def said(life: Node, pod: str, script: str, mounts: list[pb.Mount], **more: object) -> list[str]:
    """The lines that a container writes."""
    one = life.run(pod, f"exec 2>&1; {script}", f"c{next(NUMBERS)}", mounts=mounts, **more)
    assert life.exited(one).exit_code in (0, 1), life.container_log(one)
    return [line.split(b" ", 3)[3].decode() for line in life.complete_log(one).splitlines()]


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), str(raised.value.details())


def privileged() -> pb.LinuxContainerConfig:
    options = pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)
    context = pb.LinuxContainerSecurityContext(privileged=True, namespace_options=options)
    return pb.LinuxContainerConfig(security_context=context)


def test_read_only_mounts_and_files(life: Node, pod: str, place: Path) -> None:
    (place / "data").mkdir()
    (place / "conf").write_text("settings\n")
    (place / "message").touch()
    mounts = [
        bind(place / "data", "/ro", readonly=True),
        bind(place / "data", "/rw"),
        bind(place / "conf", "/etc/app/deep/conf", readonly=True),
        bind(place / "message", "/dev/termination-log"),
    ]
    script = (
        "touch /ro/x; touch /rw/made; ls /ro; cat /etc/app/deep/conf; echo x > /etc/app/deep/conf;"
        "echo the end > /dev/termination-log; grep -E ' /(ro|rw) ' /proc/self/mountinfo | cut -d' ' -f5,6 | cut -d, -f1"
    )
    found = said(life, pod, script, mounts)
    assert found == [
        f"touch: /ro/x: {EROFS}",
        "made",
        "settings",
        f"/bin/sh: can't create /etc/app/deep/conf: {EROFS}",
        "/ro ro",
        "/rw rw",
    ]
    assert (place / "data/made").exists()
    assert (place / "message").read_text() == "the end\n"


@pytest.mark.parametrize("handler", ["crun", "runc", OLD, FOREIGN])
def test_recursive_read_only(life: Node, place: Path, handler: str) -> None:
    (place / "below").mkdir()
    mount.mount("below", place / "below", "tmpfs")
    pod = life.run_pod(handler=handler)
    mounts = [
        bind(place, "/ro", readonly=True),
        bind(place, "/rro", readonly=True, recursive_read_only=True),
    ]
    script = "touch /ro/x; touch /rro/x; touch /ro/below/y && echo made; touch /rro/below/x; ls /rro/below"
    assert said(life, pod, script, mounts) == [
        f"touch: /ro/x: {EROFS}",
        f"touch: /rro/x: {EROFS}",
        "made",
        f"touch: /rro/below/x: {EROFS}",
        "y",
    ]
    assert [one.target for one in mount.mounts_below(life.state / "pods" / pod) if "volumes" in one.target] == []
    life.remove_pod(pod)


def test_a_runtime_that_is_replaced_before_the_start_mounts_what_was_prepared(life: Node, place: Path) -> None:
    pod = life.run_pod(handler=OLD)
    mounts = [bind(place, "/rro", readonly=True, recursive_read_only=True)]
    one = life.create(pod, life.container_config("touch /rro/x", mounts=mounts))
    sources = {found["destination"]: found["source"] for found in life.info(one)["runtimeSpec"]["mounts"]}
    assert sources["/rro"] == str(life.state / "pods" / pod / one / "volumes/0")
    with replaced(Path(life.base / "old-runc"), '#!/bin/sh\nexec runc "$@"\n'):
        life.start_container(one)
        assert life.exited(one).exit_code == 1
        assert EROFS.encode() in life.container_log(one)
    life.remove_pod(pod)


@contextlib.contextmanager
def replaced(path: Path, text: str) -> Iterator[None]:
    real = path.resolve()
    before = real.read_bytes()
    files.write_atomic(real, text.encode(), 0o755)
    try:
        yield
    finally:
        files.write_atomic(real, before, 0o755)


def test_every_handler_says_that_it_has_recursive_read_only_mounts(life: Node) -> None:
    handlers = life.call("Status", pb.StatusRequest()).runtime_handlers
    assert {one.name for one in handlers} == {"", "crun", "runc", OLD, FOREIGN}
    assert all(one.features.recursive_read_only_mounts for one in handlers)


def test_propagation(life: Node, pod: str, place: Path) -> None:
    source = shared(place / "s")
    for name in ("host", "private", "slave", "shared"):
        (source / name).mkdir()
    mounts = [
        bind(source, "/private"),
        bind(source, "/slave", propagation=pb.PROPAGATION_HOST_TO_CONTAINER),
        bind(source, "/shared", propagation=pb.PROPAGATION_BIDIRECTIONAL),
        bind(place, "/place"),
    ]
    script = (
        "for one in private slave shared; do mount -t tmpfs mine /$one/$one; done; touch /place/mounted;"
        "while ! test -e /place/go; do sleep 0.02; done; ls /private/host /slave/host /shared/host"
    )
    one = life.run(pod, script, mounts=mounts, linux=privileged())
    until(lambda: (place / "mounted").exists(), "the container to mount")
    targets = {found.target for found in mount.mounts_below(source)}
    assert targets == {str(source), str(source / "shared")}, "only the shared one hands on what is mounted inside"
    mount.mount("host", source / "host", "tmpfs")
    (source / "host/seen").touch()
    (place / "go").touch()
    assert life.exited(one).exit_code == 0
    words = [line.split(b" ", 3)[3].decode() for line in life.complete_log(one).splitlines()]
    assert words == ["/private/host:", "", "/shared/host:", "seen", "", "/slave/host:", "seen"]
    assert {found.target for found in mount.mounts_below(source)} == targets | {str(source / "host")}, "it is not ours"


@pytest.mark.parametrize(
    ("own", "asked", "fits"),
    [
        (mount.MS_PRIVATE, pb.PROPAGATION_BIDIRECTIONAL, False),
        (mount.MS_PRIVATE, pb.PROPAGATION_HOST_TO_CONTAINER, False),
        (mount.MS_SLAVE, pb.PROPAGATION_BIDIRECTIONAL, False),
        (mount.MS_SLAVE, pb.PROPAGATION_HOST_TO_CONTAINER, True),
        (mount.MS_PRIVATE, pb.PROPAGATION_PRIVATE, True),
    ],
)
def test_propagation_is_refused_where_the_source_has_none(
    life: Node, pod: str, place: Path, own: int, asked: pb.MountPropagation, fits: bool
) -> None:
    source = shared(place / "s")
    (place / "peer").mkdir()
    mount.bind(source, place / "peer")  # it has a master only as long as that has another member
    mount.set_propagation(source, own)
    (source / "data").mkdir()
    config = life.container_config("exit 0", mounts=[bind(source / "data", "/data", propagation=asked)])
    if fits:
        life.start_container(one := life.create(pod, config))
        assert life.exited(one).exit_code == 0
        return
    code, told = refusal(lambda: life.create(pod, config))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert told.startswith(f"config.mounts[0].propagation: {source}/data is on the mount at {source}, which is ")


def test_missing_sources_are_made_and_links_are_followed(life: Node, pod: str, place: Path) -> None:
    (place / "real").mkdir()
    (place / "link").symlink_to("real")
    mounts = [
        bind(place / "new/deep", "/new"),
        bind(place / "link", "/link", selinux_relabel=True),
        bind(place / "missing", "/missing", readonly=True),
    ]
    assert said(life, pod, "touch /new/x /link/x; ls -d /missing", mounts) == ["/missing"]
    assert (place / "new/deep/x").exists()
    assert (place / "real/x").exists()
    assert [oct((place / name).stat().st_mode & 0o7777) for name in ("new", "new/deep", "missing")] == ["0o755"] * 3


def test_sources_that_cannot_be_used_are_named(life: Node, pod: str, place: Path) -> None:
    (place / "file").touch()
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    for path, why in (("file/x", "Not a directory"), ("dangling", "File exists"), ("loop", "Too many levels")):
        config = life.container_config("exit 0", mounts=[bind(place, "/ok"), bind(place / path, "/bad")])
        code, told = refusal(lambda config=config: life.create(pod, config))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert told.startswith(f"config.mounts[1].host_path: cannot use {place / path}: ")
        assert why in told
    assert life.containers() == []


def test_places_within_each_other(life: Node, pod: str, place: Path) -> None:
    for name in ("a", "b", "c", "later"):
        (place / name).mkdir()
        (place / name / name).touch()
    mounts = [
        bind(place / "c", "/x/y/z"),
        bind(place / "b", "/x/y"),
        bind(place / "a", "/x"),
        bind(place / "a", "/twice"),
        bind(place / "later", "//twice/."),
    ]
    found = said(life, pod, "ls /x /x/y /x/y/z /twice", mounts)
    assert found == ["/twice:", "later", "", "/x:", "a", "y", "", "/x/y:", "b", "z", "", "/x/y/z:", "c"]
    assert (place / "b/z").is_dir(), "places are made in the volume, as by other runtimes"


def test_over_what_is_there_by_default(life: Node, pod: str, place: Path) -> None:
    (place / "hosts").write_text("127.0.0.9 mine\n")
    for name in ("shm", "cgroup"):
        (place / name).mkdir()
        (place / name / f"my-{name}").touch()
    mounts = [
        bind(place / "hosts", "/etc/hosts"),
        bind(place / "shm", "/dev/shm"),
        bind(place / "cgroup", "/sys/fs/cgroup", readonly=True),
    ]
    script = "cat /etc/hosts; ls /dev/shm /sys/fs/cgroup; touch /sys/x"
    assert said(life, pod, script, mounts) == [
        "127.0.0.9 mine", "/dev/shm:", "my-shm", "", "/sys/fs/cgroup:", "my-cgroup", f"touch: /sys/x: {EROFS}",
    ]  # fmt: skip


def test_the_hosts_own_filesystems(life: Node, pod: str, place: Path) -> None:
    mounts = [bind(Path("/dev"), "/dev"), bind(Path("/sys"), "/sys", readonly=True)]
    before = devices()
    script = "test -c /dev/kmsg -o -b /dev/vda && echo node; test -d /sys/fs/cgroup && ls /sys/fs/cgroup; touch /sys/x"
    found = said(life, pod, script, mounts, linux=privileged())
    assert found == ["node", *sorted(os.listdir("/sys/fs/cgroup")), f"touch: /sys/x: {EROFS}"]
    assert devices() == before


def devices() -> list[str]:
    """Names in /dev, but for those of loop devices, which come with whoever uses some."""
    return sorted(name for name in os.listdir("/dev") if not name.startswith("loop"))


def test_sys_can_be_written_to_by_the_privileged_only(life: Node, pod: str) -> None:
    script = "grep ' /sys ' /proc/self/mountinfo | cut -d' ' -f6 | cut -d, -f1"
    assert said(life, pod, script, []) == ["ro"]
    assert said(life, pod, script, [], linux=privileged()) == ["rw"]


def test_shared_memory_has_64_mib_and_is_the_pods(life: Node, pod: str) -> None:
    assert said(life, pod, "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; echo a > /dev/shm/a", []) == ["65536"]
    assert said(life, pod, "cat /dev/shm/a", []) == ["a"]


def test_huge_pages(life: Node, pod: str, place: Path) -> None:
    mount.mount("huge", place, "hugetlbfs", data="size=4M")
    found = said(life, pod, "mount | grep /huge | cut -d' ' -f3,5; mkdir /huge/made", [bind(place, "/huge")])
    assert found == ["/huge hugetlbfs"]
    assert (place / "made").is_dir()


def test_id_mapped_mounts(life: Node, pod: str, place: Path) -> None:
    (place / "file").write_text("x")
    place.chmod(0o777)
    one = pb.IDMapping(container_id=0, host_id=5000, length=10)
    mounts = [bind(place, "/mapped", uidMappings=[one], gidMappings=[one]), bind(place, "/plain")]
    options = pb.NamespaceOption(network=pb.NODE, pid=pb.CONTAINER)
    who = pb.LinuxContainerSecurityContext(
        run_as_user=pb.Int64Value(value=5003), run_as_group=pb.Int64Value(value=5004), namespace_options=options
    )
    linux = pb.LinuxContainerConfig(security_context=who)
    script = "stat -c %u:%g /mapped/file /plain/file; touch /mapped/made; stat -c %u:%g /mapped/made"
    assert said(life, pod, script, mounts, linux=linux) == ["5000:5000", "0:0", "5003:5004"]
    made = (place / "made").stat()
    assert (made.st_uid, made.st_gid) == (3, 4)


def test_an_id_mapping_that_the_filesystem_cannot_have_is_refused(life: Node, pod: str) -> None:
    one = pb.IDMapping(container_id=0, host_id=5000, length=10)
    mounts = [bind(Path("/sys/kernel"), "/mapped", uidMappings=[one], gidMappings=[one])]
    code, told = refusal(lambda: life.create(pod, life.container_config("exit 0", mounts=mounts)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert told.startswith("config.mounts[0].uidMappings: ids cannot be mapped on the filesystem of /sys/kernel")


def test_what_is_wrong_is_named(life: Node, pod: str, place: Path) -> None:
    config = life.container_config("exit 0", mounts=[bind(place, "/ok"), bind(place, "/b", recursive_read_only=True)])
    code, told = refusal(lambda: life.create(pod, config))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert told == "config.mounts[1].recursive_read_only: it needs readonly, and private propagation"


# -- images and neighbours that mean harm


def import_links(life: Node, links: dict[str, str]) -> None:
    members = [entry(name, b"", type=tarfile.SYMTYPE, linkname=target) for name, target in links.items()]
    layer = gzip.compress(tar(members))
    life.import_image(build_busybox_image(life.base, LINKS, extra_layer=layer))


def test_links_of_an_image_lead_nowhere_but_into_it(life: Node, pod: str, place: Path) -> None:
    """runc CVE-2026-41579, crun CVE-2026-47766 (/dev), and mounts upon links."""
    victim, data = place / "victim", place / "data"
    victim.mkdir()
    data.mkdir()
    (victim / "ptmx").write_text("precious")
    (data / "mine").touch()
    up = "../" * 20
    import_links(
        life,
        {
            "dev": str(victim),
            "proc": f"{up}{victim}".replace("//", "/"),
            "sys": str(victim),
            "out": str(victim),
            "up": f"{up}{victim}".replace("//", "/"),
            "absolute": "/tmp",
            "relative": f"{up}tmp",
        },
    )
    mounts = [bind(data, "/absolute/a"), bind(data, "/relative/b"), bind(data, "/absolute/deep/c")]
    script = "ls /tmp/a /tmp/b /tmp/deep/c; test -c /dev/null && test -d /proc/self && test -d /sys/fs && echo own"
    found = said(life, pod, script, mounts, image=LINKS)
    assert found == ["/tmp/a:", "mine", "", "/tmp/b:", "mine", "", "/tmp/deep/c:", "mine", "own"]
    for number, place_of_link in enumerate(("/out", "/out/x", "/up/x")):  # where it leads there is nothing inside
        mounts = [bind(data, place_of_link)]
        one = life.create(pod, life.container_config(["ls", "/"], f"out-{number}", image=LINKS, mounts=mounts))
        with contextlib.suppress(grpc.RpcError):  # a runtime may make it there, inside, or refuse to
            life.start_container(one)
        life.exited(one)
    assert os.listdir(victim) == ["ptmx"]
    assert (victim / "ptmx").read_text() == "precious"
    assert os.listdir(data) == ["mine"]


def test_neighbours_that_swap_links_while_a_container_is_made(life: Node, pod: str, place: Path) -> None:
    """runc CVE-2021-30465: nothing of the host is mounted, or mounted over. CVE-2024-45310: nor is anything made there.

    A runtime that is known to have the second, and of which we warn, makes empty things at times; no more than that.
    """
    victim, volume, inner = place / "victim", place / "volume", place / "inner"
    for one in (victim, volume, inner, volume / "d"):
        one.mkdir()
    (victim / "secret").write_text("mine")
    swap = f"cd /volume; ln -s {victim} l; while :; do mv d x; mv l d; mv d l; mv x d; done"
    neighbour = life.run(pod, swap, "neighbour", mounts=[bind(volume, "/volume")])
    mounts = [bind(volume, "/volume"), bind(inner, "/volume/d/in")]
    for number in range(12):
        one = life.create(pod, life.container_config("ls -R /volume; exit 3", f"one-{number}", mounts=mounts))
        try:
            life.start_container(one)
        except grpc.RpcError:
            continue  # its place was gone just then
        assert life.exited(one).exit_code == 3
        assert b"secret" not in life.complete_log(one).replace(str(victim).encode(), b"")
    life.stop_container(neighbour)
    assert not mount.mounts_below(victim)
    assert (victim / "secret").read_text() == "mine"
    made = [path for path in victim.iterdir() if path.name != "secret"]
    handler = next(one.runtime_handler for one in life.pods() if one.id == pod)
    if has_escape("crun" if handler == "crun" else "runc", "CVE-2024-45310"):
        assert all(path.is_dir() and not os.listdir(path) for path in made)
    else:
        assert made == []


def has_escape(runtime: str, cve: str) -> bool:
    """Whether this runtime is known to have it still."""
    path = shutil.which(runtime)
    assert path is not None
    found = Versions().of(path)
    fixes = found.package.fixes if found.package is not None else frozenset()
    return cve in {one.cve for one in known(found.runtime, found.version, fixes)}
