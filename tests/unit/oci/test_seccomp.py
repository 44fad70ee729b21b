"""The default seccomp profile, and profiles from files."""

import errno
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.errors import InvalidArgument, Unimplemented
from holdfast.oci import seccomp, syscalls
from holdfast.oci.capabilities import CAPABILITIES, DEFAULT_CAPABILITIES
from holdfast.oci.profiles import Profile, parse
from holdfast.oci.request import HostFacts
from holdfast.proto import runtime_v1_pb2 as pb

FIELD = "config.linux.security_context"
FACTS = HostFacts(machine="x86_64", kernel=(6, 1))
LOCAL = Profile(pb.SecurityProfile.Localhost, "p.json", f"{FIELD}.seccomp.localhost_ref")
ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
KINDS = pb.SecurityProfile


def security(kind: int, ref: str = "") -> pb.SecurityProfile:
    return pb.SecurityProfile(profile_type=kind, localhost_ref=ref)  # type: ignore[arg-type]


def context(**fields: Any) -> pb.LinuxContainerSecurityContext:
    return pb.LinuxContainerSecurityContext(**fields)


def simply(profile: dict[str, Any], action: str, code: int | None = None) -> set[str]:
    """The calls to which a rule without arguments gives this."""
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == action and rule.get("errnoRet") == code and "args" not in rule
        for name in rule["names"]
    }


def decide(profile: dict[str, Any], name: str, *arguments: int) -> int:
    """What a system call comes to: 0 when it is allowed, else its errno."""
    compare = {
        "SCMP_CMP_EQ": lambda have, one, _: have == one,
        "SCMP_CMP_LT": lambda have, one, _: have < one,
        "SCMP_CMP_GT": lambda have, one, _: have > one,
        "SCMP_CMP_MASKED_EQ": lambda have, one, two: have & one == two,
    }
    found = {
        0 if rule["action"] == ALLOW else rule["errnoRet"]
        for rule in profile["syscalls"]
        if name in rule["names"]
        and all(
            compare[one["op"]](arguments[one["index"]], one["value"], one.get("valueTwo"))
            for one in rule.get("args", ())
        )
    }
    assert profile["defaultAction"] == ERRNO
    assert len(found) < 2 or 0 not in found, f"{name}{arguments} is both allowed and refused"
    return found.pop() if found else profile["defaultErrnoRet"]


def test_the_default_profile_of_an_ordinary_container() -> None:
    profile = seccomp.default(frozenset(DEFAULT_CAPABILITIES), "x86_64")
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    for name in ("read", "execve", "openat2", "futex_waitv", "chroot", "arch_prctl", "ptrace", "fchmodat2"):
        assert decide(profile, name) == 0, name
    for name in ("mount", "unshare", "setns", "bpf", "keyctl", "io_uring_setup", "kexec_load", "reboot", "syslog"):
        assert decide(profile, name) == errno.EPERM, name
    for name in ("clone3", "not_yet_invented", "s390_runtime_instr"):
        assert decide(profile, name) == errno.ENOSYS, name


@pytest.mark.parametrize(
    ("flags", "code"),
    [(0x11, 0), (0x3D0F00, 0), *((0x11 | one, errno.EPERM) for one in syscalls.NAMESPACE_FLAGS)],
)
def test_clone_makes_no_namespaces(flags: int, code: int) -> None:
    assert decide(seccomp.default(frozenset(), "x86_64"), "clone", flags, 0) == code
    assert decide(seccomp.default(frozenset(), "s390x"), "clone", 0, flags) == code
    assert decide(seccomp.default(frozenset({"SYS_ADMIN"}), "x86_64"), "clone", flags, 0) == 0


def test_sockets_by_family() -> None:
    profile = seccomp.default(frozenset(), "x86_64")
    for family in range(60):
        assert decide(profile, "socket", family, 1, 0) == (errno.EPERM if family in (38, 40) else 0), family


def test_personalities() -> None:
    profile = seccomp.default(frozenset(), "x86_64")
    assert all(decide(profile, "personality", one) == 0 for one in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF))
    assert decide(profile, "personality", 0x40000) == errno.ENOSYS


@pytest.mark.parametrize(("capability", "names"), syscalls.BY_CAPABILITY.items())
def test_a_capability_brings_its_calls(capability: str, names: tuple[str, ...]) -> None:
    without, having = (seccomp.default(frozenset(held), "x86_64") for held in ((), (capability,)))
    assert {decide(without, name) for name in names} == {errno.EPERM}
    assert {decide(having, name) for name in names} == {0}


def test_sys_admin_may_clone_as_it_likes() -> None:
    profile = seccomp.default(frozenset({"SYS_ADMIN"}), "x86_64")
    assert {"clone", "clone3", "mount", "unshare"} <= simply(profile, ALLOW)


