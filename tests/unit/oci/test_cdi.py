"""CDI: what a spec file may say, which of several files wins, and what a spec becomes."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.errors import InvalidArgument
from holdfast.model.spec import DeviceNode
from holdfast.oci.cdi import Edits, File, Registry, apply, complete, parse, requested
from holdfast.proto import runtime_v1_pb2 as pb

NODE = DeviceNode("/dev/fuse", "c", 10, 229, 0o660, 0, 104)
SPEC: dict[str, Any] = {
    "process": {"env": ["A=1", "B=2"], "user": {"uid": 7, "gid": 8, "additionalGids": [8]}},
    "mounts": [{"destination": "/dev"}, {"destination": "/a/b"}, {"destination": "/old"}],
    "linux": {"devices": [{"path": "/dev/x", "major": 1}], "resources": {"devices": [{"allow": False}]}},
}


def document(*devices: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = [{"containerEdits": {"env": ["X=1"]}, **device} for device in devices] or [device("a")]
    return {"cdiVersion": "0.7.0", "kind": "vendor.com/class", "devices": made, **more}


def device(name: str, **edits: Any) -> dict[str, Any]:
    return {"name": name, "containerEdits": edits or {"env": ["X=1"]}}


def made(path: str, priority: int, *devices: dict[str, Any], **more: Any) -> File:
    return parse(document(*devices, **more), path, priority)


def applied(*devices: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The spec above with all devices of one file."""
    file = made("/f", 0, *devices, **more)
    edits = Registry([file]).edits(dict.fromkeys(file.devices, "field"))
    spec = copy.deepcopy(SPEC)
    apply(spec, complete(edits, lambda path: NODE if path == "/dev/fuse" else None))
    return spec


def test_what_a_config_asks_for() -> None:
    config = pb.ContainerConfig(annotations={"cdi.k8s.io/b": "v.com/c=2,v.com/c=1", "cdi.k8s.io/a": "v.com/c=3"})
    for name in ("v.com/c=1", "v.com/c=0", "v.com/c=1"):
        config.CDI_devices.add(name=name)
    assert requested(config) == {
        "v.com/c=1": "config.CDI_devices[0].name",
        "v.com/c=0": "config.CDI_devices[1].name",
        "v.com/c=3": "config.annotations[cdi.k8s.io/a]",
        "v.com/c=2": "config.annotations[cdi.k8s.io/b]",
    }


