"""Traces by OpenTelemetry, over OTLP/gRPC: the spans of `model.trace`, sent by a thread that nobody waits for.

Spans that have ended are put into a queue of bounded length. One for which there is no place, or that cannot be sent,
is counted and forgotten: a collector that is down, slow or full costs nobody anything but the trace.

Importing this takes OpenTelemetry's packages, and the time to load them: it is done only where tracing is asked for.
"""

import collections
import contextvars
import logging
import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final

import grpc
from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from holdfast.model import trace
from holdfast.model.tally import Counter, Measure, gauge

log = logging.getLogger(__name__)

QUEUE: Final = 2048  # spans that wait to be sent, at about 2 KiB each
BATCH: Final = 512
PAUSE_SECONDS: Final = 1.0  # between batches that are not full
EXPORT_SECONDS: Final = 5.0  # for one batch, with all attempts
STOP_SECONDS: Final = 1.0  # for what is left at the end
OPTIONS: Final = (("grpc.enable_http_proxy", 0),)  # a collector is a neighbour


class Tracing:
    """Makes spans and sends them to `endpoint`, "host:port". `ratio` is of calls whose client has not decided it."""

    def __init__(self, endpoint: str, ratio: float, version: str, node: str) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what it has to say is said here, and once
        resource = Resource({"service.name": "holdfastd", "service.version": version, "host.name": node})
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), resource=resource, shutdown_on_exit=False
        )
        self._sender = Sender(endpoint)
        provider.add_span_processor(self._sender)
        self._tracer = provider.get_tracer("holdfast", version)
        self.measures = self._sender.measures

    def stop(self) -> None:
        """Send what can be sent at once."""
        trace.install(None)
        self._sender.stop()

    # -- trace.Tracer

    def span(self, name: str, attributes: dict[str, trace.Value]) -> AbstractContextManager[object]:
        if not get_current_span().get_span_context().is_valid:
            return trace.NOBODY
        return _Part(self._tracer, name, _named(attributes))

    def call(self, name: str, parent: str, attributes: dict[str, trace.Value]) -> trace.Call:
        carrier = {"traceparent": parent} if parent else {}
        around = TraceContextTextMapPropagator().extract(carrier, Context())
        service, _, method = name.rpartition("/")
        known = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, **_named(attributes)}
        span = self._tracer.start_span(name, around, SpanKind.SERVER, known)
        context.attach(set_span_in_context(span, Context()))  # for as long as the task lives, which is the call's own
        return _Call(span)

    def apart(self) -> contextvars.Context:
        copied = contextvars.copy_context()
        copied.run(context.attach, Context())
        return copied


class _Part:
    """A span that is current while it lasts."""

    __slots__ = ("_attributes", "_name", "_span", "_token", "_tracer")

    def __init__(self, tracer: Tracer, name: str, attributes: dict[str, trace.Value]) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes

    def __enter__(self) -> None:
        self._span = self._tracer.start_span(self._name, attributes=self._attributes)
        self._token = context.attach(set_span_in_context(self._span))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        context.detach(self._token)
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, str(error) or type(error).__name__))
        self._span.end()


class _Call:
    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, code: str, message: str = "") -> None:
        self._span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[code].value[0])
        if code != "OK":
            self._span.set_status(Status(StatusCode.ERROR, message or code))
        self._span.end()


class Sender(SpanProcessor):
    """The queue, and the thread that empties it."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._queue: collections.deque[ReadableSpan] = collections.deque()
        self._wake = threading.Event()
        self._over = False
        self._well = True
        self._spans = Counter("holdfast_trace_spans_total", "Spans, by what became of them.", ("result",))
        waiting = gauge("holdfast_trace_spans_waiting", "Spans that wait to be sent.", lambda: len(self._queue))
        self.measures: tuple[Measure, ...] = (self._spans, waiting)
        self._exporter = OTLPSpanExporter(
            endpoint,
            insecure=True,
            timeout=EXPORT_SECONDS,
            channel_options=OPTIONS,  # type: ignore[arg-type]
        )
        self._thread = threading.Thread(target=self._work, name="traces", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        """Called where the span ends, so it must cost next to nothing."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if len(self._queue) >= QUEUE or self._over:
            self._spans.add("dropped")
            return
        self._queue.append(span)
        if len(self._queue) >= BATCH:
            self._wake.set()

    def stop(self) -> None:
        """Send what is left, if that can be done at once; not to one that did not take the last ones either."""
        self._over = True
        self._wake.set()
        self._thread.join(STOP_SECONDS if self._well else 0)
        self._exporter.shutdown()
        if self._queue:
            log.warning("%d spans could not be sent to %s any more", len(self._queue), self._endpoint)

    def _work(self) -> None:
        over = False
        while not over:
            self._wake.wait(PAUSE_SECONDS)
            self._wake.clear()
            over = self._over
            while self._queue:
                self._send([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])

    def _send(self, batch: list[ReadableSpan]) -> None:
        try:
            well = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as exc:  # of whatever kind: it is theirs, and the next batch may fare better
            log.debug("cannot send traces: %s", exc)
            well = False
        self._spans.add("sent" if well else "failed", by=len(batch))
        if well is not self._well:
            self._well = well
            said = "traces are sent to %s again" if well else "traces cannot be sent to %s: they are dropped"
            log.log(logging.INFO if well else logging.WARNING, said, self._endpoint)


def _named(attributes: dict[str, trace.Value]) -> dict[str, trace.Value]:
    return {f"holdfast.{key}": value for key, value in attributes.items() if value != ""}
