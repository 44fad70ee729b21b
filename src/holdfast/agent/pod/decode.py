"""From what a YAML document holds to dataclasses, by their annotations alone: they are the table of what is understood.

A field `host_path: HostPath | None = None` of a dataclass takes "hostPath". A class says with `UNSUPPORTED` which keys
it knows and does not honour, and why; they are warned of. `REFUSED` are those without which a pod would do harm or no
good, `IGNORED` those that only say what a cluster has made of a pod. Any other key is refused: what is misspelt must
not be silently left out. Errors name the whole path, as "spec.containers[0].ports[1].hostPort".
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

T = TypeVar("T")

_LONGEST: Final = 80  # of a value that is shown in an error
_NOTHING: Final[tuple[object, ...]] = (None, [], {}, False, "")  # which is also 0: what asks for nothing
_hints: dict[type, dict[str, Any]] = {}


class Refused(ValueError):
    """What a manifest holds cannot be run; the text has the path."""


Warn = Callable[[str], None]


def decode(kind: type[T], value: object, path: str, warn: Warn) -> T:
    """`value` as `kind`: a dataclass, str, int, bool, a Literal, tuple[X, ...], dict[str, X], X | None.

    A class with `from_yaml(value)` that raises ValueError is asked itself. Raises Refused.
    """
    found: T = _decode(kind, value, path, warn)
    return found


def key_of(name: str) -> str:
    """The key of a dataclass's field: host_path -> hostPath, pod_ip -> podIP, from_ -> from."""
    first, *rest = name.rstrip("_").split("_")
    return first + "".join(_WORDS.get(word, word.capitalize()) for word in rest)


_WORDS: Final = {"ip": "IP", "ips": "IPs", "pid": "PID", "ipc": "IPC", "id": "ID", "dns": "DNS", "api": "API"}


def unknown(where: str, known: Iterable[str]) -> Refused:
    """Of a key that does not exist, with the one that was perhaps meant."""
    key = where.rpartition(".")[2]
    small = {one.lower(): one for one in known}
    meant = difflib.get_close_matches(key.lower(), small, n=1)
    return Refused(f'unknown field "{where}"' + (f': do you mean "{small[meant[0]]}"?' if meant else ""))


def _decode(kind: Any, value: object, path: str, warn: Warn) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(kind) if one is not types.NoneType]
        return None if value is None else _decode(inner[0], value, path, warn)
    if origin is typing.Literal:
        allowed = typing.get_args(kind)
        if value not in allowed or isinstance(value, bool) is not isinstance(allowed[0], bool):
            raise Refused(f"{path}: {_shown(value)} is none of {', '.join(map(str, allowed))}")
        return value
    if origin is tuple:
        return _list(typing.get_args(kind)[0], value, path, warn)
    if origin is dict:
        return _mapping(typing.get_args(kind)[1], value, path, warn)
    if hasattr(kind, "from_yaml"):
        try:
            return kind.from_yaml(value)
        except ValueError as exc:
            raise Refused(f"{path}: {exc}") from exc
    if dataclasses.is_dataclass(kind):
        return _object(kind, value, path, warn)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(f"{path}: {_shown(value)} is not {_NAMES[kind]}")
    return value


_NAMES: Final = {str: "a text", int: "a whole number", bool: "true or false"}


def _list(kind: Any, value: object, path: str, warn: Warn) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Refused(f"{path}: {_shown(value)} is not a list")
    return tuple(_decode(kind, one, f"{path}[{number}]", warn) for number, one in enumerate(value))


def _mapping(kind: Any, value: object, path: str, warn: Warn) -> dict[str, Any]:
    if value is None:
        return {}
    return {key: _decode(kind, one, f"{path}.{key}", warn) for key, one in _items(value, path)}


def _object(kind: Any, value: object, path: str, warn: Warn) -> Any:
    names = {key_of(one.name): one for one in dataclasses.fields(kind)}
    unsupported: Mapping[str, str] = getattr(kind, "UNSUPPORTED", {})
    refused: Mapping[str, str] = getattr(kind, "REFUSED", {})
    ignored: Mapping[str, str] = getattr(kind, "IGNORED", {})
    hints = _hints.setdefault(kind, typing.get_type_hints(kind))
    given: dict[str, Any] = {}
    for key, one in _items(value, path):
        where = f"{path}.{key}" if path else key
        said = one not in _NOTHING
        if key in refused and said:
            raise Refused(f"{where}: not supported here: {refused[key]}")
        if key in unsupported and said:
            warn(f"{where}: not supported here: {unsupported[key]}")
        if key in unsupported or key in refused or key in ignored:
            continue
        if key not in names:
            raise unknown(where, (*names, *unsupported, *refused, *ignored))
        if one is not None:
            given[names[key].name] = _decode(hints[names[key].name], one, where, warn)
    for key, field in names.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in given:
            raise Refused(f"{path}.{key}: is missing" if path else f"{key}: is missing")
    try:
        return kind(**given)
    except ValueError as exc:  # its own checks, of how its fields go together
        raise Refused(f"{path}{exc}" if str(exc).startswith(".") else f"{path}: {exc}") from exc


def _items(value: object, path: str) -> list[tuple[str, object]]:
    if not isinstance(value, dict):
        raise Refused(f"{path or 'document'}: {_shown(value)} is not a mapping")
    for key in value:
        if not isinstance(key, str):
            raise Refused(f"{path or 'document'}: the key {_shown(key)} is not a text")
    return list(value.items())


def _shown(value: object) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
