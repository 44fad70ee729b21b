"""What foreign shims say, what they are given, and what they tell."""

from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from holdfast.model.errors import Damaged, InvalidArgument, Unavailable
from holdfast.proto import containerd_events_pb2 as events
from holdfast.proto import events_ttrpc_pb2, runc_options_pb2, runtime_options_pb2
from holdfast.runtime import handlers
from holdfast.runtime.foreign import Bootstrap, parse
from holdfast.runtime.told import SERVICE, Forwarded, Told, read
from holdfast.ttrpc.server import CallError


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (b"unix:///run/s/1", Bootstrap("/run/s/1")),
        (b"unix:///run/s/1\n", Bootstrap("/run/s/1")),
        (b'{"version":3,"address":"unix:///s","protocol":"ttrpc"}', Bootstrap("/s", 3)),
        (b'{"version":2,"address":"unix:///s","protocol":"ttrpc"}', Bootstrap("/s", 2)),
    ],
)
def test_addresses(said: bytes, found: Bootstrap) -> None:
    assert parse(said) == found


@pytest.mark.parametrize(
    "said",
    [
        b"", b"/run/s", b"unix://relative", b"unix://@abstract", b"{", b"{}", b'{"version":3,"address":7}',
        b'{"version":9,"address":"unix:///s"}', b'{"version":3,"address":"unix:///s","protocol":"grpc"}', b"\xff\xfe",
        b"unix:///a\0b", b"tcp://127.0.0.1:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(said: bytes) -> None:
    with pytest.raises(Damaged):
        parse(said)


def foreign(
    tmp_path: Path, name: str = "containerd-shim-runc-v2", systemd: bool = False, **table: object
) -> handlers.Handler:
    shim = tmp_path / name
    shim.write_text("")
    shim.chmod(0o755)
    found = handlers._foreign("my", {"shim": str(shim), **table}, tmp_path / "state", 7.0, systemd)
    assert found is not None
    return found


def test_runc_is_told_where_its_things_are(tmp_path: Path) -> None:
    found = foreign(tmp_path, binary="/bin/true", systemd=True)
    options = Any.FromString(found.options)
    assert options.type_url == "containerd.runc.v1.Options"
    said = runc_options_pb2.Options.FromString(options.value)
    assert (said.root, said.binary_name, said.systemd_cgroup) == (str(tmp_path / "state" / "oci"), "/bin/true", True)
    assert found.root == str(tmp_path / "state" / "oci" / "my"), "where the shim puts the name of the namespace"
    assert found.sandbox


def test_other_shims_are_told_what_the_configuration_says(tmp_path: Path) -> None:
    found = foreign(tmp_path, "containerd-shim-runsc-v1", options={"type_url": "t", "config_body": "x = 1"})
    options = Any.FromString(found.options)
    assert options.type_url == "runtimeoptions.v1.Options"
    assert runtime_options_pb2.Options.FromString(options.value).config_body == b"x = 1"
    assert foreign(tmp_path, "containerd-shim-kata-v2", sandbox_container=False).options == b""


def test_who_makes_the_cgroups_is_said_once(tmp_path: Path) -> None:
    found = foreign(tmp_path, binary="/bin/true", options={"systemd_cgroup": False})
    assert not runc_options_pb2.Options.FromString(Any.FromString(found.options).value).systemd_cgroup
    with pytest.raises(InvalidArgument, match="runtimes.my.options.systemd_cgroup: cgroup_driver says something else"):
        foreign(tmp_path, binary="/bin/true", options={"systemd_cgroup": True})


@pytest.mark.parametrize("options", [{"roots": "/x"}, {"root": 7}, {"systemd_cgroup": "yes"}, {"io_uid": -1}])
def test_options_that_do_not_fit_are_named(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=rf"runtimes.my.options.{next(iter(options))}"):
        foreign(tmp_path, binary="/bin/true", options=options)


def test_a_shim_that_is_missing_is_not_offered_but_known_and_may_come_back(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    found = handlers.find({"my": {"shim": str(shim)}}, "my", tmp_path, "unified", 1.0)
    assert "my" not in found.all
    assert found.get("").root == str(tmp_path / "oci" / "my"), "its pods are still its own"
    with pytest.raises(Unavailable, match=f"no program {shim}"):
        found.usable("my")
    shim.write_text("")
    shim.chmod(0o755)
    assert found.usable("my").shim == str(shim)


def test_an_oci_runtime_that_is_missing_is_not_offered_but_known_and_may_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = handlers.find({}, "auto", tmp_path, "unified")
    assert (found.all, found.default) == ({}, "crun")
    with pytest.raises(Unavailable, match="no program crun"):
        found.usable("")
    (tmp_path / "crun").write_text("")
    (tmp_path / "crun").chmod(0o755)
    assert found.usable("").binary == str(tmp_path / "crun")
    with pytest.raises(InvalidArgument, match="'nonsense' is configured"):
        found.get("nonsense")
    with pytest.raises(Unavailable, match="'nonsense'"):
        handlers.find({}, "nonsense", tmp_path, "unified")


def forwarded(event: object, prefix: str = "") -> events_ttrpc_pb2.ForwardRequest:
    request = events_ttrpc_pb2.ForwardRequest()
    request.envelope.event.type_url = f"{prefix}{event.DESCRIPTOR.full_name}"  # type: ignore[attr-defined]
    request.envelope.event.value = event.SerializeToString()  # type: ignore[attr-defined]
    return request


def test_what_is_told() -> None:
    assert read(forwarded(events.TaskExit(container_id="c", id="c"))) == Told("TaskExit", "c")
    assert read(forwarded(events.TaskExit(container_id="c", id="e"))) == Told("TaskExit", "c", "e")
    assert read(forwarded(events.TaskExecStarted(container_id="c", exec_id="e"))) == Told("TaskExecStarted", "c", "e")
    assert read(forwarded(events.TaskOOM(container_id="c"), "types.googleapis.com/")) == Told("TaskOOM", "c")
    assert read(forwarded(events.TaskIO())) is None
    assert read(forwarded(Any())) is None


async def test_what_cannot_be_read_is_taken_all_the_same() -> None:
    heard: list[Told] = []
    service = Forwarded(heard.append)
    broken = forwarded(events.TaskExit(container_id="c"))
    broken.envelope.event.value = b"\xff"
    for payload in (b"\xff\xff", broken.SerializeToString(), forwarded(events.TaskIO()).SerializeToString()):
        await service.handle(SERVICE, "Forward", payload)
    assert not heard
    await service.handle(SERVICE, "Forward", forwarded(events.TaskExit(container_id="c")).SerializeToString())
    assert heard == [Told("TaskExit", "c")]
    with pytest.raises(CallError):
        await service.handle(SERVICE, "Publish", b"")
