"""Which mounts inside a directory are not its own."""

from holdfast.lifecycle.guard import volumes_with_mounts
from holdfast.linux.mount import MountEntry
from holdfast.linux.nested import strangers

V = "/k/pods/u/volumes/kubernetes.io~empty-dir/v"


def entry(id: int, parent: int, target: str, fstype: str = "ext4", root: str = "/") -> MountEntry:
    return MountEntry(id, parent, "0:1", root, target, "rw", fstype, "source", ())


def ids(*mounts: MountEntry) -> list[int]:
    return [one.id for one in strangers(V, mounts)]


def test_what_is_beside_or_above_is_nobody_s_business() -> None:
    assert ids(entry(1, 0, "/"), entry(2, 1, "/k"), entry(3, 1, f"{V}2"), entry(4, 1, f"{V}2/x")) == []


def test_memory_that_is_mounted_at_the_directory_is_its_own_what_lies_upon_it_is_not() -> None:
    assert ids(entry(2, 1, V, "tmpfs")) == []
    assert ids(entry(2, 1, V, "hugetlbfs"), entry(3, 2, f"{V}/x")) == [3]
    assert ids(entry(2, 1, V, "tmpfs"), entry(3, 2, V, "tmpfs"), entry(4, 3, V)) == [4, 3]


def test_memory_that_hides_what_was_mounted_before_is_not_its_own() -> None:
    assert ids(entry(2, 1, f"{V}/x"), entry(3, 1, V, "tmpfs"), entry(4, 3, f"{V}/y")) == [3, 2, 4]


def test_memory_of_somebody_else_is_not_its_own() -> None:
    """He has it elsewhere, or only a part of it is here; what is the pod's own is seen in the pod's directories."""
    assert ids(entry(2, 1, "/mnt/nas", "tmpfs"), entry(3, 1, V, "tmpfs")) == [3]
    assert ids(entry(3, 1, V, "tmpfs", "/part")) == [3]
    assert ids(entry(3, 1, V, "tmpfs"), entry(4, 1, V.replace("/u/", "/other/"), "tmpfs")) == [3]
    views = (f"/host{V}", "/k/pods/u/volume-subpaths/v/main/0", "/k/pods/u/volumes/kubernetes.io~empty-dir/w/bound")
    assert ids(entry(3, 1, V, "tmpfs"), *(entry(4 + n, 1, view, "tmpfs") for n, view in enumerate(views))) == []


def test_a_disk_at_the_directory_is_not_its_own() -> None:
    assert ids(entry(2, 1, V)) == [2]
    assert ids(entry(2, 1, V), entry(3, 2, V, "tmpfs")) == [3, 2]


def test_what_is_higher_up_or_on_top_comes_first() -> None:
    assert ids(entry(2, 1, f"{V}/a/b"), entry(3, 1, f"{V}/a"), entry(4, 3, f"{V}/a"), entry(5, 4, f"{V}/a/c")) == [
        4, 3, 2, 5,
    ]  # fmt: skip


def test_many_that_lie_upon_each_other() -> None:
    mounts = [entry(number, number - 1, f"{V}/x") for number in range(2, 5000)]
    assert ids(*mounts) == list(range(4999, 1, -1))
    assert ids(*reversed(mounts)) == list(range(4999, 1, -1))


def test_volumes_are_known_by_where_they_are() -> None:
    mounts = [
        entry(1, 0, f"{V}/x"),
        entry(2, 0, f"{V}/y/z"),
        entry(3, 0, "/pods/u/volumes/kubernetes.io~secret/s"),
        entry(4, 0, "/k/pods/u/volumes/kubernetes.io~nfs/n"),
        entry(5, 0, "/k/pods/u2/volumes/kubernetes.io~empty-dir/v/x"),
        entry(6, 0, "/k/pods/u/volume-subpaths/v/main/0"),
        entry(7, 0, "/k/pods/u/volumes/kubernetes.io~empty-dir"),
    ]
    assert volumes_with_mounts("u", mounts) == [V, "/pods/u/volumes/kubernetes.io~secret/s"]


def test_a_volume_is_the_outermost_directory_that_looks_like_one() -> None:
    """Whoever writes to a volume may make in it what looks like another, and mount memory of somebody else's there."""
    inner = f"{V}{V}"
    assert volumes_with_mounts("u", [entry(2, 1, inner, "tmpfs")]) == [V]
    assert ids(entry(2, 1, inner, "tmpfs")) == [2]


def test_no_uid_is_nobody_s() -> None:
    mounts = [entry(1, 0, "/k/pods//volumes/kubernetes.io~empty-dir/v/x"), entry(2, 0, f"{V}/x")]
    assert volumes_with_mounts("", mounts) == []
    assert volumes_with_mounts("k/pods/u", mounts) == []
    assert volumes_with_mounts(".", mounts) == []
