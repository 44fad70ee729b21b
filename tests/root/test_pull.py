"""Pull, import, use, remove: with a real registry, a real keeper, real overlay mounts, real SIGKILL and power cuts."""

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.images import digest_of, docker_archive, entry, image, index, oci_archive, tar
from kit.node import until
from kit.place import Place, place, running_keeper
from kit.registries import Liar, Registry, honest, real_registry, reply

from holdfast.images import layers, service
from holdfast.images.content import DOCUMENT
from holdfast.linux import mount, process
from holdfast.model.errors import Damaged, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from holdfast.runtime.keeper import WorkerInfo

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

BASE = tar([entry("bin/sh", b"#!", mode=0o755), entry("etc/passwd", b"root"), entry("data", b"d" * 2_000_000)])
MIDDLE = tar([entry("etc/.wh.passwd", b""), entry("etc/new", b"n")])
TOP = tar([entry("top", b"t"), entry("copy", type=b"1", linkname="data")])
LAYERS = [(BASE, "gzip"), (MIDDLE, "zstd"), (TOP, "")]
TESTS = Path(__file__).parent.parent


@dataclass
class Auth:
    username: str = ""
    password: str = ""
    auth: str = ""
    identity_token: str = ""
    registry_token: str = ""


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with real_registry() as one:
        one.push("app", image(LAYERS), "v1", "latest")
        yield one


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    with running_keeper(tmp_path / "state"):
        yield tmp_path / "state"


@pytest.fixture
async def node(tmp_path: Path, state: Path) -> AsyncIterator[Place]:
    async with place(tmp_path / "root", state) as one:
        yield one


async def check_content(node: Place, name: str) -> None:
    async with node.container(name) as root:
        assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == [
            *("bin", "bin/sh", "copy", "data", "etc", "etc/new", "top")
        ]
        assert (root / "data").read_bytes() == b"d" * 2_000_000
        assert (root / "data").samefile(root / "copy")
        (root / "written").write_text("by the container")


async def test_pull_use_and_remove(node: Place, registry: Registry) -> None:
    made, name = image(LAYERS), registry.reference("app", "v1")
    steps: list[tuple[str, str]] = []
    pulled = await node.images.pull(name, None, lambda item, phase, done, total: steps.append((item, phase)))
    assert pulled.id == made.config
    assert pulled.tags == (name,)
    assert pulled.digests == (registry.reference("app", made.manifest),)
    assert pulled.size == sum(map(len, made.blobs.values()))
    assert {step for step in steps if step[1] == "unpack"} == {(layer, "unpack") for layer in made.layers}
    for wanted in (name, pulled.id, pulled.id[7:], pulled.id[:19], pulled.id[7:19], *pulled.digests):
        assert node.images.find(wanted) is pulled
    await check_content(node, name)
    await check_content(node, pulled.id)
    usage = await node.images.usage()
    assert usage.bytes > 2_000_000
    assert usage.inodes > 10
    await node.images.remove(name)
    assert node.leftovers() == []
    with pytest.raises(NotFound):
        node.images.find(pulled.id)
    with pytest.raises(NotFound):
        await node.images.remove(name)


async def test_by_digest_and_by_index(node: Place, registry: Registry) -> None:
    made = image([(BASE, "gzip")], Env=["INDEX=1"])
    other = made.descriptor(made.config, "application/vnd.oci.image.manifest.v1+json")
    other["platform"] = {"os": "windows", "architecture": "amd64"}
    top = index(made)
    registry.push("multi", made, "v1")
    by_tag = await node.images.pull(registry.reference("multi", "v1"))
    by_digest = await node.images.pull(registry.reference("multi", top))
    directly = await node.images.pull(registry.reference("multi", made.manifest))
    assert by_tag.id == by_digest.id == directly.id == made.config
    assert directly.digests == tuple(sorted(registry.reference("multi", one) for one in (top, made.manifest)))
    lying_tag = registry.reference("multi", "other") + f"@{made.manifest}"
    assert registry.reference("multi", "other") not in (await node.images.pull(lying_tag)).tags


