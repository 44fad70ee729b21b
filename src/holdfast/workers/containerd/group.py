"""The containers that share a shim under containerd, and the directory in which shim and program find each other.

<state>/<hex digits>/   of containerd's address, the namespace and the group's name; the longest path in it that
                        somebody connects to has to fit into 107 bytes, as a bundle's does not
    lock                held while a member joins or leaves, so that no shim ends that somebody has just joined
    members/ID          one for each container, with the path of its bundle
    shim.json           its pid, its start time, its OCI runtime
    shim.sock           the Task API
    shim.lock           held by the shim, and by the children that do its work
    oci/                the OCI runtime's state, unless its options name another place
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from holdfast.linux import files, sockets

ANNOTATIONS: Final = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")  # the shim's name, first wins
SPEC_LIMIT: Final = 4 * 1024 * 1024
RECORD_LIMIT: Final = 64 * 1024
DIGITS: Final = 24
LOCK_SECONDS: Final = 4.0  # containerd gives a delete five
LOCK_PAUSE: Final = 0.005
ADDRESS: Final = "address"  # in the bundle: containerd's own record of where its shim is
SCHEME: Final = "unix://"


@dataclass(frozen=True, slots=True)
class Group:
    """One group, by its directory."""

    directory: Path

    @classmethod
    def of(cls, state: Path, address: str, namespace: str, name: str) -> "Group":
        digest = hashlib.sha256("\0".join((address, namespace, name)).encode()).hexdigest()
        return cls(state / digest[:DIGITS])

    @property
    def socket(self) -> Path:
        return self.directory / "shim.sock"

    @property
    def address(self) -> str:
        return f"{SCHEME}{self.socket}"

    @property
    def members(self) -> dict[str, str]:
        """Each member's bundle."""
        found = {}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.directory / "members"):
                if name.startswith("."):  # was being written by a program that was killed
                    continue
                with contextlib.suppress(FileNotFoundError):
                    found[name] = files.read_bounded(self.directory / "members" / name, RECORD_LIMIT).decode()
        return found

    def try_lock(self) -> int | None:
        """The lock's descriptor; None when somebody has it, or has removed the group just now."""
        path = self.directory / "lock"
        try:
            descriptor = files.lock(path)
        except (BlockingIOError, FileNotFoundError):
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
        return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Made, if it was not there, and ours. Raises TimeoutError."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            files.make_private(self.directory)
            if (descriptor := self.try_lock()) is not None:
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.directory} has been locked for {LOCK_SECONDS:g} s")
            time.sleep(LOCK_PAUSE)
        try:
            yield
        finally:
            os.close(descriptor)

    # -- with the lock held

    def join(self, member: str, bundle: Path) -> None:
        files.make_private(self.directory / "members")
        files.write_atomic(self.directory / "members" / member, os.fsencode(bundle), sync=False)

    def leave(self, member: str) -> bool:
        """Whether nobody is left."""
        files.unlink(self.directory / "members" / member)
        return not self.members

    def remove(self) -> None:
        """The socket first: whoever comes now shall make a new group."""
        files.unlink(self.socket)
        files.remove_tree(self.directory)

    def answers(self) -> bool:
        """Whether a shim listens; one that hangs does, too."""
        try:
            sockets.connect(self.socket, timeout=0).close()
        except BlockingIOError:  # its backlog is full
            return True
        except OSError:
            return False
        return True

    def write(self, record: Mapping[str, Any]) -> None:
        files.write_atomic(self.directory / "shim.json", json.dumps(record).encode(), sync=False)

    def read(self) -> dict[str, Any]:
        """shim.json; {} when there is none, or none that can be read."""
        try:
            found = json.loads(files.read_bounded(self.directory / "shim.json", RECORD_LIMIT))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def sweep(state: Path) -> None:
    """Remove groups that nobody will ask for again: without a shim, their bundles gone, nothing known to the runtime.

    Such is left when a shim is killed before containerd has reached it: containerd then forgets the bundle, and no
    `delete` is run.
    """
    for directory in state.iterdir():
        group = Group(directory)
        if group.answers() or any(map(os.path.isdir, group.members.values())):
            continue
        if (descriptor := group.try_lock()) is None:
            continue
        try:
            lost = not group.answers() and not any(map(os.path.isdir, group.members.values()))
            if lost and not any(map(os.listdir, directory.glob("oci"))):
                group.remove()
        finally:
            os.close(descriptor)


def read_spec(bundle: Path) -> dict[str, Any]:
    """The bundle's config.json; {} when it cannot be read."""
    try:
        found = json.loads(files.read_bounded(bundle / "config.json", SPEC_LIMIT))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def name_of(spec: Mapping[str, Any], container_id: str) -> str:
    """The group's name: what an annotation says, or the container's own id."""
    annotations = spec.get("annotations") or {}
    return next((str(annotations[key]) for key in ANNOTATIONS if annotations.get(key)), container_id)
