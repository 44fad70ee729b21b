"""Stop signals: an image's word for one, the CRI's, and its number; signal(7)."""

import signal
from typing import Final

from holdfast.model.errors import InvalidArgument
from holdfast.model.image import Image
from holdfast.proto import runtime_v1_pb2 as pb

_MIDDLE: Final = 15  # the last real-time signal that is counted from the first one, as kill(1) does


def stop_signal(config: pb.ContainerConfig, image: Image) -> str:
    """What the config says, or else the image; "" for neither. Raises InvalidArgument for what is not a signal."""
    name = pb.Signal.Name(config.stop_signal) if config.stop_signal else image.stop_signal
    signal_number(name)
    return name


def signal_number(name: str) -> int:
    """The number of "SIGTERM", "TERM", "15", "SIGRTMIN+3" or the CRI's "SIGRTMINPLUS3"; "" is SIGTERM.

    Raises InvalidArgument.
    """
    text = name.upper().removeprefix("SIG").replace("PLUS", "+").replace("MINUS", "-") or "TERM"
    base, plus, offset = text.replace("-", "+-").partition("+")
    try:
        if text.isdigit():
            return int(signal.Signals(int(text)))
        number = int(signal.Signals[f"SIG{base}"]) + (int(offset) if plus else 0)
        if not 0 < number <= signal.SIGRTMAX:
            raise ValueError(number)
    except (KeyError, ValueError) as exc:
        raise InvalidArgument(f"stop_signal: {name!r} is not a signal") from exc
    return number


def cri_signal(name: str) -> str:
    """The CRI's word for what a container is stopped with, as its status shows it."""
    number = signal_number(name)
    above, below = number - signal.SIGRTMIN, signal.SIGRTMAX - number
    if above < 0:
        return signal.Signals(number).name
    counted = f"SIGRTMINPLUS{above}" if above <= _MIDDLE else f"SIGRTMAXMINUS{below}"
    return counted.removesuffix("PLUS0").removesuffix("MINUS0")
