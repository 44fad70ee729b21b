import json

import pytest

from holdfast.checkpoint import layout
from holdfast.model.archive import parse_deleted


@pytest.mark.parametrize(
    "name",
    ["config.dump", "spec.dump", "rootfs-diff.tar", "checkpoint/pages-1.img", "checkpoint/tmpfs-7.tar.gz.img"],
)
def test_what_a_container_has(name: str) -> None:
    assert layout.permits("container", name)
    assert layout.permits("pod", f"containers/web-1/{name}")
    assert not layout.permits("pod", name)


@pytest.mark.parametrize("name", ["shm.tar", "volumes/scratch.tar", "sandbox/checkpoint/checkpoint.img"])
def test_what_only_a_pod_has(name: str) -> None:
    assert layout.permits("pod", name)
    assert not layout.permits("container", name)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/config.dump", "./config.dump", "checkpoint/../config.dump", "checkpoint/../../etc/passwd",
        "checkpoint", "checkpoint/a/b", "checkpoint/", "checkpoint/.hidden", "checkpoint//a", "config.dump\n", "other",
        "checkpoint/a\0b", "checkpoint/" + "x" * 256, "checkpoint/-rf", "volumes/scratch", "volumes/.tar",
        "volumes/a/b.tar", "containers/web", "containers/web/other", "containers/../checkpoint/x",
        "sandbox/config.dump",
        "containers/web/containers/web/config.dump",
    ],
)  # fmt: skip
def test_what_no_archive_has(name: str) -> None:
    assert not layout.permits("container", name)
    assert not layout.permits("pod", name)


def test_config_dump_has_the_fields_that_others_look_for() -> None:
    found = json.loads(
        layout.config_dump("c" * 64, "web", "example.com/web:1", "sha256:ab", "runc", 1_700_000_000_000_000_001, 2)
    )
    assert found["id"] == "c" * 64
    assert found["name"] == "web"
    assert found["rootfsImageName"] == "example.com/web:1"
    assert found["rootfsImageRef"] == "sha256:ab"
    assert found["runtime"] == "runc"
    assert found["createdTime"] == "2023-11-14T22:13:20.000000001Z"
    assert found["checkpointedTime"] == "1970-01-01T00:00:00.000000002Z"


def test_network_status_is_a_list_of_cni_results() -> None:
    assert json.loads(layout.network_status([])) == []
    found = json.loads(layout.network_status(["10.1.2.3", "fd00::1"]))
    assert [one["address"] for one in found[0]["ips"]] == ["10.1.2.3/32", "fd00::1/128"]


def test_deleted_files_come_back_as_they_went() -> None:
    paths = ["etc/motd", "usr/share/\udcff", "with\nline"]
    assert parse_deleted(layout.deleted_files(paths)) == paths


@pytest.mark.parametrize(
    "data",
    [b"{}", b"[1]", b'[""]', b'["/"]', b'["../x"]', b'["/a/../../x"]', b'["a\\u0000b"]', b"[", b'["."]', b"\xff",
     json.dumps(["x" * 5000]).encode()],
)  # fmt: skip
def test_deleted_files_of_strangers(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_deleted(data)
