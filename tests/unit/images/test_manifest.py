"""Manifests and indexes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.images import manifest
from holdfast.images.manifest import Descriptor, Index, Manifest
from holdfast.model.errors import InvalidArgument

DIGEST = "sha256:" + "a" * 64
ENTRY = {"digest": DIGEST, "size": 7}


def document(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


def test_manifest() -> None:
    layer = {**ENTRY, "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "annotations": {"a": "b"}}
    found = manifest.parse(document(config=ENTRY, layers=[layer], mediaType=manifest.OCI_MANIFEST))
    assert found == Manifest(Descriptor(DIGEST, 7), (Descriptor(DIGEST, 7, layer["mediaType"], (("a", "b"),)),))


@pytest.mark.parametrize(
    "fields",
    [
        {"config": ENTRY, "layers": [], "manifests": []},
        {"config": ENTRY, "manifests": []},
        {"layers": []},
        {"config": ENTRY},
        {"config": ENTRY, "layers": {}},
        {"config": ENTRY, "layers": [1]},
        {"config": [], "layers": []},
        {"config": ENTRY, "layers": [ENTRY] * 129},
        {"config": ENTRY, "layers": [{**ENTRY, "digest": "sha256:../../etc/passwd"}]},
        {"config": ENTRY, "layers": [{**ENTRY, "digest": 1}]},
        {"config": ENTRY, "layers": [{**ENTRY, "size": -1}]},
        {"config": ENTRY, "layers": [{**ENTRY, "size": True}]},
        {"config": ENTRY, "layers": [{**ENTRY, "size": 1e3}]},
        {"config": ENTRY, "layers": [{**ENTRY, "size": 1 << 63}]},
        {"config": ENTRY, "layers": [{**ENTRY, "annotations": [1]}]},
        {"config": ENTRY, "layers": [{**ENTRY, "mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"}]},
        {"config": ENTRY, "layers": [], "mediaType": manifest.OCI_INDEX},
        {"manifests": [], "mediaType": manifest.OCI_MANIFEST},
        {"manifests": [], "mediaType": ["x"]},
        {"manifests": [{**ENTRY, "platform": 5}]},
        {"manifests": [ENTRY] * 10_001},
    ],
)
def test_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="^manifest: "):
        manifest.parse(document(**fields))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda one: st.lists(one, max_size=3)
)


@given(st.dictionaries(st.sampled_from(["config", "layers", "manifests", "mediaType"]), JSON))
def test_whatever_comes_is_parsed_or_invalid(fields: dict[str, Any]) -> None:
    try:
        manifest.parse(document(**fields))
    except InvalidArgument as exc:
        assert str(exc).startswith("manifest: ")


def index(*platforms: str) -> Index:
    """The digest of each begins with its place."""
    return Index(tuple((Descriptor(f"sha256:{n:064x}", 1), one) for n, one in enumerate(platforms)))


@pytest.mark.parametrize(
    ("machine", "there", "place"),
    [
        ("x86_64", ("linux/arm64", "linux/amd64"), 1),
        ("x86_64", ("linux/amd64/v3", "windows/amd64", "linux/amd64"), 2),
        ("x86_64", ("unknown/unknown", "linux/amd64/v2", "linux/amd64/v3"), 1),
        ("aarch64", ("linux/amd64", "linux/arm64"), 1),
        ("armv7l", ("linux/amd64", "linux/arm64", "linux/arm/v7"), 2),
        ("x86_64", ("",), 0),
    ],
)
def test_choice(machine: str, there: tuple[str, ...], place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest.platform, "machine", lambda: machine)
    assert manifest.choose(index(*there)).digest == f"sha256:{place:064x}"


@pytest.mark.parametrize("there", [(), ("windows/amd64",), ("linux/amd64x",), ("", "")])
def test_no_choice(there: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest.platform, "machine", lambda: "x86_64")
    with pytest.raises(InvalidArgument, match="there is none for linux/amd64"):
        manifest.choose(index(*there))


def test_platform_of_an_entry() -> None:
    platforms = [
        {"os": "linux", "architecture": "arm64", "variant": "v8"},
        {"os": "linux", "architecture": "arm", "variant": "v7"},
        {},
    ]
    found = manifest.parse(document(manifests=[{**ENTRY, "platform": one} for one in platforms]))
    assert isinstance(found, Index)
    assert [platform for _, platform in found.manifests] == ["linux/arm64", "linux/arm/v7", ""]
