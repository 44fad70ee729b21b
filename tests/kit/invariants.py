"""What must hold of a node at rest, whatever was done to it before: nothing without an owner, no row that is wrong."""

import json
from typing import Any

from holdfast.proto import node_pb2, node_pb2_grpc
from kit.node import Node, until


def examine(node: Node, *, fix: bool = False) -> dict[str, Any]:
    """What `holdfast doctor -o json` says, asked over the socket."""
    stub = node_pb2_grpc.NodeStub(node.channel)
    found: dict[str, Any] = json.loads(stub.Doctor(node_pb2.DoctorRequest(fix=fix), timeout=60).json)
    return found


def complaints(node: Node) -> list[str]:
    """Orphans and inconsistencies, one line each."""
    return [
        f"{one['verdict']} {one['kind']} {one['where']} ({one['owner'] or 'nobody'}): {one['why']}"
        for one in examine(node)["findings"]
        if one["verdict"] in ("orphan", "inconsistent")
    ]


def check(node: Node, seconds: float = 60.0) -> None:
    """Assert that the doctor finds no orphan and no inconsistency; what is still being taken apart gets time to go."""
    last: list[str] = []

    def healthy() -> bool:
        last[:] = complaints(node)
        return not last

    try:
        until(healthy, "the doctor to be content", seconds)
    except AssertionError:
        raise AssertionError("the doctor finds:\n" + "\n".join(last)) from None
