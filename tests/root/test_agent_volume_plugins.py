"""Volumes of each kind on real filesystems: limits that hold, groups, parts, and ends that leave nothing."""

import asyncio
import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from kit import disk
from kit.node import until

from holdfast.agent.pod.env import Facts
from holdfast.agent.pod.manifest import Data, parse
from holdfast.agent.pod.spec import Pod
from holdfast.agent.volumes import journal, operations, ownership, subpath
from holdfast.agent.volumes.emptydir import EmptyDir
from holdfast.agent.volumes.manager import Manager, NotReady
from holdfast.agent.volumes.operations import Kept
from holdfast.agent.volumes.ownership import Group
from holdfast.agent.volumes.paths import Key, Paths
from holdfast.agent.volumes.payload import File
from holdfast.agent.volumes.world import Desired, Files
from holdfast.linux import loop, mount, quota

MIB = 1 << 20
KEY = Key("uid-1", "empty-dir", "work")
GROUP = 12345
SECONDS = 30.0


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """On a filesystem without quotas."""
    with disk.handed_on(tmp_path / "agent") as place:
        yield place


@pytest.fixture
def paths(root: Path) -> Paths:
    return Paths(root)


@pytest.fixture(params=["xfs", "ext4"])
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Paths]:
    """On a filesystem with project quotas."""
    image = disk.with_quotas(request.param, tmp_path)
    with disk.mounted(image, tmp_path / "quotas", "prjquota") as place:
        yield Paths(place)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "canary"
    (place / "deep").mkdir(parents=True)
    (place / "deep/file").write_text("alive")
    before = (place / "deep/file").stat()
    yield place
    assert (place / "deep/file").read_text() == "alive"
    after = (place / "deep/file").stat()
    assert (after.st_gid, after.st_mode) == (before.st_gid, before.st_mode)


def set_up(paths: Paths, wanted: EmptyDir, key: Key = KEY) -> Path:
    return Path(operations.set_up(paths, Desired(key, f"{wanted.medium}:{wanted.size}", content=wanted)))


def fill(directory: Path) -> int:
    """Write until it is full. Returns how much there was room for."""
    written = 0
    with (directory / "fill").open("wb", buffering=0) as file:
        while written < 1 << 30:
            try:
                written += file.write(b"x" * 65536)
            except OSError as exc:
                assert exc.errno in (errno.ENOSPC, errno.EDQUOT)
                return written
    raise AssertionError("there is no limit")


def mounted(below: Path) -> list[str]:
    return [one.target for one in mount.mountinfo() if one.target.startswith(f"{below}/")]


def nothing_is_left(paths: Paths) -> None:
    assert mounted(paths.root) == []
    assert [str(path) for path in paths.root.rglob("*") if path.name not in ("pods", "trash", "lost+found")] == []


# -- emptyDir


def test_a_plain_one_is_everybodys_and_keeps_what_is_in_it(paths: Paths) -> None:
    before = os.umask(0o077)
    try:
        place = set_up(paths, EmptyDir())
    finally:
        os.umask(before)
    assert place == paths.volume("uid-1", "empty-dir", "work")
    assert place.stat().st_mode & 0o7777 == 0o777
    (place / "file").write_text("content")
    place.chmod(0o700)  # as its container may
    assert set_up(paths, EmptyDir()) == place
    assert (place / "file").read_text() == "content"
    assert place.stat().st_mode & 0o7777 == 0o700
    assert paths.pods.stat().st_mode & 0o7777 == 0o700, "nobody else gets as far"
    assert operations.tear_down(paths, KEY) == ()
    assert operations.tear_down(paths, KEY) == (), "what is gone is gone"
    nothing_is_left(paths)


def test_memory_is_limited_and_mounted_once(paths: Paths) -> None:
    wanted = EmptyDir("Memory", 4 * MIB, group=Group(GROUP))
    place = set_up(paths, wanted)
    set_up(paths, wanted)
    (found,) = (one for one in mount.mountinfo() if one.target == str(place))
    assert found.fstype == "tmpfs"
    assert stat.S_IMODE(place.stat().st_mode) == 0o2777
    assert place.stat().st_gid == GROUP
    assert 3 * MIB <= fill(place) <= 4 * MIB
    mount.unmount(place)  # as a reboot does
    set_up(paths, wanted)
    assert os.listdir(place) == []
    assert place.stat().st_gid == GROUP
    operations.tear_down(paths, KEY)
    nothing_is_left(paths)


def test_huge_pages(paths: Paths) -> None:
    place = set_up(paths, EmptyDir("HugePages-2Mi", 3 * MIB, 2 * MIB))
    (found,) = (one for one in mount.mountinfo() if one.target == str(place))
    assert found.fstype == "hugetlbfs"
    size = os.statvfs(place)
    assert (size.f_bsize, size.f_blocks) == (2 * MIB, 2), "a limit is rounded up to pages"
    operations.tear_down(paths, KEY)
    nothing_is_left(paths)


