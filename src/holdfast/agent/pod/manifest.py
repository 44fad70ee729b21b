"""From the text of a manifest to pods, and to the ConfigMaps and Secrets that they take files and variables from.

One file may hold several documents. All of it is taken or none: a file of which half is refused would start half of
what belongs together.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, replace
from typing import Any, Final

import yaml

from holdfast.agent.pod.decode import Refused, decode, unknown
from holdfast.agent.pod.spec import Pod

MOST_BYTES: Final = 3 * 1024 * 1024  # as much as etcd would take
MOST_DOCUMENTS: Final = 1000


@dataclass(frozen=True, slots=True)
class Data:
    """A ConfigMap or a Secret."""

    kind: str
    namespace: str
    name: str
    data: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`warnings` name what is known and not honoured, by file position and path."""

    pods: tuple[Pod, ...] = ()
    data: tuple[Data, ...] = ()
    warnings: tuple[str, ...] = ()


class _Loader(yaml.CSafeLoader):
    """YAML in which a key may not come twice: the second would silently win."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in found:
            raise Refused(f"line {key_node.start_mark.line + 1}: the key {key!r} comes twice")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.yaml_implicit_resolvers = {  # dates stay the texts that they are in Kubernetes
    first: [(tag, form) for tag, form in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: bytes, source: str) -> Manifest:
    """`source` says whose it is: it goes into the uid of a pod that has none. Raises Refused."""
    if len(text) > MOST_BYTES:
        raise Refused(f"{len(text)} bytes are more than {MOST_BYTES}")
    pods: list[Pod] = []
    data: list[Data] = []
    warnings: list[str] = []
    for number, document in enumerate(_documents(text), 1):
        where = f"document {number}: "
        try:
            for one in _unfolded(document):
                kind = one.get("kind") if isinstance(one, dict) else None
                if kind in ("ConfigMap", "Secret"):
                    data.append(_data(one))
                else:
                    pods.append(_pod(one, source, lambda text, where=where: warnings.append(where + text)))
        except Refused as exc:
            raise Refused(f"{where}{exc}") from exc
    named = [(pod.metadata.namespace, pod.metadata.name) for pod in pods]
    if len(set(named)) < len(named):
        raise Refused("a pod comes twice: " + ", ".join("/".join(one) for one in named))
    return Manifest(tuple(pods), tuple(data), tuple(warnings))


def _documents(text: bytes) -> list[Any]:
    try:
        found = []
        for document in yaml.load_all(text, _Loader):
            if document is not None:
                found.append(document)
            if len(found) > MOST_DOCUMENTS:
                raise Refused(f"more than {MOST_DOCUMENTS} documents")
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as exc:
        raise Refused(f"it is not YAML: {' '.join(str(exc).split())}") from exc
    return found


def _unfolded(document: Any) -> list[Any]:
    """A List is its items."""
    if isinstance(document, dict) and document.get("kind") == "List":
        items = document.get("items")
        return items if isinstance(items, list) else []
    return [document]


def _pod(document: Any, source: str, warn: Any) -> Pod:
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind is not None and kind != "Pod":
        raise Refused(f"kind: {kind!r} is none of Pod, ConfigMap, Secret, List: only a cluster has others")
    pod = decode(Pod, document, "", warn)
    if pod.metadata.uid:
        return pod
    made = hashlib.sha256(f"{source}\0{pod.metadata.namespace}\0{pod.metadata.name}".encode()).hexdigest()[:32]
    uid = "-".join((made[:8], made[8:12], made[12:16], made[16:20], made[20:]))
    return replace(pod, metadata=replace(pod.metadata, uid=uid))


def _data(document: dict[str, Any]) -> Data:
    kind, metadata = document["kind"], document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        raise Refused("metadata.name: is missing")
    known = {"ConfigMap": ("data", "binaryData"), "Secret": ("data", "stringData")}[kind]
    usual = ("apiVersion", "kind", "metadata", "immutable", "type")
    if strange := sorted(set(map(str, document)) - {*known, *usual}):
        raise unknown(strange[0], (*known, *usual))
    found: dict[str, bytes] = {}
    for field in known:
        encoded = (kind, field) in (("ConfigMap", "binaryData"), ("Secret", "data"))
        for key, value in (document.get(field) or {}).items():
            found[str(key)] = _content(f"{field}.{key}", value, encoded)
    namespace = metadata.get("namespace") or "default" if isinstance(metadata, dict) else "default"
    return Data(kind, str(namespace), name, found)


def _content(path: str, value: object, encoded: bool) -> bytes:
    if not isinstance(value, str):
        raise Refused(f"{path}: {value!r} is not a text; put it into quotes")
    if not encoded:
        return value.encode()
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Refused(f"{path}: is not base64") from exc
