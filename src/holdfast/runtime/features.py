"""What the OCI runtimes here can do beyond what every one of them can: asked once for each binary, when it matters.

`runc features` and `crun features` tell (runtime-spec, features.md). crun has that command since 1.9; before, its
version tells. What does not answer in time is taken to be able to do nothing of the kind.
"""

import asyncio
import json
import logging
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Final

from holdfast.linux.threads import in_thread
from holdfast.runtime.handlers import RUNC_SHIM, Handler

log = logging.getLogger(__name__)

ASK_SECONDS: Final = 5.0
OUTPUT_LIMIT: Final = 1 << 20
RECURSIVE_READ_ONLY: Final = "rro"
_CRUN: Final = re.compile(r"crun version (\d+)\.(\d+)")
_CRUN_WITH_RRO: Final = (1, 4)


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
            ask = in_thread(detect, handler.binary)
            found = self._found[key] = asyncio.get_running_loop().create_task(ask, name=f"features of {handler.name}")
        return await asyncio.shield(found)


def binds_from_host(handler: Handler) -> bool:
    """Whether what we mount is mounted by the runtime as it is there: not so where a kernel of its own lies between."""
    return not handler.shim or os.path.basename(handler.shim).startswith(RUNC_SHIM)


def detect(binary: str) -> Features:
    """Ask it. Blocks."""
    if (said := _run(binary, "features")) is not None:
        return parse_features(said)
    return parse_version(_run(binary, "--version") or "")


def parse_features(said: str) -> Features:
    """From the JSON of `features`; nothing from what is none."""
    try:
        options = json.loads(said)["mountOptions"]
        return Features(recursive_read_only_mounts=RECURSIVE_READ_ONLY in options)
    except (ValueError, LookupError, TypeError):
        return Features()


def parse_version(said: str) -> Features:
    """From what `crun --version` says."""
    found = _CRUN.match(said)
    return Features(found is not None and (int(found[1]), int(found[2])) >= _CRUN_WITH_RRO)


def _run(binary: str, argument: str) -> str | None:
    """What it writes; None when it fails."""
    try:
        done = subprocess.run(
            [binary, argument], capture_output=True, stdin=subprocess.DEVNULL, timeout=ASK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        log.warning("cannot ask %s for its features: %s", binary, exc)
        return None
    return done.stdout[:OUTPUT_LIMIT].decode(errors="replace") if done.returncode == 0 else None
