"""What is found on the host: device nodes by path, and CDI's spec files by name."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from holdfast.lifecycle.devices import DEPTH, FILE_LIMIT, Devices, decode
from holdfast.model.errors import InvalidArgument
from holdfast.oci.cdi import Edits
from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import Handler

HANDLER = Handler("crun", "/usr/bin/crun", "/run/oci")


def spec(value: str = "1", name: str = "a") -> dict[str, Any]:
    device = {"name": name, "containerEdits": {"env": [f"X={value}"]}}
    return {"cdiVersion": "0.5.0", "kind": "v.com/c", "devices": [device]}


def config(*names: str, **fields: Any) -> pb.ContainerConfig:
    return pb.ContainerConfig(CDI_devices=[pb.CDIDevice(name=name) for name in names], **fields)


def edits(found: Devices, *names: str) -> Edits:
    made = found.found(config(*(names or ("v.com/c=a",))), HANDLER)["cdi"]
    assert isinstance(made, Edits)
    return made


def paths(found: dict[str, Any]) -> list[list[str]]:
    return [[node.path for node in nodes] for nodes in found["devices"]]


def test_json_and_yaml_of_all_directories(tmp_path: Path) -> None:
    etc, run, gone = tmp_path / "etc", tmp_path / "run", tmp_path / "gone"
    etc.mkdir()
    run.mkdir()
    (etc / "one.json").write_text(json.dumps(spec()))
    (etc / "two.yaml").write_text(
        "cdiVersion: 0.5.0\nkind: v.com/c\ndevices:\n- name: b\n  containerEdits: {env: [Y=1]}\n"
    )
    (etc / "three.txt").write_text("whatever")
    (etc / "sub").mkdir()
    (etc / "sub/x.json").write_text(json.dumps(spec(name="x")))
    found = Devices([etc, run, gone])
    assert edits(found, "v.com/c=a", "v.com/c=b").env == ("X=1", "Y=1")
    (run / "one.json").write_text(json.dumps(spec("2")))
    assert edits(found).env == ("X=2",)
    (run / "one.json").unlink()
    assert edits(found).env == ("X=1",)
    with pytest.raises(InvalidArgument, match=r"^config\.CDI_devices\[0\]\.name: there is no CDI device v.com/c=x$"):
        edits(found, "v.com/c=x")


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    found = Devices([tmp_path])
    for value in ("1", "22", "33"):
        (tmp_path / "new").write_text(json.dumps(spec(value)))
        (tmp_path / "new").rename(tmp_path / "a.json")
        assert edits(found).env == (f"X={value}",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.json", b"{", "Expecting property name"),
        ("bad.json", b"[" * 100_000, "nested too deeply"),
        ("bad.json", b"\xff", "invalid start byte|can't decode"),
        ("bad.yaml", b"a: [", "while parsing"),
        ("bad.yaml", b"a: &a [1]\nb: [*a, *a]\n", r"it has an alias, \*a"),
        ("bad.yaml", b"[" * (DEPTH + 1), "nested too deeply"),
        ("bad.yaml", b"a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        ("bad.json", b" " * (FILE_LIMIT + 1), "File too large"),
    ],
)
def test_a_bad_file_stands_in_nobodys_way_and_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.json").write_text(json.dumps(spec()))
    found = Devices([tmp_path])
    assert edits(found).env == ("X=1",)
    with pytest.raises(InvalidArgument, match=f"there is no CDI device v.com/c=no; {tmp_path}/{name}: .*({message})"):
        edits(found, "v.com/c=no")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InvalidArgument, match="pipe.json: not a regular file"):
        edits(Devices([tmp_path]))


def test_a_number_in_yaml_is_read_as_it_is_there() -> None:
    assert decode(b"fileMode: 0660\nuid: 5\n", ".yaml") == {"fileMode": 0o660, "uid": 5}


def test_a_device_by_its_path_and_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    asked = config(devices=[
        pb.Device(host_path="/dev/null", container_path="/dev/n"),
        pb.Device(host_path=str(tmp_path / "link"), container_path="/dev/l"),
        pb.Device(host_path="/dev/zero"),
    ])  # fmt: skip
    found = Devices([]).found(asked, HANDLER)
    assert paths(found) == [["/dev/n"], ["/dev/l"], ["/dev/zero"]]
    node = found["devices"][1][0]
    assert (node.type, node.major, node.minor, node.mode, node.uid) == ("c", 1, 3, 0o666, 0)
    assert found["host_devices"] == ()


@pytest.mark.parametrize("path", ["/dev/no-such", "/etc/passwd", "/dev/null/x"])
def test_what_is_no_device_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^config\.devices\[0\]\.host_path: '{path}' is not a device"):
        Devices([]).found(config(devices=[pb.Device(host_path=path, container_path="/x")]), HANDLER)


def test_a_directory_with_too_much_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.lifecycle.devices.MOST", 3)
    for number in range(4):
        (tmp_path / str(number)).touch()
    with pytest.raises(InvalidArgument, match=r"config\.devices\[0\]\.host_path: there are more than 3 files below"):
        Devices([]).found(config(devices=[pb.Device(host_path=str(tmp_path), container_path="/x")]), HANDLER)


def test_a_privileged_container_gets_all_devices_unless_its_handler_says_otherwise() -> None:
    asked = config()
    asked.linux.security_context.privileged = True
    host = [node.path for node in Devices([]).found(asked, HANDLER)["host_devices"]]
    assert "/dev/null" in host
    assert not [path for path in host if path.startswith(("/dev/pts", "/dev/shm", "/dev/console"))]
    for everything in (False, True):
        handler = Handler("crun", "", "", host_devices=False, all_devices=everything)
        found = Devices([]).found(asked, handler)
        assert (found["host_devices"], found["all_devices"]) == ((), everything)


def test_nothing_is_looked_up_that_was_not_asked_for() -> None:
    assert not Devices([]).wanted(config())
    assert Devices([]).wanted(config("v.com/c=a"))
    assert Devices([]).wanted(config(annotations={"cdi.k8s.io/x": "v.com/c=a"}))
