"""The way back: a Pod as plain data for JSON and YAML, from which `decode` makes the same Pod again. Pure.

What is as its default is left out, so that a field which a later version adds changes nothing of what is there already:
neither a record on disk nor the digest of a container that runs.
"""

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from holdfast.agent.pod.decode import key_of
from holdfast.agent.pod.quantity import Quantity
from holdfast.agent.pod.scalars import Port


def encode(one: object) -> Any:
    """Of dataclasses, tuples, dicts and scalars."""
    if isinstance(one, Quantity):
        return f"{one.milli // 1000}" if one.milli % 1000 == 0 else f"{one.milli}m"
    if is_dataclass(one):
        found = ((field, getattr(one, field.name)) for field in fields(one))
        return {key_of(field.name): encode(value) for field, value in found if not _is_default(field, value)}
    if isinstance(one, tuple):
        return [encode(value) for value in one]
    if isinstance(one, dict):
        return {str(key): encode(value) for key, value in one.items()}
    if isinstance(one, Port) and one.isdecimal():
        return int(one)
    if isinstance(one, str):
        return str(one)
    if isinstance(one, int) and not isinstance(one, bool):
        return int(one)
    return one


def _is_default(field: Any, value: object) -> bool:
    if field.default is not MISSING:
        return bool(value == field.default)
    return field.default_factory is not MISSING and bool(value == field.default_factory())


def digest(one: object) -> str:
    """Of what it says, whatever the version that reads it."""
    return hashlib.sha256(json.dumps(encode(one), sort_keys=True).encode()).hexdigest()
