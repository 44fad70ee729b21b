"""What a program says of its version, and its package's changelog of fixes."""

import gzip
import hashlib
import os
import time
from pathlib import Path

import pytest

from holdfast.model.errors import Unavailable
from holdfast.runtime import versions
from holdfast.runtime.versions import Package, Version, Versions, package_of

CHANGELOG = """runc (1.1.5+ds1-1+deb12u1) bookworm-security; urgency=high

  * CVE-2024-21626: several container breakouts due to internally leaked fds

runc (1.1.5+ds1-1) unstable; urgency=medium

  * CVE-2023-25809 and CVE-2023-27561
"""
FIXES = frozenset({"CVE-2024-21626", "CVE-2023-25809", "CVE-2023-27561"})


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is of a package, as dpkg has it."""
    monkeypatch.setattr(versions, "DPKG", tmp_path / "info")
    monkeypatch.setattr(versions, "DOCUMENTS", tmp_path / "doc")
    path = tmp_path / "runc"
    program(path, "echo 'runc version 1.1.5+ds1'")
    (tmp_path / "info").mkdir()
    real = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    (tmp_path / "info/runc.md5sums").write_text(f"{'0' * 32}  usr/share/doc/runc/copyright\n{real}  {str(path)[1:]}\n")
    (tmp_path / "doc/runc").mkdir(parents=True)
    (tmp_path / "doc/runc/changelog.Debian.gz").write_bytes(gzip.compress(CHANGELOG.encode()))
    return path


def test_a_package_says_what_it_has_fixed(packaged: Path) -> None:
    package = Package("runc", "1.1.5+ds1-1+deb12u1", FIXES)
    assert Versions().of(str(packaged)) == Version("runc", "1.1.5+ds1", package)
    assert str(package) == "runc 1.1.5+ds1-1+deb12u1"


def test_a_program_put_in_the_packages_place_is_not_of_it(packaged: Path) -> None:
    program(packaged, "echo 'runc version 1.1.4'")
    assert package_of(str(packaged)) is None


@pytest.mark.parametrize("damage", ["missing", "cut", "not gzip", "empty"])
def test_a_changelog_that_cannot_be_read_fixes_nothing(packaged: Path, damage: str) -> None:
    changelog = packaged.parent / "doc/runc/changelog.Debian.gz"
    if damage == "missing":
        changelog.unlink()
    else:
        content = {"cut": changelog.read_bytes()[:40], "not gzip": b"x" * 100, "empty": gzip.compress(b"")}
        changelog.write_bytes(content[damage])
    assert package_of(str(packaged)) is None


def test_a_program_is_asked_once_and_again_when_it_is_another(tmp_path: Path) -> None:
    path, asked = tmp_path / "crun", tmp_path / "asked"
    known = Versions()
    program(path, f"echo x >> {asked}; echo 'crun version 1.8.1'; echo +SELINUX +SECCOMP")
    for _ in range(3):
        assert known.of(str(path)) == Version("crun", "1.8.1", None)
    assert asked.read_text() == "x\n"
    program(tmp_path / "new", f"echo x >> {asked}; echo 'crun version 1.28'")
    os.replace(tmp_path / "new", path)
    assert known.of(str(path)) == Version("crun", "1.28", None, seccomp=False)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 1", "'' does not say a version"),
        ("echo something else", "does not say a version"),
        ("head -c 1000000 /dev/zero", "does not say a version"),
    ],
)
def test_a_program_that_does_not_say(tmp_path: Path, script: str, why: str) -> None:
    path = program(tmp_path / "crun", script)
    with pytest.raises(Unavailable, match=rf"cannot tell the version of {path}: .*{why}"):
        Versions().of(path)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot tell the version of .*/crun: .*No such file"):
        Versions().of(str(tmp_path / "crun"))


def test_a_program_that_hangs_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    path = program(tmp_path / "crun", f"echo $$ > {tmp_path}/pid; sleep 1000 | sleep 1000")
    began = time.monotonic()
    with pytest.raises(Unavailable, match="timed out"):
        Versions(seconds=0.5).of(path)
    assert time.monotonic() - began < 20
    group = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while members(group):
        assert time.monotonic() < deadline, "what it has started lives on"
        time.sleep(0.01)


def members(group: int) -> list[str]:
    """Living processes of a process group, proc(5)."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            rest = Path(f"/proc/{name}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(rest[2]) == group and rest[0] not in "ZX":
            found.append(name)
    return found


@pytest.mark.parametrize(("name", "sealed"), [("crun", True), ("runc", False)])
def test_crun_is_run_from_memory_and_mounts_nothing(tmp_path: Path, name: str, sealed: bool) -> None:
    """Else it would bind itself to a file in /tmp, where one that is killed leaves it."""
    binary = tmp_path / name
    binary.write_text('#!/bin/sh\necho "$0 $1"')
    binary.chmod(0o755)
    program, argument = versions.ask(str(binary), "--version").split()
    assert argument == "--version"
    assert program.startswith("/proc/self/fd/") if sealed else program == str(binary)
