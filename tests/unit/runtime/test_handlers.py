"""What a handler is, by its name, its program and the configuration."""

from pathlib import Path

from holdfast.proto import runtime_v1_pb2 as pb
from holdfast.runtime.handlers import known


def test_gvisor_is_known_by_its_program(tmp_path: Path) -> None:
    table = {"binary": "/opt/runsc", "platform": "ptrace"}
    found = known({"sandboxed": table}, tmp_path, "v2")
    mine, default = found["sandboxed"], found["runsc"]
    assert mine.gvisor and mine.sandbox and not mine.plain
    assert (mine.platform, default.platform) == ("ptrace", "systrap")
    assert (mine.root, default.root) == (str(tmp_path / "oci/sandboxed"), str(tmp_path / "oci/runsc"))
    assert found["crun"].plain and not found["crun"].gvisor


def test_its_network_is_the_pods(tmp_path: Path) -> None:
    found = known({"alone": {"binary": "runsc", "isolated": True}}, tmp_path, "v2")
    own, host = found["runsc"].on(pb.POD), found["runsc"].on(pb.NODE)
    assert (own.network, own.hide) == ("sandbox", ("/proc/sys/net",))
    assert (host.network, host.hide) == ("host", ())
    assert found["alone"].on(pb.POD).network == found["alone"].on(pb.NODE).network == "none"
    assert found["crun"].on(pb.NODE) is found["crun"]


def test_what_is_known_of_a_container_is_found_and_forgotten(tmp_path: Path) -> None:
    one = known({}, tmp_path, "v2")["runsc"]
    one.forget("c", "p")  # it has never run
    assert not one.waits("c", "p")
    root = Path(one.root)
    root.mkdir(parents=True)
    one.state("c", "p").write_text('{"status": "created"}')
    (root / "c_sandbox:p.lock").touch()
    (root / "d_sandbox:p.state").write_text('{"status": "running"}')
    assert one.waits("c", "p") and not one.waits("d", "p")
    one.forget("c", "p")
    assert [path.name for path in root.iterdir()] == ["d_sandbox:p.state"]
    one.forget("p", "p")
    assert not list(root.iterdir())
