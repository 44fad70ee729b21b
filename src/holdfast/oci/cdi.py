"""CDI devices: what vendors' spec files say of them, which of several wins, and what that makes of an OCI spec. Pure.

The Container Device Interface (cncf-tags/container-device-interface, SPEC.md, up to 1.1.0) as containerd has it: a
device is `vendor/class=name`; files of a later directory win over those of an earlier one, and of two files of one
directory that define the same device neither does. Documents come decoded, device nodes of the host through `look`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from holdfast.model.errors import InvalidArgument
from holdfast.model.spec import DeviceNode
from holdfast.proto import runtime_v1_pb2 as pb

Spec = dict[str, Any]
Look = Callable[[str], DeviceNode | None]

ANNOTATION: Final = "cdi.k8s.io/"
VERSIONS: Final = ("0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
HOOKS: Final = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_LABEL: Final = "[A-Za-z](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_KIND: Final = re.compile(f"{_LABEL}/{_LABEL}")
_DEVICE: Final = re.compile("[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_RDT: Final = {"closID": str, "l3CacheSchema": str, "memBwSchema": str, "enableCMT": bool, "enableMBM": bool}
_LATER: Final = ("schemata", "enableMonitoring")  # of intelRdt, since 1.1.0; the runtimes here have never heard of them


@dataclass(frozen=True, slots=True)
class Node:
    """A device node as a file describes it; `kind` is "" and the numbers None for what the host's own node says."""

    path: str
    host_path: str
    kind: str = ""
    major: int | None = None
    minor: int | None = None
    mode: int | None = None
    access: str = "rwm"
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Edits:
    """What is to be changed in an OCI spec; mounts and hooks as that has them."""

    env: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    mounts: tuple[Spec, ...] = ()
    hooks: tuple[tuple[str, Spec], ...] = ()
    gids: tuple[int, ...] = ()
    intel_rdt: Spec | None = None

    def __add__(self, other: "Edits") -> "Edits":
        return Edits(
            self.env + other.env,
            self.nodes + other.nodes,
            self.mounts + other.mounts,
            self.hooks + other.hooks,
            self.gids + other.gids,
            other.intel_rdt or self.intel_rdt,
        )


@dataclass(frozen=True, slots=True)
class File:
    """One spec file: the edits of every device of it, by qualified name, and those that come with any of them."""

    path: str
    priority: int
    common: Edits
    devices: Mapping[str, Edits]


class Registry:
    """All files there are, and what is wrong with those that cannot be used, by path."""

    def __init__(self, files: Iterable[File] = (), faults: Mapping[str, str] | None = None) -> None:
        self.faults = dict(faults or {})
        self._found: dict[str, list[File]] = {}
        for file in files:
            for name in file.devices:
                self._found.setdefault(name, []).append(file)

    def edits(self, wanted: Mapping[str, str]) -> Edits:
        """For device names and the field that asks for each. Raises InvalidArgument that names the field."""
        found, seen = Edits(), set()
        for name, field in wanted.items():
            file = self._file(name, field)
            if file.path not in seen:
                found += file.common
                seen.add(file.path)
            found += file.devices[name]
        return found

    def _file(self, name: str, field: str) -> File:
        files = self._found.get(name, [])
        highest = max((file.priority for file in files), default=0)
        best = [file for file in files if file.priority == highest]
        if len(best) > 1:
            paths = " and ".join(sorted(file.path for file in best))
            raise InvalidArgument(f"{field}: the CDI device {name} is defined more than once: by {paths}")
        if not best:
            faults = "".join(f"; {path}: {why}" for path, why in sorted(self.faults.items()))
            raise InvalidArgument(f"{field}: there is no CDI device {name}{faults}")
        return best[0]


