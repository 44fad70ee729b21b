"""Images as pure data: what a config blob says, checked, and what the node knows besides."""

import json
import posixpath
import re
from dataclasses import dataclass
from typing import Any, Final

from holdfast.model.errors import InvalidArgument

CONFIG_LIMIT: Final = 8 * 1024 * 1024
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class UnpackResult:
    """What unpacking a layer gave: the digest of its uncompressed tar, what it takes on disk, and its shape.

    The shape is as linux.tree has it, or "" from a worker of a release that did not tell.
    """

    diff_id: str
    bytes: int
    inodes: int
    shape: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of this node. `id` is the digest of its config; `size` what it takes compressed, in bytes."""

    id: str
    config: bytes
    size: int
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    diff_ids: tuple[str, ...] = ()
    pinned: bool = False


def parse_config(image_id: str, data: bytes, size: int, tags: tuple[str, ...], digests: tuple[str, ...]) -> Image:
    """An Image from its config blob (OCI image-spec, config.md). Raises InvalidArgument for one that is malformed."""
    try:
        raw = json.loads(data)
        config, rootfs = raw.get("config") or {}, raw["rootfs"]
        diff_ids = _strings(rootfs["diff_ids"], "rootfs.diff_ids")
        # They name snapshots: anything but a digest could name somebody else's.
        if bad := next((one for one in diff_ids if not _DIGEST.fullmatch(one)), None):
            raise ValueError(f"diff id {bad!r} is not a sha256 digest")
        volumes = config.get("Volumes") or {}
        if not isinstance(volumes, dict):
            raise TypeError("Volumes is not an object")
        return Image(
            id=image_id,
            config=data,
            size=size,
            tags=tags,
            digests=digests,
            entrypoint=_strings(config.get("Entrypoint"), "Entrypoint"),
            cmd=_strings(config.get("Cmd"), "Cmd"),
            env=_strings(config.get("Env"), "Env"),
            workdir=_string(config.get("WorkingDir"), "WorkingDir"),
            user=_string(config.get("User"), "User"),
            stop_signal=_string(config.get("StopSignal"), "StopSignal"),
            # A volume's path is a name inside the container, whatever dots it is written with.
            volumes=tuple(posixpath.normpath(f"/{path}").replace("//", "/") for path in volumes),
            diff_ids=diff_ids,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise InvalidArgument(f"cannot use image {image_id}: its config is malformed: {exc}") from exc


def _strings(value: Any, field: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{field} is not a list of strings")
    return tuple(value)


def _string(value: Any, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{field} is not a string")
    return value
