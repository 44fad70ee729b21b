"""What was applied through the agent's socket: a file for each object, in a directory that is a source like others."""

import base64
import json
import os
from pathlib import Path
from typing import Any, Final

from holdfast.agent.pod.encode import encode
from holdfast.agent.pod.manifest import Data, Manifest, parse
from holdfast.agent.pod.spec import Pod
from holdfast.linux import files

SOURCE: Final = "applied"  # by which uids are made


def read(text: bytes) -> Manifest:
    """Raises Refused."""
    return parse(text, SOURCE)


def store(directory: Path, manifest: Manifest) -> list[str]:
    """Write each object; returns their names. ConfigMaps and Secrets first: pods may need them. Raises OSError."""
    files.make_private(directory)
    objects = [(_name(one.kind, one.namespace, one.name), _plain(one)) for one in manifest.data]
    objects += [(_name("Pod", pod.metadata.namespace, pod.metadata.name), encode(pod)) for pod in manifest.pods]
    for name, plain in objects:
        files.write_atomic(_place(directory, name), json.dumps(plain).encode())
    return [name for name, _ in objects]


def remove(directory: Path, kind: str, namespace: str, name: str) -> bool:
    """Whether it was there. Raises OSError, ValueError for what is no name."""
    for part in (kind, namespace, name):
        if not part or "/" in part or part.startswith("."):
            raise ValueError(f"{part!r} is no name")
    path = _place(directory, _name(kind, namespace, name))
    there = path.exists()
    files.unlink(path)
    if there:
        files.sync_directory(directory)
    return there


def is_applied(directory: Path, source: str) -> bool:
    return os.path.dirname(source) == os.fspath(directory)


def _name(kind: str, namespace: str, name: str) -> str:
    return f"{kind.lower()}/{namespace}/{name}"


def _place(directory: Path, name: str) -> Path:
    return directory / f"{name.replace('/', '_')}.json"  # which no name has in it


def _plain(one: Data) -> dict[str, Any]:
    data = {key: base64.b64encode(value).decode() for key, value in one.data.items()}
    field = "data" if one.kind == "Secret" else "binaryData"
    meta = {"name": one.name, "namespace": one.namespace}
    return {"apiVersion": "v1", "kind": one.kind, "metadata": meta, field: data}


def whole(pod: Pod, status: dict[str, Any]) -> dict[str, Any]:
    """A v1 Pod with its status, as plain data."""
    return {**encode(pod), "status": status}
