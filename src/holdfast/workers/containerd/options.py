"""Which OCI runtime a shim under containerd uses: what containerd's configuration says, else crun, else runc.

Options come as one message, packed, on the stdin of `start`:

    containerd.runc.v1.Options     binary_name, root, systemd_cgroup; as for containerd's own shim
    runtimeoptions.v1.Options      a TOML file, or its text, with BinaryName, Root and SystemdCgroup
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from holdfast.linux import cgroup, files

PREFERRED: Final = ("crun", "runc")
LIMIT: Final = 1024 * 1024


def unpack(data: bytes) -> dict[str, Any]:
    """{"BinaryName", "Root", "SystemdCgroup"}, as far as they are given. Raises ValueError, or OSError for a file."""
    if not data:
        return {}
    import tomllib  # with protobuf half of what a start takes, which most do without

    from google.protobuf.any_pb2 import Any as Packed
    from google.protobuf.message import DecodeError

    from holdfast.proto import runc_options_pb2, runtime_options_pb2

    try:
        packed = Packed.FromString(data)
        kind = packed.type_url.rpartition("/")[2]
        if kind == runc_options_pb2.Options.DESCRIPTOR.full_name:
            runc = runc_options_pb2.Options.FromString(packed.value)
            return {"BinaryName": runc.binary_name, "Root": runc.root, "SystemdCgroup": runc.systemd_cgroup}
        if kind == runtime_options_pb2.Options.DESCRIPTOR.full_name:
            other = runtime_options_pb2.Options.FromString(packed.value)
            body = files.read_bounded(other.config_path, LIMIT) if other.config_path else other.config_body
            return tomllib.loads(body.decode())
    except DecodeError as exc:
        raise ValueError(f"cannot read options: {exc}") from exc
    if kind:
        raise ValueError(f"options of an unknown kind: {kind}")
    return {}


def choose(options: Mapping[str, Any], spec: Mapping[str, Any], namespace: str, directory: Path) -> dict[str, Any]:
    """Arguments of `oci.Runtime`. A cgroup path "slice:prefix:name" asks for systemd, whatever the options say.

    Raises FileNotFoundError when there is no such runtime.
    """
    binary = find(str(options.get("BinaryName") or ""))
    root = Path(str(options["Root"]), namespace) if options.get("Root") else directory / "oci"
    path = str((spec.get("linux") or {}).get("cgroupsPath") or "")
    systemd = bool(options.get("SystemdCgroup")) or (path.count(":") == 2 and not path.startswith("/"))
    hide = [str(cgroup.UNIFIED)] if Path(binary).name == "crun" and cgroup.mode() == "hybrid" else []
    return {"name": Path(binary).name, "binary": binary, "root": str(root), "hide": hide, "systemd": systemd}


def find(wanted: str) -> str:
    """The path of a program. Raises FileNotFoundError."""
    names = [wanted] if wanted else PREFERRED
    for name in names:
        for place in [""] if os.path.isabs(name) else os.get_exec_path():
            if os.access(path := os.path.join(place, name), os.X_OK) and os.path.isfile(path):
                return path
    raise FileNotFoundError(f"no OCI runtime is installed; looked for {' and '.join(names)}")
