"""linux.address: an interface in a pinned network is given addresses."""

import ipaddress
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.linux import address, mount, namespace


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Path]:
    yield namespace.pin(["net"], tmp_path)["net"]
    mount.unmount_tree(tmp_path)


def shown(network: Path) -> str:
    command = ["nsenter", f"--net={network}", "ip", "-o", "addr", "show", "dev", "lo"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_addresses_of_both_families_however_often(network: Path) -> None:
    wanted = [ipaddress.ip_interface("10.88.0.5/24"), ipaddress.ip_interface("fd00:88::5/64")]
    for _ in range(2):
        address.add(network, "lo", wanted)
    assert "inet 10.88.0.5/24" in shown(network)
    assert "inet6 fd00:88::5/64" in shown(network)
    assert shown(network).count("10.88.0.5/24") == 1


def test_an_interface_that_is_not_there(network: Path) -> None:
    with pytest.raises(OSError):
        address.add(network, "eth7", [ipaddress.ip_interface("10.0.0.1/32")])
