"""Images as volumes: what is seen of them, and whose they are while the daemon dies and the image is removed."""

import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import grpc
import pytest
from kit import boot, invariants
from kit.crash import Inject, recovered
from kit.images import entry, image, oci_archive, tar
from kit.node import Node, node, until

from holdfast.linux import mount
from holdfast.proto import runtime_v1_pb2 as pb

FOREIGN = "runc-v2"
TWO, ONE, NONE = "test/two:1", "test/one:1", "test/none:1"  # by their layers
EROFS = "Read-only file system"
LOOP = "trap 'exit 0' TERM; while :; do sleep 0.02; done"


def layer(*members: tuple[object, ...]) -> tuple[bytes, str]:
    return tar(members), "gzip"


def link(name: str, target: str) -> tuple[object, ...]:
    return entry(name, b"", type=tarfile.SYMTYPE, linkname=target)


def bring(life: Node) -> None:
    """The images, of which nothing is shared with busybox."""
    below = layer(
        entry("models"), entry("models/a", b"from below\n"), entry("gone", b"x"), entry("models/deep"),
        entry("models/deep/x", b"deep\n"), link("link", "/models/deep"), link("up", "../../../etc"),
    )  # fmt: skip
    above = layer(entry(".wh.gone", b""), entry("models/b", b"from above\n"))
    made = [(image([below, above]), TWO), (image([layer(entry("only", b"one layer\n"))]), ONE), (image([]), NONE)]
    archive = life.base / "volumes.tar"
    archive.write_bytes(oci_archive((one, f"docker.io/{name}") for one, name in made))
    life.import_image(archive)


@pytest.fixture(scope="module")
def life() -> Iterator[Node]:
    with node(runtimes={FOREIGN: {"shim": "containerd-shim-runc-v2"}}, inject=True) as one:
        one.remove_pod(one.run_pod(handler=FOREIGN))
        yield one


@pytest.fixture(autouse=True)
def images(life: Node) -> None:
    bring(life)


@pytest.fixture(params=["crun", "runc", FOREIGN])
def pod(life: Node, request: pytest.FixtureRequest) -> Iterator[str]:
    yield from of_handler(life, request.param)


@pytest.fixture
def any_pod(life: Node) -> Iterator[str]:
    yield from of_handler(life, "crun")


def of_handler(life: Node, handler: str) -> Iterator[str]:
    pod_id = life.run_pod(handler=handler)
    yield pod_id
    life.remove_pod(pod_id)
    until(lambda: not life.leftovers(), f"nothing to be left, but there is {life.leftovers()}")
    assert views(life) == []


def volume(name: str, target: str = "/volume", **fields: object) -> pb.Mount:
    return pb.Mount(container_path=target, image=pb.ImageSpec(image=name), **{"readonly": True} | fields)


def words(life: Node, container: str) -> list[str]:
    """Of one that has exited."""
    return [line.split(b" ", 3)[3].decode() for line in life.complete_log(container).splitlines()]


def views(life: Node) -> list[str]:
    """Names of the containers that the doctor finds to own a snapshot of a volume."""
    names = {one.id: one.metadata.name for one in life.containers()}
    found = [one for one in invariants.examine(life)["findings"] if one["kind"] == "snapshot" and "/" in one["where"]]
    assert all(one["verdict"] == "ok" for one in found), found
    return sorted(names[one["owner"]] for one in found)


def staged(life: Node) -> list[str]:
    return [one.target for one in mount.mounts_below(life.state / "pods") if "/volumes/" in one.target]


def layers(life: Node) -> int:
    """Of the images here, as far as they are unpacked."""
    found = invariants.examine(life)["findings"]
    return sum(one["kind"] == "snapshot" and one["where"].startswith("sha256:") for one in found)


