"""What containerd asks for on a command line, which group a container belongs to, and which OCI runtime it gets."""

import os
import stat
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message

from holdfast.linux import cgroup, sockets
from holdfast.proto import runc_options_pb2, runtime_options_pb2
from holdfast.workers.containerd import options
from holdfast.workers.containerd.group import Group, name_of, read_spec, sweep
from holdfast.workers.containerd.request import UsageError, parse, understand

HERE = Path("/bundle")
START = ["-namespace", "ns", "-address", "/c.sock", "-publish-binary", "/containerd", "-id", "one", "start"]


def test_a_start_as_containerd_writes_it() -> None:
    request = understand(*parse(START), {"TTRPC_ADDRESS": "/c.sock.ttrpc"}, HERE)
    assert (request.verb, request.id, request.namespace) == ("start", "one", "ns")
    assert (request.address, request.events, request.bundle) == ("/c.sock", "/c.sock.ttrpc", HERE)
    assert request.state == Path("/run/holdfast-shim")


def test_a_delete_names_its_bundle() -> None:
    words = ["--namespace=ns", "-id=one", "-bundle", "/other", "-debug", "delete"]
    request = understand(*parse(words), {"GRPC_ADDRESS": "/c.sock", "HOLDFAST_SHIM_STATE": "/s"}, HERE)
    assert (request.verb, request.bundle, request.address, request.events) == ("delete", Path("/other"), "/c.sock", "")
    assert request.state == Path("/s")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["start"],
        ["-namespace", "ns", "start"],
        ["-namespace", "ns", "-id", "a/b", "start"],
        ["-namespace", "ns", "-id", "..", "start"],
        ["-namespace", "", "-id", "one", "start"],
        ["-namespace", "ns", "-id", "one", "run"],
        ["-namespace", "ns", "-id"],
        ["-no-such-flag", "start"],
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        understand(*parse(words), {}, HERE)


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        (None, "one"),
        ({}, "one"),
        ({"io.kubernetes.cri.sandbox-id": "pod"}, "pod"),
        ({"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "group"}, "group"),
        ({"io.kubernetes.cri.sandbox-id": ""}, "one"),
    ],
)
def test_annotations_name_the_group(annotations: dict[str, str] | None, name: str) -> None:
    assert name_of({"annotations": annotations}, "one") == name


def test_groups_of_different_containerds_and_namespaces_are_different(tmp_path: Path) -> None:
    keys = [("/a", "ns", "one"), ("/b", "ns", "one"), ("/a", "other", "one"), ("/a", "ns", "two"), ("/a", "n", "sone")]
    assert len({Group.of(tmp_path, *key) for key in keys}) == len(keys)


def test_members_of_a_group(tmp_path: Path) -> None:
    group = Group.of(tmp_path, "/a", "ns", "pod")
    with group.locked():
        assert stat.S_IMODE(os.stat(group.directory).st_mode) == 0o700
        group.join("one", Path("/bundles/one"))
        group.join("two", Path("/bundles/two"))
        assert group.try_lock() is None
        (group.directory / "members/.two.0000").touch()  # half-written, by somebody who was killed
        assert group.members == {"one": "/bundles/one", "two": "/bundles/two"}
        assert not group.leave("one")
        assert not group.answers()
        assert group.leave("two")
        assert group.leave("two")
        group.remove()
    assert not group.directory.exists()
    assert group.try_lock() is None


def test_only_groups_that_nobody_will_ask_for_are_swept(tmp_path: Path) -> None:
    state, bundle = tmp_path / "state", tmp_path / "bundle"
    bundle.mkdir()
    names = ("lost", "has a bundle", "has a shim", "has a container", "is locked")
    groups = {name: Group.of(state, "/a", "ns", name) for name in names}
    for group in groups.values():
        with group.locked():
            group.join("one", tmp_path / "gone")
    with groups["has a bundle"].locked():
        groups["has a bundle"].join("two", bundle)
    (groups["has a container"].directory / "oci/one").mkdir(parents=True)
    with sockets.listen(groups["has a shim"].socket), groups["is locked"].locked():
        sweep(state)
    assert [name for name, group in groups.items() if not group.directory.exists()] == ["lost"]


