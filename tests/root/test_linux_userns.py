"""linux.userns and mounts shown through its mappings, with the real kernel; each in a process without threads."""

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.linux import mount, namespace, process, userns

IDS = (0, 300000, 1000)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    mount.unmount_tree(tmp_path)


def alone(work: Callable[[], object]) -> str:
    """What `work` returns or raises, in a child that has one thread."""
    told, tell = os.pipe()
    if (pid := process.fork()) == 0:
        try:
            said = f"{work()}"
        except BaseException as exc:
            said = f"{type(exc).__name__}: {exc}"
        os.write(tell, said.encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as answer:
        said = answer.read().decode()
    process.reap(pid)
    return said


def test_a_child_stands_in_namespaces_that_belong_to_its_user_namespace(place: Path) -> None:
    def work() -> str:
        def inside() -> None:
            namespace.unshare(namespace.CLONE_NEWUTS | namespace.CLONE_NEWNET)
            socket.sethostname("within")
            namespace.set_loopback_up()

        with userns.child([IDS], [IDS], inside) as pid:
            for kind in ("user", "uts", "net"):
                namespace.pin_existing(f"/proc/{pid}/ns/{kind}", place / kind)
            return Path(f"/proc/{pid}/uid_map").read_text()

    try:
        assert alone(work).split() == ["0", "300000", "1000"]
        enter = [f"--{kind}={place / kind}" for kind in ("user", "uts", "net")]
        script = "hostname; echo 1 > /proc/sys/net/ipv4/ip_forward; cat /proc/sys/net/ipv4/ip_forward"
        command = ["nsenter", *enter, "sh", "-c", script]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert found.stdout.split() == ["within", "1"]
    finally:
        for kind in ("user", "uts", "net"):
            namespace.unpin(place / kind)


def test_what_goes_wrong_inside_is_told_outside() -> None:
    def refuse() -> None:
        raise OSError(errno.EPERM, "not today")

    def work() -> None:
        with userns.child([IDS], [IDS], refuse):
            pass

    assert (
        alone(work) == f"PermissionError: [Errno {errno.EPERM}] cannot make namespaces in a user namespace: not today"
    )


def test_mappings_that_the_kernel_refuses(place: Path) -> None:
    def work() -> None:
        with userns.opened([IDS, IDS], [IDS]):
            pass

    assert "Invalid argument" in alone(work)


def test_a_bind_shows_and_takes_ids_through_the_mapping(place: Path) -> None:
    source, target = place / "source", place / "target"
    source.mkdir()
    target.mkdir()
    (source / "theirs").touch()
    os.chown(source / "theirs", 5, 6)

    def work() -> None:
        with userns.opened([IDS], [(0, 400000, 1000)]) as descriptor:
            mount.bind_idmapped(source, target, descriptor)

    assert alone(work) == "None"
    found = (target / "theirs").stat()
    assert (found.st_uid, found.st_gid) == (300005, 400006)
    os.chown(target / "theirs", 300007, 400008)
    found = (source / "theirs").stat()
    assert (found.st_uid, found.st_gid) == (7, 8)
    with pytest.raises(OSError) as refused:  # root itself has no id there
        (target / "ours").touch()
    assert refused.value.errno == errno.EOVERFLOW


def test_what_cannot_be_mapped_is_refused(place: Path) -> None:
    def work() -> None:
        with userns.opened([IDS], [IDS]) as descriptor:
            mount.bind_idmapped("/proc", place, descriptor)

    assert "Invalid argument" in alone(work)
    assert not mount.mounts_below(place)
