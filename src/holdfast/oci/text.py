"""Checks of words and paths that several concerns have in common."""

import posixpath
from collections.abc import Iterable
from typing import Final

from google.protobuf.message import Message

from holdfast.model.errors import InvalidArgument

NAME_LENGTH: Final = 253


def in_container(path: str) -> str:
    """An absolute path without ".", ".." and doubled slashes; nothing is above the root."""
    return posixpath.normpath("/" + path.lstrip("/"))


def check_name(text: str, field: str) -> None:
    if not text:
        raise InvalidArgument(f"{field}: must not be empty")
    if len(text) > NAME_LENGTH:
        raise InvalidArgument(f"{field}: more than {NAME_LENGTH} characters")
    if "/" in text or not text.isprintable():
        raise InvalidArgument(f"{field}: {text!r} has characters that a name cannot have")


def check_words(values: Iterable[str], field: str) -> None:
    for number, value in enumerate(values):
        if not value or not value.isprintable() or (" " in value and "options" not in field):
            raise InvalidArgument(f"{field}[{number}]: {value!r} is not one word")


def check_sound(message: Message, field: str) -> None:
    """No NUL in any text, which no system call could take, and no value that an enum does not have."""
    for descriptor, value in message.ListFields():
        if descriptor.enum_type is not None and value not in descriptor.enum_type.values_by_number:
            raise InvalidArgument(f"{field}.{descriptor.name}: {value} is not a {descriptor.enum_type.name}")
        _sound_value(value, f"{field}.{descriptor.name}")


def _sound_value(value: object, field: str) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidArgument(f"{field}: it has a NUL in it")
    elif isinstance(value, Message):
        check_sound(value, field)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        items = value.items() if hasattr(value, "items") else enumerate(value)
        for key, item in items:
            _sound_value(key, field)
            _sound_value(item, f"{field}[{key}]")