def requested(config: pb.ContainerConfig) -> dict[str, str]:
    """Device names in their order, each with the field that asks for it first: CDI_devices, then annotations.

    Raises InvalidArgument that names the field.
    """
    found: dict[str, str] = {}
    for number, device in enumerate(config.CDI_devices):
        found.setdefault(_qualified(device.name, field := f"config.CDI_devices[{number}].name"), field)
    for key in sorted(config.annotations):
        if key.startswith(ANNOTATION):
            for name in config.annotations[key].split(","):
                found.setdefault(_qualified(name, field := f"config.annotations[{key}]"), field)
    return found


def check(config: pb.ContainerConfig) -> None:
    """Raises InvalidArgument."""
    requested(config)


def parse(document: object, path: str, priority: int) -> File:
    """A spec file from what is in it. Raises ValueError, saying what is wrong."""
    fields = _Fields(document, "", "cdiVersion", "kind", "annotations", "devices", "containerEdits")
    version, kind = fields.text("cdiVersion"), fields.text("kind")
    if version.removeprefix("v") not in VERSIONS:
        raise ValueError(f"cdiVersion: {version!r} is not known")
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind: {kind!r} is not of the form vendor.com/class")
    _annotations(fields)
    common = _edits(fields.get("containerEdits", {}), "containerEdits")
    devices: dict[str, Edits] = {}
    for number, item in enumerate(fields.items("devices")):
        device = _Fields(item, f"devices[{number}]", "name", "annotations", "containerEdits")
        name = device.text("name")
        _annotations(device)
        if not _DEVICE.fullmatch(name) or f"{kind}={name}" in devices:
            raise ValueError(f"devices[{number}].name: {name!r} is no name, or there twice")
        edits = _edits(device.get("containerEdits", {}), f"devices[{number}].containerEdits")
        if edits == Edits():
            raise ValueError(f"devices[{number}].containerEdits: there are none")
        devices[f"{kind}={name}"] = edits
    if not devices:
        raise ValueError("devices: there are none")
    needed = _needed(fields.document, kind, common, devices)
    if VERSIONS.index(version.removeprefix("v")) < VERSIONS.index(needed):
        raise ValueError(f"cdiVersion: what it says needs at least {needed}, not {version}")
    return File(path, priority, common, devices)


def complete(edits: Edits, look: Look) -> Edits:
    """The same with everything said of each device node. Raises InvalidArgument for one that the host does not have."""
    return replace(edits, nodes=tuple(_complete(node, look) for node in edits.nodes))


def apply(spec: Spec, edits: Edits) -> None:
    """Make the changes in a spec that nobody else has yet. Its edits are complete."""
    process, linux = spec["process"], spec["linux"]
    process["env"] = _with_env(process["env"], edits.env)
    for node in edits.nodes:
        linux["devices"] = [one for one in linux["devices"] if one["path"] != node.path]
        linux["devices"].append(_node_to_oci(node, process["user"]))
        if node.kind in ("b", "c") and node.access:
            rule = {"type": node.kind, "major": node.major, "minor": node.minor, "access": node.access}
            linux["resources"]["devices"].append({"allow": True, **rule})
    for mount in edits.mounts:
        spec["mounts"] = [one for one in spec["mounts"] if one["destination"] != mount["destination"]]
        spec["mounts"].append(mount)
    spec["mounts"].sort(key=lambda mount: mount["destination"].rstrip("/").count("/"))
    for name, hook in edits.hooks:
        spec.setdefault("hooks", {}).setdefault(name, []).append(hook)
    if edits.intel_rdt is not None:
        linux["intelRdt"] = edits.intel_rdt
    groups = process["user"]["additionalGids"]
    groups += [gid for gid in dict.fromkeys(edits.gids) if gid and gid not in groups]  # root's is never given so


def _qualified(name: str, field: str) -> str:
    kind, equals, device = name.partition("=")
    if not equals or not _KIND.fullmatch(kind) or not _DEVICE.fullmatch(device):
        raise InvalidArgument(f"{field}: {name!r} is not of the form vendor.com/class=name")
    return name


