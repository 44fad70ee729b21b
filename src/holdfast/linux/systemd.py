"""The notification protocol of service managers, sd_notify(3)."""

import os
import socket


def notify(state: str) -> bool:
    """Tell the service manager, e.g. "READY=1". Returns False when there is none; never raises for one that is gone."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    # "@" stands for the leading NUL of an abstract address, which some managers listen on.
    target = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), target)
        except OSError:
            return False
    return True
