"""Layers, images and archives made in memory, for the tests of images and of the unpacker."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import zstandard

from holdfast.images import manifest

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def entry(name: str, data: bytes | None = None, *, pax: dict[str, str] | None = None, **header: Any) -> tuple[Any, ...]:
    """One member; with neither data nor a type it is a directory."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    info.mode = 0o755 if data is None else 0o644
    info.size = len(data or b"")
    info.pax_headers = pax or {}
    for key, value in header.items():
        setattr(info, key, value)
    return info, data


def tar(entries: Iterable[tuple[Any, ...]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data) if data else None)
    return out.getvalue()


def pack(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, 1, mtime=0)
    return zstandard.compress(data) if how == "zstd" else data


@dataclass
class Made:
    """An image: its blobs by digest, and the digests of its manifest and config."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifest: str = ""
    config: str = ""
    layers: list[str] = field(default_factory=list)
    diff_ids: list[str] = field(default_factory=list)

    def add(self, data: bytes) -> str:
        digest = digest_of(data)
        self.blobs[digest] = data
        return digest

    def descriptor(self, digest: str, media_type: str, **more: Any) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest, "size": len(self.blobs[digest]), **more}


def image(layers: Iterable[tuple[bytes, str]], **config: Any) -> Made:
    """An OCI image of (tar, "gzip" | "zstd" | "") layers."""
    made, descriptors = Made(), []
    for data, how in layers:
        digest = made.add(pack(data, how))
        made.layers.append(digest)
        made.diff_ids.append(digest_of(data))
        descriptors.append(made.descriptor(digest, OCI_LAYER + (f"+{how}" if how else "")))
    operating_system, architecture = manifest.host_platform().split("/")
    document = {
        "architecture": architecture,
        "os": operating_system,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": made.diff_ids},
    }
    made.config = made.add(json.dumps(document).encode())
    top = {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_MANIFEST,
        "config": made.descriptor(made.config, OCI_CONFIG),
        "layers": descriptors,
    }
    made.manifest = made.add(json.dumps(top).encode())
    return made


def index(made: Made, others: Iterable[dict[str, Any]] = ()) -> str:
    """Put an index above an image, after `others`; returns its digest."""
    operating_system, architecture = manifest.host_platform().split("/")
    platform = {"os": operating_system, "architecture": architecture}
    own = made.descriptor(made.manifest, manifest.OCI_MANIFEST, platform=platform)
    document = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [*others, own]}
    return made.add(json.dumps(document).encode())


def oci_archive(images: Iterable[tuple[Made, str]], first: Iterable[tuple[Any, ...]] = ()) -> bytes:
    """An OCI layout tar of (image, name) pairs, "" for an image without a name, with other members before them."""
    blobs: dict[str, bytes] = {}
    tops = []
    for made, name in images:
        blobs |= made.blobs
        annotations = {"annotations": {"io.containerd.image.name": name}} if name else {}
        tops.append(made.descriptor(made.manifest, manifest.OCI_MANIFEST, **annotations))
    members = {f"blobs/sha256/{digest.removeprefix('sha256:')}": data for digest, data in blobs.items()}
    members["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": tops}).encode()
    return tar([*first, *(entry(name, data) for name, data in members.items())])


def docker_archive(images: Iterable[tuple[Made, list[str]]]) -> bytes:
    """What `docker save` writes: manifest.json, configs and layers by name."""
    members: dict[str, bytes] = {}
    listed = []
    for made, tags in images:
        config = f"{made.config.removeprefix('sha256:')}.json"
        layers = [f"{digest.removeprefix('sha256:')}/layer.tar" for digest in made.layers]
        members[config] = made.blobs[made.config]
        members |= {name: made.blobs[digest] for name, digest in zip(layers, made.layers, strict=True)}
        listed.append({"Config": config, "RepoTags": tags, "Layers": layers})
    members["manifest.json"] = json.dumps(listed).encode()
    return tar(entry(name, data) for name, data in members.items())