@pytest.mark.parametrize("target", ["none", "sha256:" + "0" * 64])
async def test_what_the_registry_does_not_have(node: Place, registry: Registry, target: str) -> None:
    name = registry.reference("app", target)
    with pytest.raises(NotFound, match=name):
        await node.images.pull(name)
    with pytest.raises(NotFound, match="none/of/it"):
        await node.images.pull(registry.reference("none/of/it", "v1"))
    assert node.leftovers() == []


async def test_a_tag_moves_to_another_image(node: Place, registry: Registry) -> None:
    name = registry.reference("moving", "v")
    first, second = image([(BASE, "gzip")], Env=["N=1"]), image([(BASE, "gzip")], Env=["N=2"])
    registry.push("moving", first, "v")
    await node.images.pull(name)
    registry.push("moving", second, "v")
    assert (await node.images.pull(name)).id == second.config
    assert node.images.find(first.config).tags == ()
    assert node.images.find(name).id == second.config
    await node.images.remove(first.config)
    async with node.container(name) as root:
        assert (root / "data").exists()


async def test_import_both_kinds(node: Place, tmp_path: Path) -> None:
    one, two = image(LAYERS), image([*LAYERS[:2], (TOP, "gzip")], Cmd=["two"])
    oci, docker = tmp_path / "oci.tar", tmp_path / "docker.tar"
    oci.write_bytes(oci_archive([(one, "docker.io/library/one:1")]))
    docker.write_bytes(docker_archive([(two, ["two:1", "quay.io/two:2"]), (one, ["three:1"])]))
    assert [found.tags for found in await node.images.import_archive(oci)] == [("docker.io/library/one:1",)]
    found = await node.images.import_archive(docker)
    assert [each.id for each in found] == [two.config, one.config]
    assert found[0].tags == ("docker.io/library/two:1", "quay.io/two:2")
    assert len(node.snapshots.starting_with("sha256:")) == 3, "layers are shared"
    await check_content(node, "one:1")
    await check_content(node, "quay.io/two:2")
    await node.images.remove("two:1")
    await check_content(node, "three:1")
    await node.images.remove("one:1")
    assert node.leftovers() == []


async def test_all_of_it_survives_a_restart(tmp_path: Path, state: Path, registry: Registry) -> None:
    async with place(tmp_path / "root", state) as before:
        pulled = await before.images.pull(registry.reference("app", "v1"))
    async with place(tmp_path / "root", state) as after:
        assert after.images.all() == [pulled]
        await after.collect()
        await check_content(after, pulled.id)


async def test_image_in_use_is_kept_until_its_container_is_gone(node: Place, registry: Registry) -> None:
    name = registry.reference("app", "v1")
    await node.images.pull(name)
    async with node.container(name) as root:
        await node.images.remove(name)
        assert (root / "data").read_bytes() == b"d" * 2_000_000
        assert await node.images.collect() == []
    assert len(await node.images.collect()) == 3
    assert node.leftovers() == []


# -- at once


async def test_pulls_of_one_image_are_one_pull(node: Place, registry: Registry) -> None:
    name = registry.reference("app", "v1")
    heard: list[set[str]] = [set(), set(), set()]
    pulled = await asyncio.gather(
        *(node.images.pull(name, None, lambda item, *_, to=to: to.add(item)) for to in heard)  # type: ignore[misc]
    )
    assert pulled[0] is pulled[1] is pulled[2]
    assert heard[0] == heard[1] == heard[2] != set()


async def test_many_images_with_one_base(node: Place, registry: Registry) -> None:
    names = []
    for number in range(6):
        made = image([(BASE, "gzip"), (tar([entry(f"own{number}", b"x")]), "gzip")])
        registry.push(f"many{number}", made, "v")
        names.append(registry.reference(f"many{number}", "v"))
    await asyncio.gather(*(node.images.pull(name) for name in names))
    assert len(node.snapshots.starting_with("sha256:")) == 7
    for number, name in enumerate(names):
        async with node.container(name) as root:
            assert {path.name for path in root.iterdir()} == {"bin", "etc", "data", f"own{number}"}
    await asyncio.gather(*(node.images.remove(name) for name in names))
    await node.collect()
    assert node.leftovers() == []


