"""linux.mount with real mounts, and the promise that a delete stops at every one of them."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fuse
import pytest

from holdfast.linux import files, mount


@dataclass(frozen=True)
class One:
    """A described mount."""

    type: str
    source: str
    options: tuple[str, ...] = ()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory below which everything is unmounted in the end, whatever happens."""
    yield tmp_path
    for _ in range(10):
        left = mount.mounts_below(tmp_path)
        for entry in left:
            subprocess.run(["umount", "-l", entry.target], check=False, capture_output=True)
        if not left:
            break


@pytest.fixture
def precious(place: Path) -> Path:
    """What must never be deleted."""
    directory = place / "precious"
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "canary").write_text("alive")
    (directory / "file").write_text("alive")
    return directory


def unharmed(precious: Path) -> bool:
    return (precious / "sub" / "canary").read_text() == (precious / "file").read_text() == "alive"


def entry(path: Path) -> mount.MountEntry:
    return mount.mounts_below(path)[0]


# -- mounting


def test_bind_read_only_keeps_what_the_source_forbids(place: Path) -> None:
    source, target = place / "source", place / "target"
    source.mkdir()
    target.mkdir()
    mount.mount("tmpfs", source, "tmpfs", mount.MS_NOSUID | mount.MS_NODEV)
    mount.bind(source, target, read_only=True)
    assert {"ro", "nosuid", "nodev"} <= set(entry(target).options.split(","))
    assert "ro" not in entry(source).options.split(",")
    with pytest.raises(OSError) as caught:
        (target / "file").write_text("x")
    assert caught.value.errno == errno.EROFS


def test_mount_one_honours_every_option_of_a_bind(place: Path) -> None:
    (place / "target").mkdir()
    options = ("rbind", "ro", "nosuid", "nodev", "noexec", "rslave")
    mount.mount_one(One("bind", str(place), options), place / "target")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(entry(place / "target").options.split(","))
    assert not any(field.startswith("shared") for field in entry(place / "target").optional)