def _with_env(env: Sequence[str], more: Sequence[str]) -> list[str]:
    found = dict(entry.partition("=")[::2] for entry in env) | dict(entry.partition("=")[::2] for entry in more)
    return [f"{name}={value}" for name, value in found.items()]


def _complete(node: Node, look: Look) -> Node:
    if node.kind == "p" or (node.kind and node.major):
        return replace(node, major=node.major or 0, minor=node.minor or 0)
    found = look(node.host_path)
    if found is None:
        raise InvalidArgument(f"config.CDI_devices: {node.host_path!r} is not a device of this host")
    if node.kind not in ("", found.type):
        raise InvalidArgument(f"config.CDI_devices: {node.host_path!r} is of type {found.type}, not {node.kind}")
    return replace(node, kind=found.type, major=found.major, minor=found.minor)


def _node_to_oci(node: Node, user: Mapping[str, int]) -> Spec:
    """The process owns what the file gives to nobody."""
    found: Spec = {"path": node.path, "type": node.kind}
    if node.kind != "p":
        found |= {"major": node.major, "minor": node.minor}
    owners = {"uid": node.uid, "gid": node.gid}
    for key, given in owners.items():
        if (owner := user[key] if given is None else given) or given is not None:
            found[key] = owner
    return found if node.mode is None else found | {"fileMode": node.mode}


class _Fields:
    """A JSON object of which every field is known; its values by type. Raises ValueError that names the field."""

    def __init__(self, document: object, where: str, *known: str) -> None:
        if not isinstance(document, dict):
            raise ValueError(f"{where or 'it'} is not an object")
        for key in document.keys() - set(known):
            raise ValueError(f"{where}: there is no field {key!r}".removeprefix(": "))
        self.document: dict[str, Any] = document
        self.where = f"{where}." if where else ""

    def get(self, name: str, default: Any) -> Any:
        value = self.document.get(name)
        return default if value is None else value

    def typed(self, name: str, kind: type, default: Any) -> Any:
        value = self.get(name, default)
        if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise ValueError(f"{self.where}{name}: {value!r} is not of type {kind.__name__}")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{self.where}{name}: it has a NUL in it")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value: str = self.typed(name, str, default or "")
        if not value and default is None:
            raise ValueError(f"{self.where}{name}: it is missing")
        return value

    def number(self, name: str, limit: int = 2**32 - 1) -> int | None:
        value: int | None = self.typed(name, int, None)
        if value is not None and not 0 <= value <= limit:
            raise ValueError(f"{self.where}{name}: {value} is out of range")
        return value

    def items(self, name: str) -> list[Any]:
        value: list[Any] = self.typed(name, list, [])
        return value

    def texts(self, name: str, *, named: bool = False) -> tuple[str, ...]:
        for number, value in enumerate(self.items(name)):
            if not isinstance(value, str) or "\0" in value or (named and value.find("=") < 1):
                raise ValueError(f"{self.where}{name}[{number}]: {value!r} is no {'variable' if named else 'text'}")
        return tuple(self.items(name))


