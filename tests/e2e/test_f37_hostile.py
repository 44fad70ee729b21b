"""F37: archives that somebody has made who means harm, given to a real daemon: refused, and nothing is touched.

By `holdfast restore` and RestorePod for archives of pods, by CreateContainer for those of containers, as a path and in
an image. After each of them everything around the daemon's root is as before, and below it nothing is left.
"""

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard
from kit import images, invariants
from kit.archives import Member, Members, exchanged, members, packed, regular, resealed, rewrite, special
from kit.checkpoints import COUNT, PRIVATE, checkpoint, checkpoint_pod, create, place, restore_pod, run
from kit.crash import paths
from kit.gvisor import emptydir, gvisor_node, mounted
from kit.node import Node, node, until
from kit.tools import CRIU, needs_criu, needs_runsc
from kit.trees import fill, look

from holdfast.checkpoint import sealed
from holdfast.proto import runtime_v1_pb2 as pb

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

Code = grpc.StatusCode
PAGES = "checkpoint/pages-1.img"
HUGE = 1 << 60


@pytest.fixture(scope="module")
def one() -> Iterator[Node]:
    with node("auto", checkpoints=True, criu_path=CRIU) as made:
        yield made


@pytest.fixture(scope="module")
def canary(one: Node) -> Path:
    """A tree beside root and state, at which many of these archives aim."""
    tree = one.base / "canary"
    tree.mkdir()
    fill(tree)
    for name in ("sparse", "a/same sparse", "hole"):  # they take long to look at
        (tree / name).unlink()
    return tree