@pytest.fixture
async def stalling() -> AsyncIterator[tuple[Liar, asyncio.Event, asyncio.Event]]:
    """A registry that stops in the middle of the last layer until it is told to go on; (it, stopped, go on)."""
    made, stopped, go_on = image(LAYERS), asyncio.Event(), asyncio.Event()
    truth = honest(made)

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        data = truth(path)
        if path.endswith(made.layers[2]):
            writer.write(data[:-1])
            await writer.drain()
            stopped.set()
            await go_on.wait()
            data = data[-1:]
        writer.write(data)

    async with Liar.run(serve) as liar:
        yield liar, stopped, go_on
        go_on.set()


async def test_cancelling_one_of_two_leaves_the_other(
    node: Place, stalling: tuple[Liar, asyncio.Event, asyncio.Event]
) -> None:
    liar, stopped, go_on = stalling
    async with asyncio.TaskGroup() as group:
        one, two = (group.create_task(node.images.pull(f"{liar.host}/x")) for _ in range(2))
        await stopped.wait()
        one.cancel()
        await asyncio.wait([one])
        go_on.set()
    assert one.cancelled()
    assert (await two).tags == (f"{liar.host}/x:latest",)


async def test_cancelling_all_ends_the_pull(node: Place, stalling: tuple[Liar, asyncio.Event, asyncio.Event]) -> None:
    liar, stopped, go_on = stalling
    pulls = [asyncio.get_running_loop().create_task(node.images.pull(f"{liar.host}/x")) for _ in range(2)]
    await stopped.wait()
    for one in pulls:
        one.cancel()
    await asyncio.wait(pulls)
    assert all(one.cancelled() for one in pulls)
    assert os.listdir(node.root / "ingest") == []
    assert node.images.all() == []
    go_on.set()
    assert await node.images.pull(f"{liar.host}/x")


async def test_nothing_a_pull_has_found_is_collected_under_it(
    node: Place, stalling: tuple[Liar, asyncio.Event, asyncio.Event], tmp_path: Path
) -> None:
    """The other image goes while this one is coming, and they share blobs and layers."""
    liar, stopped, go_on = stalling
    shared = image(LAYERS[:2])
    (tmp_path / "a.tar").write_bytes(oci_archive([(shared, "shared:1")]))
    await node.images.import_archive(tmp_path / "a.tar")
    pull = asyncio.get_running_loop().create_task(node.images.pull(f"{liar.host}/x"))
    await stopped.wait()
    await node.images.remove("shared:1")
    go_on.set()
    await pull
    await check_content(node, f"{liar.host}/x")
    await node.images.remove(f"{liar.host}/x")
    await node.collect()
    assert {name for name in node.leftovers() if name.startswith("snapshots")} == set()


async def test_a_stalled_pull_holds_up_nobody_else(
    node: Place, stalling: tuple[Liar, asyncio.Event, asyncio.Event], registry: Registry
) -> None:
    liar, stopped, _ = stalling
    pull = asyncio.get_running_loop().create_task(node.images.pull(f"{liar.host}/x"))
    await stopped.wait()
    async with asyncio.timeout(20):
        await node.images.pull(registry.reference("app", "v1"))
        await check_content(node, registry.reference("app", "v1"))
        await node.images.remove(registry.reference("app", "v1"))
    pull.cancel()
    await asyncio.wait([pull])


async def test_nobody_gets_an_image_by_the_credentials_of_another(node: Place) -> None:
    made = image(LAYERS)
    truth = honest(made)

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        allowed = headers.get("authorization") == "bearer good"
        writer.write(truth(path) if allowed else reply(401, WWW_Authenticate="Basic"))

    async with Liar.run(serve) as liar:
        name = f"{liar.host}/private"
        auths = [Auth(registry_token="good"), Auth(registry_token="bad"), None]
        done = await asyncio.gather(*(node.images.pull(name, auth) for auth in auths), return_exceptions=True)
    assert [type(one) for one in done][1:] == [InvalidArgument] * 2
    assert not isinstance(done[0], BaseException)


