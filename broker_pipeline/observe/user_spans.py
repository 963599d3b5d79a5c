"""A tracer provider for the processes that run user code, where that code has set up none."""

from __future__ import annotations

import threading
from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from broker_pipeline.observe.exporting import CLOSE_S, LINGER_S, Counted, resource_of

QUEUE_MAX = 4_096
"""Spans that wait to be sent; more are dropped."""


def provide(target: SpanExporter, role: str, process: str) -> Callable[[], None]:
    """Have spans of user code sent, those below a module's span of a traced package.

    Returns:
        What is to be called at the end: it sends what is left, for CLOSE_S at most.
    """
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return lambda: None  # the user's own
    provider = TracerProvider(
        resource=resource_of(role, process),
        # What does not belong to a package is nobody's trace, and would have no bound.
        sampler=ParentBased(ALWAYS_OFF),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            Counted(target), max_queue_size=QUEUE_MAX, schedule_delay_millis=LINGER_S * 1000
        )
    )
    trace.set_tracer_provider(provider)

    def close() -> None:
        # It waits for a receiver that hangs: not in this thread.
        ending = threading.Thread(target=provider.shutdown, name="end of spans", daemon=True)
        ending.start()
        ending.join(CLOSE_S)

    return close
