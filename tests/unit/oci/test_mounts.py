"""What is mounted into a container, from the CRI's words; what of them is refused, and what is staged."""

from typing import Any

import pytest
from test_build import SECURE, container, mount, mounts, request, secured

from holdfast.model.errors import FailedPrecondition, InvalidArgument
from holdfast.oci.build import build
from holdfast.oci.mounts import check, check_propagation, image_volumes, is_staged
from holdfast.oci.request import Sources
from holdfast.proto import runtime_v1_pb2 as pb


def bind(place: str, **fields: Any) -> pb.Mount:
    return pb.Mount(container_path=place, host_path=f"/host{place}", **fields)


def of_image(place: str = "/a", **fields: Any) -> pb.Mount:
    wanted = {"container_path": place, "image": pb.ImageSpec(image="i"), "readonly": True} | fields
    return pb.Mount(**wanted)


def ids(*lines: tuple[int, int, int]) -> list[pb.IDMapping]:
    return [pb.IDMapping(container_id=inside, host_id=outside, length=length) for inside, outside, length in lines]


def test_mounts_replace_the_defaults_and_parents_come_first() -> None:
    config = container(
        mounts=[
            bind("/a/b/c"),
            bind("/etc/hosts", readonly=True),
            bind("//a/b/", readonly=True),
            bind("/a"),
            bind("/sys"),
        ]
    )
    places = [one["destination"] for one in build(request(config, hosts="/p/hosts"))["mounts"]]
    assert places.index("/a") < places.index("/a/b") < places.index("/a/b/c")
    assert places.count("/etc/hosts") == places.count("/sys") == 1
    found = mounts(request(config, hosts="/p/hosts"))
    assert found["/etc/hosts"] == mount("/etc/hosts", "bind", "/host/etc/hosts", "rbind", "rprivate", "ro")
    assert found["/a/b"]["options"] == ["rbind", "rprivate", "ro"]
    assert found["/sys"]["source"] == "/host/sys"
    assert "/sys/fs/cgroup" not in found, "whoever wants the host's /sys wants its cgroups"


def test_a_cgroup_mount_of_somebodys_own_goes_into_our_sys() -> None:
    found = mounts(request(container(mounts=[bind("/sys/fs/cgroup")])))
    assert found["/sys"]["type"] == "sysfs"
    assert found["/sys/fs/cgroup"]["source"] == "/host/sys/fs/cgroup"


def test_of_two_mounts_at_one_place_the_later_is_seen() -> None:
    config = container(mounts=[bind("/a"), pb.Mount(container_path="/a/", host_path="/later")])
    assert mounts(request(config))["/a"]["source"] == "/later"


def test_nothing_is_mounted_into_a_dev_of_somebodys_own() -> None:
    found = mounts(request(container(mounts=[bind("/dev"), bind("/dev/net")]), shm="/p/shm"))
    assert sorted(place for place in found if place.startswith("/dev")) == ["/dev", "/dev/net"]


def test_the_pods_files_go_into_an_etc_of_somebodys_own_unless_they_would_come_out_on_the_host() -> None:
    config = container(mounts=[bind("/etc")])
    places = list(mounts(request(config, hosts="/p/hosts")))
    assert places.index("/etc") < places.index("/etc/hosts")
    config = container(mounts=[bind("/etc", propagation=pb.PROPAGATION_BIDIRECTIONAL)])
    assert "/etc/hosts" not in mounts(request(config, hosts="/p/hosts"))


def test_shared_memory_is_the_pods_unless_somebody_has_his_own() -> None:
    shm = mounts(request(shm="/p/shm"))["/dev/shm"]
    assert shm == mount("/dev/shm", "bind", "/p/shm", "rbind", "rprivate", *SECURE)
    assert mounts(request(container(mounts=[bind("/dev/shm")]), shm="/p/shm"))["/dev/shm"]["source"] == "/host/dev/shm"


@pytest.mark.parametrize(
    ("asked", "options", "of_root"),
    [
        (pb.PROPAGATION_PRIVATE, "rprivate", None),
        (pb.PROPAGATION_HOST_TO_CONTAINER, "rslave", "rslave"),
        (pb.PROPAGATION_BIDIRECTIONAL, "rshared", "rshared"),
    ],
)
def test_propagation(asked: pb.MountPropagation, options: str, of_root: str | None) -> None:
    spec = build(request(container(mounts=[bind("/a", propagation=asked), bind("/b")])))
    assert next(one for one in spec["mounts"] if one["destination"] == "/a")["options"] == ["rbind", options, "rw"]
    assert spec["linux"].get("rootfsPropagation") == of_root


