"""Where the volumes of pods are below the agent's root: as a kubelet names them, so that its users find their way.

pods/UID/volumes/kubernetes.io~KIND/NAME        a volume
pods/UID/volume-subpaths/NAME/CONTAINER/INDEX   a part of it that one container gets
trash/UID~NAME.RANDOM                           a volume that is nobody's any more
"""

import re
import secrets
from pathlib import Path
from typing import Final

NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label (RFC 1123), as volumes' names are
UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,127}")


class Paths:
    """Names are checked here: whatever a manifest says, nothing leads out of the root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trash = root / "trash"

    def pod(self, uid: str) -> Path:
        """Raises ValueError."""
        return self.root / "pods" / _checked(UID, uid, "uid")

    def volume(self, uid: str, kind: str, name: str) -> Path:
        """`kind` is the plugin's, as "empty-dir". Raises ValueError."""
        plugin = f"kubernetes.io~{_checked(NAME, kind, 'kind of volume')}"
        return self.pod(uid) / "volumes" / plugin / _checked(NAME, name, "name of a volume")

    def subpath(self, uid: str, name: str, container: str, index: int) -> Path:
        """Raises ValueError."""
        volume = _checked(NAME, name, "name of a volume")
        return (
            self.pod(uid) / "volume-subpaths" / volume / _checked(NAME, container, "name of a container") / str(index)
        )

    def discarded(self, uid: str, name: str) -> Path:
        """A new name in the trash."""
        return self.trash / f"{_checked(UID, uid, 'uid')}~{_checked(NAME, name, 'name')}.{secrets.token_hex(8)}"


def _checked(pattern: re.Pattern[str], text: str, what: str) -> str:
    if pattern.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no {what}")
    return text
