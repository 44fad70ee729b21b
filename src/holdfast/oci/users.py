"""Who a container's process is: CRI fields and the image's user, looked up in the image's own files. Pure.

Files come through a reader that is bounded: an image may hold a passwd file of any size (CVE-2026-47262). Ids are at
most 2^31 - 1, so that none wraps around to root (CVE-2024-40635).
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from holdfast.model.errors import InvalidArgument
from holdfast.proto import runtime_v1_pb2 as pb

ID_LIMIT: Final = 2**31 - 1
FILE_LIMIT: Final = 1024 * 1024

Read = Callable[[str, int], bytes | None]


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    """`home` is "" when the image does not know the user."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...] = ()
    home: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of passwd(5) or group(5): of the first `home`, of the second `members`."""

    name: str
    uid: int
    gid: int
    home: str = ""
    members: tuple[str, ...] = ()


def check(context: Message, field: str, has_user: bool) -> None:
    """The fields that sandbox and container security contexts have in common."""
    for name in ("run_as_user", "run_as_group"):
        if context.HasField(name) and not 0 <= (value := getattr(context, name).value) <= ID_LIMIT:
            raise InvalidArgument(f"{field}.{name}.value: {value} is out of range")
    if context.HasField("run_as_group") and not has_user:
        raise InvalidArgument(f"{field}.run_as_group: it needs a user")
    for number, group in enumerate(context.supplemental_groups):  # type: ignore[attr-defined]
        if not 0 <= group <= ID_LIMIT:
            raise InvalidArgument(f"{field}.supplemental_groups[{number}]: {group} is out of range")


def resolve_user(config: pb.ContainerConfig, image_user: str, read: Read) -> ResolvedUser:
    """`read(path, limit)` gives at most `limit` bytes of a file in the image, None when it has no such file.

    Raises InvalidArgument that names the field, or the file that is too large.
    """
    context = config.linux.security_context
    users = _Users(read)
    if context.HasField("run_as_user"):
        uid, gid, entry = _numbered(context.run_as_user.value, users)
    elif name := context.run_as_username:
        uid, gid, entry = _user(name, users, "config.linux.security_context.run_as_username: user")
    else:
        uid, gid, entry = _image_user(image_user, users)
    if context.HasField("run_as_group"):
        gid = context.run_as_group.value
    groups = set(context.supplemental_groups)
    if context.supplemental_groups_policy == pb.Merge and entry is not None:
        groups |= users.groups_of(entry.name)
    home = entry.home if entry is not None else ""
    return ResolvedUser(uid, gid, tuple(sorted({gid, *groups})), home)


def _image_user(text: str, users: "_Users") -> tuple[int, int, _Entry | None]:
    """uid, gid and passwd entry for an image's "user[:group]", each by name or by number."""
    name, colon, group = text.partition(":")
    uid, gid, entry = _user(name or "0", users, "image: its user")
    if colon and group:
        gid = _checked(group, "image: its group") if _is_number(group) else users.group(group)
    return uid, gid, entry


def _user(name: str, users: "_Users", what: str) -> tuple[int, int, _Entry | None]:
    """A number is a uid and never a name: an image cannot make 1000 mean root."""
    if _is_number(name):
        return _numbered(_checked(name, what), users)
    if (entry := users.by_name(name)) is None:
        raise InvalidArgument(f"{what} {name!r} is not in the image's /etc/passwd")
    return entry.uid, entry.gid, entry


def _numbered(uid: int, users: "_Users") -> tuple[int, int, _Entry | None]:
    """One that the image does not know is in root's group."""
    entry = users.by_uid(uid)
    return uid, entry.gid if entry else 0, entry


def _checked(text: str, what: str) -> int:
    if not _is_id(text):
        raise InvalidArgument(f"{what} {text[:32]} is out of range")
    return int(text)


class _Users:
    """The image's passwd and group files, read when first needed."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._files: dict[str, bytes] = {}

    def by_uid(self, uid: int) -> _Entry | None:
        return next((entry for entry in self._passwd() if entry.uid == uid), None)

    def by_name(self, name: str) -> _Entry | None:
        return next((entry for entry in self._passwd() if entry.name == name), None)

    def group(self, name: str) -> int:
        for entry in self._groups():
            if entry.name == name:
                return entry.gid
        raise InvalidArgument(f"image: its group {name!r} is not in its own /etc/group")

    def groups_of(self, name: str) -> set[int]:
        return {entry.gid for entry in self._groups() if name in entry.members}

    def _passwd(self) -> Iterator[_Entry]:
        for row in self._rows("/etc/passwd"):
            if _is_id(row[2]) and _is_id(row[3]):
                yield _Entry(row[0], int(row[2]), int(row[3]), _home(row[5]))

    def _groups(self) -> Iterator[_Entry]:
        for row in self._rows("/etc/group"):
            if _is_id(row[2]):
                yield _Entry(row[0], 0, int(row[2]), members=tuple(filter(None, row[3].split(","))))

    def _rows(self, path: str) -> Iterator[list[str]]:
        """Lines, each with as many fields as passwd has; those that a line lacks are empty."""
        # Only a newline ends a line, and what cannot be decoded makes no two names the same.
        for line in io.BytesIO(self._file(path)):
            row = line.rstrip(b"\n").decode(errors="surrogateescape").split(":")
            yield (row + [""] * 7)[:7]

    def _file(self, path: str) -> bytes:
        if path not in self._files:
            data = self._read(path, FILE_LIMIT + 1) or b""
            if len(data) > FILE_LIMIT:
                raise InvalidArgument(f"image: its {path} has more than {FILE_LIMIT} bytes")
            self._files[path] = data
        return self._files[path]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_id(text: str) -> bool:
    """The length comes first: int() refuses thousands of digits with an error of its own."""
    return _is_number(text) and len(text) <= 10 and int(text) <= ID_LIMIT


def _home(text: str) -> str:
    """A home directory fit for an environment variable (CVE-2022-4318)."""
    return text if text.startswith("/") and text.isprintable() else ""
