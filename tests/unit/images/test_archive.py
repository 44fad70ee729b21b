"""Image archives: both formats, and hostile ones. Members become blobs, never paths."""

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from kit.images import docker_archive, entry, image, index, oci_archive, tar

from holdfast.images import archive, manifest
from holdfast.images.content import Content
from holdfast.model.errors import InvalidArgument

LAYER = tar([entry("a", b"1")])


@pytest.fixture
def content(tmp_path: Path) -> Content:
    content = Content(tmp_path / "root")
    content.prepare()
    return content


async def load(content: Content, data: bytes, tmp_path: Path) -> list[archive.Found]:
    path = tmp_path / "archive"
    path.write_bytes(data)
    return await archive.load(path, content, lambda *_: None)


@pytest.mark.parametrize("whole", ["", "gzip"])
async def test_oci(content: Content, tmp_path: Path, whole: str) -> None:
    one, two = image([(LAYER, "gzip"), (LAYER, "zstd")], Env=["A=1"]), image([(LAYER, "")])
    data = oci_archive([(one, "docker.io/library/one:1"), (two, "")])
    found = await load(content, gzip.compress(data) if whole else data, tmp_path)
    assert [(each.names, each.digest) for each in found] == [
        (["docker.io/library/one:1"], one.manifest),
        ([], two.manifest),
    ]
    assert found[0].blobs == {digest: len(blob) for digest, blob in one.blobs.items()}
    assert sorted(content.digests()) == sorted({**one.blobs, **two.blobs})


async def test_oci_with_an_index_inside(content: Content, tmp_path: Path) -> None:
    made = image([(LAYER, "gzip")])
    other = made.descriptor(made.config, manifest.OCI_MANIFEST, platform={"os": "plan9", "architecture": "mips"})
    top = index(made, [other])
    made.manifest = top
    (found,) = await load(content, oci_archive([(made, "a:1")]), tmp_path)
    assert found.digest == top
    assert len(found.document.layers) == 1


@pytest.mark.parametrize("name", ["latest", "v1.2"])
async def test_a_bare_tag_names_nothing(content: Content, tmp_path: Path, name: str) -> None:
    (found,) = await load(content, oci_archive([(image([]), name)]), tmp_path)
    assert found.names == []


async def test_docker(content: Content, tmp_path: Path) -> None:
    one, two = image([(LAYER, ""), (LAYER, "gzip")]), image([(LAYER, "")], Cmd=["x"])
    found = await load(content, docker_archive([(one, ["a:1", "b:2"]), (two, [])]), tmp_path)
    assert [each.names for each in found] == [["a:1", "b:2"], []]
    assert [each.document.config.digest for each in found] == [one.config, two.config]
    assert [layer.digest for layer in found[0].document.layers] == one.layers


async def test_docker_with_layers_that_are_links(content: Content, tmp_path: Path) -> None:
    """Old versions wrote a layer that occurs twice as a link to its first place."""
    made = image([(LAYER, ""), (LAYER, "")])
    listed = [{"Config": "c.json", "RepoTags": None, "Layers": ["1/layer.tar", "2/layer.tar"]}]
    data = tar(
        [
            entry("c.json", made.blobs[made.config]),
            entry("1/layer.tar", LAYER),
            entry("2/layer.tar", type=tarfile.SYMTYPE, linkname="../1/layer.tar"),
            entry("manifest.json", json.dumps(listed).encode()),
        ]
    )
    (found,) = await load(content, data, tmp_path)
    assert [layer.digest for layer in found.document.layers] == made.layers


def with_index(document: Any) -> bytes:
    return tar([entry("index.json", document if isinstance(document, bytes) else json.dumps(document).encode())])


def with_manifest(document: Any, *more: tuple[Any, ...]) -> bytes:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return tar([entry("manifest.json", data), *more])


def cyclic() -> bytes:
    links = [entry(a, type=tarfile.SYMTYPE, linkname=b) for a, b in (("c", "d"), ("d", "c"))]
    return with_manifest([{"Config": "c", "Layers": []}], *links)


def damaged_blob() -> bytes:
    made = image([(LAYER, "gzip")])
    return oci_archive([(made, "a:1")]).replace(made.blobs[made.layers[0]], b"x" * len(made.blobs[made.layers[0]]))


def map_of_holes() -> bytes:
    """tarfile reads the whole map of a sparse member before anybody is asked whether there may be one."""
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    return tar([entry("index.json", b"1000000000\n" + b"1\n" * 3_000_000, pax=pax)])


DIGEST = "sha256:" + "0" * 64
HOSTILE = {
    "empty": b"",
    "no tar": b"x" * 2000,
    "cut off": oci_archive([(image([(LAYER, "")]), "a:1")])[:3000],
    "gzip cut off": gzip.compress(oci_archive([(image([(LAYER, "")]), "a:1")]))[:300],
    "neither": tar([entry("something", b"1")]),
    "index is no JSON": with_index(b"{"),
    "index is nested": with_index(b"[" * 500_000),
    "index is a manifest": with_index({"schemaVersion": 2, "config": {"digest": DIGEST, "size": 1}, "layers": []}),
    "index of nothing": with_index({"schemaVersion": 2, "manifests": []}),
    "blob is missing": with_index({"schemaVersion": 2, "manifests": [{"digest": DIGEST, "size": 1}]}),
    "manifest is no list": with_manifest(5),
    "manifest has odd entries": with_manifest([1, []]),
    "manifest without config": with_manifest([{"Layers": []}]),
    "manifest is nested": with_manifest(b"[" * 500_000),
    "tags are no list": with_manifest([{"Config": "manifest.json", "Layers": [], "RepoTags": 5}]),
    "member outside": with_manifest([{"Config": "/etc/passwd", "Layers": []}]),
    "link outside": with_manifest(
        [{"Config": "c", "Layers": []}], entry("c", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    ),
    "links in a circle": cyclic(),
    "config is a directory": with_manifest([{"Config": "d", "Layers": []}], entry("d")),
    "large index": with_index(b" " * (archive.INDEX_LIMIT + 1)),
    "map of holes": map_of_holes(),
    "old map of holes": tar([entry("index.json", b"{}", type=tarfile.GNUTYPE_SPARSE)]),
    "large header": tar([entry("x", b"", pax={"comment": "c" * 2_000_000}), entry("index.json", b"{}")]),
}


@pytest.mark.parametrize("name", ["map of holes", "old map of holes"])
async def test_maps_of_holes_are_not_read(content: Content, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="is sparse"):
        await load(content, HOSTILE[name], tmp_path)


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile(content: Content, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await load(content, HOSTILE[name], tmp_path)
    assert list(content.ingest.iterdir()) == []


async def test_too_many_members(content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MEMBERS", 5)
    with pytest.raises(InvalidArgument, match="more than 5 members"):
        await load(content, tar(entry(str(n), b"") for n in range(10)), tmp_path)


async def test_blobs_that_are_something_else_are_refused(content: Content, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="what came is"):
        await load(content, damaged_blob(), tmp_path)
    assert list(content.ingest.iterdir()) == []


async def test_nothing_is_extracted(content: Content, tmp_path: Path) -> None:
    evil = [entry("../evil", b"x"), entry("/tmp/holdfast-evil", b"x")]
    assert await load(content, oci_archive([(image([(LAYER, "")]), "a:1")], evil), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "root"]
    assert not Path("/tmp/holdfast-evil").exists()
