"""Runtime handlers: the name a pod asks for, and the OCI runtime that serves it."""

import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.message import Message

from holdfast.linux import cgroup, files
from holdfast.model.errors import InvalidArgument, Unavailable
from holdfast.model.gvisor import CREATED, PLATFORMS, PROC_SYS_NET, RUNSC, is_of, state_file, status
from holdfast.proto import runc_options_pb2, runtime_options_pb2
from holdfast.proto import runtime_v1_pb2 as pb

log = logging.getLogger(__name__)

PREFERRED: Final = ("crun", "runc")
UNIFIED_ON_HYBRID: Final = "/sys/fs/cgroup/unified"
PROBE_SECONDS: Final = 10
STATE_LIMIT: Final = 8 * 1024 * 1024


RUNC_SHIM: Final = "containerd-shim-runc-"


@dataclass(frozen=True, slots=True)
class Handler:
    """One OCI runtime. `hide` are mounts it must not see; crun refuses hosts with both cgroup versions.

    With `shim` its containers are those of a foreign shim, which gets `options`, a google.protobuf.Any; the runtime is
    the one behind it then. With `sandbox` a pod under it begins with a container of its own that only waits. Without
    `host_devices` a privileged container gets no devices of the host, and with `all_devices` may use any all the same.
    With `platform` it is gVisor's runsc under our own shim, with that platform; `isolated` ones have no network at all.
    """

    name: str
    binary: str
    root: str
    hide: tuple[str, ...] = ()
    seconds: float = 100.0  # that one command may take
    shim: str = ""
    options: bytes = b""
    sandbox: bool = False
    host_devices: bool = True
    all_devices: bool = False
    platform: str = ""
    isolated: bool = False
    network: str = ""  # of gVisor's, one of model.gvisor.NETWORKS, once it is known for which pod

    @property
    def gvisor(self) -> bool:
        return bool(self.platform)

    @property
    def plain(self) -> bool:
        """Whether its containers are processes of this kernel, run by our own shim."""
        return not self.shim and not self.gvisor

    def on(self, network: pb.NamespaceMode) -> "Handler":
        """The same for a pod with the network of its own, or of the host."""
        if not self.gvisor:
            return self
        kind = "none" if self.isolated else "host" if network == pb.NODE else "sandbox"
        return replace(self, network=kind, hide=(PROC_SYS_NET,) if kind == "sandbox" else ())

    def state(self, container_id: str, pod_id: str) -> Path:
        """Where the runtime keeps what it knows of a container."""
        return Path(self.root, state_file(container_id, pod_id) if self.gvisor else container_id)

    def waits(self, container_id: str, pod_id: str) -> bool:
        """Whether the container's init still waits to be started: crun and runc have it wait at a FIFO till then."""
        state = self.state(container_id, pod_id)
        if self.gvisor:
            return state.exists() and status(files.read_bounded(state, STATE_LIMIT)) == CREATED
        return (state / "exec.fifo").exists()

    def forget(self, container_id: str, pod_id: str) -> None:
        """Remove what the runtime keeps of a container, and with a sandbox container of the whole pod. Blocks."""
        if self.gvisor:
            for path in Path(self.root).glob("*"):
                if is_of(path.name, container_id, pod_id):
                    files.unlink(path)
        else:
            files.remove_tree(self.state(container_id, pod_id))

    def to_args(self) -> dict[str, object]:
        return {
            "name": self.name, "binary": self.binary, "root": self.root, "hide": list(self.hide),
            "seconds": self.seconds, "platform": self.platform, "network": self.network,
        }  # fmt: skip