@pytest.mark.parametrize("machine", [*seccomp.ARCHITECTURES, "vax"])
@pytest.mark.parametrize("held", [(), DEFAULT_CAPABILITIES, CAPABILITIES])
def test_no_call_is_both_allowed_and_refused(machine: str, held: tuple[str, ...]) -> None:
    profile = seccomp.default(frozenset(held), machine)
    allowed, refused = simply(profile, ALLOW), simply(profile, ERRNO, errno.EPERM)
    assert not allowed & refused
    assert set(syscalls.BY_MACHINE.get(machine, ())) <= allowed
    conditional = {name for rule in profile["syscalls"] if "args" in rule for name in rule["names"]}
    assert not conditional & (allowed | refused)


def test_the_lists_are_sound() -> None:
    names = [name for group in syscalls.ALLOWED.values() for name in group]
    assert len(names) == len(set(names)) > 350
    assert not set(names) & {*syscalls.REFUSED, "clone", "clone3", "socket", "personality"}
    assert set(syscalls.BY_CAPABILITY) <= set(CAPABILITIES)
    assert not set(names) & {name for group in syscalls.BY_CAPABILITY.values() for name in group}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, None),
        ({"seccomp": security(KINDS.Unconfined)}, None),
        ({"seccomp": security(KINDS.RuntimeDefault)}, KINDS.RuntimeDefault),
        ({"seccomp": security(KINDS.Localhost, "/a/b.json")}, KINDS.Localhost),
        ({"seccomp": security(KINDS.Localhost, "/a/b.json"), "privileged": True}, None),
        ({"seccomp": security(KINDS.RuntimeDefault), "seccomp_profile_path": "unconfined"}, KINDS.RuntimeDefault),
        ({"seccomp_profile_path": "unconfined"}, None),
        ({"seccomp_profile_path": "runtime/default"}, KINDS.RuntimeDefault),
        ({"seccomp_profile_path": "docker/default"}, KINDS.RuntimeDefault),
        ({"seccomp_profile_path": "localhost//a/b.json"}, KINDS.Localhost),
    ],
)
def test_which_profile_is_meant(fields: dict[str, Any], kind: int | None) -> None:
    found = seccomp.wanted(context(**fields), FIELD, "")
    assert (found.kind if found else None) == kind
    assert found is None or found.ref == ("/a/b.json" if kind == KINDS.Localhost else "")


def test_who_names_none_gets_what_is_configured() -> None:
    found = seccomp.wanted(context(), FIELD, "runtime/default")
    assert found == Profile(KINDS.RuntimeDefault, "", "unset_seccomp_profile")
    assert seccomp.wanted(context(seccomp=security(KINDS.Unconfined)), FIELD, "runtime/default") is None
    assert seccomp.wanted(context(privileged=True), FIELD, "runtime/default") is None
    assert parse("localhost/a/b", "f") == Profile(KINDS.Localhost, "a/b", "f")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seccomp": security(KINDS.Localhost)}, r"seccomp\.localhost_ref: a Localhost profile must be named"),
        ({"seccomp": security(KINDS.Localhost, "localhost/")}, r"seccomp\.localhost_ref: a Localhost profile"),
        ({"seccomp": security(KINDS.RuntimeDefault, "x")}, r"seccomp\.localhost_ref: it is for a Localhost profile"),
        ({"seccomp_profile_path": "x.json"}, r"seccomp_profile_path: 'x\.json' is not one of"),
        ({"seccomp_profile_path": "localhost/"}, "seccomp_profile_path: 'localhost/' is not one of"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^config\.linux\.security_context\.{message}"):
        seccomp.check(context(**fields), FIELD)


def test_a_host_without_filters_refuses_what_needs_one() -> None:
    without = replace(FACTS, seccomp=False)
    assert seccomp.section(None, (), without, None) == {}
    with pytest.raises(Unimplemented, match=r"seccomp\.localhost_ref: the kernel of this host has no seccomp"):
        seccomp.section(LOCAL, (), without, b"{}")


def read(profile: Any, *held: str, facts: HostFacts = FACTS) -> dict[str, Any]:
    found: dict[str, Any] = seccomp.section(LOCAL, held, facts, json.dumps(profile).encode())["seccomp"]
    return found


def test_a_file_as_the_runtime_spec_has_it() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_LOG",
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/agent.sock",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": ERRNO, "errnoRet": 13, "comment": "passed over"},
            {
                "names": ["personality"],
                "action": ALLOW,
                "args": [{"index": 0, "value": 2**64 - 1, "valueTwo": 5, "op": "SCMP_CMP_MASKED_EQ"}],
            },
        ],
    }
    found = read(profile)
    assert found == profile | {
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": ERRNO, "errnoRet": 13}, profile["syscalls"][1]]
    }


