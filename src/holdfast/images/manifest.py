"""Manifests and indexes (OCI image-spec; Docker schema 2), checked strictly. Pure."""

import json
import platform
from dataclasses import dataclass
from typing import Any, Final

from holdfast.images.reference import is_digest
from holdfast.model.errors import InvalidArgument

LIMIT: Final = 4 * 1024 * 1024
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT: Final = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
LAYERS: Final = 128
_ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob somebody refers to."""

    digest: str
    size: int
    media_type: str = ""
    annotations: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    manifests: tuple[tuple[Descriptor, str], ...]  # with "os/architecture" of each, "" when not said


def parse(data: bytes) -> Manifest | Index:
    """A manifest or an index. One that could be read as both is refused (GHSA-5j5w-g665-5m35)."""
    try:
        raw = json.loads(data)
        if not isinstance(raw, dict) or raw.get("schemaVersion") != 2:
            raise InvalidArgument("manifest: schemaVersion is not 2")
        is_index, is_manifest = "manifests" in raw, "layers" in raw or "config" in raw
        if is_index == is_manifest:
            raise InvalidArgument("manifest: it is not clearly a manifest or an index")
        if is_index:
            return Index(tuple((_descriptor(entry), _platform(entry)) for entry in raw["manifests"]))
        layers = tuple(_descriptor(entry) for entry in raw["layers"])
        if len(layers) > LAYERS:
            raise InvalidArgument(f"manifest: {len(layers)} layers are more than {LAYERS}")
        return Manifest(_descriptor(raw["config"]), layers)
    except (ValueError, KeyError, TypeError) as exc:
        raise InvalidArgument(f"manifest: it is malformed: {exc}") from exc


def host_platform() -> str:
    machine = platform.machine()
    return f"linux/{_ARCHITECTURE.get(machine, machine)}"


def choose(index: Index) -> Descriptor:
    """The manifest for this machine. Raises InvalidArgument that says what there is."""
    wanted = host_platform()
    for descriptor, has in index.manifests:
        if has == wanted:
            return descriptor
    if len(index.manifests) == 1 and not index.manifests[0][1]:
        return index.manifests[0][0]
    there = ", ".join(sorted({has for _, has in index.manifests if has})) or "nothing"
    raise InvalidArgument(f"image: there is none for {wanted}; there is: {there}")


def _descriptor(entry: dict[str, Any]) -> Descriptor:
    digest, size = entry["digest"], entry["size"]
    if not isinstance(digest, str) or not is_digest(digest):
        raise ValueError(f"{digest!r} is not a sha256 digest")
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"size {size!r} of {digest}")
    annotations = tuple((str(key), str(value)) for key, value in (entry.get("annotations") or {}).items())
    return Descriptor(digest, size, str(entry.get("mediaType", "")), annotations)


def _platform(entry: dict[str, Any]) -> str:
    found = entry.get("platform") or {}
    return f"{found['os']}/{found['architecture']}" if "os" in found and "architecture" in found else ""
