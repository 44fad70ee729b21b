"""OCI runtime commands: what they inherit, what their logs say, how long they may take."""

import json
import os
from pathlib import Path

import pytest

from holdfast.linux import cgroup
from holdfast.workers.shim.loop import Failed
from holdfast.workers.shim.oci import Runtime, error_text, without_endless_quota
from holdfast.workers.shim.spawn import spawn


def runtime(tmp_path: Path, script: str) -> Runtime:
    """A runtime that is a shell script. $4 is its log, as --root ROOT --log LOG come first."""
    binary = tmp_path / "runtime"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return Runtime("fake", str(binary), "/the/root")


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (b"", ""),
        (b'{"level":"error","msg":"first"}\n{"level":"error","msg":"last"}\n{"level":"info","msg":"x"}\n', "last"),
        (b'{"msg":"read-only", "level":"fatal"}\nnot json\n[]\n"text"\n{"level":"error"}', "read-only"),
        (b"\xff\xfe", ""),
    ],
)
def test_the_last_error_of_a_log(log: bytes, text: str) -> None:
    assert error_text(log) == text


def test_a_command_and_its_arguments(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f'echo "$1 $2 $3 $5 $6 $7 $8" > {seen}; readlink /proc/$$/fd/0 >> {seen}'
    runtime(tmp_path, script).run("start", "c")
    assert seen.read_text() == "--root /the/root --log --log-format json start c\n/dev/null\n"


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    fake = runtime(tmp_path, """echo '{"level":"error","msg":"no such container"}' >> "$4"; exit 1""")
    with pytest.raises(Failed, match="^no such container$"):
        fake.run("start", "c")
    with pytest.raises(Failed, match="^fake start ended with status 3$"):
        runtime(tmp_path, "exit 3").run("start", "c")


def test_a_binary_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="none: No such file or directory$"):
        Runtime("x", str(tmp_path / "none"), "/").run("start")


def test_nothing_is_inherited_but_what_was_given(tmp_path: Path) -> None:
    fds = {number: os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for number, name in enumerate(("in", "out", "err"))}
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    pid = spawn(["/bin/ls", "-1", "/proc/self/fd"], env={}, fds=fds)
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (other, *fds.values()):
        os.close(fd)
    inherited = set((tmp_path / "out").read_text().split())
    assert {"0", "1", "2"} <= inherited
    assert not {str(other), *map(str, fds.values())} & inherited


def test_a_child_has_default_signals(tmp_path: Path) -> None:
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    null = os.open("/dev/null", os.O_RDWR)
    script = "grep -E '^Sig(Ign|Blk)' /proc/self/status | cut -f2"
    pid = spawn(["/bin/sh", "-c", script], env={"PATH": "/bin:/usr/bin"}, fds={0: null, 1: out, 2: null})
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (out, null):
        os.close(fd)
    ignored, blocked = (tmp_path / "out").read_text().split()
    standard = (1 << 31) - 1  # those above are the C library's own
    assert int(ignored, 16) & standard == int(blocked, 16) & standard == 0


def test_a_program_under_another_name(tmp_path: Path) -> None:
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    null = os.open("/dev/null", os.O_RDWR)
    pid = spawn(["name", "-c", "echo $0"], env={}, fds={0: null, 1: out, 2: null}, executable="/bin/sh")
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (out, null):
        os.close(fd)
    assert (tmp_path / "out").read_text() == "name\n"


def test_an_endless_quota_of_v1_is_not_left_to_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = json.dumps({"cpu": {"quota": -1, "shares": 5}}).encode()
    others = (b"{}", b'{"cpu": {"quota": 1000}}', b'{"cpu": null}', b"nonsense", b"[]")
    monkeypatch.setattr(cgroup, "hierarchies", lambda: {"cpu": Path("/c"), "memory": Path("/m")})
    assert without_endless_quota(endless) == (b'{"cpu": {"shares": 5}}', True)
    assert [without_endless_quota(one) for one in others] == [(one, False) for one in others]
    monkeypatch.setattr(cgroup, "hierarchies", lambda: {"": Path("/u")})
    assert without_endless_quota(endless) == (endless, False)
