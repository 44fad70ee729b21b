"""Volumes that need no mounts, while whoever makes or ends them is killed at any call: old, new, or gone in the end."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.agent.volumes import emptydir, files, journal, operations, ownership, teardown, world
from holdfast.agent.volumes.emptydir import EmptyDir
from holdfast.agent.volumes.paths import Key, Paths
from holdfast.agent.volumes.payload import File, Payload, digest
from holdfast.agent.volumes.world import Desired, Files
from holdfast.linux import files as linux_files
from holdfast.linux.quota import Project

CONF, WORK, SIZED = Key("u", "configmap", "conf"), Key("u", "empty-dir", "work"), Key("u", "empty-dir", "sized")
NAMES = st.sampled_from(["a", "b", "c/d", "c/e"])
PAYLOADS = st.dictionaries(NAMES, st.binary(max_size=3), max_size=3)


class Killed(BaseException):
    """Nobody catches it, as nobody catches a SIGKILL."""


class Quotas:
    """A filesystem's project quotas, as linux.quota has them: not every kernel was built with them."""

    def __init__(self, step: Callable[[str], None]) -> None:
        self.limits: dict[int, int] = {}
        self.projects: dict[int, int] = {}  # by inode
        self.step = step

    def enforced(self, _directory: Path) -> bool:
        return True

    def project(self, _directory: Path, number: int) -> Project:
        return Project(self.limits.get(number, 0))

    def limit(self, _directory: Path, number: int, size: int) -> None:
        self.step("limit")
        self.limits[number] = size

    def assign(self, directory: Path, number: int) -> None:
        self.step("assign")
        self.projects[directory.stat().st_ino] = number


def run(patch: pytest.MonkeyPatch, work: Callable[[], object], kill_at: int) -> bool:
    """Whether it came to its end before the n-th of its calls and crash points."""
    left = kill_at

    def step(_name: str, _path: object = None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    with patch.context() as patched:
        patched.setattr(linux_files, "fault", step)
        for module in (emptydir, files, operations, teardown):
            patched.setattr(module, "crashpoint", step)
        patched.setattr(os, "symlink", lambda *args, real=os.symlink: (step("symlink"), real(*args)))
        try:
            work()
        except Killed:
            return False
    return True


def payload(contents: dict[str, bytes]) -> Payload:
    return tuple(sorted(File(path, content, 0o644) for path, content in contents.items()))


def shown(directory: Path) -> dict[str, bytes] | None:
    """What ..data leads to; None when there is none yet."""
    top = directory / "..data"
    if not top.exists():
        return None
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


@settings(max_examples=60)
@given(steps=st.lists(st.tuples(PAYLOADS, st.integers(1, 25)), max_size=6), last=PAYLOADS)
def test_readers_see_the_old_files_or_the_new_ones(
    steps: list[tuple[dict[str, bytes], int]], last: dict[str, bytes]
) -> None:
    with tempfile.TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patch:
        directory = Path(made)
        before: dict[str, bytes] | None = None
        for contents, kill_at in steps:
            seen = {path for path in before or {} if (directory / path).exists()}
            whole = run(patch, lambda contents=contents: files.write(directory, payload(contents)), kill_at)  # type: ignore[misc]
            found = shown(directory)
            assert found in ([contents] if whole else [before, contents])
            for path in seen & set(contents):
                assert (directory / path).exists(), "it was there, and is to be"
            before = found
        files.write(directory, payload(last))
        assert shown(directory) == last
        tops = {path.partition("/")[0] for path in last}
        assert set(os.listdir(directory)) == {"..data", os.readlink(directory / "..data"), *tops}
        assert all((directory / path).read_bytes() == content for path, content in last.items())


VERBS = st.sampled_from(["up", "down"])


@settings(max_examples=60)
@given(steps=st.lists(st.tuples(VERBS, st.integers(1, 90)), max_size=8), last=VERBS)
def test_volumes_are_whole_or_gone_in_the_end(steps: list[tuple[str, int]], last: str) -> None:
    group = os.getgid()
    wanted = [
        Desired(CONF, "configmap", digest(()), Files(payload({"k": b"v"}), False, group)),
        Desired(WORK, "empty-dir", "1", EmptyDir(group=ownership.Group(group))),
        Desired(SIZED, "empty-dir:4096", "1", EmptyDir(size=4096)),
    ]
    quotas = Quotas(lambda name: linux_files.fault(name))
    with tempfile.TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patch:
        paths = Paths(Path(os.path.realpath(made)))
        work, sized = paths.volume("u", "empty-dir", "work"), paths.volume("u", "empty-dir", "sized")
        patch.setattr(emptydir, "quota", quotas)

        def act(verb: str) -> None:
            found = world.find(paths)
            for one in wanted if verb == "up" else ():
                operations.set_up(paths, one)
            for key in sorted(found) if verb == "down" else ():
                operations.tear_down(paths, key)

        marked = False
        for verb, kill_at in steps:
            whole = run(patch, lambda verb=verb: act(verb), kill_at)  # type: ignore[misc]
            if verb == "up" and marked:
                assert (work / "mark").exists(), "what is wanted keeps what is in it"
            if verb == "down":
                marked = marked and (work / "mark").exists()
            elif whole:
                (work / "mark").touch()
                marked = True
            if not world.find(paths):
                assert {path.name for path in paths.root.rglob("*")} <= {"pods", "trash"}, "nobody knows of it"
        act(last)
        if last == "up":
            assert (work.stat().st_mode & 0o7777, work.stat().st_gid) == (0o2777, group)
            assert shown(paths.volume("u", "configmap", "conf")) == {"k": b"v"}
            assert quotas.limits[quotas.projects[sized.stat().st_ino]] == 4096
            assert sum(map(bool, quotas.limits.values())) == 1
            assert all(journal.load(paths, one.key) is not None for one in wanted)
        else:
            assert not any(quotas.limits.values())
            assert {path.name for path in paths.root.rglob("*")} <= {"pods", "trash"}
