"""Addresses of network interfaces, by rtnetlink(7)."""

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from holdfast.linux import namespace

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface

RTM_NEWADDR: Final = 20
NLMSG_ERROR: Final = 2
FLAGS: Final = 0x1 | 0x4 | 0x400  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE
IFA_ADDRESS: Final = 1
IFA_LOCAL: Final = 2
IFA_F_NODAD: Final = 0x2
HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
MESSAGE: Final = struct.Struct("=BBBBI")  # ifaddrmsg
ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr
ANSWER_BYTES: Final = 4096


def add(network: Path, interface: str, addresses: Iterable[Address]) -> None:
    """Give an interface in a pinned network namespace these addresses, unless it has them. Blocks. Raises OSError."""

    def put() -> None:
        index = socket.if_nametoindex(interface)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as line:
            for one in addresses:
                line.send(_request(index, one))
                _check(line.recv(ANSWER_BYTES), interface)

    namespace.act_inside([network], put)


def _request(index: int, address: Address) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    flags = 0 if address.version == 4 else IFA_F_NODAD  # nobody else has it: it was the interface's own
    body = MESSAGE.pack(family, address.network.prefixlen, flags, 0, index)
    for kind in (IFA_LOCAL, IFA_ADDRESS):
        body += ATTRIBUTE.pack(ATTRIBUTE.size + len(address.packed), kind) + address.packed
    return HEADER.pack(HEADER.size + len(body), RTM_NEWADDR, FLAGS, 1, 0) + body


def _check(answer: bytes, interface: str) -> None:
    _, kind, _, _, _ = HEADER.unpack_from(answer)
    number = -struct.unpack_from("=i", answer, HEADER.size)[0] if kind == NLMSG_ERROR else errno.EPROTO
    if number not in (0, errno.EEXIST):
        raise OSError(number, os.strerror(number), interface)
