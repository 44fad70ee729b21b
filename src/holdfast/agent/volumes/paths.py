"""Where the volumes of pods are below the agent's root: as a kubelet names them, so that its users find their way.

pods/UID/volumes/kubernetes.io~KIND/NAME        a volume
pods/UID/volumes/holdfast~sized-empty-dir/NAME  an emptyDir that is a filesystem of its own (ADR 40)
pods/UID/volumes.d/KIND~NAME.json               what is known of it, from before it is made until after it is gone
pods/UID/volumes.d/NAME.ext4                    that filesystem
pods/UID/volume-subpaths/NAME/CONTAINER/INDEX   a part of it that one container gets
trash/UID~NAME.RANDOM                           a volume that is nobody's any more
"""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.agent.pod.spec import UID

NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label (RFC 1123), as volumes' names are

PLUGIN: Final = "kubernetes.io~"
SIZED: Final = "holdfast~sized-empty-dir"
EMPTY_DIR: Final = "empty-dir"
TRASH: Final = "trash"  # the kind of what is known by nothing but its name there


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A volume of a pod. `kind` is that of the plugin, as "empty-dir"."""

    uid: str
    kind: str
    name: str


class Paths:
    """Names are checked here: whatever a manifest says, nothing leads out of the root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pods = root / "pods"
        self.trash = root / "trash"

    def pod(self, uid: str) -> Path:
        """Raises ValueError."""
        return self.pods / _checked(UID, uid, "uid")

    def is_pod(self, uid: str) -> bool:
        return UID.fullmatch(uid) is not None

    def volume(self, uid: str, kind: str, name: str) -> Path:
        """`kind` is the plugin's, as "empty-dir". Raises ValueError."""
        plugin = f"{PLUGIN}{_checked(NAME, kind, 'kind of volume')}"
        return self.pod(uid) / "volumes" / plugin / _checked(NAME, name, "name of a volume")

    def sized(self, uid: str, name: str) -> Path:
        """Raises ValueError."""
        return self.pod(uid) / "volumes" / SIZED / _checked(NAME, name, "name of a volume")

    def image(self, uid: str, name: str) -> Path:
        """Raises ValueError."""
        return self.journals(uid) / f"{_checked(NAME, name, 'name of a volume')}.ext4"

    def journals(self, uid: str) -> Path:
        """Raises ValueError."""
        return self.pod(uid) / "volumes.d"

    def journal(self, key: Key) -> Path:
        """Raises ValueError."""
        kind, name = _checked(NAME, key.kind, "kind of volume"), _checked(NAME, key.name, "name of a volume")
        return self.journals(key.uid) / f"{kind}~{name}.json"

    def subpaths(self, uid: str, name: str) -> Path:
        """Raises ValueError."""
        return self.pod(uid) / "volume-subpaths" / _checked(NAME, name, "name of a volume")

    def subpath(self, uid: str, name: str, container: str, index: int) -> Path:
        """Raises ValueError."""
        return self.subpaths(uid, name) / _checked(NAME, container, "name of a container") / str(index)

    def discarded(self, uid: str, name: str) -> Path:
        """A new name in the trash."""
        return self.trash / f"{_checked(UID, uid, 'uid')}~{_checked(NAME, name, 'name')}.{secrets.token_hex(8)}"

    def discards(self, key: Key) -> list[Path]:
        """What is in the trash of a volume."""
        return sorted(path for path in listed(self.trash) if _owner(path.name) == (key.uid, key.name))

    def key_of(self, path: str | Path) -> Key | None:
        """The volume that a path below the root belongs to, by its name alone; None for any other path."""
        try:
            parts = Path(path).relative_to(self.root).parts
        except ValueError:
            return None
        match parts:
            case ("pods", uid, "volumes", plugin, name, *_) if plugin == SIZED:
                found = (uid, EMPTY_DIR, name)
            case ("pods", uid, "volumes", plugin, name, *_) if plugin.startswith(PLUGIN):
                found = (uid, plugin.removeprefix(PLUGIN), name)
            case ("pods", uid, "volumes.d", name) if name.endswith(".json") and not name.startswith("."):
                kind, _, name = name.removesuffix(".json").partition("~")
                found = (uid, kind, name)
            case ("pods", uid, "volumes.d", name) if name.endswith((".ext4", ".ext4.part")):
                found = (uid, EMPTY_DIR, name.partition(".")[0])
            case ("pods", uid, "volume-subpaths", name, *_):
                found = (uid, TRASH, name)
            case ("trash", name, *_):
                uid, name = _owner(name)
                found = (uid, TRASH, name)
            case _:
                return None
        named = UID.fullmatch(found[0]) and NAME.fullmatch(found[1]) and NAME.fullmatch(found[2])
        return Key(*found) if named else None


def listed(directory: Path) -> Iterator[Path]:
    """What is in a directory; nothing when there is none, or it is not one."""
    try:
        yield from directory.iterdir()
    except (FileNotFoundError, NotADirectoryError):
        return


def _owner(discarded: str) -> tuple[str, str]:
    """The uid and the name of a volume, of the name it has in the trash."""
    uid, _, rest = discarded.partition("~")
    return uid, rest.rpartition(".")[0]


def _checked(pattern: re.Pattern[str], text: str, what: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no {what}")
    return text
