"""Programs that not every node has, what needs them, and what the doctor has to say of them."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from holdfast.lifecycle.tasks import apart, within
from holdfast.model.errors import HoldfastError
from holdfast.model.escapes import parse
from holdfast.runtime.handlers import Handler
from holdfast.runtime.versions import ask

SECONDS: Final = 20.0
OLDEST_RUNSC: Final = 20240729  # the day of the oldest release that was tried and could do it
OLDEST_CRIU: Final = "4.2"  # older ones fail on each socket from Linux 6.16 on
_RUNSC: Final = re.compile(r"runsc version \S*?([0-9]{8})")
_CRIU: Final = re.compile(r"Version: *(\S+)")
_GOOD: Final = "Looks good."


@dataclass(frozen=True, slots=True)
class Tool:
    """One program; `problem` is why `feature` is not to be had, "" when it is."""

    name: str
    binary: str
    feature: str
    problem: str = ""

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


async def examine(handlers: Iterable[Handler], criu_path: str) -> list[Tool]:
    """Those that handlers need, and CRIU. Nothing is raised: what cannot be found out is a problem."""
    runsc = next((one.binary for one in handlers if one.gvisor), "runsc")
    asked = (
        ("runsc", runsc, "gVisor pods", runsc_problem),
        ("criu", find_criu(criu_path), "checkpoints of pods under runc", criu_problem),
    )
    return [Tool(name, binary, what, await problem(name, binary, look)) for name, binary, what, look in asked]


def find_criu(configured: str) -> str:
    """The program that is used: the configured one, or the one in PATH; its bare name when there is none."""
    return configured or shutil.which("criu") or "criu"


def runsc_problem(binary: str) -> str:
    """Why this runsc does not do; "" when it does. Blocks, and raises as `ask` does."""
    said = ask(binary, "--version")
    if (match := _RUNSC.match(said)) is None:
        return f"{said[:80]!r} does not say a release"
    return "" if int(match[1]) >= OLDEST_RUNSC else f"its release {match[1]} is older than {OLDEST_RUNSC}"


def criu_problem(binary: str) -> str:
    """Why this CRIU does not do here; "" when it does. Blocks, and raises as `ask` does."""
    said = ask(binary, "--version")
    if (match := _CRIU.match(said)) is None:
        return f"{said[:80]!r} does not say a version"
    try:
        if parse(match[1]) < parse(OLDEST_CRIU):
            return f"its version {match[1]} is older than {OLDEST_CRIU}"
    except ValueError as exc:
        return str(exc)
    return "" if _GOOD in ask(binary, "check") else f"`{binary} check` finds that the kernel does not do"


async def problem(name: str, binary: str, look: Callable[[str], str]) -> str:
    """Why a program does not do, or cannot be asked; "" when it does."""
    if shutil.which(binary) is None:
        return f"there is no program {binary}"
    try:
        return await within(SECONDS, apart(look, binary), f"ask {name}")
    except (HoldfastError, OSError, subprocess.TimeoutExpired) as exc:
        return f"cannot ask {binary}: {exc}"
