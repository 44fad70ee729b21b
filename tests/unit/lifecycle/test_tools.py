"""What the doctor says of programs that not every node has."""

from pathlib import Path

import pytest

from holdfast.lifecycle import tools
from holdfast.runtime.handlers import Handler, known


def program(directory: Path, name: str, *said: str) -> str:
    """One that says the first text when asked for its version, the second when asked to check."""
    path = directory / name
    lines = [f'[ "$1" = {verb} ] && echo "{text}"' for verb, text in zip(("--version", "check"), said, strict=False)]
    path.write_text("\n".join(["#!/bin/sh", *lines, "exit 0"]))
    path.chmod(0o755)
    return str(path)


async def problems(directory: Path, runsc: str, *criu: str) -> list[str]:
    handler = Handler("g", program(directory, "runsc", runsc), "/oci", sandbox=True, platform="ptrace")
    found = await tools.examine([handler], program(directory, "criu", *criu))
    assert [one.name for one in found] == ["runsc", "criu"]
    return [one.problem for one in found]


async def test_what_does_is_no_problem(tmp_path: Path) -> None:
    assert await problems(tmp_path, "runsc version 0.0~20240729.0", "Version: 4.2.1", "Looks good.") == ["", ""]
    assert await problems(tmp_path, "runsc version release-20260601.0", "Version: 5.0", "Looks good.") == ["", ""]


async def test_what_is_too_old_is_one(tmp_path: Path) -> None:
    found = await problems(tmp_path, "runsc version 0.0~20221219.0", "Version: 3.17.1", "Looks good.")
    assert found == ["its release 20221219 is older than 20240729", "its version 3.17.1 is older than 4.2"]


async def test_what_says_something_else_is_one(tmp_path: Path) -> None:
    first, second = await problems(tmp_path, "runsc version unknown", "Version: four")
    assert "does not say a release" in first and "'four' is not a version" in second
    assert "finds that the kernel does not do" in (await problems(tmp_path, "x", "Version: 4.2", "No"))[1]


async def test_what_is_missing_is_one_and_says_for_what(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = await tools.examine(known({}, tmp_path, "v2").values(), "")
    assert [(one.problem, one.feature) for one in found] == [
        ("there is no program runsc", "gVisor pods"),
        ("there is no program criu", "checkpoints of pods under runc"),
    ]