def test_an_image_holds_the_limit_where_there_are_no_quotas(paths: Paths, canary: Path) -> None:
    wanted = EmptyDir("", 16 * MIB, group=Group(GROUP))
    place = set_up(paths, wanted)
    assert place == paths.sized("uid-1", "work")
    image = paths.image("uid-1", "work")
    assert image.stat().st_blocks * 512 >= 16 * MIB, "all of it is there from the beginning"
    assert image.stat().st_mode & 0o777 == 0o600
    assert os.listdir(place) == []
    assert (stat.S_IMODE(place.stat().st_mode), place.stat().st_gid) == (0o2777, GROUP)
    assert 12 * MIB < fill(place) < 16 * MIB
    (place / "fill").unlink()
    (place / "file").write_text("content")
    (place / "lost+found").mkdir()  # the container's own

    mount.unmount(place)  # as a reboot does
    until(lambda: loop.device_of(image) is None, "its device to go")  # others' new namespaces may have the mount, too
    assert set_up(paths, wanted) == place
    assert set_up(paths, wanted) == place
    assert mounted(paths.root) == [str(place)]
    assert (place / "file").read_text() == "content"
    assert (place / "lost+found").is_dir()

    (place / "in").mkdir()
    mount.bind(canary, place / "in")
    with (place / "busy").open("w"):
        (detached,) = operations.tear_down(paths, KEY)
    assert detached.target == f"{place}/in"
    until(lambda: loop.device_of(image) is None, "its device to go")
    nothing_is_left(paths)


def test_a_limit_larger_than_the_disk_is_refused(paths: Paths) -> None:
    with pytest.raises(OSError, match=f"sizeLimit of {1 << 50} bytes is more than the"):
        set_up(paths, EmptyDir("", 1 << 50))
    operations.tear_down(paths, KEY)
    nothing_is_left(paths)


def test_an_image_that_is_gone_is_said_and_not_made_anew(paths: Paths) -> None:
    place = set_up(paths, EmptyDir("", 4 * MIB))
    mount.unmount(place)
    paths.image("uid-1", "work").unlink()
    with pytest.raises(FileNotFoundError, match="has gone with its image"):
        set_up(paths, EmptyDir("", 4 * MIB))
    operations.tear_down(paths, KEY)
    nothing_is_left(paths)


def test_a_quota_holds_the_limit_where_there_are_quotas(limited: Paths, canary: Path) -> None:
    wanted = EmptyDir("", 2 * MIB, group=Group(GROUP))
    place = set_up(limited, wanted)
    other = set_up(limited, EmptyDir("", 4 * MIB), Key("uid-2", "empty-dir", "work"))
    assert place == limited.volume("uid-1", "empty-dir", "work")
    assert (stat.S_IMODE(place.stat().st_mode), place.stat().st_gid) == (0o2777, GROUP)
    (place / "deep").mkdir()
    assert 1 * MIB < fill(place / "deep") <= 2 * MIB
    assert 3 * MIB < fill(other) <= 4 * MIB
    assert set_up(limited, wanted) == place
    projects = [journal.load(limited, Key(uid, "empty-dir", "work")) for uid in ("uid-1", "uid-2")]
    numbers = {one.project for one in projects if one is not None}
    assert len(numbers) == 2
    (place / "in").mkdir()
    mount.bind(canary, place / "in")
    assert [one.target for one in operations.tear_down(limited, KEY)] == [f"{place}/in"]
    operations.tear_down(limited, Key("uid-2", "empty-dir", "work"))
    os.sync()
    until(lambda: all(quota.project(limited.root, number).free for number in numbers), "it to be counted")
    nothing_is_left(limited)


def test_a_quota_is_chosen_once(tmp_path: Path) -> None:
    """It is not exchanged for an image because the filesystem is mounted differently, nor is the limit given up."""
    image = disk.with_quotas("xfs", tmp_path)
    wanted = EmptyDir("", 2 * MIB)
    with disk.mounted(image, tmp_path / "quotas", "prjquota") as place:
        (set_up(Paths(place), wanted) / "file").write_text("content")
    with (
        disk.mounted(image, tmp_path / "quotas") as place,
        pytest.raises(OSError, match="which this filesystem has no more"),
    ):
        set_up(Paths(place), wanted)
    with disk.mounted(image, tmp_path / "quotas", "prjquota") as place:
        found = set_up(Paths(place), wanted)
        assert (found / "file").read_text() == "content"
        assert fill(found) < 2 * MIB
        operations.tear_down(Paths(place), KEY)
        nothing_is_left(Paths(place))


# -- files


