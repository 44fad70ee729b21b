"""The texts and numbers of a manifest that may not be just any, and the checks that several of its objects share."""

import re
import signal
from dataclasses import fields
from typing import Any, Final

from holdfast.agent.pod.decode import key_of
from holdfast.agent.pod.quantity import Quantity

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_REAL_TIME: Final = re.compile(r"SIGRT(MIN\+([1-9]|1[0-5])|MAX-([1-9]|1[0-4]))")
NO_CLUSTER: Final = "there is no cluster"
LINUX: Final = "this is Linux"
ONE_NODE: Final = "there is but this node"


class Name(str):
    """A DNS label (RFC 1123), as names of containers and volumes are."""

    @classmethod
    def from_yaml(cls, value: object) -> "Name":
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            raise ValueError(f"{value!r} is no name: small letters, digits and -, at most 63 of them")
        return cls(value)


class Subdomain(str):
    """A DNS subdomain (RFC 1123), as names of pods are."""

    @classmethod
    def from_yaml(cls, value: object) -> "Subdomain":
        if not isinstance(value, str) or len(value) > 253 or not _SUBDOMAIN.fullmatch(value):
            raise ValueError(f"{value!r} is no name: small letters, digits, - and ., at most 253 of them")
        return cls(value)


class Amount(Quantity):
    """A quantity that is not negative; YAML may have it as a number."""

    @classmethod
    def from_yaml(cls, value: object) -> "Amount":
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"{value!r} is no quantity such as 250m, 1.5 or 64Mi")
        found = cls.parse(str(value))
        if found.milli < 0:
            raise ValueError(f"{value!r} is negative")
        return cls(found.milli)


class Port(str):
    """A number from 1 to 65535, or the name of one of the container's ports."""

    @classmethod
    def from_yaml(cls, value: object) -> "Port":
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536:
            return cls(value)
        if isinstance(value, str) and value and not value.isdecimal():
            return cls(value)
        raise ValueError(f"{value!r} is neither a port nor the name of one")


class Signal(str):
    """A signal's name, as SIGUSR1 or SIGRTMIN+3."""

    @classmethod
    def from_yaml(cls, value: object) -> "Signal":
        if not isinstance(value, str) or not (value in signal.Signals.__members__ or _REAL_TIME.fullmatch(value)):
            raise ValueError(f"{value!r} is no name of a signal such as SIGTERM or SIGRTMIN+1")
        return cls(value)


class Seconds(int):
    """A whole number that is not negative."""

    @classmethod
    def from_yaml(cls, value: object) -> "Seconds":
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{value!r} is no number of seconds")
        return cls(value)


class Count(int):
    """A whole number from 1."""

    @classmethod
    def from_yaml(cls, value: object) -> "Count":
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{value!r} is not a number from 1")
        return cls(value)


class HostPort(int):
    """A number from 1 to 65535."""

    @classmethod
    def from_yaml(cls, value: object) -> "HostPort":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
            raise ValueError(f"{value!r} is no port: 1 to 65535")
        return cls(value)


def one_of(one: Any, names: tuple[str, ...] = ()) -> None:
    """Exactly one of a dataclass's fields, or of those named, is to be given. Raises ValueError."""
    known = names or tuple(field.name for field in fields(one))
    given = [name for name in known if getattr(one, name) is not None]
    if len(given) != 1:
        raise ValueError(f"one of {', '.join(map(key_of, known))} is needed, and no more")
