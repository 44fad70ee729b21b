"""Stop signals: every way to say one, and back to the CRI's."""

import signal

import pytest

from holdfast.model.errors import InvalidArgument
from holdfast.model.image import Image
from holdfast.oci.signals import cri_signal, signal_number, stop_signal
from holdfast.proto import runtime_v1_pb2 as pb


@pytest.mark.parametrize("name", [name for name in pb.Signal.keys() if name != "RUNTIME_DEFAULT"])  # noqa: SIM118
def test_every_signal_of_the_cri_has_a_number_and_a_way_back(name: str) -> None:
    number = signal_number(name)
    assert signal_number(cri_signal(name)) == number
    assert cri_signal(name) in pb.Signal.keys()  # noqa: SIM118


@pytest.mark.parametrize(
    ("name", "number", "shown"),
    [
        ("", signal.SIGTERM, "SIGTERM"),
        ("usr1", signal.SIGUSR1, "SIGUSR1"),
        ("9", signal.SIGKILL, "SIGKILL"),
        ("SIGCLD", signal.SIGCHLD, "SIGCHLD"),
        ("SIGRTMIN", signal.SIGRTMIN, "SIGRTMIN"),
        ("RTMIN+3", signal.SIGRTMIN + 3, "SIGRTMINPLUS3"),
        ("SIGRTMAXMINUS2", signal.SIGRTMAX - 2, "SIGRTMAXMINUS2"),
        ("SIGRTMAX-14", signal.SIGRTMAX - 14, "SIGRTMAXMINUS14"),
        ("SIGRTMIN+16", signal.SIGRTMIN + 16, "SIGRTMAXMINUS14"),
        ("SIGRTMAX", signal.SIGRTMAX, "SIGRTMAX"),
    ],
)
def test_ways_to_say_a_signal(name: str, number: int, shown: str) -> None:
    assert (signal_number(name), cri_signal(name)) == (number, shown)
    assert shown in pb.Signal.keys()  # noqa: SIM118


def test_the_config_comes_before_the_image() -> None:
    image = Image(id="sha256:1", config=b"{}", size=1, stop_signal="SIGUSR1")
    assert stop_signal(pb.ContainerConfig(stop_signal=pb.SIGUSR2), image) == "SIGUSR2"
    assert stop_signal(pb.ContainerConfig(), image) == "SIGUSR1"


@pytest.mark.parametrize("name", ["SIGNOTHING", "0", "-1", "999", "SIGRTMAX+1", "SIGTERM+x", "²"])
def test_what_is_no_signal_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"stop_signal: .* is not a signal"):
        stop_signal(pb.ContainerConfig(), Image(id="sha256:1", config=b"{}", size=1, stop_signal=name))
