"""What was applied through the agent's socket: a file for each object, in a directory that is a source like others."""

import base64
import json
import os
from pathlib import Path
from typing import Any, Final

from holdfast.agent.plan.actions import NS
from holdfast.agent.plan.status import moment
from holdfast.agent.pod.encode import encode
from holdfast.agent.pod.manifest import MOST_BYTES, Data, Manifest, parse
from holdfast.agent.sync.record import Record
from holdfast.linux import files

SOURCE: Final = "applied"  # by which uids are made
MOST: Final = 4 * MOST_BYTES  # of a file; what is not text takes more as JSON


CREATED, CONFIGURED, UNCHANGED = "created", "configured", "unchanged"  # kubectl's words


def read(text: bytes) -> Manifest:
    """What a pod does is not read, so that what was shown can be applied again. Raises Refused."""
    return parse(text, SOURCE)


def store(directory: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Write each object; returns their names and what has become of them.

    ConfigMaps and Secrets first: pods may need them. Raises OSError.
    """
    files.make_private(directory)
    objects = [(_name(one.kind, one.namespace, one.name), _plain(one)) for one in manifest.data]
    objects += [(_name("Pod", pod.metadata.namespace, pod.metadata.name), encode(pod)) for pod in manifest.pods]
    return [(name, _write(_place(directory, name), json.dumps(plain).encode())) for name, plain in objects]


def _write(path: Path, text: bytes) -> str:
    try:
        before = files.read_bounded(path, MOST)
    except FileNotFoundError:
        before = None
    if before == text:
        return UNCHANGED
    files.write_atomic(path, text)
    return CREATED if before is None else CONFIGURED


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


def shown(known: Record, status: dict[str, Any], node: str) -> dict[str, Any]:
    """A v1 Pod as Kubernetes would show it, as plain data."""
    found: dict[str, Any] = encode(known.pod)
    created: dict[str, Any] = {"namespace": str(known.pod.metadata.namespace)}
    if known.begun_at:
        created["creationTimestamp"] = moment(known.begun_at)
    if known.deleted_at:
        grace = known.pod.spec.termination_grace_period_seconds if known.grace is None else known.grace
        until = moment(known.deleted_at + grace * NS)
        created |= {"deletionTimestamp": until, "deletionGracePeriodSeconds": grace}
    spec = {**found["spec"], "nodeName": node}
    return {**found, "metadata": {**found["metadata"], **created}, "spec": spec, "status": status}
