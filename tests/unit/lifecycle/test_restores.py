"""What a request has is held against what the processes of a checkpoint will look for."""

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.lifecycle.restores import compare
from holdfast.model.errors import InvalidArgument
from holdfast.proto import runtime_v1_pb2 as pb

SPEC: dict[str, Any] = {
    "process": {"terminal": False, "capabilities": {"bounding": ["CAP_CHOWN"]}},
    "linux": {"maskedPaths": ["/proc/kcore"]},
    "mounts": [
        {"destination": "/proc", "type": "proc"},
        {"destination": "/data/", "type": "bind", "source": "/old"},
    ],
}


def written(directory: Path, spec: Any = SPEC, stdio: dict[str, str] | None = None) -> Path:
    (directory / "checkpoint").mkdir(exist_ok=True)
    (directory / "spec.dump").write_text(json.dumps(spec))
    if stdio is not None:
        (directory / "checkpoint/holdfast-stdio.json").write_text(json.dumps(stdio))
    return directory


def test_other_sources_and_other_words_are_the_requests(tmp_path: Path) -> None:
    mounts = [SPEC["mounts"][0], {"destination": "/data", "type": "bind", "source": "/new"}]
    compare(written(tmp_path), {**SPEC, "mounts": mounts}, pb.ContainerConfig())


@pytest.mark.parametrize(
    ("mounts", "why"),
    [
        ([], "has something mounted at /data"),
        ([*SPEC["mounts"], {"destination": "/more", "type": "bind"}], "has nothing mounted at /more"),
    ],
)
def test_mounts_are_the_same_places(tmp_path: Path, mounts: list[Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        compare(written(tmp_path), {**SPEC, "mounts": mounts}, pb.ContainerConfig())


@pytest.mark.parametrize(
    ("stdio", "config", "why"),
    [
        ({}, pb.ContainerConfig(tty=True), "config.tty"),
        ({"stdout": "file[1:2]"}, pb.ContainerConfig(stdin=True), "config.stdin: the checkpoint was made without it"),
        ({"stdin": "file[1:2]"}, pb.ContainerConfig(), "config.stdin: the checkpoint was made with it"),
        ({"stdin": "inherit-fd fd[0]:x"}, pb.ContainerConfig(stdin=True), "is no file of CRIU's"),
    ],
)
def test_streams_are_of_the_same_kinds(
    tmp_path: Path, stdio: dict[str, str], config: pb.ContainerConfig, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        compare(written(tmp_path, stdio=stdio), SPEC, config)


def test_images_of_others_say_nothing_of_streams(tmp_path: Path) -> None:
    compare(written(tmp_path), SPEC, pb.ContainerConfig(stdin=True))


@pytest.mark.parametrize("spec", [[], {}, {"mounts": 1, "process": {}}, {**SPEC, "process": []}, "x"])
def test_specs_that_are_none(tmp_path: Path, spec: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"spec\.dump"):
        compare(written(tmp_path, spec), SPEC, pb.ContainerConfig())


def test_rights_are_looked_at(tmp_path: Path) -> None:
    (written(tmp_path) / "checkpoint/core-1.img").write_bytes(b"\0" * 9)
    with pytest.raises(InvalidArgument, match="cannot read CRIU's images"):
        compare(tmp_path, SPEC, pb.ContainerConfig())
    (tmp_path / "checkpoint/core-1.img").unlink()
    (tmp_path / "checkpoint/apparmor.img").touch()
    with pytest.raises(InvalidArgument, match="wants more than the request gives"):
        compare(tmp_path, SPEC, pb.ContainerConfig())
