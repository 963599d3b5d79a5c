"""A module's span made current while user code runs, so that what the code traces hangs below it.

Nothing of OpenTelemetry is loaded here: where user code has not loaded it, nobody makes spans, and
the code is just called.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

from broker_pipeline.observe.context import TraceContext

_API = "opentelemetry.trace"


def called(span: TraceContext, function: Callable[..., Any], *args: Any) -> Any:
    """Call it with the span current, and while what it returns is awaited."""
    if _API not in sys.modules:
        return function(*args)
    detach = _attach(span)
    try:
        result = function(*args)
    finally:
        detach()
    if result is None or not hasattr(type(result), "__await__"):
        return result
    return _awaited(span, result)


async def _awaited(span: TraceContext, awaitable: Awaitable[Any]) -> Any:
    detach = _attach(span)
    try:
        result = await awaitable
    except GeneratorExit:
        raise  # it is thrown away, in whatever context that happens
    except BaseException:
        detach()
        raise
    detach()
    return result


def _attach(span: TraceContext) -> Callable[[], None]:
    """Make it current in this thread or task; returns what takes that back."""
    from opentelemetry import context, trace

    known = trace.SpanContext(
        int(span.trace_id, 16),
        int(span.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(span.sampled)),
        trace_state=trace.TraceState.from_header([span.state]) if span.state else None,
    )
    token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(known)))
    return lambda: context.detach(token)
