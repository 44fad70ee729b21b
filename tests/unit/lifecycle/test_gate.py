"""What is said of OCI runtimes with known escapes."""

import pytest

from holdfast.lifecycle import gate
from holdfast.lifecycle.gate import Finding, Gate
from holdfast.model.errors import FailedPrecondition, Unavailable
from holdfast.runtime.handlers import Handler
from holdfast.runtime.versions import Package, Version

RUNC = Handler("runc", "/bin/runc", "/oci")
FOREIGN = Handler("kata", "", "/oci", shim="/bin/shim")
DEBIAN = Package("runc", "1.1.5+ds1-1+deb12u1", frozenset({"CVE-2024-21626"}))


class Asked:
    """Versions, as told."""

    def __init__(self, answer: Version | Unavailable) -> None:
        self.answer = answer

    def of(self, binary: str) -> Version:
        if isinstance(self.answer, Unavailable):
            raise self.answer
        return self.answer


def one(monkeypatch: pytest.MonkeyPatch, answer: Version | Unavailable, *fixed: str, refuse: bool = True) -> Gate:
    monkeypatch.setattr(gate, "Versions", lambda: Asked(answer))
    return Gate(lambda: {"runc": RUNC, "kata": FOREIGN}, refuse, frozenset(fixed))


async def look(found: Gate) -> Finding:
    (finding,) = await found.examine()  # of what has no program nothing is known
    return finding


async def test_a_package_that_has_fixed_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = ("CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881")
    found = await look(one(monkeypatch, Version("runc", "1.1.5+ds1", DEBIAN), *fixed))
    assert str(found) == (
        "runc 1.1.5+ds1 (runc 1.1.5+ds1-1+deb12u1) has known escapes: CVE-2024-45310, CVE-2026-41579; "
        "the changelog of package runc 1.1.5+ds1-1+deb12u1 names no fix for them"
    )
    assert [escape["cve"] for escape in found.as_data()["escapes"]] == ["CVE-2024-45310", "CVE-2026-41579"]


async def test_what_cannot_be_seen_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await look(one(monkeypatch, Version("crun", "1.27", None)))
    assert str(found) == f"crun 1.27 has known escapes: CVE-2026-47766; {gate.UNSEEN}"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            Unavailable("cannot tell the version of /bin/runc: it hangs"),
            "cannot tell the version of /bin/runc: it hangs",
        ),
        (Version("runc", "unknown", None), "cannot tell what /bin/runc has fixed: 'unknown' is not a version"),
        (Version("crun", "1.28", None, seccomp=False), "/bin/runc is built without seccomp: it would apply no profile"),
    ],
)
async def test_what_nothing_is_known_of_is_refused_too(
    monkeypatch: pytest.MonkeyPatch, answer: Version | Unavailable, why: str
) -> None:
    found = one(monkeypatch, answer)
    assert (await look(found)).note == why
    with pytest.raises(FailedPrecondition, match=f"^cannot use runtime handler runc: {why}"):
        await found.require(RUNC)
    await found.require(FOREIGN)


@pytest.mark.parametrize("answer", [Version("runc", "1.5.0", None), Version("youki", "0.5", None)])
async def test_nothing_is_said_of_what_has_none(
    monkeypatch: pytest.MonkeyPatch, answer: Version, caplog: pytest.LogCaptureFixture
) -> None:
    found = one(monkeypatch, answer)
    assert str(await look(found)) == ""
    await found.require(RUNC)
    await found.warn()
    assert not caplog.records


async def test_a_warning_refuses_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    found = one(monkeypatch, Version("runc", "1.2.8", None), refuse=False)
    await found.require(RUNC)
    await found.warn()
    assert "runtime handler runc: runc 1.2.8 has known escapes: CVE-2026-41579; " in caplog.text
