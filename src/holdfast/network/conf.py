"""Network configuration as the CNI specification has it (SPEC.md, section 1; versions 0.3.0 to 1.1.0). Pure."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from holdfast.model.errors import InvalidArgument

VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
SUFFIXES: Final = (".conf", ".conflist", ".json")
# A network's name becomes part of file names of its plugins; a plugin's type is a program's name.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class NetworkList:
    """A chain of plugins. `raw` is the list as JSON-able values, with one version; `source` is the file's name."""

    raw: Mapping[str, Any]
    source: str = ""

    @property
    def name(self) -> str:
        return str(self.raw["name"])

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in str(self.raw["cniVersion"]).split("."))

    @property
    def plugins(self) -> list[Mapping[str, Any]]:
        return list(self.raw["plugins"])

    @property
    def checks(self) -> bool:
        return self.version >= (0, 4, 0) and not self.raw.get("disableCheck", False)

    @property
    def collects(self) -> bool:
        """Whether its plugins can be told which attachments are alive."""
        return self.version >= (1, 1, 0) and not self.raw.get("disableGC", False)

    @property
    def tells_status(self) -> bool:
        return self.version >= (1, 1, 0)

    @property
    def capabilities(self) -> frozenset[str]:
        """What any plugin of the chain wants to be told."""
        asked = (plugin.get("capabilities", {}) for plugin in self.plugins)
        return frozenset(name for one in asked for name, wanted in one.items() if wanted)

    def for_plugin(
        self, plugin: Mapping[str, Any], arguments: Mapping[str, Any], result: Mapping[str, Any] | None, **more: Any
    ) -> dict[str, Any]:
        """What one plugin reads: its own part, name and version of the list, and those arguments that it asks for."""
        found = {key: value for key, value in plugin.items() if key != "capabilities"}
        found |= {"name": self.name, "cniVersion": self.raw["cniVersion"], **more}
        wanted = {name for name, asked in plugin.get("capabilities", {}).items() if asked}
        if told := {name: value for name, value in arguments.items() if name in wanted}:
            found["runtimeConfig"] = told
        if result is not None:
            found["prevResult"] = dict(result)
        return found


def parse(text: str, source: str) -> NetworkList:
    """A configuration list, or a single plugin's configuration as a list of one.

    Raises InvalidArgument that names the source and the field.
    """
    try:
        raw = json.loads(text)
    except ValueError as exc:
        raise InvalidArgument(f"{source}: it is not JSON: {exc}") from exc
    if not isinstance(raw, dict):
        raise InvalidArgument(f"{source}: it is not an object")
    if "plugins" not in raw:
        common = {key: raw[key] for key in ("cniVersion", "cniVersions", "name") if key in raw}
        raw = {**common, "plugins": [{key: value for key, value in raw.items() if key not in common}]}
    found = dict(raw)
    found["cniVersion"] = _version(found, source)
    found.pop("cniVersions", None)
    name, plugins = found.get("name"), found["plugins"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidArgument(f"{source}: name: {name!r} is not a network's name")
    if not isinstance(plugins, list) or not plugins:
        raise InvalidArgument(f"{source}: plugins: it is not a list, or is empty")
    for number, plugin in enumerate(plugins):
        _check_plugin(plugin, f"{source}: plugins[{number}]")
    return NetworkList(found, source)


def _version(raw: Mapping[str, Any], source: str) -> str:
    """The highest that both sides know."""
    offered = [raw["cniVersion"]] if "cniVersion" in raw else []
    more = raw.get("cniVersions", [])
    if not isinstance(more, list):
        raise InvalidArgument(f"{source}: cniVersions: {more!r} is not a list")
    if not offered and not more:
        raise InvalidArgument(f"{source}: cniVersion: must be set")
    known = [version for version in VERSIONS if version in [*offered, *more]]
    if not known:
        named = ", ".join(map(str, [*offered, *more]))
        raise InvalidArgument(f"{source}: cniVersion: {named} is not known; known are {', '.join(VERSIONS)}")
    return known[-1]


def _check_plugin(plugin: Any, where: str) -> None:
    if not isinstance(plugin, dict):
        raise InvalidArgument(f"{where}: it is not an object")
    kind = plugin.get("type")
    if not isinstance(kind, str) or not _NAME.fullmatch(kind):
        raise InvalidArgument(f"{where}.type: {kind!r} is not a plugin's name")
    asked = plugin.get("capabilities", {})
    if not isinstance(asked, dict) or not all(isinstance(value, bool) for value in asked.values()):
        raise InvalidArgument(f"{where}.capabilities: {asked!r} is not an object of true and false")


def addresses(result: Mapping[str, Any], interface: str) -> list[str]:
    """The addresses that a result gives to the pod's own interface, without their prefix lengths (SPEC.md, section 5).

    An address that names no interface is the pod's. Raises ValueError for what is no result.
    """
    inside = [one.get("name") for one in result.get("interfaces", ()) if one.get("sandbox")]
    listed = [one.get("name") for one in result.get("interfaces", ())]
    found = []
    for ip in result.get("ips", ()):
        number = ip.get("interface")
        named = listed[number] if isinstance(number, int) and 0 <= number < len(listed) else None
        if named is None or named == interface or (named in inside and interface not in inside):
            found.append(str(ip["address"]).partition("/")[0])
    return found
