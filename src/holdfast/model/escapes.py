"""Ways out of a container that OCI runtimes are known to have had, and which of them a version still has. Pure.

Versions are upstream's. A fix comes in several branches at once: a version has it if it is not older than the fix in
its own branch (major.minor), or than the newest of them. Sources: the projects' advisories and changelogs.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

_VERSION: Final = re.compile(r"v?([0-9]+)\.([0-9]+)(?:\.([0-9]+))?(?:[-.~]?rc\.?([0-9]+))?")
_FIRST_LINE: Final = re.compile(r"(\S+) version (\S+)")

Number = tuple[int, int, int, float]


@dataclass(frozen=True, slots=True)
class Escape:
    """`fixed` is the first version of each branch that has the fix; `since` the first that needs it, "" for all."""

    runtime: str
    cve: str
    fixed: tuple[str, ...]
    what: str
    since: str = ""

    def has(self, version: Number) -> bool:
        """Whether a version of the runtime has it still."""
        fixes = [parse(text) for text in self.fixed]
        if self.since and version < parse(self.since):
            return False
        return not any(version >= fix for fix in fixes if fix[:2] == version[:2] or fix == max(fixes))


KNOWN: Final = (
    Escape("runc", "CVE-2019-5736", ("1.0.0-rc7",), "the runtime's program is overwritten through /proc/self/exe"),
    Escape("runc", "CVE-2019-19921", ("1.0.0-rc10",), "a volume over /proc keeps security labels from being set"),
    Escape("runc", "CVE-2021-30465", ("1.0.0-rc95",), "links exchanged under a mount's target lead it out of the root"),
    Escape("runc", "CVE-2023-27561", ("1.1.5",), "a volume over /proc keeps security labels from being set, again",
           "1.0.0-rc95"),
    Escape("runc", "CVE-2023-28642", ("1.1.5",), "/proc as a link keeps security labels from being set"),
    Escape("runc", "CVE-2024-21626", ("1.1.12",), "a working directory in /proc/self/fd is the host's", "1.0.0-rc93"),
    Escape("runc", "CVE-2024-45310", ("1.1.14", "1.2.0-rc.3"), "empty files and directories are made on the host"),
    Escape("runc", "CVE-2025-31133", ("1.2.8", "1.3.3", "1.4.0-rc.3"), "a false /dev/null makes masked paths writable"),
    Escape("runc", "CVE-2025-52565", ("1.2.8", "1.3.3", "1.4.0-rc.3"), "/dev/console is mounted over what a link says",
           "1.0.0-rc3"),
    Escape("runc", "CVE-2025-52881", ("1.2.8", "1.3.3", "1.4.0-rc.3"), "writes to /proc are led to other files"),
    Escape("runc", "CVE-2026-41579", ("1.3.6", "1.4.3", "1.5.0"), "an image whose /dev is a link changes host files"),
    Escape("krun", "CVE-2025-24965", ("1.20",), "an image's krun configuration is written outside of its root"),
    Escape("crun", "CVE-2026-30892", ("1.27",), "exec as user 1 is exec as root", "1.19"),
    Escape("crun", "CVE-2026-47766", ("1.28",), "an image whose /dev is a link changes host files"),
)  # fmt: skip


def parse(text: str) -> Number:
    """(major, minor, patch, candidate), infinity for a release; what a distribution adds is passed over.

    Raises ValueError.
    """
    if (match := _VERSION.match(text)) is None:
        raise ValueError(f"{text!r} is not a version")
    major, minor, patch, candidate = match.groups()
    return int(major), int(minor), int(patch or 0), int(candidate) if candidate else math.inf


def parse_first_line(said: str, name: str) -> tuple[str, str]:
    """(runtime, version) of what `--version` says; `name` is the program's. Raises ValueError."""
    if (match := _FIRST_LINE.match(said)) is None:
        raise ValueError(f"{said[:80]!r} does not say a version")
    return name if name == "krun" else match[1], match[2]


def known(runtime: str, version: str, fixed: Collection[str] = ()) -> list[Escape]:
    """What this version of a runtime has still, without the CVEs that are known to be `fixed` in it all the same.

    Nothing for a runtime that the list does not have. Raises ValueError for one whose version makes no sense.
    """
    runtimes = (runtime, "crun") if runtime == "krun" else (runtime,)
    listed = [one for one in KNOWN if one.runtime in runtimes and one.cve not in fixed]
    return [one for one in listed if one.has(parse(version))]