def test_a_bind_that_cannot_be_made_leaves_no_mount(place: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mount.bind(place / "nothing", place)
    assert str(place / "nothing") in str(caught.value.filename)
    assert mount.mounts_below(place) == []


def test_a_path_with_a_nul_is_refused(place: Path) -> None:
    with pytest.raises(ValueError, match="null byte"):
        mount.mount("tmpfs", f"{place}\0/elsewhere", "tmpfs")
    with pytest.raises(ValueError, match="null byte"):
        mount.detach(f"{place}\0")


@pytest.mark.parametrize("count", [2, 150])
def test_overlay_with_few_and_with_many_layers(place: Path, count: int) -> None:
    """150 layers are far more than the page of options that mount(2) takes."""
    mount.mount("tmpfs", place, "tmpfs")
    lowers = [place / f"layer-{number:03}-{'x' * 40}" for number in range(count)]
    for number, lower in enumerate(lowers):
        lower.mkdir()
        (lower / f"file{number}").write_text(str(number))
    for name in ("upper", "work", "merged"):
        (place / name).mkdir()
    data = ("lowerdir=" + ":".join(map(str, lowers)), f"upperdir={place}/upper", f"workdir={place}/work")
    mount.mount_one(One("overlay", "overlay", data), place / "merged")
    assert len(os.listdir(place / "merged")) == count
    (place / "merged" / "new").write_text("x")
    assert os.listdir(place / "upper") == ["new"]


def test_open_detached_is_seen_by_nobody_and_ends_with_its_descriptor(place: Path, precious: Path) -> None:
    fd = mount.open_detached(One("bind", str(precious), ("bind", "ro", "nodev")))
    try:
        assert mount.mount_id(fd) not in {found.id for found in mount.mountinfo()}
        with os.fdopen(os.open("file", os.O_RDONLY, dir_fd=fd)) as file:
            assert file.read() == "alive"
        with pytest.raises(OSError) as caught:
            os.open("file", os.O_WRONLY, dir_fd=fd)
        assert caught.value.errno == errno.EROFS
    finally:
        os.close(fd)


def test_open_detached_filesystem_has_its_attributes(place: Path) -> None:
    fd = mount.open_detached(One("tmpfs", "tmpfs", ("ro", "nosuid", "size=64k")))
    try:
        with pytest.raises(OSError) as caught:
            os.mkdir("x", dir_fd=fd)
        assert caught.value.errno == errno.EROFS
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", [b"a b\tc\n\\d \xff#", b"\tx", b"\\", b"a\nb", b"#"])
def test_names_of_every_kind_are_found_in_mountinfo(place: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(place), name)
    os.mkdir(path)
    mount.mount("tmpfs", os.fsdecode(path), "tmpfs")
    assert [found.target for found in mount.mounts_below(place)] == [os.fsdecode(path)]
    mount.unmount_tree(os.fsdecode(path))
    assert mount.mounts_below(place) == []


def test_mount_id_tells_bind_mounts_apart(place: Path, precious: Path) -> None:
    (place / "copy").mkdir()
    mount.bind(precious, place / "copy")
    one, other = os.open(precious, os.O_PATH), os.open(place / "copy", os.O_PATH)
    try:
        assert os.fstat(one).st_dev == os.fstat(other).st_dev
        assert mount.mount_id(one) != mount.mount_id(other) == entry(place / "copy").id
    finally:
        os.close(one)
        os.close(other)


# -- unmounting


def test_unmount_tree_of_stacked_nested_and_busy_mounts(place: Path, precious: Path) -> None:
    top = place / "top"
    top.mkdir()
    for _ in range(3):
        mount.mount("tmpfs", top, "tmpfs")
    (top / "sub").mkdir()
    mount.bind(precious, top / "sub")
    (top / "file").write_text("")
    mount.bind(precious / "file", top / "file")
    with open(top / "sub" / "file"):  # keeps that mount busy
        mount.unmount_tree(top)
    assert mount.mounts_below(top) == []
    mount.unmount_tree(top)
    assert unharmed(precious)


def test_unmount_tree_frees_a_mount_that_was_moved_into_a_younger_one(place: Path) -> None:
    for name in ("old", "young"):
        (place / name).mkdir()
    mount.mount("tmpfs", place, "tmpfs")
    mount.set_propagation(place, mount.MS_PRIVATE)
    for name in ("old", "young"):
        (place / name).mkdir()
        mount.mount("tmpfs", place / name, "tmpfs")
    (place / "young" / "in").mkdir()
    mount.mount(str(place / "old"), place / "young" / "in", "", 0x2000)  # MS_MOVE
    assert [Path(found.target).name for found in mount.mounts_below(place)] == ["in", "young", place.name]
    mount.unmount_tree(place)
    assert mount.mounts_below(place) == []


def test_unmount_tree_does_not_follow_a_link_in_place_of_the_directory(place: Path) -> None:
    (place / "real").mkdir()
    mount.mount("tmpfs", place / "real", "tmpfs")
    (place / "link").symlink_to(place / "real")
    mount.unmount_tree(place / "link")
    with pytest.raises(OSError):
        mount.unmount(place / "link")
    assert len(mount.mounts_below(place / "real")) == 1


# -- remove_tree


def refuses(tree: Path, name: str) -> None:
    with pytest.raises(OSError) as caught:
        files.remove_tree(tree)
    assert (caught.value.errno, caught.value.filename) == (errno.EXDEV, str(tree / name))


def test_remove_tree_stops_at_a_bind_mount_of_the_same_filesystem(place: Path, precious: Path) -> None:
    tree = place / "tree"
    (tree / "a" / "volume").mkdir(parents=True)
    mount.bind(precious, tree / "a" / "volume")
    assert (tree / "a" / "volume").stat().st_dev == tree.stat().st_dev
    refuses(tree, "a/volume")
    refuses(tree, "a/volume")
    assert unharmed(precious)
    mount.unmount_tree(tree)
    files.remove_tree(tree)
    assert not tree.exists()
    assert unharmed(precious)


def test_remove_tree_stops_at_itself_being_a_mount(place: Path, precious: Path) -> None:
    (place / "tree").mkdir()
    mount.bind(precious, place / "tree")
    refuses(place / "tree", "")
    assert unharmed(precious)


def test_remove_tree_stops_at_stacked_mounts_until_the_last_is_gone(place: Path, precious: Path) -> None:
    tree = place / "tree"
    (tree / "volume").mkdir(parents=True)
    mount.mount("tmpfs", tree / "volume", "tmpfs")
    (tree / "volume" / "upper canary").write_text("alive")
    mount.bind(precious, tree / "volume")
    refuses(tree, "volume")
    mount.unmount(tree / "volume")
    refuses(tree, "volume")
    assert (tree / "volume" / "upper canary").read_text() == "alive"
    assert unharmed(precious)


def test_remove_tree_stops_at_a_mounted_file(place: Path, precious: Path) -> None:
    tree = place / "tree"
    tree.mkdir()
    (tree / "file").write_text("below")
    mount.bind(precious / "file", tree / "file")
    refuses(tree, "file")
    assert unharmed(precious)
    mount.unmount(tree / "file")
    assert (tree / "file").read_text() == "below"


class Odd(fuse.Server):
    name = os.fsdecode(b"a b\xff")


def test_a_filesystem_may_call_itself_anything(place: Path) -> None:
    server = Odd(place)
    try:
        (entry,) = mount.mounts_below(place)
        assert (entry.fstype, entry.source) == (f"fuse.{Odd.name}", Odd.name)
    finally:
        server.release()


def test_remove_tree_stops_at_a_name_that_is_not_utf8(place: Path, precious: Path) -> None:
    name = os.fsdecode(b"\xff \xfe")
    tree = place / "tree"
    (tree / name).mkdir(parents=True)
    mount.bind(precious, tree / name)
    refuses(tree, name)
    assert unharmed(precious)


def test_remove_tree_where_only_another_mount_namespace_has_a_mount(place: Path, precious: Path) -> None:
    """The kernel drops that mount with its directory; what was mounted stays whole."""
    tree = place / "tree"
    (tree / "volume").mkdir(parents=True)
    code = (
        "from holdfast.linux import mount, namespace\n"
        "namespace.unshare(0x20000); mount.set_propagation('/', mount.MS_PRIVATE, recursive=True)\n"
        f"mount.bind({str(precious)!r}, {str(tree / 'volume')!r})\n"
        "print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        files.remove_tree(tree)
        other.communicate(b"\n")
    assert not tree.exists()
    assert unharmed(precious)


def test_remove_tree_while_somebody_mounts_and_unmounts(place: Path, precious: Path) -> None:
    """A mount that appears between any two steps is not crossed."""
    tree = place / "tree"
    stop, mounted = threading.Event(), threading.Event()

    def play() -> None:
        while not stop.is_set():
            try:
                mount.bind(precious, tree / "a" / "volume")
                mounted.set()
            except OSError:
                continue
            mount.detach(tree / "a" / "volume")

    (tree / "a" / "volume").mkdir(parents=True)
    thread = threading.Thread(target=play)
    thread.start()
    try:
        assert mounted.wait(30)
        for _ in range(150):
            with contextlib.suppress(OSError):  # mounted over just now; there is something to remove anyway
                for number in range(3):
                    (tree / "a" / "volume" / str(number)).mkdir(parents=True, exist_ok=True)
            try:
                files.remove_tree(tree)
            except OSError as exc:
                assert exc.errno in (errno.EXDEV, errno.ENOTEMPTY)
            assert unharmed(precious)
    finally:
        stop.set()
        thread.join()
        mount.unmount_tree(tree)
    files.remove_tree(tree)
    assert not tree.exists()
    assert unharmed(precious)
