"""The one boundary between gRPC and the rules: the readiness gate, one log line per call, errors mapped once.

Handlers raise plain errors; an interceptor wraps every method of every service, so that none can be forgotten.
"""

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, NoReturn
from urllib.parse import quote

import grpc

from holdfast.model import errors, trace
from holdfast.model.tally import Counter, Measure, Timed
from holdfast.model.words import readable

log = logging.getLogger(__name__)


STATUS: Final[dict[type[Exception], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Damaged: grpc.StatusCode.DATA_LOSS,
    NotImplementedError: grpc.StatusCode.UNIMPLEMENTED,  # what the generated services raise
}
HOST_FAILS: Final = frozenset(
    {errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.EROFS}
)
DETAILS_BYTES: Final = 6000  # gRPC begins to refuse headers of more than 8 KiB
DETAILS_ENDS: Final = 240  # characters, of at most 12 bytes there
PLAIN: Final = "".join(char for char in map(chr, range(0x20, 0x7F)) if char != "%")
ALWAYS_SERVED: Final = frozenset({"Version", "Status", "Recovery", "Config"})
ENDS_WITH_CLIENT: Final = frozenset(
    {"ExecSync", "Version", "Status", "ContainerStatus", "PodSandboxStatus"}
)  # and lists
QUIET: Final = frozenset({"Version", "Status", "RuntimeConfig", "ImageFsInfo"})


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The gRPC code and text for an error. What nobody foresaw is UNKNOWN, as other CRI runtimes have it."""
    for kind, code in STATUS.items():
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
    if isinstance(error, OSError) and error.errno in HOST_FAILS:
        return grpc.StatusCode.UNAVAILABLE, str(error)
    foreseen = isinstance(error, errors.HoldfastError)
    return grpc.StatusCode.UNKNOWN, str(error) if foreseen else f"{type(error).__name__}: {error}"


def sayable(text: str) -> str:
    """A text that gRPC can send as the details of an error: they travel in a header, percent-encoded.

    Of one that quotes a long value the beginning is kept, with the field, and the end, with what is wrong: a header
    that is too long would be lost whole, and the code with it.
    """
    text = readable(text)
    if len(quote(text, safe=PLAIN)) <= DETAILS_BYTES:
        return text
    return f"{text[:DETAILS_ENDS]} ... {text[-DETAILS_ENDS:]}"


class Boundary(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Opens its gate once the rows are loaded; until then only what needs none is served."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        calls = Timed("holdfast_operation", "operations", ("operation",), "code", _code)
        self._abandoned = Counter(
            "holdfast_operations_abandoned_total", "Operations whose client left before their end.", ("operation",)
        )
        self._one = calls.one
        self.measures: tuple[Measure, ...] = (*calls.measures, self._abandoned)
        self._running: set[asyncio.Task[Any]] = set()

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap a method's handler; None for a method that no service has."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        details = _Details(handler_call_details)
        codecs = (handler.request_deserializer, _serializer(handler.response_serializer))
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(self._streaming(details, handler.stream_stream), *codecs)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._streaming(details, handler.unary_stream), *codecs)
        return grpc.unary_unary_rpc_method_handler(self._unary(details, handler.unary_unary), *codecs)

    def _unary(self, details: "_Details", method: Callable[[Any, Any], Coroutine[Any, Any, Any]]) -> Any:
        name = details.name

        async def work(request: Any, context: Any) -> Any:
            with self._one(name):
                self._check_gate(name)
                return await method(request, context)

        async def call(request: Any, context: Any) -> Any:
            began, span = time.monotonic(), details.span(request)
            try:
                reply = await self._carry_out(name, work(request, context))
            except asyncio.CancelledError:
                self._abandoned.add(name)
                span.end("CANCELLED")
                raise
            except Exception as exc:
                await _abort(name, request, context, exc, began, span)
            span.end("OK")
            level = logging.DEBUG if name in QUIET or name.startswith("List") else logging.INFO
            log.log(level, "%s done in %.1f ms", name, _milliseconds(began), extra=_ids(request, reply))
            return reply

        return call

    async def _carry_out(self, name: str, work: Coroutine[Any, Any, Any]) -> Any:
        """Do what was asked to its end, even when the client goes away meanwhile: half an operation helps nobody.

        What is done only for the client's eyes ends with it, and pays for no task of its own.
        """
        if name in ENDS_WITH_CLIENT or name.startswith("List"):
            return await work
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("%s ended with: %s", task.get_name(), error)

    def _streaming(self, details: "_Details", method: Callable[[Any, Any], AsyncIterator[Any]]) -> Any:
        name = details.name

        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            began, span = time.monotonic(), details.span(request)
            try:
                with self._one(name):
                    self._check_gate(name)
                    replies = method(request, context)
                    if not hasattr(replies, "__aiter__"):
                        raise NotImplementedError(f"{name} is not built yet")
                    async for reply in replies:
                        yield reply
                span.end("OK")
            except Exception as exc:
                await _abort(name, request, context, exc, began, span)
            except BaseException:
                span.end("CANCELLED")
                raise

        return call

    def _check_gate(self, name: str) -> None:
        if not self.gate.is_set() and name not in ALWAYS_SERVED:
            raise errors.Unavailable(f"cannot serve {name} yet: the daemon is starting")


class _Details:
    """Which method is called, and by whose trace."""

    def __init__(self, details: Any) -> None:
        self._method = details.method.lstrip("/")
        self.name = self._method.rsplit("/", 1)[-1]
        self._metadata = details.invocation_metadata

    def span(self, request: Any) -> trace.Call:
        """Of the whole call."""
        if not trace.tracing():
            return trace.NOBODY
        parent = next((str(value) for key, value in self._metadata or () if key == "traceparent"), "")
        return trace.call(self._method, parent, **_ids(request, None))


def _serializer(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """A handler may answer with a message, or with one that is serialized already."""
    return lambda reply: reply if isinstance(reply, bytes) else serialize(reply)


def _code(error: BaseException | None) -> str:
    if error is None:
        return "OK"
    return status_of(error)[0].name if isinstance(error, Exception) else "CANCELLED"


async def _abort(name: str, request: Any, context: Any, error: Exception, began: float, span: trace.Call) -> NoReturn:
    code, text = status_of(error)
    text = sayable(text)
    span.end(code.name, text)
    foreseen = code is not grpc.StatusCode.UNKNOWN or isinstance(error, errors.HoldfastError)
    unforeseen = None if foreseen else error
    log.log(
        logging.ERROR if unforeseen else logging.WARNING,
        "%s failed with %s after %.1f ms: %s",
        name,
        code.name,
        _milliseconds(began),
        text,
        extra=_ids(request, None),
        exc_info=unforeseen,
    )
    await context.abort(code, text)
    raise AssertionError("abort() does not return")


def _ids(request: Any, reply: Any) -> dict[str, str]:
    """Pod and container ids of a call, wherever they are said, for the log record."""
    found = {}
    for message in (request, reply):
        for field in ("pod_sandbox_id", "container_id"):
            if value := getattr(message, field, ""):
                found[field.removesuffix("_sandbox_id").removesuffix("_id")] = str(value)
    return found


def _milliseconds(began: float) -> float:
    return (time.monotonic() - began) * 1000
