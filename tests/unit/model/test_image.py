"""Config blobs: what they say, and what they must not get away with."""

import json
from typing import Any

import pytest

from holdfast.model.errors import InvalidArgument
from holdfast.model.image import Image, parse_config

DIFF_ID = "sha256:" + "a" * 64


def parse(config: Any = None, diff_ids: Any = (DIFF_ID,)) -> Image:
    raw = {"config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    return parse_config("sha256:id", json.dumps(raw).encode(), 5, ("a:1",), ("a@sha256:x",))


def test_all_of_it() -> None:
    image = parse(
        {
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["true"],
            "Env": ["A=1", "B="],
            "WorkingDir": "/w",
            "User": "1:2",
            "StopSignal": "SIGRTMIN+3",
            "Volumes": {"/data": {}},
            "Labels": {"a": "b"},
        }
    )
    assert (image.entrypoint, image.cmd, image.env) == (("/bin/sh", "-c"), ("true",), ("A=1", "B="))
    assert (image.workdir, image.user, image.stop_signal) == ("/w", "1:2", "SIGRTMIN+3")
    assert (image.volumes, image.diff_ids, image.size) == (("/data",), (DIFF_ID,), 5)


@pytest.mark.parametrize("config", [None, {}, {"Cmd": None, "Volumes": None, "User": None}])
def test_nothing_said(config: Any) -> None:
    assert parse(config).cmd == ()


@pytest.mark.parametrize(
    ("path", "clean"),
    [("/../../etc", "/etc"), ("../../etc", "/etc"), ("//a//b/", "/a/b"), ("/a/./b/../c", "/a/c"), ("a", "/a")],
)
def test_volumes_stay_in_the_container(path: str, clean: str) -> None:
    """CVE-2022-23648: such a path was joined to the container's root and copied from the host."""
    assert parse({"Volumes": {path: {}}}).volumes == (clean,)


@pytest.mark.parametrize(
    "config",
    [5, "x", ["x"], {"Cmd": "true"}, {"Cmd": [1]}, {"Env": {}}, {"User": 0}, {"WorkingDir": []}, {"Volumes": ["/a"]}]
    + [{"Volumes": "/a"}, {"Entrypoint": [["a"]]}],
)
def test_malformed(config: Any) -> None:
    with pytest.raises(InvalidArgument, match="its config is malformed"):
        parse(config)


@pytest.mark.parametrize("diff_ids", [None, 5, ["x"], ["sha256:x"], [DIFF_ID + "\n"], [5], "container"])
def test_diff_ids_name_layers_and_nothing_else(diff_ids: Any) -> None:
    """The first one is a snapshot's key as it stands: it could name another container's writable layer."""
    if diff_ids is None:
        assert parse({}, diff_ids).diff_ids == ()
    else:
        with pytest.raises(InvalidArgument, match="its config is malformed"):
            parse({}, diff_ids)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"5", b"[" * 200_000, b'{"rootfs":5}', b"{}", b"\xff"])
def test_not_even_a_config(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="its config is malformed"):
        parse_config("sha256:id", data, 0, (), ())