# -- bad images


async def test_a_layer_that_is_not_what_the_config_says(node: Place, tmp_path: Path) -> None:
    made = image([(BASE, "gzip")])
    config = made.blobs.pop(made.config).replace(digest_of(BASE).encode(), digest_of(TOP).encode())
    made.blobs[made.manifest] = made.blobs[made.manifest].replace(made.config.encode(), digest_of(config).encode())
    made.blobs[digest_of(config)] = config
    top = made.blobs.pop(made.manifest)
    made.manifest = made.add(top)
    (tmp_path / "a.tar").write_bytes(oci_archive([(made, "a:1")]))
    with pytest.raises(InvalidArgument, match="its diff id is"):
        await node.images.import_archive(tmp_path / "a.tar")
    await node.collect()
    assert node.images.all() == []
    assert not [name for name in node.leftovers() if name.startswith(("snapshots", "ingest"))]


async def test_a_hostile_layer(node: Place, tmp_path: Path) -> None:
    made = image([(BASE, "gzip"), (tar([entry("../../outside", b"x")]), "gzip")])
    (tmp_path / "a.tar").write_bytes(oci_archive([(made, "a:1")]))
    with pytest.raises(InvalidArgument, match=r"has \.\. in it"):
        await node.images.import_archive(tmp_path / "a.tar")
    await node.collect()
    assert not [name for name in node.leftovers() if name.startswith(("snapshots", "ingest"))]


@pytest.mark.parametrize("size", [1_000, 1_000_000])
async def test_a_blob_that_was_damaged_on_disk_is_fetched_again(node: Place, registry: Registry, size: int) -> None:
    """A small one is looked at before it is used, so the first pull fetches it."""
    made = image([(tar([entry("random", os.urandom(size))]), "gzip")])
    registry.push("damaged", made, f"of-{size}")
    name = registry.reference("damaged", f"of-{size}")
    await node.images.pull(name)
    (key,) = layers.chain_ids(tuple(made.diff_ids))
    await node.snapshots.remove(key)
    blob = node.content.path(made.layers[0])
    blob.write_bytes(b"\0" * blob.stat().st_size)
    if size > DOCUMENT:
        with pytest.raises(Damaged, match="was damaged on disk; pull the image again"):
            await node.images.pull(name)
    await node.images.pull(name)
    async with node.container(name) as root:
        assert (root / "random").stat().st_size == size


