"""Command lines of OCI runtimes (crun, runc), and what their error logs say."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast.linux import files, process

ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
LOG_LIMIT: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Runtime:
    """One OCI runtime as the daemon configured it. `hide` are mounts that it must not see."""

    name: str
    binary: str
    root: str
    hide: tuple[str, ...]

    def run(self, log: Path, fds: Mapping[int, int], *arguments: str) -> int:
        """Start one command; returns its pid. Raises OSError when the binary cannot be run."""
        log.unlink(missing_ok=True)
        command = [self.binary, "--root", self.root, "--log", str(log), "--log-format", "json", *arguments]
        return process.spawn(command, env=ENVIRONMENT, fds=fds, hide=self.hide)

    def quietly(self, log: Path, *arguments: str) -> int:
        """The same with no input and no output."""
        nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            return self.run(log, {0: nothing, 1: nothing, 2: nothing}, *arguments)
        finally:
            os.close(nothing)


def error_text(log: Path) -> str:
    """The last error in a runtime's JSON log; "" when it says nothing."""
    try:
        lines = files.read_bounded(log, LOG_LIMIT).splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal") and entry.get("msg"):
            return str(entry["msg"])
    return ""