def test_secrets_are_memory_and_their_groups(paths: Paths) -> None:
    key = Key("uid-1", "secret", "key")
    payload = (File("dir/k", b"hidden", 0o400), File("l", b"", 0o644))
    wanted = Desired(key, "secret", "1", Files(payload, True, GROUP))
    place = Path(operations.set_up(paths, wanted))
    operations.set_up(paths, wanted)
    assert mounted(paths.root) == [str(place)]
    for path, mode in (("dir/k", 0o440), ("l", 0o644), ("dir", 0o2755), (".", 0o2777)):
        found = (place / path).stat()
        assert (oct(stat.S_IMODE(found.st_mode)), found.st_gid) == (oct(mode), GROUP), path
    before = os.readlink(place / "..data")
    operations.set_up(paths, Desired(key, "secret", "2", Files((File("new", b"2", 0o400),), True, GROUP)))
    assert (place / "new").read_bytes() == b"2"
    assert os.readlink(place / "..data") != before
    assert not os.path.lexists(place / "dir")
    operations.tear_down(paths, key)
    nothing_is_left(paths)


# -- groups


def test_a_group_gets_all_that_is_in_a_volume_and_nothing_else(paths: Paths, canary: Path) -> None:
    place = set_up(paths, EmptyDir())
    deep = place / "deep"
    deep.mkdir(mode=0o700)
    (deep / "file").write_text("x")
    (deep / "file").chmod(0o600)
    (deep / "run").touch()
    (deep / "run").chmod(0o4755)
    (deep / "sealed").mkdir(mode=0o000)
    os.close(os.open(os.fsencode(place) + b"/\xff\xfe", os.O_CREAT | os.O_CLOEXEC, 0o000))
    os.mkfifo(place / "fifo", 0o600)
    (place / "out").symlink_to(canary)
    (place / "outer").symlink_to(canary / "deep/file")
    (place / "in").mkdir()
    mount.bind(canary, place / "in")
    (place / "one").touch()
    mount.bind(canary / "deep/file", place / "one")
    ownership.apply(place, Group(GROUP))

    def of(path: str) -> tuple[str, int]:
        found = os.lstat(place / path)
        return oct(stat.S_IMODE(found.st_mode)), found.st_gid

    assert of(".") == ("0o2777", GROUP)
    assert of("deep") == ("0o2770", GROUP)
    assert of("deep/file") == ("0o660", GROUP)
    assert of("deep/run")[1] == GROUP
    assert of("deep/sealed") == ("0o2770", GROUP)
    assert of("fifo") == ("0o660", GROUP)
    assert of(os.fsdecode(b"\xff\xfe")) == ("0o660", GROUP)
    assert of("in")[1] != GROUP, "what is mounted there is not ours"
    assert of("one")[1] != GROUP
    mount.unmount(place / "in")
    mount.unmount(place / "one")


def test_when_the_root_fits_nothing_is_looked_at(paths: Paths) -> None:
    place = set_up(paths, EmptyDir())
    (place / "file").touch(0o600)
    group = Group(GROUP, unless_root_fits=True)
    ownership.apply(place, group)
    assert (place / "file").stat().st_gid == GROUP
    os.chown(place / "file", -1, 0)
    ownership.apply(place, group)
    assert (place / "file").stat().st_gid == 0
    place.chmod(0o755)
    ownership.apply(place, group)
    assert (place / "file").stat().st_gid == GROUP
    os.chown(place / "file", -1, 0)
    ownership.apply(place, Group(GROUP))
    assert (place / "file").stat().st_gid == GROUP


def test_a_deep_tree_takes_few_descriptors(paths: Paths) -> None:
    place = set_up(paths, EmptyDir())
    deepest = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    for _ in range(1500):
        os.mkdir("d", dir_fd=deepest)
        above, deepest = deepest, os.open("d", os.O_RDONLY | os.O_CLOEXEC, dir_fd=deepest)
        os.close(above)
    ownership.apply(place, Group(GROUP))
    assert os.fstat(deepest).st_gid == GROUP
    os.close(deepest)


# -- parts


def test_unbinding_a_part_leaves_what_others_have_mounted_in_the_volume(paths: Paths, canary: Path) -> None:
    """The part is a peer of the volume: an unmount there would be one here, where others use it."""
    for wanted in (EmptyDir(), EmptyDir("Memory", MIB)):
        place = set_up(paths, wanted)
        if wanted.medium:
            mount.set_propagation(place, mount.MS_SHARED)
        (place / "part/in").mkdir(parents=True)
        mount.bind(canary, place / "part/in")
        target = paths.subpath("uid-1", "work", "main", 0)
        subpath.bind(place, "part", target)
        assert (target / "in/deep/file").exists()
        subpath.unbind(target)
        subpath.unbind(target)
        assert not target.exists()
        assert (place / "part/in/deep/file").exists()
        (detached,) = operations.tear_down(paths, KEY)
        assert detached.target == f"{place}/part/in"
        nothing_is_left(paths)


