"""A client of whatever a forwarded port leads to."""

import contextlib
import re
import socket
from collections.abc import Iterator

from holdfast.proto import runtime_v1_pb2 as pb
from kit.node import Node, until
from kit.terminal import Terminal

SECONDS = 30.0


def serve(node: Node, pod: str, servers: dict[int, str]) -> str:
    """A container of a pod with a network of its own in which each port is served by a program; they listen by now."""
    script = " & ".join(f"nc -ll -p {port} -e {program}" for port, program in servers.items())
    container = node.run(pod, f"{script} & wait", network=pb.POD)
    listening = ["sh", "-c", f"netstat -ltn | grep -cE ':({'|'.join(map(str, servers))}) '"]
    wanted = str(len(servers)).encode()
    until(lambda: node.exec(container, listening).stdout.strip() == wanted, "the servers")
    return container


@contextlib.contextmanager
def forwarded(node: Node, pod: str, *ports: int) -> Iterator[tuple[Terminal, dict[int, int]]]:
    """`holdfast port-forward` on a terminal, and where here each of the pod's ports is; the end is the caller's."""
    words = [f":{port}" for port in ports]
    with Terminal(node.command("port-forward", pod, *words), columns=200) as terminal:
        here: dict[int, int] = {}
        while len(here) < len(ports):
            if found := re.fullmatch(r"Forwarding from 127\.0\.0\.1:(\d+) -> (\d+)", terminal.expect("\r\n")):
                here[int(found[2])] = int(found[1])
        yield terminal, here


def ask(port: int, data: bytes) -> bytes:
    """What a server answers when it has heard it all."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while more := connection.recv(65536):
            found += more
        return found
