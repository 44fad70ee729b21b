"""A collector of traces: an OTLP/gRPC server in the test's process, which keeps what it is sent, or does not answer."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Seen:
    """A span with its attributes as a dictionary."""

    span: Span
    resource: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.span.name)

    @property
    def id(self) -> bytes:
        return bytes(self.span.span_id)

    @property
    def parent(self) -> bytes:
        return bytes(self.span.parent_span_id)

    @property
    def trace(self) -> str:
        return bytes(self.span.trace_id).hex()

    @property
    def attributes(self) -> dict[str, Any]:
        return _plain(self.span.attributes)

    @property
    def failed(self) -> bool:
        return int(self.span.status.code) == 2


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Serves on `address`. While `silent` is set it takes what it is sent and does not answer."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.silent = threading.Event()
        self.go_on = threading.Event()
        self.asked = 0
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        self.asked += 1
        if self.silent.is_set():
            self.go_on.wait()
            context.abort(grpc.StatusCode.UNAVAILABLE, "it was told to be silent")
        for resource in request.resource_spans:
            known = _plain(resource.resource.attributes)
            self.spans += [Seen(span, known) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace: str) -> list[Seen]:
        """All spans of one trace."""
        return [one for one in list(self.spans) if one.trace == trace]

    def stop(self) -> None:
        self.go_on.set()
        self._server.stop(None).wait()


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    one = Collector()
    try:
        yield one
    finally:
        one.stop()


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