def _annotations(fields: _Fields) -> None:
    for key, value in fields.typed("annotations", dict, {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"{fields.where}annotations: {key!r} or what it says is no text")


def _edits(document: object, where: str) -> Edits:
    kinds = ("env", "deviceNodes", "mounts", "hooks", "additionalGids", "intelRdt", "netDevices")
    fields = _Fields(document, where, *kinds)
    if fields.items("netDevices"):
        raise ValueError(f"{where}.netDevices: network devices cannot be moved into containers here")
    gids = fields.items("additionalGids")
    if not all(isinstance(gid, int) and not isinstance(gid, bool) and 0 <= gid < 2**31 for gid in gids):
        raise ValueError(f"{where}.additionalGids: {gids!r} are not all group ids")
    numbered = {kind: list(enumerate(fields.items(kind))) for kind in kinds[1:4]}
    return Edits(
        fields.texts("env", named=True),
        tuple(_node(one, f"{where}.deviceNodes[{number}]") for number, one in numbered["deviceNodes"]),
        tuple(_mount(one, f"{where}.mounts[{number}]") for number, one in numbered["mounts"]),
        tuple(_hook(one, f"{where}.hooks[{number}]") for number, one in numbered["hooks"]),
        tuple(gids),
        _rdt(fields.get("intelRdt", None), f"{where}.intelRdt"),
    )


def _node(document: object, where: str) -> Node:
    keys = ("path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid")
    fields = _Fields(document, where, *keys)
    path, kind, access = fields.text("path"), fields.text("type", ""), fields.text("permissions", "")
    if kind not in ("", "b", "c", "u", "p"):
        raise ValueError(f"{where}.type: {kind!r} is not one of b, c, u and p")
    if set(access) - set("rwm") and access != "none":
        raise ValueError(f"{where}.permissions: {access!r} is not made of r, w and m")
    return Node(
        path,
        fields.text("hostPath", "") or path,
        "c" if kind == "u" else kind,
        fields.number("major"),
        fields.number("minor"),
        fields.number("fileMode", 0o7777),
        {"": "rwm", "none": ""}.get(access, access),
        fields.number("uid"),
        fields.number("gid"),
    )


def _mount(document: object, where: str) -> Spec:
    fields = _Fields(document, where, "hostPath", "containerPath", "options", "type")
    source, destination = fields.text("hostPath"), fields.text("containerPath")
    kind = fields.text("type", "") or "bind"
    return {"destination": destination, "type": kind, "source": source, "options": list(fields.texts("options"))}


def _hook(document: object, where: str) -> tuple[str, Spec]:
    fields = _Fields(document, where, "hookName", "path", "args", "env", "timeout")
    name, hook = fields.text("hookName"), {"path": fields.text("path")}
    if name not in HOOKS:
        raise ValueError(f"{where}.hookName: {name!r} is not one of {', '.join(HOOKS)}")
    more = {"args": list(fields.texts("args")), "env": list(fields.texts("env", named=True))}
    more["timeout"] = fields.number("timeout")  # type: ignore[assignment]
    return name, hook | {key: value for key, value in more.items() if value}


def _rdt(document: object, where: str) -> Spec | None:
    if document is None:
        return None
    fields = _Fields(document, where, *_RDT, *_LATER)
    for name in _LATER:
        if fields.get(name, None):
            raise ValueError(f"{where}.{name}: the OCI runtimes here do not know it")
    found = {name: fields.typed(name, kind, None) for name, kind in _RDT.items()}
    closid = found["closID"] or ""
    if closid in (".", "..") or (closid != "/" and set(closid) & set("/\n")) or len(closid) >= 4096:
        raise ValueError(f"{where}.closID: {closid!r} is no name")
    return {name: value for name, value in found.items() if value is not None}


def _needed(document: Mapping[str, Any], kind: str, common: Edits, devices: Mapping[str, Edits]) -> str:
    """The oldest version that has everything that a file makes use of."""
    everything = [common, *devices.values()]
    raw = [one.get("containerEdits") or {} for one in (document, *(document.get("devices") or []))]
    nodes = [node for one in raw for node in one.get("deviceNodes") or []]
    mounts = [mount for one in raw for mount in one.get("mounts") or []]
    annotated = any(one.get("annotations") for one in (document, *(document.get("devices") or [])))
    if any(one.gids or one.intel_rdt is not None for one in everything):
        return "0.7.0"
    if annotated or "." in kind.partition("/")[2]:
        return "0.6.0"
    if any(name.partition("=")[2][0].isdigit() for name in devices) or any(node.get("hostPath") for node in nodes):
        return "0.5.0"
    return "0.4.0" if any(mount.get("type") for mount in mounts) else "0.1.0"
