"""What is needed of the kernel for volumes: labels, and which mount a path is on."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.linux import mount, selinux, userns
from holdfast.model.spec import Mount

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    mount.unmount_tree(tmp_path)


def cloned(path: Path) -> int:
    return mount.open_detached(Mount("bind", str(path), options=("rbind",)))


def test_ids_are_mapped_both_ways(place: Path) -> None:
    (place / "data").mkdir()
    (place / "data/file").touch()
    (place / "seen").mkdir()
    descriptor = cloned(place / "data")
    with userns.opened([(0, 5000, 10)], [(0, 6000, 10)]) as namespace:
        mount.idmap(descriptor, namespace)
    mount.attach(descriptor, place / "seen")
    os.close(descriptor)
    found = (place / "seen/file").stat()
    assert (found.st_uid, found.st_gid) == (5000, 6000)
    assert (place / "data/file").stat().st_uid == 0
    with pytest.raises(OSError, match="Value too large"):  # root has no id there
        (place / "seen/mine").touch()


def test_a_user_namespace_leaves_no_process(place: Path) -> None:
    before = children()
    with userns.opened([(0, 1000, 1)], [(0, 1000, 1)]):
        assert children() == before
    with pytest.raises(OSError, match="Invalid argument"), userns.opened([(0, 1, 5), (3, 9, 1)], [(0, 1, 1)]):
        pass
    assert children() == before


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_what_is_mounted_already_cannot_be_mapped(place: Path) -> None:
    mount.mount("x", place, "tmpfs")
    descriptor = os.open(place, os.O_PATH)
    with userns.opened([(0, 1000, 1)], [(0, 1000, 1)]) as namespace, pytest.raises(OSError) as raised:
        mount.idmap(descriptor, namespace)
    os.close(descriptor)
    assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("flags", "propagation"),
    [(mount.MS_PRIVATE, "private"), (mount.MS_SHARED, "shared"), (mount.MS_SLAVE, "slave")],
)
def test_the_mount_that_holds_a_path(place: Path, flags: int, propagation: str) -> None:
    (place / "a").mkdir()
    mount.mount("x", place / "a", "tmpfs")
    mount.set_propagation(place / "a", mount.MS_SHARED)
    (place / "peer").mkdir()
    mount.bind(place / "a", place / "peer")
    mount.set_propagation(place / "a", flags)
    (place / "a/deep").mkdir()
    descriptor = os.open(place / "a/deep", os.O_PATH)
    held = mount.holding(descriptor)
    os.close(descriptor)
    assert (held.target, held.fstype, held.propagation) == (str(place / "a"), "tmpfs", propagation)


def test_labels_are_given_to_all_of_a_tree_but_not_to_what_is_mounted_in_it_nor_through_links(place: Path) -> None:
    tree, outside = place / "tree", place / "outside"
    (tree / "dir/below").mkdir(parents=True)
    (tree / "dir/file").touch()
    outside.touch()
    (tree / "link").symlink_to(outside)
    (tree / "mounted").mkdir()
    mount.mount("x", tree / "mounted", "tmpfs")
    (tree / "mounted/foreign").touch()
    selinux.relabel(str(tree), LABEL)
    labelled = [tree, tree / "dir", tree / "dir/below", tree / "dir/file", tree / "link"]
    assert [label(path) for path in labelled] == [LABEL] * 5
    assert label(outside) == label(tree / "mounted/foreign") == ""
    times = [os.lstat(path).st_ctime_ns for path in labelled]
    selinux.relabel(str(tree), LABEL)
    assert [os.lstat(path).st_ctime_ns for path in labelled] == times, "what is right is not written to"


def test_what_can_have_no_label_is_left_as_it_is() -> None:
    selinux.relabel("/proc/self/limits", LABEL)


def label(path: Path) -> str:
    try:
        return os.getxattr(path, selinux.ATTRIBUTE, follow_symlinks=False).decode().rstrip("\0")
    except OSError as exc:
        assert exc.errno == errno.ENODATA
        return ""
