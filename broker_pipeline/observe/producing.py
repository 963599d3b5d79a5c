"""A producer's part of a trace: a span around each send, and its context in the message's headers.

By what the program itself has set up with OpenTelemetry; where it has not loaded it, nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping

from broker_pipeline.broker.port import PubAck

_API = "opentelemetry.trace"


def is_loaded() -> bool:
    """Whether this program uses OpenTelemetry: without it there is no span to tell of."""
    return _API in sys.modules


async def send_in_span(
    send: Callable[[Mapping[str, str]], Awaitable[PubAck]],
    headers: Mapping[str, str],
    *,
    pipeline: str,
    subject: str,
    instance: str,
) -> PubAck:
    """Send with the context of a PRODUCER span, below the one that is current.

    Args:
        send: takes the headers.
        headers: what they are without it.
    """
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    attributes = {
        "messaging.system": "nats",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": subject,
        "broker_pipeline.pipeline": pipeline,
        "broker_pipeline.instance": instance,
    }
    with trace.get_tracer("broker_pipeline").start_as_current_span(
        f"send {pipeline}", kind=trace.SpanKind.PRODUCER, attributes=attributes
    ) as span:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        ack = await send({**headers, **carrier})
        span.set_attribute("messaging.message.id", f"{ack.stream}/{ack.stream_seq}")
    return ack