def test_a_lock_whose_group_was_removed_meanwhile_is_none(tmp_path: Path) -> None:
    group = Group.of(tmp_path, "/a", "ns", "pod")
    with group.locked():
        group.remove()
        with group.locked():  # it is another one by now
            group.join("one", HERE)
    assert list(group.members) == ["one"]


def test_a_record_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    group = Group(tmp_path)
    assert group.read() == {}
    group.write({"pid": 7})
    assert group.read() == {"pid": 7}
    (tmp_path / "shim.json").write_bytes(b"[")
    assert group.read() == {}
    (tmp_path / "config.json").write_bytes(b"\xff")
    assert read_spec(tmp_path) == {}


# -- options


def packed(message: Message, prefix: str = "") -> bytes:
    kind = f"{prefix}{message.DESCRIPTOR.full_name}"
    return Packed(type_url=kind, value=message.SerializeToString()).SerializeToString()


def test_options_of_containerds_own_shim() -> None:
    message = runc_options_pb2.Options(binary_name="crun", root="/r", systemd_cgroup=True)
    wanted = {"BinaryName": "crun", "Root": "/r", "SystemdCgroup": True}
    assert options.unpack(packed(message)) == wanted
    assert options.unpack(packed(message, "type.googleapis.com/")) == wanted


def test_options_in_toml(tmp_path: Path) -> None:
    text = b'BinaryName = "runc"\nSystemdCgroup = true\n'
    (tmp_path / "o.toml").write_bytes(text)
    by_path = runtime_options_pb2.Options(config_path=str(tmp_path / "o.toml"))
    for message in (by_path, runtime_options_pb2.Options(config_body=text)):
        assert options.unpack(packed(message)) == {"BinaryName": "runc", "SystemdCgroup": True}
    assert options.unpack(packed(runtime_options_pb2.Options())) == {}
    assert options.unpack(b"") == {}


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff",
        Packed(type_url="some.other.Options", value=b"").SerializeToString(),
        Packed(type_url="containerd.runc.v1.Options", value=b"\xff\xff").SerializeToString(),
        packed(runtime_options_pb2.Options(config_body=b"= no toml")),
        packed(runtime_options_pb2.Options(config_body=b"\xff")),
    ],
)
def test_options_that_make_no_sense(data: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        options.unpack(data)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runtimes in a PATH of their own."""
    for name in ("crun", "runc"):
        (tmp_path / name).touch(0o755)
    (tmp_path / "directory").mkdir()
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}")
    return tmp_path


def test_crun_is_the_first_choice_and_sees_no_second_cgroup_hierarchy(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "mode", lambda: "hybrid")
    chosen = options.choose({}, {}, "ns", Path("/d"))
    assert (chosen["binary"], chosen["root"]) == (str(programs / "crun"), "/d/oci")
    assert chosen["hide"] == ["/sys/fs/cgroup/unified"]
    (programs / "crun").unlink()
    chosen = options.choose({}, {}, "ns", Path("/d"))
    assert (chosen["name"], chosen["hide"], chosen["systemd"]) == ("runc", [], False)
    (programs / "runc").unlink()
    with pytest.raises(FileNotFoundError, match="crun and runc"):
        options.choose({}, {}, "ns", Path("/d"))


def test_a_runtime_that_is_asked_for(programs: Path) -> None:
    assert options.choose({"BinaryName": "runc", "Root": "/r"}, {}, "ns", Path("/d"))["root"] == "/r/ns"
    assert options.find(str(programs / "runc")) == str(programs / "runc")
    for wrong in ("no-such-runtime", "directory", "/nowhere/runc"):
        with pytest.raises(FileNotFoundError, match=wrong):
            options.find(wrong)


@pytest.mark.parametrize(
    ("path", "systemd"), [("/a/b", False), ("system.slice:cri:one", True), ("", False), ("/a:b:c", False)]
)
def test_a_cgroup_path_may_ask_for_systemd(programs: Path, path: str, systemd: bool) -> None:
    spec = {"linux": {"cgroupsPath": path}}
    assert options.choose({}, spec, "ns", Path("/d"))["systemd"] is systemd
