"""Network configurations: what is read, what each plugin is told, and what is refused with which words."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.errors import HoldfastError, InvalidArgument
from holdfast.network.conf import addresses, parse

LIST = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}


def text(**changes: Any) -> str:
    return json.dumps({key: value for key, value in (LIST | changes).items() if value is not None})


def test_a_list() -> None:
    found = parse(text(disableCheck=True), "a.conflist")
    assert (found.name, found.version, found.source) == ("net", (1, 0, 0), "a.conflist")
    assert (found.checks, found.collects, found.tells_status) == (False, False, False)
    newest = parse(text(cniVersion="1.1.0"), "x")
    assert (newest.checks, newest.collects, newest.tells_status) == (True, True, True)
    assert not parse(text(cniVersion="1.1.0", disableGC=True), "x").collects
    assert not parse(text(cniVersion="0.3.1"), "x").checks


def test_a_single_plugin_is_a_list_of_one() -> None:
    found = parse('{"cniVersion": "0.4.0", "name": "one", "type": "bridge", "ipam": {"type": "static"}}', "a.conf")
    assert found.raw["plugins"] == [{"type": "bridge", "ipam": {"type": "static"}}]
    assert (found.name, found.raw["cniVersion"]) == ("one", "0.4.0")


@pytest.mark.parametrize(
    ("version", "versions", "chosen"),
    [("1.0.0", None, "1.0.0"), ("0.4.0", ["0.3.1", "1.1.0"], "1.1.0"), (None, ["2.0.0", "0.3.1"], "0.3.1")],
)
def test_the_highest_version_that_both_know(version: str | None, versions: list[str] | None, chosen: str) -> None:
    found = parse(text(cniVersion=version, cniVersions=versions), "x")
    assert found.raw["cniVersion"] == chosen
    assert "cniVersions" not in found.raw


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "f: it is not JSON"),
        ("[]", "f: it is not an object"),
        (text(name="../x"), "f: name: '../x' is not a network's name"),
        (text(name=None), "f: name: None is not"),
        (text(cniVersion=None), "f: cniVersion: must be set"),
        (text(cniVersion="9.0.0"), "f: cniVersion: 9.0.0 is not known"),
        (text(cniVersions=1), "f: cniVersions: 1 is not a list"),
        (text(plugins=[]), "f: plugins: it is not a list, or is empty"),
        (text(plugins=["x"]), r"f: plugins\[0\]: it is not an object"),
        (text(plugins=[{"type": "a/b"}]), r"f: plugins\[0\]\.type: 'a/b' is not a plugin's name"),
        (text(plugins=[{"type": "a", "capabilities": {"x": 1}}]), r"f: plugins\[0\]\.capabilities: "),
    ],
)
def test_what_is_wrong_is_named(content: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        parse(content, "f")


@given(st.text(max_size=50) | st.recursive(st.none() | st.text(max_size=5), st.lists).map(json.dumps))
def test_whatever_is_in_a_file_is_a_list_or_refused(content: str) -> None:
    try:
        parse(content, "f")
    except HoldfastError as exc:
        assert str(exc).startswith("f: ")


def test_what_a_plugin_is_told() -> None:
    plugin = {"type": "a", "mtu": 9, "capabilities": {"dns": True, "mac": False}}
    found = parse(text(plugins=[plugin, {"type": "b", "capabilities": {"aliases": True}}]), "f")
    assert found.capabilities == {"dns", "aliases"}
    told = found.for_plugin(plugin, {"dns": 1, "mac": 2, "aliases": 3}, {"ips": []}, more=4)
    assert told == {
        "type": "a",
        "mtu": 9,
        "name": "net",
        "cniVersion": "1.0.0",
        "runtimeConfig": {"dns": 1},
        "prevResult": {"ips": []},
        "more": 4,
    }
    assert found.for_plugin({"type": "c"}, {"dns": 1}, None) == {"type": "c", "name": "net", "cniVersion": "1.0.0"}


def test_addresses_of_the_pods_own_interface() -> None:
    result = {
        "interfaces": [{"name": "br0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/ns"}],
        "ips": [
            {"address": "10.0.0.2/24", "interface": 2},
            {"address": "fd00::2/64", "interface": 2},
            {"address": "10.0.0.1/24", "interface": 0},
            {"address": "10.9.0.1/24"},
        ],
    }
    assert addresses(result, "eth0") == ["10.0.0.2", "fd00::2", "10.9.0.1"]
    assert addresses({}, "eth0") == []
