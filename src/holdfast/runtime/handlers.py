"""Runtime handlers: the name a pod asks for, and the OCI runtime that serves it."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux import cgroup
from holdfast.model.errors import InvalidArgument, Unavailable

PREFERRED: Final = ("crun", "runc")
UNIFIED_ON_HYBRID: Final = "/sys/fs/cgroup/unified"
PROBE_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Handler:
    """One OCI runtime. `hide` are mounts it must not see; crun refuses hosts with both cgroup versions."""

    name: str
    binary: str
    root: str
    hide: tuple[str, ...] = ()
    seconds: float = 100.0  # that one command may take

    def waits(self, container_id: str) -> bool:
        """Whether the container's init still waits to be started: crun and runc have it wait at a FIFO till then."""
        return Path(self.root, container_id, "exec.fifo").exists()

    def to_args(self) -> dict[str, object]:
        return {
            "name": self.name, "binary": self.binary, "root": self.root, "hide": list(self.hide),
            "seconds": self.seconds,
        }  # fmt: skip


class Handlers:
    """The handlers of this node. "" is the default one."""

    def __init__(self, handlers: Mapping[str, Handler], default: str) -> None:
        self.all = dict(handlers)
        self.default = default

    def get(self, name: str) -> Handler:
        """Raises InvalidArgument for a handler that is not configured."""
        if (handler := self.all.get(name or self.default)) is None:
            known = ", ".join(sorted(self.all))
            raise InvalidArgument(f"runtime_handler: no runtime handler {name!r} is configured; there are: {known}")
        return handler


def find(configured: Mapping[str, str], default: str, state: Path, mode: str, seconds: float = 100.0) -> Handlers:
    """Handlers for the configured binaries and for crun and runc where they are installed.

    `configured` maps a name to a binary; `default` is one of them, or "auto" for the first that really runs a
    container here. `mode` is the cgroup mode of the host. Raises Unavailable when there is none.
    """
    names = dict.fromkeys([*configured, *PREFERRED])
    handlers = {}
    for name in names:
        binary = shutil.which(configured.get(name) or name)
        if binary is not None:
            hide = (UNIFIED_ON_HYBRID,) if mode == "hybrid" and Path(binary).name == "crun" else ()
            handlers[name] = Handler(name, binary, str(state / "oci" / name), hide, seconds)
    if default == "auto":
        default = _first_working(handlers, state)
    elif default not in handlers:
        raise Unavailable(f"cannot use default_runtime {default!r}: it is not configured or its binary is missing")
    return Handlers(handlers, default)


def _first_working(handlers: Mapping[str, Handler], state: Path) -> str:
    """The first handler that runs a container; what was found is kept for this boot, binary and version."""
    known = state / "oci" / "works.json"
    seen: dict[str, str] = {}
    if known.exists():
        seen = json.loads(known.read_bytes() or b"{}")
    for name, handler in handlers.items():
        key = _fingerprint(handler.binary)
        if seen.get(name) == key or works(handler):
            seen[name] = key
            known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            known.write_text(json.dumps(seen))
            return name
    raise Unavailable(f"cannot find an OCI runtime that works here; tried: {', '.join(handlers) or 'crun, runc'}")


def _fingerprint(binary: str) -> str:
    found = os.stat(binary)
    return f"{binary} {found.st_size} {found.st_mtime_ns}"


def works(handler: Handler) -> bool:
    """Whether the runtime can run /bin/true here, in a cgroup of its own that is removed afterwards."""
    name = f"holdfast-probe-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix=name) as bundle:
        Path(bundle, "config.json").write_text(json.dumps(_probe_spec(name, Path(bundle, "rootfs"))))
        command = [handler.binary, "--root", f"{bundle}/root", "run", "--bundle", bundle, name]
        hidden = [f"mount -t tmpfs none {target}" for target in handler.hide]
        if hidden:
            script = " && ".join(["mount --make-rprivate /", *hidden, 'exec "$@"'])
            command = ["unshare", "-m", "sh", "-c", script, "sh", *command]
        try:
            done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return False
        finally:
            cgroup.remove(f"/{name}")
        return done.returncode == 0


def _probe_spec(name: str, rootfs: Path) -> dict[str, object]:
    """The host's own programs, read-only, in a root of its own; made of links where the host's are links."""
    mounts: list[dict[str, object]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    ]
    rootfs.mkdir()
    for place in ("proc", "dev"):
        (rootfs / place).mkdir()
    for top in ("usr", "bin", "lib", "lib64"):
        source = Path("/", top)
        if source.is_symlink():
            (rootfs / top).symlink_to(source.readlink())
        elif source.is_dir():
            (rootfs / top).mkdir()
            mounts.append({"destination": f"/{top}", "source": str(source), "type": "bind", "options": ["rbind", "ro"]})
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs), "readonly": True},
        "process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/usr/bin:/bin"]},
        "mounts": mounts,
        "linux": {"cgroupsPath": f"/{name}", "namespaces": [{"type": "mount"}, {"type": "pid"}]},
    }
