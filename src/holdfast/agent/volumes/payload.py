"""What is in volumes of files: configMap, secret, downwardAPI, projected. Pure.

A key is a file's name unless items say otherwise. As a kubelet has it, what is named twice is the last one's, a key
that is missing is an error unless its source is optional, and what an optional source lacks is left out.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from holdfast.agent.pod.env import Facts, Missing, field_value, resource_value
from holdfast.agent.pod.spec import Pod
from holdfast.agent.pod.volumes import ConfigMapProjection, DownwardFile, KeyToPath, Projection, Volume

FIELDS = ("metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations")
LONGEST_NAME = 255  # bytes, of a file (path_resolution(7))
LONGEST_PATH = 1024


@dataclass(frozen=True, slots=True, order=True)
class File:
    """`path` is below the volume, without "." and ".."."""

    path: str
    content: bytes
    mode: int


Payload = tuple[File, ...]


def render(pod: Pod, volume: Volume, facts: Facts) -> Payload:
    """The files of a volume, by path. Raises Missing for what is not there, ValueError for what cannot be a file."""
    if (config := volume.config_map) is not None:
        found = _of_data(pod, "ConfigMap", config.name, config.items, config.optional, config.default_mode, facts)
    elif (secret := volume.secret) is not None:
        found = _of_data(pod, "Secret", secret.secret_name, secret.items, secret.optional, secret.default_mode, facts)
    elif volume.downward_api is not None:
        found = _of_pod(pod, volume.downward_api.items, volume.downward_api.default_mode, facts)
    elif volume.projected is not None:
        mode = volume.projected.default_mode
        found = (one for source in volume.projected.sources for one in _of_source(pod, source, mode, facts))
    else:
        raise TypeError(f"volume {volume.name} holds no files")
    return _checked(found)


def digest(payload: Payload) -> str:
    """The same for the same files, and for no others."""
    found = hashlib.sha256()
    for one in payload:
        found.update(f"{len(one.path.encode())} {len(one.content)} {one.mode:o} {one.path}".encode() + one.content)
    return found.hexdigest()


def _of_source(pod: Pod, source: Projection, mode: int, facts: Facts) -> Iterator[File]:
    def of(kind: str, one: ConfigMapProjection) -> Iterator[File]:
        return _of_data(pod, kind, one.name, one.items, one.optional, mode, facts)

    if source.config_map is not None:
        yield from of("ConfigMap", source.config_map)
    if source.secret is not None:
        yield from of("Secret", source.secret)
    if source.downward_api is not None:
        yield from _of_pod(pod, source.downward_api.items, mode, facts)


def _of_data(
    pod: Pod, kind: str, name: str, items: tuple[KeyToPath, ...], optional: bool, mode: int, facts: Facts
) -> Iterator[File]:
    found = facts.data.get((kind, pod.metadata.namespace, name))
    if found is None:
        if not optional:
            raise Missing(f"there is no {kind} {name!r}")
        return
    for item in items or [KeyToPath(key, key) for key in found.data]:
        if item.key in found.data:
            yield File(item.path, found.data[item.key], mode if item.mode is None else item.mode)
        elif not optional:
            raise Missing(f"there is no key {item.key!r} in {kind} {name!r}")


def _of_pod(pod: Pod, items: tuple[DownwardFile, ...], mode: int, facts: Facts) -> Iterator[File]:
    for item in items:
        yield File(item.path, _said(pod, item, facts).encode(), mode if item.mode is None else item.mode)


def _said(pod: Pod, item: DownwardFile, facts: Facts) -> str:
    if (field := item.field_ref) is not None:
        if field.field_path.partition("[")[0] not in FIELDS:
            raise Missing(f"fieldPath {field.field_path!r} cannot be a file: only {', '.join(FIELDS)} can")
        return field_value(pod, field, facts)
    assert item.resource_field_ref is not None
    if not item.resource_field_ref.container_name:
        raise Missing(f"file {item.path}: resourceFieldRef needs a containerName")
    return resource_value(pod, pod.spec.containers[0], item.resource_field_ref, facts)


def _checked(files: Iterable[File]) -> Payload:
    found: dict[str, File] = {}
    for one in files:
        parts = one.path.split("/")
        if not all(parts) or "." in parts or ".." in parts or one.path.startswith("..") or "\0" in one.path:
            raise ValueError(f"{one.path!r} is no name of a file in a volume")
        if any(len(part.encode()) > LONGEST_NAME for part in parts) or len(one.path.encode()) > LONGEST_PATH:
            raise ValueError(f"{one.path[:40]!r}... is too long for the name of a file")
        if one.mode > 0o777:
            raise ValueError(f"{one.path}: {one.mode:o} is no mode: at most 0777")
        found[one.path] = one
    for path in found:
        for end in (number for number, letter in enumerate(path) if letter == "/"):
            if path[:end] in found:
                raise ValueError(f"{path[:end]!r} is a file, and {path!r} is to be in it")
    return tuple(sorted(found.values()))
