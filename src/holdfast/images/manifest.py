"""Manifests and indexes (OCI image-spec; Docker schema 2), checked strictly. Pure."""

import json
import platform
from dataclasses import dataclass, field
from typing import Any, Final

from holdfast.images.reference import is_digest
from holdfast.model.errors import InvalidArgument

LIMIT: Final = 4 * 1024 * 1024
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES: Final = (OCI_INDEX, DOCKER_LIST)
MANIFESTS: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
ACCEPT: Final = ", ".join((*INDEXES, *MANIFESTS))
LAYERS: Final = 128
ENTRIES: Final = 10_000
_LAYER_TYPES: Final = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_PACKED: Final = ("", "+gzip", ".gzip", "+zstd", ".zstd")
# Media types of layers that we can unpack; "" is one that is not said.
UNPACKABLE: Final = frozenset({"", *(kind + packed for kind in _LAYER_TYPES for packed in _PACKED)})
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
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Index:
    manifests: tuple[tuple[Descriptor, str], ...]  # with "os/architecture[/variant]" of each, "" when not said


def load_json(data: bytes) -> Any:
    """JSON from a stranger. Raises ValueError for whatever is wrong with it, its depth included."""
    try:
        return json.loads(data)
    except RecursionError as exc:
        raise ValueError("it is nested too deeply") from exc


def parse(data: bytes) -> Manifest | Index:
    """A manifest or an index. One that could be read as both is refused (GHSA-5j5w-g665-5m35)."""
    try:
        raw = load_json(data)
        if not isinstance(raw, dict) or raw.get("schemaVersion") != 2:
            raise InvalidArgument("manifest: schemaVersion is not 2")
        is_index, is_manifest = "manifests" in raw, "layers" in raw or "config" in raw
        if is_index == is_manifest:
            raise InvalidArgument("manifest: it is not clearly a manifest or an index")
        said = raw.get("mediaType", "")
        if said and said not in (INDEXES if is_index else MANIFESTS):
            raise InvalidArgument(f"manifest: media type {said!r} is not supported for what it holds")
        if is_index:
            return Index(tuple((_descriptor(entry), _platform(entry)) for entry in _list(raw["manifests"], ENTRIES)))
        layers = tuple(_descriptor(entry) for entry in _list(raw["layers"], LAYERS))
        for layer in layers:
            if layer.media_type not in UNPACKABLE:
                raise InvalidArgument(f"manifest: layers of media type {layer.media_type!r} are not supported")
        annotations = {str(key): str(value) for key, value in (raw.get("annotations") or {}).items()}
        return Manifest(_descriptor(raw["config"]), layers, annotations)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InvalidArgument(f"manifest: it is malformed: {exc}") from exc


def host_platform() -> str:
    machine = platform.machine()
    return f"linux/{_ARCHITECTURE.get(machine, machine)}"


def for_host(has: str) -> bool:
    """Whether something for platform `has` can run here, whatever variant it is for."""
    wanted = host_platform()
    return has == wanted or has.startswith(f"{wanted}/")


def choose(index: Index) -> Descriptor:
    """The manifest for this machine: the plain one, else the first variant. Raises InvalidArgument."""
    wanted = host_platform()
    fitting = [(has != wanted, descriptor) for descriptor, has in index.manifests if for_host(has)]
    if fitting:
        return min(fitting, key=lambda pair: pair[0])[1]
    if len(index.manifests) == 1 and not index.manifests[0][1]:
        return index.manifests[0][0]
    there = ", ".join(sorted({has for _, has in index.manifests if has})[:20]) or "nothing"
    raise InvalidArgument(f"image: there is none for {wanted}; there is: {there}")


def _list(value: Any, limit: int) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("a list is not one")
    if len(value) > limit:
        raise ValueError(f"{len(value)} entries are more than {limit}")
    return value


def _descriptor(entry: dict[str, Any]) -> Descriptor:
    digest, size = entry["digest"], entry["size"]
    if not isinstance(digest, str) or not is_digest(digest):
        raise ValueError(f"{digest!r} is not a sha256 digest")
    if type(size) is not int or not 0 <= size < 1 << 63:
        raise ValueError(f"size {size!r} of {digest}")
    annotations = tuple((str(key), str(value)) for key, value in (entry.get("annotations") or {}).items())
    return Descriptor(digest, size, str(entry.get("mediaType", "")), annotations)


def _platform(entry: dict[str, Any]) -> str:
    """arm64's only variant is not worth a word."""
    found = entry.get("platform") or {}
    if "os" not in found or "architecture" not in found:
        return ""
    name, variant = f"{found['os']}/{found['architecture']}", found.get("variant")
    return f"{name}/{variant}" if variant and (name, variant) != ("linux/arm64", "v8") else name