@pytest.fixture(scope="module")
def honest(one: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An archive of a pod with a volume, and one of a container; both are gone."""
    config = one.pod_config("honest", **PRIVATE)
    mounts = [mounted(emptydir(one, config, "scratch"), "/work")]
    pod = one.run_pod(config)
    one.run(pod, "echo x > /work/x; echo y > /y; rm /bin/wget; while :; do sleep 1; done", mounts=mounts, **PRIVATE)
    until(lambda: (emptydir_of(one, config) / "x").exists(), "a file in the volume")
    until(lambda: checkpointable(one, pod), "its layer to be written")
    directory = tmp_path_factory.mktemp("honest")
    checkpoint_pod(one, pod, directory / "pod.tar")
    one.remove_pod(pod)
    alone = run(one, f"echo y > /y; rm /bin/wget; {COUNT}")
    until(lambda: one.container_log(alone), "its layer to be written")
    checkpoint(one, alone, directory / "container.tar")
    for each in one.pods():
        one.remove_pod(each.id)
    shutil.rmtree(one.base / "kubelet")  # noqa: TID251  (of files only)
    return {"pod": directory / "pod.tar", "container": directory / "container.tar"}


def emptydir_of(one: Node, config: pb.PodSandboxConfig) -> Path:
    return one.base / "kubelet/pods" / config.metadata.uid / "volumes/kubernetes.io~empty-dir/scratch"


def checkpointable(one: Node, pod: str) -> bool:
    """Whether the container has done what it was to do."""
    [found] = [each.id for each in one.containers() if each.pod_sandbox_id == pod]
    return bool(one.exec(found, ["test", "!", "-e", "/bin/wget"]).exit_code == 0)


@pytest.fixture(autouse=True)
def untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """All around is as it was, to the last byte, and nothing is left of what was tried."""
    if "canary" not in request.fixturenames:
        yield
        return
    one, canary, _ = (request.getfixturevalue(name) for name in ("one", "canary", "honest"))
    around, within, beside = look(canary), on_disk(one), sorted(os.listdir(one.base))
    yield
    for pod in one.pods():
        one.remove_pod(pod.id)
    assert look(canary) == around
    shutil.rmtree(one.base / "archives", ignore_errors=True)  # noqa: TID251  (of files only)
    assert sorted(os.listdir(one.base)) == beside
    assert one.leftovers() == []
    until(lambda: on_disk(one) <= within, f"nothing more than before, of {on_disk(one) - within}")
    invariants.check(one)


def on_disk(one: Node) -> set[str]:
    """Everything below root and state, but for images, which are collected when it suits, and directories that stay."""
    lasting = {f"{one.root}/{name}" for name in ("restores", "volumes")}
    return {path for path in paths(one) if not path.startswith(f"{one.root}/content/")} - lasting


@pytest.fixture(params=["pod", "container"])
def attempt(request: pytest.FixtureRequest, one: Node, honest: dict[str, Path], canary: Path) -> "Attempt":
    return Attempt(one, request.param, honest[request.param], canary)


class Attempt:
    """An archive of a pod or a container, to be changed and then given to the daemon."""

    def __init__(self, one: Node, kind: str, archive: Path, canary: Path) -> None:
        self.node, self.kind, self.canary = one, kind, canary
        self.around = look(canary)
        self.archive, self.target = archive, place(one, "forged.tar")
        self.pod = one.run_pod(one.pod_config(**PRIVATE)) if kind == "container" else ""

    @property
    def found(self) -> Members:
        """What the honest one has."""
        return members(self.archive)

    def name(self, end: str) -> str:
        """Of the part that ends so."""
        return next(one.name for one, _ in self.found if one.name.endswith(end))

    def give(self) -> None:
        if self.kind == "pod":
            restore_pod(self.node, self.target)
        else:
            create(self.node, self.target, self.pod)

    def refused(self, what: object, *codes: Code) -> str:
        """Why."""
        try:
            self.give()
        except grpc.RpcError as exc:
            assert exc.code() in codes, (what, exc)
            why = str(exc.details())
        else:
            raise AssertionError(f"{what} was taken")
        assert self.node.containers() == [], what
        assert [each.id for each in self.node.pods()] == [self.pod] * bool(self.pod), what
        for name in ("checkpoints", "restores", "volumes"):
            assert not (self.node.root / name).exists() or not os.listdir(self.node.root / name), what
        assert look(self.canary) == self.around, what
        return why


# -- members


def _changed(found: Members, end: str, change: Callable[[Member], Member]) -> Members:
    return [change(one) if one[0].name.endswith(end) else one for one in found]


def _renamed(found: Members, end: str, name: str) -> Members:
    """A part with another name, and a head that has it too."""
    for one, _ in found:
        if one.name.endswith(end):
            before, one.name = one.name, name

    def tell(head: dict[str, Any]) -> None:
        [part] = [part for part in head["parts"] if part["name"] == before]
        part["name"] = name

    return resealed(found, tell)


def _flipped(one: Member) -> Member:
    return one[0], bytes([one[1][0] ^ 1]) + one[1][1:]


def _as(kind: bytes, link: str = "") -> Callable[[Member], Member]:
    return lambda one: special(one[0].name, kind, link)


def _huge(found: Members) -> Members:
    return resealed(found, lambda head: head["parts"][0].update(bytes=HUGE))


MEMBERS: dict[str, tuple[Callable[[Members, str], Members], Code]] = {
    "altered": (lambda found, _: _changed(found, PAGES, _flipped), Code.INVALID_ARGUMENT),
    "altered layer": (lambda found, _: _changed(found, "rootfs-diff.tar", _flipped), Code.INVALID_ARGUMENT),
    "altered head": (lambda found, _: _changed(found, sealed.HEAD, lambda one: regular(sealed.HEAD, one[1] + b" ")),
                     Code.INVALID_ARGUMENT),
    "climbs": (lambda found, _: _renamed(found, PAGES, "../../../canary/escaped"), Code.INVALID_ARGUMENT),
    "climbs unlisted": (lambda found, _: [*found[:1], regular("../../../canary/escaped"), *found[1:]],
                        Code.INVALID_ARGUMENT),
    "absolute": (lambda found, canary: _renamed(found, PAGES, f"{canary}/escaped"), Code.INVALID_ARGUMENT),
    "symlink": (lambda found, canary: _changed(found, PAGES, _as(tarfile.SYMTYPE, f"{canary}/text")),
                Code.INVALID_ARGUMENT),
    "directory is a symlink": (
        lambda found, canary: [special(one.name, tarfile.SYMTYPE, canary) if one.isdir() else (one, data)
                               for one, data in found], Code.INVALID_ARGUMENT),
    "hard link": (lambda found, canary: _changed(found, PAGES, _as(tarfile.LNKTYPE, f"{canary}/text")),
                  Code.INVALID_ARGUMENT),
    "device": (lambda found, _: _changed(found, PAGES, _as(tarfile.CHRTYPE)), Code.INVALID_ARGUMENT),
    "disk": (lambda found, _: _changed(found, PAGES, _as(tarfile.BLKTYPE)), Code.INVALID_ARGUMENT),
    "pipe": (lambda found, _: _changed(found, PAGES, _as(tarfile.FIFOTYPE)), Code.INVALID_ARGUMENT),
    "sparse": (lambda found, _: [found[0], regular("x", b"1000000000\n" + b"1\n" * 1_000_000, GNU_sparse_major="1",
                                                   GNU_sparse_minor="0", GNU_sparse_realsize="1"), *found[1:]],
               Code.INVALID_ARGUMENT),
    "large header": (lambda found, _: [found[0], regular("x", b"", comment="c" * 2_000_000), *found[1:]],
                     Code.INVALID_ARGUMENT),
    "twice": (lambda found, _: resealed(found, lambda head: head["parts"].append(head["parts"][0])),
              Code.INVALID_ARGUMENT),
    "no seal": (lambda found, _: found[:-1], Code.INVALID_ARGUMENT),
    "another's seal": (lambda found, _: [*found[:-1], regular(sealed.SEAL, b"0" * 64)], Code.INVALID_ARGUMENT),
    "more behind it": (lambda found, _: [*found, regular("more")], Code.INVALID_ARGUMENT),
    "part of another kind": (lambda found, _: _renamed(found, PAGES, "etc/passwd"), Code.INVALID_ARGUMENT),
    "huge member": (lambda found, _: _huge(found), Code.RESOURCE_EXHAUSTED),
}  # fmt: skip


@needs_criu
def test_f37_members_that_no_honest_archive_has(attempt: Attempt, canary: Path) -> None:
    for what, (change, code) in MEMBERS.items():
        rewrite(attempt.target, change(attempt.found, str(canary)))
        assert str(attempt.target) in attempt.refused(what, code)


@needs_criu
def test_f37_bombs(attempt: Attempt) -> None:
    """Much out of little: what it claims is looked at before it is unpacked, and no more than was claimed is taken."""
    head, first = attempt.found[0], attempt.found[1 + attempt.found[1][0].isdir()]
    claims = regular(sealed.HEAD, head[1])[0].tobuf(tarfile.PAX_FORMAT) + head[1] + bytes(-len(head[1]) % 512)
    large = tarfile.TarInfo(first[0].name)
    large.size = 8 << 30
    zeros = claims + large.tobuf(tarfile.GNU_FORMAT) + bytes(256 << 20)
    attempt.target.write_bytes(zstandard.compress(zeros))
    assert attempt.target.stat().st_size < 1 << 20
    assert "should be" in attempt.refused("zeros for a part", Code.INVALID_ARGUMENT)
    attempt.target.write_bytes(zstandard.compress(packed(_huge(attempt.found)) + bytes(64 << 20)))
    attempt.refused("a huge part", Code.RESOURCE_EXHAUSTED)
    attempt.target.write_bytes(zstandard.compress(bytes(256 << 20)))
    attempt.refused("zeros", Code.INVALID_ARGUMENT)


@needs_criu
def test_f37_archives_that_are_damaged_or_none(attempt: Attempt) -> None:
    data = packed(attempt.found)
    for broken in (data[: len(data) // 2], data[:2000], b"", b"nonsense" * 1000, zstandard.compress(data)[:9999]):
        attempt.target.write_bytes(broken)
        assert str(attempt.target) in attempt.refused(broken[:20], Code.INVALID_ARGUMENT)


# -- what is in the tars within


def _sparse(size: int) -> Member:
    pax = {"GNU_sparse_major": "1", "GNU_sparse_minor": "0", "GNU_sparse_realsize": str(size)}
    return regular("x", f"1\n{size}\n0\n".encode().ljust(512, b"\0"), **pax)


TREES: dict[str, Callable[[str], Members]] = {
    "climbs": lambda _: [regular("../../../../canary/escaped")],
    "climbs within": lambda _: [special("a", tarfile.DIRTYPE), regular("a/../../../../../canary/escaped")],
    "hard link out": lambda _: [special("x", tarfile.LNKTYPE, "../../../../canary/text")],
    "hard link to what is not in it": lambda canary: [special("x", tarfile.LNKTYPE, f"{canary}/text")],
    # Links are allowed in a tree, and mean what they mean to whom has the tree as its root: there is no canary in it.
    "through a link": lambda canary: [special("out", tarfile.SYMTYPE, canary), regular("out/escaped")],
    "unknown kind": lambda _: [special("x", b"Z")],
    "large header": lambda _: [regular("x", b"", comment="c" * 2_000_000)],
    "a hole without end": lambda _: [_sparse(HUGE << 2)],
    "negative owner": lambda _: [_owned(-5)],
}


def _owned(uid: int) -> Member:
    return regular("x", b"", uid=str(uid))


@needs_criu
def test_f37_trees_that_no_honest_archive_has(attempt: Attempt, canary: Path) -> None:
    for what, tree in TREES.items():
        for part in ("rootfs-diff.tar", "volumes/scratch.tar")[: 1 + (attempt.kind == "pod")]:
            inner = packed(tree(str(canary)))
            rewrite(attempt.target, exchanged(attempt.found, attempt.name(part), inner))
            attempt.refused((what, part), Code.INVALID_ARGUMENT)


@needs_criu
def test_f37_what_was_deleted(attempt: Attempt) -> None:
    for deleted in (["/../../../../canary/text"], ["/"], [7], "/bin", {}):
        data = json.dumps(deleted).encode()
        rewrite(attempt.target, exchanged(attempt.found, attempt.name("deleted.files"), data))
        attempt.refused(deleted, Code.INVALID_ARGUMENT)


@needs_criu
def test_f37_marks_of_overlayfs_in_a_layer(attempt: Attempt) -> None:
    """Device 0:0 would hide what is below it from whoever looks for it there."""
    inner = packed([special("bin", tarfile.CHRTYPE)])
    rewrite(attempt.target, exchanged(attempt.found, attempt.name("rootfs-diff.tar"), inner))
    assert "overlayfs" in attempt.refused("a mark", Code.INVALID_ARGUMENT)


# -- what archives ask for


def asks(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda about: about["containers"][0]["config"].update(fields)


def _security(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda about: about["containers"][0]["config"]["linux"]["security_context"].update(fields)


WISHES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "foreign image": (lambda about: about["containers"][0].update(image=f"sha256:{'f' * 64}"), "is not here"),
    "image by name": (lambda about: about["containers"][0].update(image="evil.example/x:1"), "not named by its digest"),
    "host path": (asks(mounts=[{"host_path": "/", "container_path": "/host"}]), "mounts /"),
    "device": (asks(devices=[{"host_path": "/dev/mem", "container_path": "/dev/mem"}]), "/dev/mem"),
    "CDI": (asks(CDI_devices=[{"name": "vendor.com/gpu=all"}]), "vendor.com/gpu"),
    "CDI by annotation": (asks(annotations={"cdi.k8s.io/gpu": "vendor.com/gpu=all"}), "annotation cdi.k8s.io/gpu"),
    "flag of gVisor": (asks(annotations={"dev.gvisor.flag.debug": "true"}), "annotation dev.gvisor.flag.debug"),
    "capability": (_security(capabilities={"add_capabilities": ["SYS_ADMIN"]}), "capability SYS_ADMIN"),
    "no seccomp": (_security(seccomp={"profile_type": "Unconfined"}), "seccomp profile"),
    "the host's kernel": (_security(readonly_paths=[]), "may write to /proc/bus of the host"),
    "privileged": (_security(privileged=True), "is privileged"),
    "privileged pod": (lambda about: about["pod"]["config"]["linux"]["security_context"].update(privileged=True),
                       "is privileged"),
    "name": (lambda about: about["pod"]["config"]["metadata"].update(name="../../../x"), "cannot be a pod's"),
    "log": (asks(log_path="../../../../x"), "leaves the log directory"),
    "volume name": (lambda about: about["volumes"][0].update(name="../../x"), "names that cannot be theirs"),
    "volume place": (lambda about: about["volumes"][0].update(path="/etc"), "is no volume of a pod"),
    "no volume": (lambda about: about["volumes"].append({**about["volumes"][0], "name": "more"}), "more"),
    "handler": (lambda about: about["pod"].update(handler="nothing"), "nothing"),
    "handler that cannot": (lambda about: about["pod"].update(handler="crun"), "crun"),
}  # fmt: skip


@needs_criu
def test_f37_what_an_archive_asks_for_is_not_given(one: Node, canary: Path, honest: dict[str, Path]) -> None:
    pod = Attempt(one, "pod", honest["pod"], canary)
    for what, (change, why) in WISHES.items():
        rewrite(pod.target, resealed(pod.found, lambda head: change(head["about"])))  # noqa: B023
        assert why in pod.refused(what, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.NOT_FOUND)


@needs_criu
def test_f37_the_command_line_says_why(one: Node, canary: Path, honest: dict[str, Path]) -> None:
    target = place(one, "forged.tar")
    for change, why in (
        (lambda found: _changed(found, PAGES, _flipped), "is not as it was when it was written"),
        (lambda found: _renamed(found, PAGES, "../../../canary/escaped"), "no pod archive has"),
        (lambda found: resealed(found, lambda head: WISHES["device"][0](head["about"])), "/dev/mem"),
    ):
        rewrite(target, change(members(honest["pod"])))
        failed = one.cli("restore", str(target), check=False)
        assert failed.returncode == 1 and why in failed.stderr and not failed.stdout, failed
    assert one.pods() == []


@needs_criu
def test_f37_a_container_gets_the_rights_of_its_request(one: Node, canary: Path, honest: dict[str, Path]) -> None:
    """One that ran with more is not made by a request for less, and none by a request that names it an image."""
    linux = pb.LinuxContainerConfig()
    linux.security_context.capabilities.add_capabilities.append("NET_ADMIN")
    linux.security_context.namespace_options.CopyFrom(pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER))
    pod = one.run_pod(one.pod_config(**PRIVATE))
    strong = one.run(pod, COUNT, linux=linux)
    until(lambda: one.container_log(strong), "it to count")
    archive = checkpoint(one, strong)
    one.remove_pod(pod)
    for image in (str(archive), in_an_image(one, archive.read_bytes())):
        with pytest.raises(grpc.RpcError) as raised:
            create(one, image)
        assert raised.value.code() is Code.INVALID_ARGUMENT
        assert "more than the request gives" in str(raised.value.details())
    rm_image(one)
    assert one.containers() == []


def in_an_image(one: Node, archive: bytes) -> str:
    made = images.image([(archive, "gzip")])
    document = json.loads(made.blobs.pop(made.manifest))
    document["annotations"] = {"org.criu.checkpoint.container.name": "main"}
    made.manifest = made.add(json.dumps(document).encode())
    path = place(one, "image.tar")
    path.write_bytes(images.oci_archive([(made, "localhost/held:1")]))
    one.import_image(path)
    return "localhost/held:1"


def rm_image(one: Node) -> None:
    one.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image="localhost/held:1")))


@needs_criu
def test_f37_an_image_that_holds_a_hostile_archive(one: Node, canary: Path, honest: dict[str, Path]) -> None:
    found = [one for one in members(honest["container"]) if not one[0].name.startswith("holdfast.")]
    for more in (
        regular("../../../canary/escaped"),
        regular(f"{canary}/escaped"),
        special("container.log", tarfile.SYMTYPE, f"{canary}/text"),
        special("checkpoint", tarfile.SYMTYPE, str(canary)),
        special("checkpoint/null", tarfile.CHRTYPE),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            create(one, in_an_image(one, packed([*found, more])))
        assert raised.value.code() is Code.INVALID_ARGUMENT, raised.value
        rm_image(one)
    assert one.containers() == []


@needs_criu
def test_f37_images_that_criu_does_not_take(one: Node, canary: Path, honest: dict[str, Path]) -> None:
    """Sealed by somebody who can make seals; the pod is there by then, and goes again."""
    pod = Attempt(one, "pod", honest["pod"], canary)
    for name in ("pstree.img", "inventory.img"):
        rewrite(pod.target, exchanged(pod.found, pod.name(name), b"not an image"))
        assert "cannot" in pod.refused(name, Code.UNKNOWN, Code.INTERNAL, Code.INVALID_ARGUMENT)


@needs_criu
def test_f37_images_are_for_nodes_that_trust_them(one: Node, canary: Path, honest: dict[str, Path]) -> None:
    with node("runc", criu_path=CRIU) as other:
        with pytest.raises(grpc.RpcError) as raised:
            restore_pod(other, honest["pod"], trusted=True)
        assert "`checkpoints` is not set" in str(raised.value.details())
        assert other.pods() == [] and other.leftovers() == []


@needs_runsc
def test_f37_images_that_a_sentry_does_not_take() -> None:
    """They end the sentry that reads them, and the pod it was made for."""
    with gvisor_node(checkpoints=True) as one:
        pod = one.run_pod(one.pod_config("honest", **PRIVATE))
        counting = one.run(pod, COUNT.replace("0.02", "0.1"), **PRIVATE)
        until(lambda: one.container_log(counting), "it to count")
        archive = place(one, "honest.tar")
        checkpoint_pod(one, pod, archive)
        one.remove_pod(pod)
        forged, found = place(one, "forged.tar"), members(archive)
        [(name, image)] = [(member.name, data) for member, data in found if member.name.endswith("/checkpoint.img")]
        for data in (b"", b"nonsense" * 100, image[: len(image) // 2], image[:200] + os.urandom(200) + image[400:]):
            rewrite(forged, exchanged(found, name, data))
            with pytest.raises(grpc.RpcError):
                restore_pod(one, forged)
            assert one.pods() == [] and one.containers() == []
            until(lambda: not os.listdir(one.root / "restores"), "nothing to be left")
        again = restore_pod(one, archive)
        [going_on] = [each.id for each in one.containers() if each.pod_sandbox_id == again]
        until(lambda: one.container_log(going_on), "the honest one to go on")
        one.remove_pod(again)
        invariants.check(one)
