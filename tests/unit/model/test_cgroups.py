"""Names and places of cgroups, with either driver."""

import pytest

from holdfast.model import cgroups
from holdfast.model.cgroups import CGROUPFS, SYSTEMD
from holdfast.model.errors import InvalidArgument

FIELD = "config.linux.cgroup_parent"
ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.slice", "/a.slice"),
        ("a-b.slice", "/a.slice/a-b.slice"),
        (
            "kubepods-burstable-pod1_2.slice",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
        ),
    ],
)
def test_a_slice_is_below_those_of_which_its_name_begins(name: str, path: str) -> None:
    assert cgroups.slice_path(name) == path
    assert cgroups.check_parent(name, SYSTEMD, FIELD) == name
    assert cgroups.check_parent(path, SYSTEMD, FIELD) == name  # as a kubelet has it
    assert cgroups.parent_path(name) == path


@pytest.mark.parametrize(
    ("parent", "found"), [("/kubepods/pod1", "/kubepods/pod1"), ("/a/", "/a"), ("/a//b/./c", "/a/b/c"), ("//a", "/a")]
)
def test_a_path(parent: str, found: str) -> None:
    assert cgroups.check_parent(parent, CGROUPFS, FIELD) == found


@pytest.mark.parametrize(
    ("parent", "count", "found"),
    [
        ("/a/b/c", 0, []),
        ("/a/b/c", 1, ["/a/b/c"]),
        ("/a/b/c", 2, ["/a/b/c", "/a/b"]),
        ("/a/b/c", 9, ["/a/b/c", "/a/b", "/a"]),
        ("a-b.slice", 9, ["/a.slice/a-b.slice"]),
        ("a-b.slice", 0, []),
    ],
)
def test_the_end_of_a_path(parent: str, count: int, found: list[str]) -> None:
    assert cgroups.ends(parent, count) == found


@pytest.mark.parametrize(
    ("parent", "driver", "message"),
    [
        ("kubepods.slice", CGROUPFS, "'kubepods.slice' is not a path below the cgroup root, which cgroup_driver 'cgro"),
        ("/", CGROUPFS, "'/' is not a path"),
        ("/.", CGROUPFS, "is not a path"),
        ("/a/../..", CGROUPFS, "is not a path"),
        ("/kubepods/pod1", SYSTEMD, "'/kubepods/pod1' is not a slice such as 'kubepods-pod1.slice', which"),
        ("pod1", SYSTEMD, "'pod1' is not a slice"),
        ("-.slice", SYSTEMD, "'-.slice' is not a slice"),
        ("a--b.slice", SYSTEMD, "'a--b.slice' is not a slice"),
        ("-a.slice", SYSTEMD, "'-a.slice' is not a slice"),
        ("a b.slice", SYSTEMD, "is not a slice"),
        (f"{'a' * 250}.slice", SYSTEMD, "is not a slice"),
        ("/other.slice/a-b.slice", SYSTEMD, "is not where a-b.slice is, which is /a.slice/a-b.slice"),
        ("../a.slice", SYSTEMD, "is not where a.slice is"),
    ],
)
def test_a_parent_that_the_driver_cannot_have(parent: str, driver: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{FIELD}: .*{message}"):
        cgroups.check_parent(parent, driver, FIELD)


def test_containers_of_a_path() -> None:
    assert cgroups.path_of("/pods/", ID) == cgroups.oci_path("/pods", ID) == f"/pods/{ID}"
    assert cgroups.from_oci(f"/pods/{ID}") == f"/pods/{ID}"
    assert cgroups.below("/holdfast", ID) == f"/holdfast/{ID}"
    assert cgroups.unit_of(f"/pods/{ID}") == ""


def test_containers_of_a_slice() -> None:
    place = f"/a.slice/a-b.slice/holdfast-{ID}.scope"
    assert cgroups.path_of("a-b.slice", ID) == place
    assert cgroups.oci_path("a-b.slice", ID) == f"a-b.slice:holdfast:{ID}"
    assert cgroups.from_oci(f"a-b.slice:holdfast:{ID}") == place
    assert cgroups.unit_of(place) == f"holdfast-{ID}.scope"
    assert cgroups.below("holdfast.slice", ID) == f"holdfast-{ID}.slice"
    assert cgroups.parent_path(f"holdfast-{ID}.slice") == f"/holdfast.slice/holdfast-{ID}.slice"


@pytest.mark.parametrize("path", ["", "relative", "a:b", "a:b:c", "a.slice:b:c:d"])
def test_paths_that_only_the_runtime_knows(path: str) -> None:
    assert cgroups.from_oci(path) == ""


@pytest.mark.parametrize(
    ("name", "id"),
    [
        (ID, ID),
        (f"holdfast-{ID}.scope", ID),
        (f"holdfast-{ID}.slice", ID),
        (f"a-b-{ID}.slice", ID),
        ("kubepods.slice", ""),
        (f"x{ID}", ""),
        (ID[1:], ""),
        (f"{ID}.service", ""),
    ],
)
def test_the_id_in_a_name(name: str, id: str) -> None:
    assert cgroups.id_in(name) == id
