"""AppArmor and SELinux, as the spec has them."""

import re
from dataclasses import replace
from typing import Any

import pytest

from holdfast.model.errors import InvalidArgument, Unimplemented
from holdfast.model.spec import Mount
from holdfast.oci import lsm
from holdfast.oci.request import HostFacts
from holdfast.proto import runtime_v1_pb2 as pb

WITHOUT = HostFacts()
APPARMOR = replace(WITHOUT, apparmor=True)
SELINUX = replace(WITHOUT, selinux=("system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"))
LOADED = frozenset({"base", "mine"})
DEFAULT, UNCONFINED, LOCALHOST = (pb.SecurityProfile(profile_type=kind) for kind in (0, 1, 2))  # type: ignore[arg-type]
MINE = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="mine")
OTHER = pb.SecurityProfile(profile_type=pb.SecurityProfile.Localhost, localhost_ref="localhost/other")
FIELD = r"config\.linux\.security_context"


def context(**fields: Any) -> pb.LinuxContainerSecurityContext:
    return pb.LinuxContainerSecurityContext(**fields)


@pytest.mark.parametrize(
    ("fields", "facts", "default", "profile"),
    [
        ({}, APPARMOR, "base", "base"),
        ({}, APPARMOR, "", ""),
        ({}, APPARMOR, "gone", ""),
        ({"privileged": True}, APPARMOR, "base", ""),
        ({"apparmor": DEFAULT}, APPARMOR, "base", "base"),
        ({"apparmor": DEFAULT, "privileged": True}, APPARMOR, "base", ""),
        ({"apparmor": DEFAULT}, APPARMOR, "", ""),
        ({"apparmor": UNCONFINED}, APPARMOR, "base", ""),
        ({"apparmor": MINE}, APPARMOR, "base", "mine"),
        ({"apparmor": MINE, "privileged": True}, APPARMOR, "base", "mine"),
        ({"apparmor_profile": "localhost/mine"}, APPARMOR, "base", "mine"),
        ({"apparmor_profile": "runtime/default"}, APPARMOR, "base", "base"),
        ({"apparmor_profile": "unconfined"}, APPARMOR, "base", ""),
        ({"apparmor": UNCONFINED, "apparmor_profile": "localhost/mine"}, APPARMOR, "base", ""),
        ({}, WITHOUT, "base", ""),
        ({"apparmor": DEFAULT}, WITHOUT, "base", ""),
        ({"apparmor": UNCONFINED}, WITHOUT, "base", ""),
    ],
)
def test_the_apparmor_profile(fields: dict[str, Any], facts: HostFacts, default: str, profile: str) -> None:
    assert lsm.apparmor(context(**fields), facts, default, LOADED) == profile


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"apparmor": OTHER}, InvalidArgument, r"apparmor\.localhost_ref: AppArmor profile 'other' is not loaded"),
        ({"apparmor": DEFAULT}, InvalidArgument, r"apparmor: AppArmor profile 'gone' is not loaded"),
        ({"apparmor_profile": "mine"}, InvalidArgument, "apparmor_profile: 'mine' is not one of"),
    ],
)
def test_a_profile_that_is_not_there_is_refused(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^{FIELD}\.{message}"):
        lsm.apparmor(context(**fields), APPARMOR, "gone", LOADED)


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"apparmor": MINE}, r"apparmor\.localhost_ref"), ({"apparmor_profile": "localhost/mine"}, "apparmor_profile")],
)
def test_a_host_without_apparmor_refuses_a_profile_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Unimplemented, match=rf"^{FIELD}\.{named}: cannot apply 'mine': this host has no AppArmor"):
        lsm.apparmor(context(**fields), WITHOUT, "base", LOADED)


def test_a_profile_by_name_has_one() -> None:
    with pytest.raises(InvalidArgument, match=rf"^{FIELD}\.apparmor\.localhost_ref: a Localhost profile must be named"):
        lsm.check(context(apparmor=LOCALHOST), "config.linux.security_context")


def options(**parts: str) -> pb.SELinuxOption:
    return pb.SELinuxOption(**parts)


@pytest.mark.parametrize(
    ("pod", "own", "privileged", "process", "files"),
    [
        ({}, {}, False, "system_u:system_r:container_t:LEVEL", "system_u:object_r:container_file_t:LEVEL"),
        ({}, {}, True, "", "system_u:object_r:container_file_t:LEVEL"),
        ({}, {"type": "spc_t"}, True, "system_u:system_r:spc_t:LEVEL", "system_u:object_r:container_file_t:LEVEL"),
        (
            {"level": "s0:c1,c2"},
            {"type": "my_t"},
            False,
            "system_u:system_r:my_t:s0:c1,c2",
            "system_u:object_r:container_file_t:s0:c1,c2",
        ),
        (
            {"level": "s0:c1,c2", "role": "r", "type": "t"},
            {"level": "s0:c3", "user": "u"},
            False,
            "u:r:t:s0:c3",
            "u:object_r:container_file_t:s0:c3",
        ),
    ],
)
def test_selinux_labels(pod: dict[str, str], own: dict[str, str], privileged: bool, process: str, files: str) -> None:
    level = lsm.level_of("pod")
    found = lsm.labels(SELINUX, "pod", options(**pod), options(**own), privileged=privileged)
    assert found == (process.replace("LEVEL", level), files.replace("LEVEL", level))
    assert lsm.labels(WITHOUT, "pod", options(**pod), options(**own), privileged=privileged) == ("", "")


def test_the_root_is_mounted_with_the_label_of_files() -> None:
    overlay = Mount("overlay", "overlay", options=("lowerdir=/a", "upperdir=/b"))
    bind = Mount("bind", "/a", options=("bind", "rw"))
    assert lsm.labelled(overlay, "u:r:t:s0:c1,c2").options[2:] == ('context="u:r:t:s0:c1,c2"',)
    assert [lsm.labelled(one, label) for one, label in ((overlay, ""), (bind, "u:r:t:s0"))] == [overlay, bind]


def test_a_pod_has_a_level_of_its_own() -> None:
    levels = [lsm.level_of(f"pod-{number}") for number in range(200)]
    pairs = [re.fullmatch("s0:c([0-9]+),c([0-9]+)", level) for level in levels]
    assert all(pair and int(pair[1]) < int(pair[2]) < 1024 for pair in pairs)
    assert len(set(levels)) > 190
    assert lsm.level_of("pod-0") == levels[0]


@pytest.mark.parametrize("parts", [{"type": "a:b"}, {"user": "a b"}, {"level": "s0\n"}])
def test_what_cannot_be_part_of_a_label_is_refused(parts: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{FIELD}\.selinux_options\.{next(iter(parts))}: "):
        lsm.check(context(selinux_options=options(**parts)), "config.linux.security_context")
