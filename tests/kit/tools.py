"""Programs that `make setup` unpacks below .tools because Debian 12 lacks them, and marks for tests that need them."""

import shutil
from pathlib import Path

import pytest

BIN = Path(__file__).parents[2] / ".tools" / "bin"
RUNSC = str(BIN / "runsc")
CRIU = str(BIN / "criu")
CHECKPOINTCTL = str(BIN / "checkpointctl")


def needs(program: str) -> pytest.MarkDecorator:
    """Skips what a program is needed for, where `make setup` could not get it."""
    reason = f"there is no {program}: make setup could not get it from this machine's Debian mirror"
    return pytest.mark.skipif(shutil.which(program) is None, reason=reason)


needs_runsc = needs(RUNSC)
needs_criu = needs(CRIU)
needs_checkpointctl = needs(CHECKPOINTCTL)
