"""What the OCI runtimes here can do beyond what every one of them can: asked once for each binary, when it matters.

`runc features` and `crun features` tell (runtime-spec, features.md). crun has that command since 1.9; before, its
version tells. What does not answer in time is taken to be able to do nothing of the kind.
"""

import asyncio
import json
import logging
import os
import subprocess
from dataclasses import dataclass
from typing import Final

from holdfast.linux.threads import in_thread
from holdfast.model.escapes import parse, parse_first_line
from holdfast.runtime.handlers import RUNC_SHIM, Handler
from holdfast.runtime.versions import ask

log = logging.getLogger(__name__)

RECURSIVE_READ_ONLY: Final = "rro"
CRUN_WITH_IT: Final = parse("1.4")


@dataclass(frozen=True, slots=True)
class Features:
    """`recursive_read_only_mounts`: by a mount option of its own."""

    recursive_read_only_mounts: bool = False


class RuntimeFeatures:
    """Keeps what was found for as long as the binary stays the same file."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, int], asyncio.Task[Features]] = {}

    async def of(self, handler: Handler) -> Features:
        """Of the runtime behind a handler."""
        if not handler.binary:
            return Features()
        try:
            status = os.stat(handler.binary)
        except OSError:  # it is missing for a while
            return Features()
        key = (handler.binary, status.st_size, status.st_mtime_ns)
        if (found := self._found.get(key)) is None:
            look = in_thread(detect, handler.binary)
            found = self._found[key] = asyncio.get_running_loop().create_task(look, name=f"features of {handler.name}")
        return await asyncio.shield(found)


def binds_from_host(handler: Handler) -> bool:
    """Whether what we mount is mounted by the runtime as it is there: not so where a kernel of its own lies between."""
    return handler.plain or os.path.basename(handler.shim).startswith(RUNC_SHIM)


def detect(binary: str) -> Features:
    """Ask it. Blocks."""
    try:
        return parse_features(ask(binary, "features")) or parse_version(ask(binary, "--version"))
    except (OSError, subprocess.TimeoutExpired) as exc:
        log.warning("cannot ask %s for its features: %s", binary, exc)
        return Features()


def parse_features(said: str) -> Features | None:
    """From the JSON of `features`; None for what is none."""
    try:
        return Features(recursive_read_only_mounts=RECURSIVE_READ_ONLY in json.loads(said)["mountOptions"])
    except (ValueError, LookupError, TypeError):
        return None


def parse_version(said: str) -> Features:
    """From what `crun --version` says."""
    try:
        runtime, version = parse_first_line(said, "")
        return Features(runtime == "crun" and parse(version) >= CRUN_WITH_IT)
    except ValueError:
        return Features()
