"""What is found out about this host at the start."""

from pathlib import Path

import pytest

from holdfast.lifecycle import facts
from holdfast.oci.request import HostFacts


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with none of what there is to find."""
    monkeypatch.setattr(facts, "SECCOMP_ACTIONS", tmp_path / "actions_avail")
    monkeypatch.setattr(facts, "APPARMOR_ENABLED", tmp_path / "enabled")
    monkeypatch.setattr(facts, "SELINUX_ENFORCE", tmp_path / "enforce")
    monkeypatch.setattr(facts, "SELINUX_CONFIG", tmp_path / "selinux/config")
    return tmp_path


def found() -> HostFacts:
    return facts.detect(1024)


def test_a_host_without_security_modules(host: Path) -> None:
    assert (found().seccomp, found().apparmor, found().selinux) == (False, False, None)
    report = facts.report(found())
    assert (report["seccomp"], report["apparmor"], report["selinux"]) == (False, False, False)


@pytest.mark.parametrize(("said", "enabled"), [("Y\n", True), ("N\n", False)])
def test_seccomp_and_apparmor(host: Path, said: str, enabled: bool) -> None:
    (host / "actions_avail").write_text("kill_process allow\n")
    (host / "enabled").write_text(said)
    assert (found().seccomp, found().apparmor) == (True, enabled)


def test_selinux_has_the_labels_of_its_policy(host: Path) -> None:
    (host / "enforce").write_text("0")
    assert found().selinux == ("system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0")
    (host / "selinux/mine/contexts").mkdir(parents=True)
    (host / "selinux/config").write_text("# SELINUXTYPE=other\nSELINUX=enforcing\nSELINUXTYPE=mine\n")
    contexts = 'process = "u:r:app_t:s0"\ncontent = "u:object_r:virt_t:s0"\nfile = "u:object_r:app_file_t:s0"\n'
    (host / "selinux/mine/contexts/lxc_contexts").write_text(contexts)
    assert found().selinux == ("u:r:app_t:s0", "u:object_r:app_file_t:s0")
    assert facts.report(found())["selinux"] is True


@pytest.mark.parametrize(
    ("release", "version"), [("6.18.44-fc-v669", (6, 18)), ("5.15.0", (5, 15)), ("7.0-rc1", (7, 0)), ("next", (0, 0))]
)
def test_the_kernels_version(release: str, version: tuple[int, int]) -> None:
    assert facts.kernel_version(release) == version