def remove_image(life: Node, name: str) -> None:
    life.images("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code(), str(raised.value.details())


def test_what_is_in_it(life: Node, pod: str) -> None:
    mounts = [
        volume(TWO, "/two"),
        volume(ONE, "/one"),
        volume(NONE, "/none"),
        volume(TWO, "/sub", image_sub_path="models/deep"),
        volume(TWO, "/linked", image_sub_path="./link"),
        volume(ONE, "/two/models/deep"),
    ]
    script = (
        "exec 2>&1; ls /two /two/models /one /none /sub /linked /two/models/deep; cat /two/models/a /two/models/b;"
        "for one in /two /one /none /sub; do touch $one/x; done; grep -c ' - overlay ' /proc/self/mountinfo"
    )
    one = life.run(pod, script, mounts=mounts)
    life.exited(one)
    assert words(life, one) == [
        "/linked:", "x", "", "/none:", "", "/one:", "only", "", "/sub:", "x", "",
        "/two:", "link", "models", "up", "", "/two/models:", "a", "b", "deep", "", "/two/models/deep:", "only",
        "from below", "from above",
        *(f"touch: /{name}/x: {EROFS}" for name in ("two", "one", "none", "sub")),
        "4",
    ]  # fmt: skip
    assert staged(life) == [], "they are the container's own"
    shown = [life.images("ImageStatus", pb.ImageStatusRequest(image=one.image)).image for one in mounts]
    refs = [one.image.image_ref for one in life.status(one).mounts]
    assert refs == [(image.repo_digests or [image.id])[0] for image in shown]
    assert len(set(refs)) == 3
    assert views(life) == ["main"] * 6
    invariants.check(life)


def test_ids_of_its_files_are_mapped(life: Node, pod: str) -> None:
    uids, gids = ([pb.IDMapping(container_id=0, host_id=first, length=10)] for first in (5000, 6000))
    mapped = {"uidMappings": uids, "gidMappings": gids}
    mounts = [
        volume(TWO, "/two", **mapped),
        volume(ONE, "/one", **mapped),
        volume(NONE, "/none", **mapped),
        volume(TWO, "/sub", image_sub_path="link", **mapped),
        volume(TWO, "/plain"),
    ]
    script = "stat -c '%n %u:%g' /two /two/models/a /two/models/b /one/only /none /sub/x /plain/models/a; ls /two"
    one = life.run(pod, script, mounts=mounts)
    assert life.exited(one).exit_code == 0
    found = words(life, one)
    assert found[-4:] == ["/plain/models/a 0:0", "link", "models", "up"]
    assert [line.split()[1] for line in found[:-4]] == ["5000:6000"] * 6
    assert staged(life) == []


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_in_a_pod_with_users_of_its_own(life: Node, handler: str) -> None:
    life.base.chmod(0o711)  # else nobody but root gets to what is below it
    uids, gids = ([pb.IDMapping(container_id=0, host_id=first, length=65536)] for first in (300000, 400000))
    own = pb.UserNamespace(mode=pb.POD, uids=uids, gids=gids)
    config = life.pod_config(network=pb.POD)
    config.linux.security_context.namespace_options.userns_options.CopyFrom(own)
    pod = life.run_pod(config, handler)
    mapped = {"uidMappings": uids, "gidMappings": gids}
    mounts = [
        volume(TWO, "/two", **mapped),
        volume(ONE, "/one", recursive_read_only=True, **mapped),
        volume(TWO, "/sub", image_sub_path="link", **mapped),
        volume(ONE, "/plain"),
    ]
    container = life.container_config(
        "cat /two/models/a /sub/x; stat -c %u:%g /two/models/a /one/only /sub/x /plain/only"
    )
    container.mounts.extend(mounts)
    options = pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, userns_options=own)
    container.linux.security_context.namespace_options.CopyFrom(options)
    one = life.create(pod, container)
    life.start_container(one)
    assert life.exited(one).exit_code == 0
    assert words(life, one) == ["from below", "deep", "0:0", "0:0", "0:0", "65534:65534"]
    life.remove_pod(pod)
    assert views(life) == []


