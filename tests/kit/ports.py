"""Ports that are free, and a client of whatever a forwarded one leads to."""

import concurrent.futures
import contextlib
import hashlib
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.proto import runtime_v1_pb2 as pb
from kit.node import Node, until
from kit.terminal import Terminal

SECONDS = 30.0
LARGE = bytes(range(256)) * 4096 * 5  # 5 MiB


def free_port() -> int:
    """None of those that the kernel gives to whoever asks for any, or connects: it is free still when it is used."""
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = end // 2 + secrets.randbelow(end - end // 2)
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("", port))
            return port


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
        with contextlib.suppress(OSError):  # who has hung up by now is heard of by what follows
            connection.shutdown(socket.SHUT_WR)
        found = b""
        while more := connection.recv(65536):
            found += more
        return found


def check_forwarding(node: Node) -> None:
    """Ports of a pod, for as long as it is there: many at once, whole, each half to its end, whoever is restarted."""
    pod = node.run_pod(node.pod_config("served", network=pb.POD))
    serve(node, pod, {7001: "sha256sum", 7002: "cat"})
    with forwarded(node, "served", 7001, 7002, 7999) as (terminal, ports):
        assert ask(ports[7001], LARGE).split()[0].decode() == hashlib.sha256(LARGE).hexdigest()
        assert ask(ports[7002], LARGE) == LARGE
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            said = [b"%d" % number for number in range(16)]
            assert [*pool.map(lambda one: ask(ports[7002], one), said)] == said
        with socket.create_connection(("127.0.0.1", ports[7002]), timeout=SECONDS) as lasting:
            for what, change in ((b"before", node.kill), (b"without", node.start), (b"after", lambda: None)):
                lasting.sendall(what)
                assert lasting.recv(100) == what
                change()
            assert ask(ports[7001], b"new").split()[0].decode() == hashlib.sha256(b"new").hexdigest()
        with pytest.raises(ConnectionResetError):
            ask(ports[7999], b"nobody listens")
        terminal.expect("holdfast: cannot forward to port 7999: cannot connect to port 7999 of the pod: ")
        terminal.type("\x03")
        assert terminal.end() == 0
    with forwarded(node, "served", 7001) as (terminal, _):
        node.remove_pod(pod)
        terminal.expect("holdfast: cannot forward to pod served any more: the connection was lost")
        assert terminal.end() == 1
    until(lambda: not node.streamers(), "the session to end")
