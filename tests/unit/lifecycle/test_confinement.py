"""Profiles of seccomp that are read from below a directory, and from nowhere else."""

from pathlib import Path

import pytest

from holdfast.lifecycle.confinement import PROFILE_LIMIT, Confinement
from holdfast.model.errors import InvalidArgument
from holdfast.oci.request import HostFacts
from holdfast.proto import runtime_v1_pb2 as pb

ALLOW = b'{"defaultAction": "SCMP_ACT_ALLOW"}'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside.json").write_bytes(ALLOW)
    root = tmp_path / "seccomp"
    (root / "profiles").mkdir(parents=True)
    (root / "profiles/allow.json").write_bytes(ALLOW)
    (root / "inside.json").symlink_to("profiles/allow.json")
    (root / "leaves.json").symlink_to("../outside.json")
    (root / "absolute.json").symlink_to(tmp_path / "outside.json")
    (root / "large.json").write_bytes(b" " * (PROFILE_LIMIT + 1))
    return root


def rules(root: Path, ref: str) -> object:
    context = pb.LinuxSandboxSecurityContext()
    context.seccomp.profile_type = pb.SecurityProfile.Localhost
    context.seccomp.localhost_ref = ref
    return Confinement(root).of_sandbox("pod", context, (), HostFacts())[1]


@pytest.mark.parametrize(
    "ref", ["ROOT/profiles/allow.json", "profiles/allow.json", "ROOT/inside.json", "localhost/inside.json"]
)
def test_a_profile_below_the_root_is_read(root: Path, ref: str) -> None:
    found = {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": [], "syscalls": []}}
    assert rules(root, ref.replace("ROOT", str(root))) == found


@pytest.mark.parametrize(
    ("ref", "why"),
    [
        ("ROOT/missing.json", "cannot read profile 'ROOT/missing.json': No such file"),
        ("ROOT/profiles", "cannot read profile 'ROOT/profiles': "),
        ("ROOT/large.json", "cannot read profile 'ROOT/large.json': File too large"),
        ("ROOT/leaves.json", "cannot read profile 'ROOT/leaves.json': it leaves ROOT"),
        ("ROOT/absolute.json", "cannot read profile 'ROOT/absolute.json': it leaves ROOT"),
        ("ROOT/../outside.json", "cannot read profile 'ROOT/../outside.json': it leaves ROOT"),
        ("../outside.json", "cannot read profile '../outside.json': it leaves ROOT"),
        ("/etc/passwd", "'/etc/passwd' is not below ROOT"),
    ],
)
def test_nothing_else_is(root: Path, ref: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        rules(root, ref.replace("ROOT", str(root)))
    where = "config.linux.security_context.seccomp.localhost_ref: "
    assert str(caught.value).startswith(where + why.replace("ROOT", str(root)))


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot read profile 'x': No such file"):
        rules(tmp_path / "none", "x")


def test_a_pod_has_the_default_that_is_configured(tmp_path: Path) -> None:
    context = pb.LinuxSandboxSecurityContext()
    assert Confinement(tmp_path).of_sandbox("pod", context, (), HostFacts()) == ({}, {})
    process, linux = Confinement(tmp_path, "runtime/default").of_sandbox("pod", context, (), HostFacts())
    assert (process, linux["seccomp"]["defaultAction"]) == ({}, "SCMP_ACT_ERRNO")