@pytest.mark.parametrize(
    ("wanted", "code", "message"),
    [
        (volume("test/absent:1"), grpc.StatusCode.NOT_FOUND, r"image.image: ImageVolumeMountFailed: cannot find image"),
        (volume(TWO, image_sub_path="absent"), grpc.StatusCode.INVALID_ARGUMENT, "image_sub_path: ImageVolume"),
        (volume(TWO, image_sub_path="models/a"), grpc.StatusCode.INVALID_ARGUMENT, "Not a directory"),
        (volume(TWO, image_sub_path="up"), grpc.StatusCode.INVALID_ARGUMENT, "'up' is no directory of image test/two"),
        (volume(TWO, image_sub_path="../x"), grpc.StatusCode.INVALID_ARGUMENT, "image_sub_path: '../x' is not a path"),
        (volume(TWO, readonly=False), grpc.StatusCode.INVALID_ARGUMENT, "readonly: an image can be mounted read-only"),
    ],
)
def test_what_cannot_be_had(life: Node, any_pod: str, wanted: pb.Mount, code: grpc.StatusCode, message: str) -> None:
    config = life.container_config(LOOP, mounts=[volume(ONE, "/one"), wanted])
    found, told = refusal(lambda: life.create(any_pod, config))
    assert found is code
    assert told.startswith("config.mounts[1].")
    assert message in told
    assert life.containers() == []
    assert views(life) == [], "nor is anything left of the one that was there"
    assert life.exited(life.run(any_pod, "exit 4", mounts=[volume(ONE)])).exit_code == 4


def test_an_image_that_is_in_use_can_be_removed_and_goes_with_its_last_user(life: Node, pod: str) -> None:
    before = layers(life)
    runs = life.run(pod, LOOP, "runs", mounts=[volume(TWO)])
    waits = life.create(pod, life.container_config("cat /volume/models/b", "waits", mounts=[volume(TWO)]))
    remove_image(life, TWO)
    assert layers(life) == before, "somebody stands on them"
    assert life.exec(runs, ["/bin/cat", "/volume/models/a"]).stdout == b"from below\n"
    code, told = refusal(lambda: life.create(pod, life.container_config("", "late", mounts=[volume(TWO)])))
    assert code is grpc.StatusCode.NOT_FOUND
    assert told.startswith("config.mounts[0].image.image: ")
    life.restart()
    until(lambda: recovered(life), "the recovery")
    assert layers(life) == before, "also for a daemon that knows only what is written"
    assert [one.image.image_ref for one in life.status(waits).mounts] == [""], "nobody knows a name for it any more"
    life.start_container(waits)
    assert life.exited(waits).exit_code == 0
    assert words(life, waits) == ["from above"]
    life.stop_container(runs)
    for one in (runs, waits):
        life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=one))
    until(lambda: layers(life) == before - 2, "its layers to be collected")
    invariants.check(life)


def test_a_daemon_that_is_killed_changes_nothing(life: Node, pod: str) -> None:
    runs = life.run(pod, LOOP, "runs", mounts=[volume(TWO), volume(ONE, "/one")])
    created = life.create(pod, life.container_config("cat /volume/only", "created", mounts=[volume(ONE)]))
    life.restart()
    until(lambda: recovered(life), "the recovery")
    assert life.exec(runs, ["/bin/cat", "/volume/models/a", "/one/only"]).stdout == b"from below\none layer\n"
    assert views(life) == ["created", "runs", "runs"]
    life.start_container(created)
    assert life.exited(created).exit_code == 0
    assert words(life, created) == ["one layer"]
    invariants.check(life)


@pytest.mark.parametrize("handler", ["crun", FOREIGN])
@pytest.mark.parametrize("point", ["create.volume", "start.staged", "start.unstaged", "remove.volume"])
def test_a_daemon_that_is_killed_in_between(life: Node, handler: str, point: str) -> None:
    for pod in of_handler(life, handler):
        kill_in_between(life, pod, point)


