"""A client of whatever a forwarded port leads to."""

import socket

SECONDS = 30.0


def ask(port: int, data: bytes) -> bytes:
    """What a server answers when it has heard it all."""
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while more := connection.recv(65536):
            found += more
        return found
