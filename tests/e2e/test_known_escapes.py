"""OCI runtimes with known escapes: warned of, told by info and doctor, and refused where that is configured."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from kit.node import Node, node, until

SCRIPT = """#!/bin/sh
[ "$1" = --version ] && echo 'crun version {}' && echo '{}' && exit
exec crun "$@"
"""


def install(path: Path, version: str, features: str = "+SECCOMP") -> None:
    """A crun that says it is of this version, put in the place of another one at once."""
    new = path.with_name("new")
    new.write_text(SCRIPT.format(version, features))
    new.chmod(0o755)
    new.replace(path)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    path = tmp_path / "crun"  # by that name it is known to be one
    install(path, "1.27.1")
    return path


@pytest.fixture
def strict(binary: Path) -> Iterator[Node]:
    with node("mine", runtimes={"mine": {"binary": str(binary)}}, known_escapes="refuse") as one:
        yield one


def told(one: Node, *command: str) -> dict[str, Any]:
    """What a command of the CLI says of the runtime."""
    found = json.loads(one.cli(*command, "-o", "json").stdout)["runtimes"]
    (mine,) = (entry for entry in found if entry["handler"] == "mine")
    return dict(mine)


def test_new_pods_are_refused_by_name_until_it_is_another(strict: Node, binary: Path) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        strict.run_pod()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    details = str(caught.value.details())
    assert details.startswith("cannot use runtime handler mine: crun 1.27.1 has known escapes: CVE-2026-47766; ")
    assert not strict.pods()
    install(binary, "1.28")
    pod = strict.run_pod()
    assert strict.exited(strict.run(pod, "exit 5")).exit_code == 5
    install(binary, "1.20")
    assert strict.exited(strict.run(pod, "exit 6", "second")).exit_code == 6  # what is there goes on
    with pytest.raises(grpc.RpcError, match="CVE-2026-30892, CVE-2026-47766"):
        strict.run_pod()
    binary.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(grpc.RpcError, match="cannot use runtime handler mine: cannot tell the version of"):
        strict.run_pod()
    install(binary, "1.28", "+CAP")
    with pytest.raises(grpc.RpcError, match="is built without seccomp: it would apply no profile"):
        strict.run_pod()
    install(binary, "1.28")


def test_they_are_told_and_warned_of(binary: Path) -> None:
    with node("mine", runtimes={"mine": {"binary": str(binary)}}) as one:
        until(lambda: "runtime handler mine: crun 1.27.1 has known escapes: CVE-2026-47766; " in one.log(), "a warning")
        info = told(one, "info")
        assert (info["version"], [each["cve"] for each in info["escapes"]]) == ("crun 1.27.1", ["CVE-2026-47766"])
        assert "cannot be seen here" in info["note"]
        assert told(one, "doctor") == info
        doctor = one.cli("doctor")  # exit status 0: it is nothing that the node has left lying about
        assert "runtime mine: crun 1.27.1 has known escapes: CVE-2026-47766; " in doctor.stdout
        assert "CVE-2026-47766" in one.cli("info").stdout
        one.end(15)
        assert told(one, "doctor") == info
        one.start()


def test_what_is_known_to_be_fixed_is_accepted(binary: Path) -> None:
    runtimes = {"mine": {"binary": str(binary)}}
    with node("mine", runtimes=runtimes, known_escapes="refuse", fixed_escapes=["CVE-2026-47766"]) as one:
        assert told(one, "info")["escapes"] == []
        one.remove_pod(one.run_pod())