def kill_in_between(life: Node, pod: str, point: str) -> None:
    inject = Inject(life)
    config = life.container_config("cat /volume/models/a /sub/x; exit 3", mounts=[
        volume(TWO), volume(TWO, "/sub", image_sub_path="models/deep"),
    ])  # fmt: skip

    def live() -> str:
        """As a client would that is sent back to the start until it is through."""
        found = [one for one in life.containers() if one.pod_sandbox_id == pod]
        one = found[0].id if found else life.create(pod, config)
        if life.status(one).state == pb.CONTAINER_CREATED:
            life.start_container(one)
        assert life.exited(one).exit_code == 3
        assert words(life, one) == ["from below", "deep"]
        return one

    inject.arm(point, 1)
    one = ""
    with pytest.raises(grpc.RpcError):
        if point == "remove.volume":
            one = live()
        cut(life, inject, point, lambda: remove(life, one) if one else live())
    life.start()
    until(lambda: recovered(life), "the recovery")
    if one:
        until(lambda: not life.containers(), "the removal to be finished")
    else:
        remove(life, live())
    assert staged(life) == []
    assert views(life) == []
    invariants.check(life)


def cut(life: Node, inject: Inject, point: str, act: Callable[[], object]) -> None:
    """Kill the daemon when it passes the point, and let `act` end as it does."""

    def kill() -> None:
        pid = until(lambda: inject.hit(point), f"the daemon to pass {point}")
        assert life.process is not None and pid == life.process.pid
        life.process.kill()
        life.process.wait()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        act()
    finally:
        thread.join()
        inject.disarm(point)
        life.hang_up()


def remove(life: Node, container: str) -> None:
    life.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container))


def test_a_bundle_that_was_lost_is_made_again_although_the_image_is_gone(life: Node, any_pod: str) -> None:
    mounts = [volume(TWO), volume(TWO, "/sub", image_sub_path="link")]
    one = life.create(any_pod, life.container_config("cat /volume/models/a /sub/x", mounts=mounts))
    remove_image(life, TWO)
    (life.state / "pods" / any_pod / one / "config.json").unlink()
    life.start_container(one)
    assert life.exited(one).exit_code == 0
    assert words(life, one) == ["from below", "deep"]


def test_after_a_reboot_a_view_goes_with_its_container(life: Node, any_pod: str) -> None:
    one = life.create(any_pod, life.container_config("cat /volume/models/a", mounts=[volume(TWO)]))
    remove_image(life, TWO)
    life.kill()
    boot.another(life.root)
    life.start()
    until(lambda: recovered(life), "the recovery")
    assert views(life) == ["main"]
    remove(life, one)
    assert views(life) == []
    invariants.check(life)


def test_the_row_of_a_view_that_was_lost_is_brought_back(life: Node, any_pod: str) -> None:
    one = life.create(any_pod, life.container_config("cat /volume/models/a", mounts=[volume(TWO)]))
    life.kill()
    store = apsw.Connection(str(life.root / "holdfast.db"))
    store.execute("PRAGMA locking_mode = EXCLUSIVE")
    store.execute("DELETE FROM snapshots WHERE key = ?", (f"{one}/0",))
    assert store.changes() == 1
    store.close()
    life.start()
    until(lambda: recovered(life), "the recovery")
    assert views(life) == ["main"]
    life.start_container(one)
    assert life.exited(one).exit_code == 0
    assert words(life, one) == ["from below"]


def test_a_view_without_a_container_is_swept(life: Node) -> None:
    life.kill()
    store = apsw.Connection(str(life.root / "holdfast.db"))
    store.execute("PRAGMA locking_mode = EXCLUSIVE")
    stray = f"{'d' * 64}/0"
    store.execute(
        "INSERT INTO snapshots (key, kind, directory, bytes, inodes) VALUES (?, 'view', 9999, 0, 0)", (stray,)
    )
    store.close()
    life.start()
    until(lambda: recovered(life), "the recovery")
    assert views(life) == []
    assert stray in " ".join(report(life)["swept"])


def report(life: Node) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(life.cli("recovery", "-o", "json").stdout)
    return found


def test_a_layer_that_is_damaged_is_mended_before_it_is_mounted(life: Node, any_pod: str) -> None:
    one = life.create(any_pod, life.container_config("cat /volume/only", mounts=[volume(ONE)]))
    only = list(Path(life.root, "snapshots").glob("*/fs/only"))
    assert len(only) == 1
    life.kill()
    only[0].write_bytes(b"")  # as a power cut may leave it
    life.start()
    life.start_container(one)
    assert life.exited(one).exit_code == 0
    assert words(life, one) == ["one layer"]