class Handlers:
    """The handlers of this node. "" is the default one.

    Pods may run under one whose binary is missing for a while: it has to be known, and it is, but is not offered.
    """

    def __init__(self, handlers: Mapping[str, Handler], default: str, missing: Mapping[str, Handler]) -> None:
        self.all = dict(handlers)
        self.default = default
        self._missing = dict(missing)

    def get(self, name: str) -> Handler:
        """Raises InvalidArgument for a handler that is not configured."""
        name = name or self.default
        handler = self.all.get(name)
        if handler is None and (missing := self._missing.get(name)) is not None:
            handler = replace(missing, binary=_program(missing.binary))  # it may be back
        if handler is None:
            known = ", ".join(sorted(self.all))
            raise InvalidArgument(f"runtime_handler: no runtime handler {name!r} is configured; there are: {known}")
        return handler

    def usable(self, name: str) -> Handler:
        """The same for a new pod. Raises Unavailable while a binary is missing."""
        handler = self.get(name)
        for binary in filter(None, (handler.shim, handler.binary)):
            if shutil.which(binary) is None:
                raise Unavailable(f"cannot use runtime handler {handler.name}: there is no program {binary}")
        return handler


def find(
    configured: Mapping[str, Mapping[str, Any]],
    default: str,
    state: Path,
    mode: str,
    seconds: float = 100.0,
    *,
    systemd: bool = False,
    first: str = "",
) -> Handlers:
    """Handlers for what is configured and for crun and runc where they are installed.

    `configured` maps a name to its table in the configuration; `default` is one of them, or "auto" for the first OCI
    runtime that really runs a container here, `first` before others. `mode` is the cgroup mode of the host; with
    `systemd` it makes the cgroups. Raises Unavailable when none of those that are there works or the default one is not
    known, InvalidArgument for options that a shim does not have.
    """
    files.make_private(state / "oci")  # else a runtime makes it
    handlers: dict[str, Handler] = {}
    missing: dict[str, Handler] = {}
    for name, handler in known(configured, state, mode, seconds, systemd=systemd).items():
        there = all(shutil.which(one) for one in (handler.shim, handler.binary) if one)
        (handlers if there else missing)[name] = handler
    if default == "auto" and any(one.plain for one in handlers.values()):
        default = _first_working(dict(sorted(handlers.items(), key=lambda one: one[0] != first)), state)
    elif default == "auto":
        default = next(name for name, one in missing.items() if one.plain)
    elif default not in handlers and default not in missing:
        raise Unavailable(f"cannot use default_runtime {default!r}: it is not configured")
    for name in missing.keys() & {default, *configured}:
        log.warning("cannot use runtime handler %s: there is no program %s", name, missing[name].binary)
    return Handlers(handlers, default, missing)


def known(
    configured: Mapping[str, Mapping[str, Any]],
    state: Path,
    mode: str,
    seconds: float = 100.0,
    *,
    systemd: bool = False,
) -> dict[str, Handler]:
    """Handlers by name, whether their programs are there or not. Raises InvalidArgument as `find` does."""
    found: dict[str, Handler] = {}
    for name in dict.fromkeys([*configured, *PREFERRED, RUNSC]):
        table = configured.get(name, {})
        if "shim" in table:
            handler = _foreign(name, table, state, seconds, systemd)
        elif Path(table.get("binary", name)).name == RUNSC:
            binary, platform = _program(table.get("binary", name)), table.get("platform", PLATFORMS[0])
            handler = Handler(
                name, binary, str(state / "oci" / name), (), seconds, sandbox=True, platform=platform,
                isolated=table.get("isolated", False),
            )  # fmt: skip
        else:
            binary = _program(table.get("binary", name))
            hide = (UNIFIED_ON_HYBRID,) if mode == "hybrid" and Path(binary).name == "crun" else ()
            handler = Handler(name, binary, str(state / "oci" / name), hide, seconds)
        found[name] = replace(
            handler,
            host_devices=not table.get("privileged_without_host_devices", False),
            all_devices=table.get("privileged_without_host_devices_all_devices_allowed", False),
        )
    return found


def _program(name: str) -> str:
    """Where it is, or what it is called, while it is missing."""
    return (shutil.which(name) or name) if name else ""


