"""Which known escapes a version of an OCI runtime has still."""

import re

import pytest

from holdfast.model.escapes import KNOWN, Escape, known, parse, parse_first_line

THREE = {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}
OLD = {"CVE-2019-5736", "CVE-2019-19921", "CVE-2021-30465"}


@pytest.mark.parametrize(
    ("runtime", "version", "left"),
    [
        ("runc", "1.0.0-rc6", OLD | THREE | {"CVE-2023-28642", "CVE-2024-45310", "CVE-2026-41579"}),
        ("runc", "1.0.0-rc94", {"CVE-2021-30465", "CVE-2023-28642", "CVE-2024-21626", "CVE-2024-45310",
                                "CVE-2026-41579"} | THREE),
        ("runc", "1.1.4", {"CVE-2023-27561", "CVE-2023-28642", "CVE-2024-21626", "CVE-2024-45310", "CVE-2026-41579"}
                          | THREE),
        ("runc", "1.1.5+ds1", {"CVE-2024-21626", "CVE-2024-45310", "CVE-2026-41579"} | THREE),
        ("runc", "1.1.12", {"CVE-2024-45310", "CVE-2026-41579"} | THREE),
        ("runc", "1.1.15", {"CVE-2026-41579"} | THREE),
        ("runc", "1.2.0-rc.2", {"CVE-2024-45310", "CVE-2026-41579"} | THREE),
        ("runc", "1.2.7", {"CVE-2026-41579"} | THREE),
        ("runc", "1.2.8", {"CVE-2026-41579"}),
        ("runc", "1.3.0", {"CVE-2026-41579"} | THREE),
        ("runc", "1.3.5", {"CVE-2026-41579"}),
        ("runc", "1.3.6", set()),
        ("runc", "1.4.0-rc.2", {"CVE-2026-41579"} | THREE),
        ("runc", "1.4.0", {"CVE-2026-41579"}),
        ("runc", "1.4.3", set()),
        ("runc", "1.5.0-rc.3", {"CVE-2026-41579"}),
        ("runc", "1.5.0", set()),
        ("runc", "2.0", set()),
        ("crun", "1.8.1", {"CVE-2026-47766"}),
        ("crun", "1.19", {"CVE-2026-30892", "CVE-2026-47766"}),
        ("crun", "1.27", {"CVE-2026-47766"}),
        ("crun", "1.28", set()),
        ("krun", "1.8.1", {"CVE-2025-24965", "CVE-2026-47766"}),
        ("krun", "1.28", set()),
        ("youki", "0.1.0", set()),
        ("runsc", "release-20240212.0", set()),
    ],
)  # fmt: skip
def test_what_a_version_has_still(runtime: str, version: str, left: set[str]) -> None:
    assert {one.cve for one in known(runtime, version)} == left


def test_what_is_known_to_be_fixed_is_left_out() -> None:
    assert {one.cve for one in known("runc", "1.1.5+ds1", {"CVE-2024-21626", *THREE})} == {
        "CVE-2024-45310", "CVE-2026-41579",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("1.1.5+ds1-1+deb12u1", (1, 1, 5)), ("v1.28", (1, 28, 0)), ("1.0.0~rc93+ds1", (1, 0, 0, 93))],
)
def test_versions(text: str, parsed: tuple[int, ...]) -> None:
    assert parse(text)[: len(parsed)] == parsed


def test_a_candidate_is_older_than_its_release() -> None:
    assert parse("1.4.0-rc.3") < parse("1.4.0-rc.10") < parse("1.4.0") < parse("1.4.1")


@pytest.mark.parametrize("text", ["", "unknown", "1"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="is not a version"):
        known("runc", text)


def test_first_lines() -> None:
    assert parse_first_line("runc version 1.1.5+ds1\ncommit: x\n", "runc") == ("runc", "1.1.5+ds1")
    assert parse_first_line("crun version 1.8.1\n", "my-runtime") == ("crun", "1.8.1")
    assert parse_first_line("crun version 1.8.1\n", "krun") == ("krun", "1.8.1")
    with pytest.raises(ValueError, match="'usage: true' does not say a version"):
        parse_first_line("usage: true", "true")


@pytest.mark.parametrize("escape", KNOWN, ids=lambda one: one.cve)
def test_the_list_is_sound(escape: Escape) -> None:
    assert re.fullmatch("CVE-20[0-9]{2}-[0-9]{4,}", escape.cve)
    assert escape.what
    assert not escape.has(parse("99.0"))
    assert all(not escape.has(parse(fix)) for fix in escape.fixed)
    assert not escape.since or parse(escape.since) < min(map(parse, escape.fixed))
    assert len({parse(fix)[:2] for fix in escape.fixed}) == len(escape.fixed)
