"""Journeys sent as OpenTelemetry traces: OTLP over HTTP, from a thread of its own.

Whatever the receiver does - it is away, it hangs, it is slow - costs traces and nothing else: what
does not fit into the queue is dropped and counted. Needs `broker_pipeline[traces]`, which is loaded
here and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.observe.journey_spans import Kind, SpanData, spans_of

log = logging.getLogger(__name__)

JOURNEYS_MAX = 2_000
"""Journeys that wait to be sent; more are dropped."""
JOURNEYS_BYTES_MAX = 32 << 20
"""And so many bytes of them."""
BATCH_MAX = 100
"""Journeys sent at once: some 600 spans."""
LINGER_S = 0.5
"""A journey waits so long for others."""
LOOK_S = 0.1
"""How often it is looked whether a batch is full before that."""
TIMEOUT_S = 5.0
"""The receiver may take so long for a batch, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise."""
CLOSE_S = 2.0
"""What is left at the end of a role may take so long."""
TELL_S = 60.0
"""Between two lines of the log about what was dropped."""
PROCESSES_MAX = 1_000
"""Processes whose resources are remembered."""

_Journey = tuple[Mapping[str, str] | None, pb.DataPackage, int]
"""The context that a package came with, itself, and its size."""
_KINDS = {kind: SpanKind[kind.name] for kind in Kind}
_SCOPE = InstrumentationScope("broker_pipeline")


class JourneyExporter:
    """Takes journeys from the leaders of this process, and sends them.

    Args:
        target: sends spans.
        process: this process's name.
    """

    def __init__(self, target: SpanExporter, process: str) -> None:
        self._target = target
        self._process = process
        self._resources: dict[tuple[str, str], Resource] = {}
        self._queue: queue.SimpleQueue[_Journey] = queue.SimpleQueue()
        # Each is changed by one thread only, so that no lock is on the leader's way.
        self._bytes_in = self._bytes_out = 0
        self._dropped = self._unsent = self._left_out = 0
        self._told = (0, 0, 0)
        self._tell_at = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="traces", daemon=True)
        self._thread.start()

    # -- on the leader's loop -------------------------------------------------------------------
    def offer(self, headers: Mapping[str, str] | None, envelope: pb.DataPackage) -> None:
        """See `tracing.Exporter.offer`. Measured: 2 us."""
        envelope.data = b""  # a trace holds no payload
        size = envelope.ByteSize()
        waiting = self._bytes_in - self._bytes_out
        if self._queue.qsize() >= JOURNEYS_MAX or waiting + size > JOURNEYS_BYTES_MAX:
            self._dropped += 1
            return
        self._bytes_in += size
        self._queue.put((headers, envelope, size))

    def left_out(self) -> None:
        """See `tracing.Exporter.left_out`."""
        self._left_out += 1

    @property
    def dropped(self) -> int:
        """Journeys that did not fit into the queue, and those that could not be sent."""
        return self._dropped + self._unsent

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Send what is left, for so long; blocks."""
        self._closing.set()
        self._thread.join(timeout_s)
        # Also where the thread is in it: that ends what it waits for.
        threading.Thread(target=self._end, name="end of traces", daemon=True).start()

    def _end(self) -> None:
        with suppress(Exception):  # a library's, on its way out
            self._target.shutdown()

    # -- in the thread --------------------------------------------------------------------------
    def _serve(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            spans: list[ReadableSpan] = []
            count = 0
            for headers, envelope, size in self._gather():
                self._bytes_out += size
                try:
                    told = spans_of(headers, envelope, self._process)
                    spans += [self._readable(each) for each in told]
                    count += 1
                except Exception:  # whatever a stranger wrote into a package
                    self._unsent += 1
                    log.debug("package %d cannot be told as a trace", envelope.id, exc_info=True)
            if spans and not _sent(self._target, spans):
                self._unsent += count
            self._tell()

    def _gather(self) -> list[_Journey]:
        """What comes within LINGER_S, up to BATCH_MAX. It looks now and then: to be woken for each
        journey would take the interpreter from the event loop as often."""
        until = time.monotonic() + LINGER_S
        while self._queue.qsize() < BATCH_MAX and time.monotonic() < until:
            if self._closing.wait(LOOK_S):
                break
        batch: list[_Journey] = []
        with contextlib.suppress(queue.Empty):
            while len(batch) < BATCH_MAX:
                batch.append(self._queue.get_nowait())
        return batch

    def _tell(self) -> None:
        counts = (self._dropped, self._unsent, self._left_out)
        now = time.monotonic()
        if counts == self._told or now < self._tell_at:
            return
        dropped, unsent, left_out = (a - b for a, b in zip(counts, self._told, strict=True))
        self._told, self._tell_at = counts, now + TELL_S
        log.warning(
            "traces are incomplete: %d journeys were dropped because the receiver is too slow or "
            "away, %d could not be sent, and of %d errors nothing is told, for there were too many",
            dropped,
            unsent,
            left_out,
        )

    def _readable(self, span: SpanData) -> ReadableSpan:
        state = TraceState.from_header([span.context.state]) if span.context.state else None
        trace_id = int(span.context.trace_id, 16)

        def known(span_id: str, *, remote: bool) -> SpanContext:
            flags = TraceFlags(TraceFlags.SAMPLED)
            return SpanContext(trace_id, int(span_id, 16), remote, flags, state)

        failed = span.failed is not None
        return ReadableSpan(
            name=span.name,
            context=known(span.context.span_id, remote=False),
            parent=None if span.parent_id is None else known(span.parent_id, remote=True),
            resource=self._resource(span.role, span.process),
            attributes=span.attributes,
            events=[_exception(error, span.end_ns) for error in span.exceptions],
            kind=_KINDS[span.kind],
            instrumentation_scope=_SCOPE,
            status=Status(StatusCode.ERROR, span.failed or None) if failed else Status(),
            start_time=span.start_ns,
            end_time=span.end_ns,
        )

    def _resource(self, role: str, process: str) -> Resource:
        found = self._resources.get((role, process))
        if found is None:
            if len(self._resources) >= PROCESSES_MAX:
                self._resources.clear()
            found = self._resources[role, process] = resource_of(role, process)
        return found


def _sent(target: SpanExporter, spans: Sequence[ReadableSpan]) -> bool:
    try:
        return target.export(spans) is SpanExportResult.SUCCESS
    except Exception as error:  # a library's, and the network's: traces are not worth more
        log.debug("traces were not sent: %s", error)
        return False


def _exception(error: pb.Error, at_ns: int) -> Event:
    attributes: dict[str, Any] = {"exception.type": error.type, "exception.message": error.message}
    if error.traceback:
        attributes["exception.stacktrace"] = error.traceback
    if error.path:
        attributes["broker_pipeline.path"] = error.path
    return Event("exception", attributes, at_ns)


class _Process(Resource):
    """A resource that is hashed once: the encoder asks for each span, which took a fifth of its
    time."""

    def __init__(self, known: Resource) -> None:
        super().__init__(known.attributes, known.schema_url)
        self._hashed = super().__hash__()

    def __hash__(self) -> int:
        return self._hashed


def resource_of(role: str, process: str) -> Resource:
    """Who did the work: `service.name` and `service.instance.id`, and what
    OTEL_RESOURCE_ATTRIBUTES says."""
    attributes = {"service.name": f"broker_pipeline.{role}", "service.instance.id": process}
    return _Process(Resource.create().merge(Resource(attributes)))


class Counted(SpanExporter):
    """Sends spans by another exporter, and says now and then that it cannot."""

    def __init__(self, target: SpanExporter) -> None:
        self._target = target
        self._unsent = 0
        self._tell_at = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See `SpanExporter.export`."""
        if _sent(self._target, spans):
            return SpanExportResult.SUCCESS
        self._unsent += len(spans)
        if (now := time.monotonic()) >= self._tell_at:
            log.warning("%d spans could not be sent: the receiver does not take them", self._unsent)
            self._unsent, self._tell_at = 0, now + TELL_S
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """See `SpanExporter.shutdown`."""
        self._target.shutdown()


def otlp(endpoint: str | None) -> SpanExporter:
    """What sends spans by OTLP over HTTP; headers, certificates and the like are as OpenTelemetry's
    own environment variables say.

    Args:
        endpoint: the URL of a receiver; None: as the environment says.
    """
    timed = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}TIMEOUT") for kind in ("", "TRACES_"))
    # It tells of each attempt: several lines a second where nobody listens.
    logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.CRITICAL)
    return OTLPSpanExporter(endpoint=endpoint, timeout=None if timed else TIMEOUT_S)