def _foreign(name: str, table: Mapping[str, Any], state: Path, seconds: float, systemd: bool) -> Handler:
    """The handler of a foreign shim.

    The runtime's directory is one level below the root that the shim is given, by the namespace, which is the name.
    """
    shim = _program(table["shim"])
    options, binary = dict(table.get("options", {})), table.get("binary", "")
    if Path(shim).name.startswith(RUNC_SHIM):
        binary = _program(binary or options.get("binary_name") or "runc")
        if options.setdefault("systemd_cgroup", systemd) != systemd:
            raise InvalidArgument(f"runtimes.{name}.options.systemd_cgroup: cgroup_driver says something else")
        options = {"root": str(state / "oci"), **options, "binary_name": binary}
        packed = _packed(name, runc_options_pb2.Options, options)
    else:
        packed = _packed(name, runtime_options_pb2.Options, options) if options else b""
    root = Path(options.get("root") or state / "oci", name)
    return Handler(
        name, binary, str(root), (), seconds, shim=shim, options=packed, sandbox=table.get("sandbox_container", True)
    )


def _packed(name: str, kind: type[Message], options: Mapping[str, Any]) -> bytes:
    """Options as the shim reads them. Raises InvalidArgument that names what does not fit."""
    message = kind()
    for key, value in options.items():
        try:
            field = message.DESCRIPTOR.fields_by_name[key]
            setattr(message, key, value.encode() if field.type == field.TYPE_BYTES else value)
        except KeyError:
            known = ", ".join(sorted(message.DESCRIPTOR.fields_by_name))
            raise InvalidArgument(
                f"runtimes.{name}.options.{key}: there is no such option; there are: {known}"
            ) from None
        except (TypeError, ValueError, AttributeError) as exc:
            raise InvalidArgument(f"runtimes.{name}.options.{key}: {value!r} is no value for it: {exc}") from exc
    packed = Any_()
    packed.type_url, packed.value = message.DESCRIPTOR.full_name, message.SerializeToString()
    return packed.SerializeToString()


def _first_working(handlers: Mapping[str, Handler], state: Path) -> str:
    """The first handler that runs a container; what was found is kept for this boot, binary and version."""
    known = state / "oci" / "works.json"
    seen: dict[str, str] = {}
    if known.exists():
        seen = json.loads(known.read_bytes() or b"{}")
    for name, handler in handlers.items():
        if not handler.plain:
            continue
        key = fingerprint(handler.binary)
        if seen.get(name) == key or works(handler):
            seen[name] = key
            known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            known.write_text(json.dumps(seen))
            return name
    raise Unavailable(f"cannot find an OCI runtime that works here; tried: {', '.join(handlers) or 'crun, runc'}")


def fingerprint(binary: str) -> str:
    found = os.stat(binary)
    return f"{binary} {found.st_size} {found.st_mtime_ns}"


def works(handler: Handler) -> bool:
    """Whether the runtime can run /bin/true here, in a cgroup of its own that is removed afterwards."""
    name = f"holdfast-probe-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix=name) as bundle:
        Path(bundle, "config.json").write_text(json.dumps(probe_spec(name, Path(bundle, "rootfs"))))
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


def probe_spec(name: str, rootfs: Path, *, readonly: bool = True) -> dict[str, object]:
    """The host's own programs, read-only, in a root of its own; made of links where the host's are links."""
    mounts: list[dict[str, object]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    ]
    _make_open(rootfs)
    for place in ("proc", "dev"):
        _make_open(rootfs / place)
    for top in ("usr", "bin", "lib", "lib64"):
        source = Path("/", top)
        if source.is_symlink():
            (rootfs / top).symlink_to(source.readlink())
        elif source.is_dir():
            _make_open(rootfs / top)
            mounts.append({"destination": f"/{top}", "source": str(source), "type": "bind", "options": ["rbind", "ro"]})
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs), "readonly": readonly},
        "process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/usr/bin:/bin"]},
        "mounts": mounts,
        "linux": {"cgroupsPath": f"/{name}", "namespaces": [{"type": "mount"}, {"type": "pid"}]},
    }


def _make_open(directory: Path) -> None:
    """Whatever our umask is: root of another user namespace may have to go through it."""
    directory.mkdir()
    directory.chmod(0o755)
