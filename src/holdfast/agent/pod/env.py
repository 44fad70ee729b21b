"""The environment of a container: its own variables, of ConfigMaps and Secrets, what a pod knows of itself. Pure."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from holdfast.agent.pod.containers import Container
from holdfast.agent.pod.manifest import Data
from holdfast.agent.pod.sources import EnvVarSource, FieldRef, KeyRef, NameRef, ResourceFieldRef
from holdfast.agent.pod.spec import Pod

_REFERENCE: Final = re.compile(r"\$(?:\$|\(([^()]*)\))")
_SUBSCRIPT: Final = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
_RESOURCE: Final = re.compile(r"(limits|requests)\.(cpu|memory|ephemeral-storage|hugepages-\w+)")
_VARIABLE: Final = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


class Missing(ValueError):
    """What a variable or a file is to be taken from is not there: the container waits for it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a pod may be told of where it is. Addresses are known once it has a sandbox."""

    node: str = ""
    host_addresses: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    cpu: int = 0  # thousandths of a processor that the machine has, for those who have no limit
    memory: int = 0  # bytes
    data: Mapping[tuple[str, str, str], Data] = field(default_factory=dict)  # by kind, namespace and name


def environment(pod: Pod, container: Container, facts: Facts) -> dict[str, str]:
    """In the order in which they were named; a later one of the same name wins. Raises Missing."""
    found: dict[str, str] = {}
    for number, source in enumerate(container.env_from):
        kind, ref = ("Secret", source.secret_ref) if source.secret_ref else ("ConfigMap", source.config_map_ref)
        assert ref is not None
        for key, value in sorted(_data(pod, kind, ref, facts, f"envFrom[{number}]").items()):
            if _VARIABLE.fullmatch(name := f"{source.prefix}{key}"):  # others are left out, as a kubelet does
                found[name] = _text(value, f"{kind} {ref.name}, key {key}")
    for one in container.env:
        if one.value_from is None:
            found[one.name] = expand(one.value, found.get)
        elif (taken := _of_source(pod, container, one.value_from, facts)) is not None:
            found[one.name] = taken
    return found


def expand(text: str, look_up: Callable[[str], str | None]) -> str:
    """$(NAME) becomes its value, if it has one; $$ is one $."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        value = look_up(match[1])
        return match[0] if value is None else value

    return _REFERENCE.sub(replaced, text)


def field_value(pod: Pod, ref: FieldRef, facts: Facts) -> str:
    """What a pod knows of itself. Raises Missing for what there is not."""
    meta, path = pod.metadata, ref.field_path
    if match := _SUBSCRIPT.fullmatch(path):
        return (meta.labels if match[1] == "labels" else meta.annotations).get(match[2], "")
    known: dict[str, Callable[[], str]] = {
        "metadata.name": lambda: str(meta.name),
        "metadata.namespace": lambda: str(meta.namespace),
        "metadata.uid": lambda: meta.uid,
        "metadata.labels": lambda: _lines(meta.labels),
        "metadata.annotations": lambda: _lines(meta.annotations),
        "spec.nodeName": lambda: facts.node,
        "spec.serviceAccountName": lambda: "default",
        "status.hostIP": lambda: next(iter(facts.host_addresses), ""),
        "status.hostIPs": lambda: ",".join(facts.host_addresses),
        "status.podIP": lambda: next(iter(_addresses(pod, facts)), ""),
        "status.podIPs": lambda: ",".join(_addresses(pod, facts)),
    }
    if path not in known:
        raise Missing(f"fieldPath {path!r} is none of {', '.join(known)}, metadata.labels['KEY']")
    return known[path]()


def resource_value(pod: Pod, container: Container, ref: ResourceFieldRef, facts: Facts) -> str:
    """In units of the divisor, rounded up; what is not limited is as much as the machine has. Raises Missing."""
    match = _RESOURCE.fullmatch(ref.resource)
    if match is None:
        raise Missing(f"resource {ref.resource!r} is none of limits.cpu, requests.memory and the like")
    if ref.container_name:
        others = (*pod.spec.init_containers, *pod.spec.containers)
        named = next((one for one in others if one.name == ref.container_name), None)
        if named is None:
            raise Missing(f"there is no container {ref.container_name!r}")
        container = named
    kind, resource = match.groups()
    limits, requests = container.resources.limits, container.resources.requests
    amounts = limits if kind == "limits" else {**limits, **requests}
    if resource in amounts:
        milli = amounts[resource].milli
    elif kind == "limits" and resource in ("cpu", "memory"):
        milli = facts.cpu if resource == "cpu" else facts.memory * 1000
    else:
        milli = 0
    return str(-(-milli // (ref.divisor.milli or 1000)))


def key_value(pod: Pod, kind: str, ref: KeyRef, facts: Facts) -> bytes | None:
    """None for what is optional and not there. Raises Missing."""
    found = facts.data.get((kind, pod.metadata.namespace, ref.name))
    if found is not None and ref.key in found.data:
        return found.data[ref.key]
    if ref.optional:
        return None
    what = f"{kind} {ref.name!r}" if found is None else f"key {ref.key!r} in {kind} {ref.name!r}"
    raise Missing(f"there is no {what}")


def _of_source(pod: Pod, container: Container, source: EnvVarSource, facts: Facts) -> str | None:
    if source.field_ref is not None:
        return field_value(pod, source.field_ref, facts)
    if source.resource_field_ref is not None:
        return resource_value(pod, container, source.resource_field_ref, facts)
    kind, ref = ("Secret", source.secret_key_ref) if source.secret_key_ref else ("ConfigMap", source.config_map_key_ref)
    assert ref is not None
    value = key_value(pod, kind, ref, facts)
    return None if value is None else _text(value, f"{kind} {ref.name}, key {ref.key}")


def _data(pod: Pod, kind: str, ref: NameRef, facts: Facts, where: str) -> Mapping[str, bytes]:
    found = facts.data.get((kind, pod.metadata.namespace, ref.name))
    if found is None and not ref.optional:
        raise Missing(f"{where}: there is no {kind} {ref.name!r}")
    return found.data if found is not None else {}


def _addresses(pod: Pod, facts: Facts) -> tuple[str, ...]:
    return facts.host_addresses if pod.spec.host_network else facts.addresses


def _lines(words: Mapping[str, str]) -> str:
    """As the downward API writes a map: KEY="escaped value", sorted."""
    escape = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
    return "\n".join(f'{key}="{value.translate(escape)}"' for key, value in sorted(words.items()))


def _text(value: bytes, where: str) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as exc:
        raise Missing(f"{where}: is not text, so it can be no variable") from exc
    if "\0" in text:
        raise Missing(f"{where}: has a zero byte in it, so it can be no variable")
    return text