def test_what_lies_where_a_part_was_bound_is_not_deleted(paths: Paths) -> None:
    set_up(paths, EmptyDir())
    target = paths.subpath("uid-1", "work", "main", 0)
    target.mkdir(parents=True)
    (target / "file").touch()
    with pytest.raises(Kept, match="Directory not empty"):
        operations.tear_down(paths, KEY)
    assert (target / "file").exists()
    (target / "file").unlink()
    operations.tear_down(paths, KEY)
    nothing_is_left(paths)


# -- all of it, by the manager

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: p, uid: uid-1}
spec:
  securityContext: {fsGroup: 12345}
  containers:
  - name: main
    image: i
    volumeMounts:
    - {name: work, mountPath: /w, subPathExpr: "$(WHO)/data", mountPropagation: Bidirectional}
    - {name: key, mountPath: /k, subPath: k}
    - {name: host, mountPath: /h, subPath: made}
    - {name: memory, mountPath: /m}
  volumes:
  - {name: work, emptyDir: {sizeLimit: 8Mi}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: key, secret: {secretName: key}}
  - {name: all, projected: {sources: [{secret: {name: key}}, {downwardAPI: {items:
      [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}}
  - {name: host, hostPath: {path: HOST, type: DirectoryOrCreate}}
"""


def manifest(host: Path) -> Pod:
    return parse(MANIFEST.replace("HOST", str(host)).encode(), "test").pods[0]


def facts(_pod: Pod) -> Facts:
    return Facts(memory=64 * MIB, data={("Secret", "default", "key"): Data("Secret", "default", "key", {"k": b"s"})})


@contextlib.asynccontextmanager
async def running(root: Path) -> AsyncIterator[Manager]:
    async def proven_dead(_uid: str) -> bool:
        return True

    one = Manager(root, proven_dead, facts)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(one.run())
        try:
            yield one
        finally:
            task.cancel()


async def test_a_pod_with_everything(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "really").mkdir()
    (tmp_path / "host").symlink_to("really")
    pod = manifest(tmp_path / "host")
    async with running(paths.root) as volumes:
        volumes.want([pod], complete=True)
        found = await volumes.ready("uid-1", SECONDS)
        assert (Path(found["all"]) / "name").read_text() == "p"
        for _ in range(2):  # a container that is started again
            mounts = await volumes.mounts(pod, pod.spec.containers[0], {"WHO": "me"})
            work, key, host, memory = (Path(one.host_path) for one in mounts)
            (work / "file").touch()
            assert (Path(found["work"]) / "me/data/file").exists()
            assert work.stat().st_gid == GROUP
            assert key.read_bytes() == b"s"
            (host / "file").touch()
            assert (tmp_path / "really/made/file").exists()
            assert memory == Path(found["memory"])
        targets = [one.target for one in mount.mountinfo()]
        assert [targets.count(str(one)) for one in (work, key, host, memory)] == [1, 1, 1, 1]
        (work / "file").unlink()
        os.rmdir(Path(found["work"]) / "me/data")
        (Path(found["work"]) / "me").rmdir()
        (Path(found["work"]) / "me").symlink_to("/etc")
        with pytest.raises(NotReady, match="subPath 'me/data'"):
            await volumes.mounts(pod, pod.spec.containers[0], {"WHO": "me"})
        volumes.want([], complete=True)
        assert await volumes.gone("uid-1", SECONDS) == []
    assert (tmp_path / "really/made/file").exists()
    nothing_is_left(paths)


async def test_what_is_kept_is_told_and_goes_later(tmp_path: Path) -> None:
    with disk.small("ext4", tmp_path) as place:
        paths = Paths(place)
        pod = parse(b"{apiVersion: v1, kind: Pod, metadata: {name: p, uid: uid-1}, spec: {containers: "
                    b"[{name: c, image: i}], volumes: [{name: work, emptyDir: {}}]}}", "test").pods[0]  # fmt: skip
        async with running(place) as volumes:
            volumes.want([pod], complete=True)
            work = Path((await volumes.ready("uid-1", SECONDS))["work"])
            (work / "kept").touch()
            subprocess.run(["chattr", "+i", work / "kept"], check=True)
            volumes.want([], complete=True)
            (why,) = await volumes.gone("uid-1", 2.0)
            for _ in range(600):
                left = list(paths.trash.glob("*"))
                kept = [f"volume work: {one}/kept: immutable, or append-only" for one in left]
                if left and volumes.told("uid-1") == kept:
                    break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError(volumes.told("uid-1"))
            assert why in (*kept, "volume work: is to be torn down")
            subprocess.run(["chattr", "-i", left[0] / "kept"], check=True)
            assert await volumes.gone("uid-1", SECONDS) == []
        nothing_is_left(paths)