async def test_leftovers_of_a_failed_pull_help_the_next_and_go_in_the_end(
    node: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = image(LAYERS)
    truth, broken = honest(made), True

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(reply(503) if broken and path.endswith(made.layers[2]) else truth(path))

    async with Liar.run(serve) as liar:
        with pytest.raises(Unavailable):
            await node.images.pull(f"{liar.host}/x")
        await node.collect()
        assert node.content.digests(), "the manifest at least"
        with monkeypatch.context() as patch:
            patch.setattr(service, "LEFTOVER_SECONDS", -1)
            await node.collect()
            assert node.leftovers() == []
        with pytest.raises(Unavailable):
            await node.images.pull(f"{liar.host}/x")
        kept, broken = node.content.digests(), False
        liar.asked.clear()
        await node.images.pull(f"{liar.host}/x")
        assert not [path for path, _ in liar.asked if "/blobs/" in path and path.endswith(tuple(kept))]


# -- crashes


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """An archive with one layer, which takes a while to unpack."""
    path = tmp_path / "slow.tar"
    layer = tar(entry(f"d{number % 50}/f{number}", b"x" * 5000) for number in range(8000))
    path.write_bytes(oci_archive([(image([(layer, "gzip")]), "slow:1")]))
    return path


async def unpacker_of(node: Place) -> WorkerInfo:
    """The worker that unpacks, once there is one."""
    while True:
        for worker in await node.keeper.list_workers():
            if worker.kind == "unpack":
                return worker


async def test_an_unpacker_that_dies(node: Place, slow: Path) -> None:
    task = asyncio.get_running_loop().create_task(node.images.import_archive(slow))
    os.kill((await unpacker_of(node)).pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match="the unpacker died|it ended before it was ready"):
        await task
    await node.collect()
    assert not [name for name in node.leftovers() if name.startswith("snapshots")]
    await node.images.import_archive(slow)


async def test_cancelling_in_the_middle_of_an_unpack(node: Place, slow: Path) -> None:
    task = asyncio.get_running_loop().create_task(node.images.import_archive(slow))
    worker = await unpacker_of(node)
    with process.pin(worker.pid, worker.start_time) as pinned:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert pinned is None or await asyncio.to_thread(select.select, [pinned.fd], [], [], 20)
    await node.collect()
    assert not [name for name in node.leftovers() if name.startswith("snapshots")]
    await node.images.import_archive(slow)


def run_place(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "kit.place", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_sigkill_at_every_point_of_a_pull(tmp_path: Path, state: Path, registry: Registry) -> None:
    name = registry.reference("app", "v1")
    whole = run_place(tmp_path / "count", state, name)
    *points, done = whole.stdout.split()
    assert done == "done", whole.stderr
    assert len(points) > 15
    for point in range(1, len(points) + 1, 3):
        root = tmp_path / f"root{point}"
        killed = run_place(root, state, name, point)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        async with place(root, state) as node:
            if not node.images.all():  # else the last commit was through
                with pytest.raises(NotFound):
                    node.images.find(name)
            await node.collect()
            assert not node.snapshots.starting_with("unpack"), point
            await node.images.pull(name)
            await check_content(node, name)
            await node.images.remove(name)
            await node.collect()
            assert node.leftovers() == [], point


@contextlib.contextmanager
def loop_mounted(backing: Path, target: Path, options: str) -> Iterator[None]:
    """The loop device is gone on exit, too; a mount namespace that is just being made may keep it a moment longer."""
    target.mkdir()
    subprocess.run(["mount", "-o", f"loop,{options}", backing, target], check=True)
    try:
        yield
    finally:
        mount.unmount(target)
        files = list(Path("/sys/block").glob("loop*/loop/backing_file"))
        until(lambda: not any(_content(one) == str(backing) for one in files), "the loop device to go")


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that writes nothing by itself (commit=600): its backing file is what a power cut leaves."""
    backing, target = tmp_path / "disk.img", tmp_path / "disk"
    with open(backing, "wb") as file:
        file.truncate(64 * 1024 * 1024)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", backing], check=True)
    with loop_mounted(backing, target, "commit=600"):
        yield target


async def test_power_cut_after_a_pull(tmp_path: Path, disk: Path, state: Path, registry: Registry) -> None:
    """What pull has answered is there at any later instant, down to the last byte of every file."""
    name, crashed = registry.reference("app", "v1"), tmp_path / "crashed"
    async with place(disk / "root", state) as node:
        await node.images.pull(name)
        shutil.copyfile(tmp_path / "disk.img", tmp_path / "crashed.img")
    with loop_mounted(tmp_path / "crashed.img", crashed, "rw"):
        async with place(crashed / "root", state) as node:
            assert node.images.find(name).tags == (name,)
            await check_content(node, name)
            for digest in node.content.digests():
                assert await node.content.verify(digest)
            await node.images.remove(name)
            await node.collect()
            assert node.leftovers() == []


async def test_full_disk(disk: Path, state: Path, tmp_path: Path, registry: Registry) -> None:
    """A pull without room says so and gives back what it took; with room it works, and removing needs none."""
    name = registry.reference("app", "v1")
    async with place(disk / "root", state) as node:
        room = os.statvfs(disk)
        filler = disk / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - 1_500_000)
        with pytest.raises(ResourceExhausted, match="is full"):
            await node.images.pull(name)
        await node.collect()
        assert not [one for one in node.leftovers() if one.startswith(("snapshots", "ingest"))]
        filler.unlink()
        await node.images.pull(name)
        await check_content(node, name)
        with open(filler, "wb") as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(b"x" * 1_000_000)
        await node.images.remove(name)
        assert node.leftovers() == []