def test_a_file_as_docker_has_it() -> None:
    def rule(name: str, **conditions: Any) -> dict[str, Any]:
        return {"names": [name], "action": ALLOW, "args": [], "includes": {}, "excludes": {}} | conditions

    profile = {
        "defaultAction": ERRNO,
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        ],
        "syscalls": [
            rule("always"),
            rule("admin", includes={"caps": ["CAP_SYS_ADMIN"]}),
            rule("both", includes={"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}),
            rule("others", excludes={"caps": ["CAP_SYS_ADMIN"]}),
            rule("intel", includes={"arches": ["amd64", "x32"]}),
            rule("mainframe", includes={"arches": ["s390x"]}),
            rule("no_intel", excludes={"arches": ["amd64"]}),
            rule("new", includes={"minKernel": "6.2"}),
            rule("old", includes={"minKernel": "4.8"}),
            {"name": "single", "action": ALLOW},
        ],
    }

    def names(found: dict[str, Any]) -> list[str]:
        return [name for one in found["syscalls"] for name in one["names"]]

    assert names(read(profile)) == ["always", "others", "intel", "old", "single"]
    assert names(read(profile, "CAP_SYS_ADMIN")) == ["always", "admin", "intel", "old", "single"]
    assert names(read(profile, "SYS_ADMIN", "BPF"))[:3] == ["always", "admin", "both"]
    arm = replace(FACTS, machine="aarch64", kernel=(6, 2))
    assert names(read(profile, facts=arm)) == ["always", "others", "no_intel", "new", "old", "single"]
    assert read(profile)["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert read(profile, facts=arm)["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]


GOOD = {"defaultAction": ALLOW, "syscalls": [{"names": ["mkdir"], "action": ERRNO}]}


def changed(**fields: Any) -> dict[str, Any]:
    return GOOD | {"syscalls": [GOOD["syscalls"][0] | fields]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ([], "the profile: it is not a table"),
        ({}, "defaultAction: it is missing"),
        (GOOD | {"defaultAction": "ALLOW"}, "defaultAction: 'ALLOW' is not one of SCMP_ACT_ALLOW, "),
        (GOOD | {"defaultErrnoRet": 1}, "defaultErrnoRet: SCMP_ACT_ALLOW has no errno"),
        (GOOD | {"architectures": ["amd64"]}, r"architectures\[0\]: 'amd64' is not one of"),
        (GOOD | {"flags": ["X"]}, r"flags\[0\]: 'X' is not one of"),
        (GOOD | {"archMap": [{}]}, r"archMap\[0\]\.architecture: it is missing"),
        (GOOD | {"syscalls": {}}, "syscalls: it is not a list"),
        (GOOD | {"syscalls": [1]}, r"syscalls\[0\]: it is not a table"),
        (GOOD | {"listenerPath": 3}, "listenerPath: it is not a string"),
        (changed(names=[]), r"syscalls\[0\]\.names: there must be one"),
        (changed(names=["a b"]), r"syscalls\[0\]\.names\[0\]: 'a b' is not a system call"),
        (changed(action="SCMP_ACT_NO"), r"syscalls\[0\]\.action: 'SCMP_ACT_NO' is not one of"),
        (changed(errnoRet=-1), r"syscalls\[0\]\.errnoRet: -1 is not a number from 0 to 4095"),
        (changed(errnoRet=True), r"syscalls\[0\]\.errnoRet: True is not a number"),
        (changed(args=[{"value": 1, "op": "SCMP_CMP_EQ"}]), r"syscalls\[0\]\.args\[0\]\.index: None is not a number"),
        (changed(args=[{"index": 6}]), r"syscalls\[0\]\.args\[0\]\.index: 6 is not a number from 0 to 5"),
        (changed(args=[{"index": 0, "value": 2**64}]), r"syscalls\[0\]\.args\[0\]\.value: "),
        (changed(args=[{"index": 0, "value": 0, "op": "=="}]), r"syscalls\[0\]\.args\[0\]\.op: '==' is not one of"),
        (changed(includes={"minKernel": "new"}), r"syscalls\[0\]\.includes\.minKernel: 'new' is not a version"),
        (changed(excludes={"caps": "ALL"}), r"syscalls\[0\]\.excludes\.caps: it is not a list"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(profile: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"seccomp\.localhost_ref: cannot use profile p\.json: {message}"):
        read(profile)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_not_json_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidArgument, match="cannot use profile p.json: it is not JSON"):
        seccomp.section(LOCAL, (), FACTS, content)


KEYS = [
    "defaultAction", "syscalls", "names", "name", "action", "args", "index", "value", "op", "includes", "excludes",
    "caps", "arches", "minKernel", "archMap", "architecture", "subArchitectures", "flags", "errnoRet",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from([ALLOW, ERRNO, "SCMP_CMP_EQ"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=12,
)


@given(VALUES)
def test_any_json_is_a_profile_or_an_error_that_says_why(value: Any) -> None:
    try:
        found = read(value)
    except InvalidArgument:
        return
    assert found["defaultAction"] in seccomp.ACTIONS
