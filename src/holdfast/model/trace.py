"""Spans: what a call is made of and how long each part takes, for whoever has set up tracing. Nothing, otherwise.

A span is begun where the work is done; that it belongs to the one around it follows from the context of the task. What
is part of no call has none. While nobody traces, a span costs a look at one variable. `tracing` has what sends them.
"""

import contextvars
import functools
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Final, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Value = str | int | float | bool


class Call(Protocol):
    """The span of a whole call, which is ended by hand: the answer may go out elsewhere than the call came in."""

    def end(self, code: str, message: str = "") -> None:
        """`code` as gRPC has it; anything but OK is an error."""


class Tracer(Protocol):
    """Who makes and sends spans."""

    def span(self, name: str, attributes: dict[str, Value]) -> AbstractContextManager[object]: ...
    def call(self, name: str, parent: str, attributes: dict[str, Value]) -> Call: ...
    def apart(self) -> contextvars.Context: ...


class _Nobody:
    """The span of nobody."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def end(self, code: str, message: str = "") -> None:
        return None


NOBODY: Final = _Nobody()
_tracer: Tracer | None = None


def install(tracer: Tracer | None) -> None:
    """Have all spans of this process from now on; None for nobody."""
    global _tracer
    _tracer = tracer


def tracing() -> bool:
    return _tracer is not None


def span(name: str, **attributes: Value) -> AbstractContextManager[object]:
    """`with span("keeper fork", kind="shim"):`, a part of whatever is under way in this task."""
    return NOBODY if _tracer is None else _tracer.span(name, attributes)


def step(name: str) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Whatever the function does is a span of that name."""

    def traced(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        @functools.wraps(function)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            with span(name):
                return await function(*args, **kwargs)

        return run

    return traced


def call(name: str, parent: str, **attributes: Value) -> Call:
    """A call that has come in, of which this task is from now on; `parent` is its client's W3C traceparent, or ""."""
    return NOBODY if _tracer is None else _tracer.call(name, parent, attributes)


def apart() -> contextvars.Context | None:
    """The context for a task that goes on by itself: no part of the call in which it happens to be started."""
    return None if _tracer is None else _tracer.apart()
