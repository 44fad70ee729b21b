"""linux.namespace: new namespaces are pinned and the process that makes them stays where it is."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.node import until

from holdfast.linux import mount, namespace, process

KINDS = ("net", "ipc", "uts")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    mount.unmount_tree(tmp_path)


def own() -> dict[str, int]:
    found = {}
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for kind in (*KINDS, "mnt", "pid"):
                found[f"{thread}/{kind}"] = namespace.namespace_id(f"/proc/self/task/{thread}/ns/{kind}")
    return found


def inside(path: Path, script: str) -> str:
    """What a script prints that runs in a pinned namespace."""
    code = f"import socket, sys\nfrom holdfast.linux import namespace\nnamespace.enter({str(path)!r})\n{script}"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_pinned_namespaces_are_new_and_ours_stay(place: Path) -> None:
    before, fds = own(), len(os.listdir("/proc/self/fd"))
    paths = namespace.pin(KINDS, place, "a-host")
    until(lambda: own().keys() <= before.keys(), "the thread that was in them to be gone")
    assert own().items() <= before.items()  # other threads may end meanwhile, and descriptors be closed
    assert len(os.listdir("/proc/self/fd")) <= fds
    assert paths == {kind: place / kind for kind in KINDS}
    for kind, path in paths.items():
        assert namespace.namespace_id(path) != namespace.namespace_id(f"/proc/self/ns/{kind}")
    assert inside(paths["uts"], "print(socket.gethostname())") == "a-host"
    for path in paths.values():
        namespace.unpin(path)
        namespace.unpin(path)
    assert os.listdir(place) == []


def test_loopback_is_up_in_a_new_network(place: Path) -> None:
    paths = namespace.pin(["net"], place)
    script = (
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(listener.getsockname(), 5).close()\n"
        "print([name for _, name in socket.if_nameindex()])"
    )
    assert inside(paths["net"], script) == "['lo']"


def test_all_or_nothing_and_nothing_of_somebody_elses(place: Path) -> None:
    first = namespace.pin(["ipc"], place)
    identity = namespace.namespace_id(first["ipc"])
    with pytest.raises(FileExistsError):
        namespace.pin(["net", "ipc", "uts"], place)
    assert os.listdir(place) == ["ipc"]
    assert namespace.namespace_id(first["ipc"]) == identity


def test_pin_into_nowhere(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        namespace.pin(["net"], place / "nowhere")
    with pytest.raises(KeyError):
        namespace.pin(["time"], place)
    assert mount.mounts_below(place) == []


def test_a_pinned_namespace_outlives_its_processes(place: Path) -> None:
    code = "import os\nfrom holdfast.linux import namespace\nnamespace.unshare(0x8000000); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        identity = namespace.namespace_id(f"/proc/{other.pid}/ns/ipc")
        namespace.pin_existing(f"/proc/{other.pid}/ns/ipc", place / "ipc")
        other.communicate(b"\n")
    assert namespace.namespace_id(place / "ipc") == identity


def test_unpin_of_a_stacked_pin(place: Path) -> None:
    path = namespace.pin(["uts"], place)["uts"]
    mount.bind("/proc/self/ns/uts", path)
    namespace.unpin(path)
    assert os.listdir(place) == []


def test_kernel_parameters_are_set_in_pinned_namespaces_only(place: Path) -> None:
    name = "/proc/sys/net/core/somaxconn"
    paths, before = namespace.pin(["net"], place), Path(name).read_text()
    namespace.set_sysctls({name: "77"}, paths.values())
    assert inside(paths["net"], f"print(open({name!r}).read())") == "77"
    assert Path(name).read_text() == before
    for wrong in ("x", "99999999999999999999"):
        with pytest.raises(OSError, match="Invalid argument") as failure:
            namespace.set_sysctls({name: wrong}, paths.values())
        assert failure.value.filename == name


def test_a_namespace_is_pinned_of_that_very_process(place: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as other:
        try:
            started = process.start_time(other.pid)
            assert started is not None
            namespace.pin_of(other.pid, started, "pid", place / "pid")
            assert namespace.namespace_id(place / "pid") == namespace.namespace_id("/proc/self/ns/pid")
            with pytest.raises(ProcessLookupError):
                namespace.pin_of(other.pid, started + 1, "pid", place / "other")
        finally:
            other.kill()
    with pytest.raises(ProcessLookupError):
        namespace.pin_of(other.pid, started, "pid", place / "other")
    assert os.listdir(place) == ["pid"]