@pytest.mark.parametrize(
    ("asked", "found", "fits"),
    [
        (pb.PROPAGATION_PRIVATE, "private", True),
        (pb.PROPAGATION_PRIVATE, "shared", True),
        (pb.PROPAGATION_HOST_TO_CONTAINER, "private", False),
        (pb.PROPAGATION_HOST_TO_CONTAINER, "slave", True),
        (pb.PROPAGATION_HOST_TO_CONTAINER, "shared", True),
        (pb.PROPAGATION_BIDIRECTIONAL, "private", False),
        (pb.PROPAGATION_BIDIRECTIONAL, "slave", False),
        (pb.PROPAGATION_BIDIRECTIONAL, "shared", True),
    ],
)
def test_propagation_needs_a_mount_that_has_it(asked: pb.MountPropagation, found: str, fits: bool) -> None:
    one = bind("/a", propagation=asked)
    if fits:
        check_propagation(one, "config.mounts[0]", found, "/mnt")
        return
    words = rf"^config\.mounts\[0\]\.propagation: /host/a is on the mount at /mnt, which is {found} and not .*shared"
    with pytest.raises(FailedPrecondition, match=words):
        check_propagation(one, "config.mounts[0]", found, "/mnt")


def test_a_read_only_root_makes_the_pods_files_read_only_too() -> None:
    one = request(secured(readonly_rootfs=True), resolv_conf="/p/r", hostname_path="/p/h")
    assert build(one)["root"]["readonly"]
    assert mounts(one)["/etc/resolv.conf"]["options"][-1] == mounts(one)["/etc/hostname"]["options"][-1] == "ro"


def test_sources_are_those_that_were_found() -> None:
    config = container(mounts=[bind("/b"), of_image("/a")])
    found = mounts(request(config, sources=Sources(("/real/b", "/bundle/volumes/1/sub"))))
    assert found["/b"]["source"] == "/real/b"
    assert found["/a"] == mount("/a", "bind", "/bundle/volumes/1/sub", "rbind", "rprivate", "ro")
    assert image_volumes(config) == [1]


def test_a_recursive_read_only_mount_is_the_runtimes_or_staged() -> None:
    one = bind("/a", readonly=True, recursive_read_only=True)
    for able, access in ((True, "rro"), (False, "ro")):
        found = mounts(request(container(mounts=[one]), sources=Sources(("/x",), able)))
        assert found["/a"]["options"] == ["rbind", "rprivate", access]
        assert is_staged(one, able) is not able


def test_what_is_staged() -> None:
    mapped = bind("/a", uidMappings=ids((0, 1000, 1)), gidMappings=ids((0, 1000, 1)), readonly=True)
    assert is_staged(mapped, True)
    assert is_staged(of_image(), True)
    assert not is_staged(bind("/a", readonly=True), False)
    mapped.recursive_read_only = True
    found = mounts(request(container(mounts=[mapped]), sources=Sources(("/x",), True)))
    assert found["/a"]["options"][-1] == "ro", "the staged mount is recursively read-only already"


BAD: list[tuple[pb.Mount, str]] = [
    (pb.Mount(container_path="a", host_path="/a"), r"container_path: 'a' is not absolute"),
    (pb.Mount(container_path="/a", host_path="a"), r"host_path: 'a' is not absolute"),
    (pb.Mount(container_path="/a/..", host_path="/a"), "container_path: the root itself"),
    (bind("/a", recursive_read_only=True), "recursive_read_only: it needs readonly"),
    (bind("/a", recursive_read_only=True, readonly=True, propagation=1), "recursive_read_only: it needs"),
    (bind("/a", image_sub_path="x"), "image_sub_path: it needs an image"),
    (of_image(host_path="/a"), "host_path: it must be empty"),
    (of_image(image=pb.ImageSpec()), r"image\.image: must not be empty"),
    (of_image(readonly=False), "readonly: an image can be mounted read-only only"),
    (of_image(propagation=1), "propagation: that of an image can be private only"),
    (of_image(image_sub_path="/etc"), "image_sub_path: '/etc' is not a path below"),
    (of_image(image_sub_path="a/../../b"), "image_sub_path: 'a/../../b' is not a path below"),
    (bind("/a", uidMappings=ids((0, 1, 1))), "uidMappings: it needs gidMappings"),
    (bind("/a", gidMappings=ids((0, 1, 1))), "gidMappings: it needs uidMappings"),
    (bind("/a", uidMappings=ids((0, 1, 0)), gidMappings=ids((0, 1, 1))), "uidMappings: 0 from container_id 0 on"),
    (bind("/a", uidMappings=ids((0, 1, 1)), gidMappings=ids((0, 2**32 - 1, 2))), "gidMappings: 2 from host_id"),
    (
        bind("/a", uidMappings=ids((0, 10, 5), (4, 100, 1)), gidMappings=ids((0, 1, 1))),
        "uidMappings: container_id 4 is mapped twice",
    ),
    (
        bind("/a", uidMappings=ids((0, 10, 5), (9, 14, 1)), gidMappings=ids((0, 1, 1))),
        "uidMappings: host_id 14 is mapped twice",
    ),
    (bind("/a", uidMappings=ids(*((n, n, 1) for n in range(341))), gidMappings=ids((0, 1, 1))), "more than 340"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_what_is_not_valid_is_refused_by_its_field(bad: pb.Mount, message: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^config\.mounts\[3\]\.(.*){message}"):
        check(bad, "config.mounts[3]")
