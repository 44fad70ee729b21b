"""Where the values of variables come from, and of files."""

import re
from dataclasses import dataclass
from typing import ClassVar, Final

from holdfast.agent.pod.scalars import Amount, Subdomain, one_of

_VARIABLE: Final = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


@dataclass(frozen=True, slots=True)
class FieldRef:
    field_path: str
    api_version: str = "v1"


@dataclass(frozen=True, slots=True)
class ResourceFieldRef:
    resource: str
    container_name: str = ""
    divisor: Amount = Amount(1000)


@dataclass(frozen=True, slots=True)
class KeyRef:
    """A key of a ConfigMap or a Secret."""

    name: Subdomain
    key: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class EnvVarSource:
    REFUSED: ClassVar = {"fileKeyRef": "a variable is from a ConfigMap, a Secret or the pod itself"}
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None
    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None

    def __post_init__(self) -> None:
        one_of(self)


@dataclass(frozen=True, slots=True)
class EnvVar:
    name: str
    value: str = ""
    value_from: EnvVarSource | None = None

    def __post_init__(self) -> None:
        if not _VARIABLE.fullmatch(self.name):
            raise ValueError(f".name: {self.name!r} is no name of a variable")
        if self.value and self.value_from is not None:
            raise ValueError(".valueFrom: goes with no value")


@dataclass(frozen=True, slots=True)
class NameRef:
    name: Subdomain
    optional: bool = False


@dataclass(frozen=True, slots=True)
class EnvFrom:
    prefix: str = ""
    config_map_ref: NameRef | None = None
    secret_ref: NameRef | None = None

    def __post_init__(self) -> None:
        if (self.config_map_ref is None) is (self.secret_ref is None):
            raise ValueError("one of configMapRef and secretRef is needed")