@pytest.mark.parametrize("name", ["", "gpu", "v/c", "v/c=", "=x", "/c=x", "v/=x", "v.com/c=a b", "-v/c=x", "v/c=x-"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^config\.CDI_devices\[0\]\.name: .* is not of the form"):
        requested(pb.ContainerConfig(CDI_devices=[pb.CDIDevice(name=name)]))
    with pytest.raises(InvalidArgument, match=r"^config\.annotations\[cdi\.k8s\.io/x\]: .* is not of the form"):
        requested(pb.ContainerConfig(annotations={"cdi.k8s.io/x": name}))


def test_environment() -> None:
    assert applied(device("a", env=["B=x=y", "C=3"]))["process"]["env"] == ["A=1", "B=x=y", "C=3"]


def test_device_nodes() -> None:
    nodes = [
        {"path": "/dev/x", "hostPath": "/dev/fuse", "permissions": "rw", "fileMode": 0o600, "uid": 0, "gid": 3},
        {"path": "/dev/fuse"},
        {"path": "/dev/y", "type": "u", "major": 7, "minor": 1, "permissions": "none"},
        {"path": "/pipe", "type": "p"},
    ]
    linux = applied(device("a", deviceNodes=nodes))["linux"]
    assert linux["devices"] == [
        {"path": "/dev/x", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 0, "gid": 3},
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "uid": 7, "gid": 8},
        {"path": "/dev/y", "type": "c", "major": 7, "minor": 1, "uid": 7, "gid": 8},
        {"path": "/pipe", "type": "p", "uid": 7, "gid": 8},
    ]
    assert linux["resources"]["devices"] == [
        {"allow": False},
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
    ]


@pytest.mark.parametrize("node", [{"path": "/dev/no"}, {"path": "/x", "hostPath": "/dev/fuse", "type": "b"}])
def test_a_node_that_the_host_does_not_have(node: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"^config\.CDI_devices: '/dev/(no|fuse)' is "):
        applied(device("a", deviceNodes=[node]))


def test_mounts_replace_what_is_there_and_parents_come_first() -> None:
    mounts = [
        {"hostPath": "/h", "containerPath": "/old", "options": ["ro", "bind"]},
        {"hostPath": "tmpfs", "containerPath": "/a", "type": "tmpfs"},
    ]
    assert applied(device("a", mounts=mounts))["mounts"] == [
        {"destination": "/dev"},
        {"destination": "/old", "type": "bind", "source": "/h", "options": ["ro", "bind"]},
        {"destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": []},
        {"destination": "/a/b"},
    ]


def test_hooks_groups_and_rdt() -> None:
    hook = {"hookName": "createContainer", "path": "/bin/x", "args": ["x", "y"], "env": ["P=1"], "timeout": 3}
    rdt = {"closID": "a", "l3CacheSchema": "L3:0=f", "enableCMT": True}
    spec = applied(device("a", hooks=[hook], additionalGids=[0, 5, 8, 5], intelRdt=rdt))
    expected = {"path": "/bin/x", "args": ["x", "y"], "env": ["P=1"], "timeout": 3}
    assert spec["hooks"] == {"createContainer": [expected]}
    assert spec["process"]["user"]["additionalGids"] == [8, 5]
    assert spec["linux"]["intelRdt"] == rdt


def test_what_all_devices_of_a_file_have_comes_once_and_first() -> None:
    common = {"env": ["ALL=1"], "hooks": [{"hookName": "poststop", "path": "/x"}]}
    spec = applied(device("a", env=["ALL=2"]), device("b"), containerEdits=common)
    assert spec["process"]["env"][-2:] == ["ALL=2", "X=1"]
    assert len(spec["hooks"]["poststop"]) == 1


def test_a_later_directory_wins() -> None:
    files = [made("/etc/v", 0, device("a", env=["FROM=etc"])), made("/run/v", 1, device("a", env=["FROM=run"]))]
    for order in (files, files[::-1]):
        assert Registry(order).edits({"vendor.com/class=a": ""}).env == ("FROM=run",)


def test_of_two_files_in_one_directory_neither_does() -> None:
    files = [made("/run/w", 1), made("/run/v", 1), made("/etc/v", 0)]
    with pytest.raises(InvalidArgument, match=r"^f\[1\]: the CDI device vendor.com/class=a .* by /run/v and /run/w$"):
        Registry(files).edits({"vendor.com/class=a": "f[1]"})


def test_an_unknown_device_is_named_with_what_could_not_be_read() -> None:
    with pytest.raises(InvalidArgument, match=r"^f: there is no CDI device v/c=x; /etc/cdi/x.json: it is torn$"):
        Registry([made("/a", 0)], {"/etc/cdi/x.json": "it is torn"}).edits({"v/c=x": "f"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cdiVersion": "2.0.0"}, "cdiVersion: '2.0.0' is not known"),
        ({"cdiVersion": None}, "cdiVersion: it is missing"),
        ({"kind": "vendor"}, "kind: 'vendor' is not of the form"),
        ({"kind": 5}, "kind: 5 is not of type str"),
        ({"devices": []}, "devices: there are none"),
        ({"devices": {}}, "devices: {} is not of type list"),
        ({"devices": ["a"]}, r"devices\[0\] is not an object"),
        ({"devices": [{"name": "a b"}]}, r"devices\[0\].name: 'a b' is no name"),
        ({"devices": [device("a"), device("a")]}, r"devices\[1\].name: 'a' is no name, or there twice"),
        ({"devices": [{"name": "a"}]}, r"devices\[0\].containerEdits: there are none"),
        ({"more": 1}, "there is no field 'more'"),
        ({"devices": [device("a", env=["A"])]}, r"containerEdits.env\[0\]: 'A' is no variable"),
        ({"devices": [device("a", env=["=A"])]}, r"env\[0\]: '=A' is no variable"),
        ({"devices": [device("a", env=["A=\0"])]}, r"env\[0\]: "),
        ({"devices": [device("a", deviceNodes=[{}])]}, r"deviceNodes\[0\].path: it is missing"),
        ({"devices": [device("a", deviceNodes=[{"path": "/x", "type": "z"}])]}, r"\.type: 'z' is not one of"),
        ({"devices": [device("a", deviceNodes=[{"path": "/x", "major": -1}])]}, r"\.major: -1 is out of range"),
        ({"devices": [device("a", deviceNodes=[{"path": "/x", "minor": True}])]}, r"\.minor: True is not of type int"),
        ({"devices": [device("a", deviceNodes=[{"path": "/x", "permissions": "x"}])]}, r"\.permissions: 'x' is not"),
        ({"devices": [device("a", deviceNodes=[{"path": "/x\0"}])]}, r"\.path: it has a NUL"),
        ({"devices": [device("a", mounts=[{"hostPath": "/x"}])]}, r"mounts\[0\].containerPath: it is missing"),
        ({"devices": [device("a", hooks=[{"hookName": "x", "path": "/x"}])]}, r"hooks\[0\].hookName: 'x' is not one"),
        ({"devices": [device("a", additionalGids=[-1])]}, "additionalGids: .* are not all group ids"),
        ({"devices": [device("a", intelRdt={"closID": "a/b"})]}, "intelRdt.closID: 'a/b' is no name"),
        ({"devices": [device("a", intelRdt={"schemata": ["x"]})]}, "intelRdt.schemata: the OCI runtimes here"),
        ({"devices": [device("a", netDevices=[{"name": "e"}])]}, "netDevices: network devices cannot be moved"),
        ({"cdiVersion": "0.6.0", "devices": [device("a", additionalGids=[1])]}, "needs at least 0.7.0, not 0.6.0"),
        ({"cdiVersion": "0.5.0", "annotations": {"a": "b"}}, "needs at least 0.6.0, not 0.5.0"),
        ({"cdiVersion": "0.5.0", "kind": "v.com/a.b"}, "needs at least 0.6.0"),
        ({"cdiVersion": "0.4.0", "devices": [device("0")]}, "needs at least 0.5.0"),
        (
            {"cdiVersion": "v0.3.0", "devices": [
                device("a", mounts=[{"hostPath": "a", "containerPath": "/a", "type": "tmpfs"}])
            ]},
            "needs at least 0.4.0, not v0.3.0",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(document() | changed, "/f", 0)


@pytest.mark.parametrize("version", ["0.1.0", "0.3.0", "v0.5.0", "1.0.0", "1.1.0"])
def test_versions_that_are_known(version: str) -> None:
    assert list(made("/f", 0, cdiVersion=version).devices) == ["vendor.com/class=a"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(
    ["cdiVersion", "kind", "devices", "containerEdits", "name", "env", "deviceNodes", "mounts", "hooks", "path"]
)


@given(st.dictionaries(KEYS, JSON | st.lists(st.dictionaries(KEYS, JSON, max_size=3), max_size=2), max_size=6))
def test_whatever_a_file_says_is_edits_or_refused(changed: dict[str, Any]) -> None:
    for one in (changed, document() | changed, document({"name": "a", "containerEdits": changed})):
        try:
            file = parse(one, "/f", 0)
        except ValueError:
            continue
        assert all(isinstance(edits, Edits) for edits in file.devices.values())
