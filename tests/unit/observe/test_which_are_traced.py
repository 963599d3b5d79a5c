"""Which packages a leader has traced, and what becomes of them."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.commands import PackageRef
from broker_pipeline.observe import exporting
from broker_pipeline.observe.exporting import JourneyExporter
from broker_pipeline.observe.tracing import ERRORS_PER_S, Traces

SAMPLED = {"traceparent": f"00-{'4b' * 16}-{'0f' * 8}-01"}
UNSAMPLED = {"traceparent": f"00-{'4b' * 16}-{'0f' * 8}-00"}
ERROR = pb.DataPackage(id=1, pipeline="p", outcome=pb.STATUS_ERROR)
SUCCESS = pb.DataPackage(id=1, pipeline="p", outcome=pb.STATUS_SUCCESS)


class Kept:
    """An exporter that keeps what it is offered."""

    def __init__(self) -> None:
        self.offered: list[Any] = []
        self.missed = 0

    def offer(self, headers: Mapping[str, str] | None, envelope: pb.DataPackage) -> None:
        """Keep it."""
        self.offered.append((headers, envelope))

    def left_out(self) -> None:
        """Count it."""
        self.missed += 1


def test_a_ratio_takes_its_part_and_every_leader_the_same() -> None:
    """Of 20,000 packages some 1 %: five standard deviations are 0.35 %."""
    refs = [PackageRef(n, n, 1_700_000_000_000_000_000 + n * 1_000, n) for n in range(20_000)]
    one, other = (Traces("p", 0, ratio=0.01) for _ in range(2))
    chosen = [ref.id for ref in refs if one.carried({}, ref)]
    assert 130 < len(chosen) < 270
    assert chosen == [ref.id for ref in refs if other.carried({}, ref)]
    more = Traces("p", 0, ratio=0.1)
    assert set(chosen) < {ref.id for ref in refs if more.carried({}, ref)}
    every, none = Traces("p", 0, ratio=1.0), Traces("p", 0)
    assert all(every.carried({}, ref) for ref in refs[:100])
    assert not any(none.carried({}, ref) for ref in refs[:100])


def test_what_a_producer_has_decided_holds() -> None:
    """Whatever the ratio is."""
    kept = Kept()
    traces = Traces("p", 0, ratio=1.0, exporter=kept)
    ref = PackageRef(1, 1, 1, 1)
    assert traces.carried(UNSAMPLED, ref) == UNSAMPLED
    traces.left(UNSAMPLED, SUCCESS)
    traces.left(None, SUCCESS)
    assert kept.offered == []
    traces.left(SAMPLED, SUCCESS)
    assert kept.offered == [(SAMPLED, SUCCESS)]


def test_errors_are_always_told_but_not_without_end() -> None:
    """Of those that are not sampled so many a second; what is left out is counted."""
    kept, now = Kept(), [100.5]
    traces = Traces("p", 0, exporter=kept, clock=lambda: now[0])
    for headers in (None, UNSAMPLED) * ERRORS_PER_S:
        traces.left(headers, ERROR)
    assert len(kept.offered) == ERRORS_PER_S == kept.missed
    traces.left(SAMPLED, ERROR)
    assert len(kept.offered) == ERRORS_PER_S + 1
    now[0] = 101.0
    traces.left(None, ERROR)
    assert len(kept.offered) == ERRORS_PER_S + 2


class Receiver(SpanExporter):
    """Takes spans when it is let."""

    def __init__(self) -> None:
        self.open, self.came = threading.Event(), threading.Event()
        self.names: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Wait, then take them."""
        self.came.set()
        self.open.wait(30)
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Wait no more."""
        self.open.set()


def offer(exporter: JourneyExporter, count: int, size: int = 0) -> None:
    """So many packages leave."""
    for number in range(count):
        package = pb.DataPackage(id=number, pipeline="p", data=b"x" * 1000, instance="i" * size)
        exporter.offer(SAMPLED, package)


def test_a_receiver_that_hangs_has_journeys_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`offer` never waits. What fitted is sent as soon as the receiver goes on."""
    monkeypatch.setattr(exporting, "JOURNEYS_MAX", 50)
    receiver = Receiver()
    exporter = JourneyExporter(receiver, "c-1")
    offer(exporter, 1)
    assert receiver.came.wait(10)
    offer(exporter, 500)
    assert exporter.dropped == 450
    with caplog.at_level(logging.WARNING):
        receiver.open.set()
        exporter.close(10)
    assert receiver.names.count("process p") == 51
    assert caplog.text.count("450 journeys were dropped") == 1


def test_journeys_that_wait_are_bounded_in_bytes_and_hold_no_payload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A payload is no part of a trace."""
    monkeypatch.setattr(exporting, "JOURNEYS_BYTES_MAX", 100_000)
    receiver = Receiver()
    exporter = JourneyExporter(receiver, "c-1")
    offer(exporter, 1)
    assert receiver.came.wait(10)
    offer(exporter, 30)
    assert exporter.dropped == 0
    offer(exporter, 30, size=9_000)
    assert exporter.dropped > 10
    receiver.open.set()
    exporter.close(10)


def test_a_receiver_that_fails_is_counted_and_a_bad_package_spoils_no_other() -> None:
    """What is sent beside it arrives."""

    class Failing(SpanExporter):
        def __init__(self) -> None:
            self.names: list[str] = []

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self.names += [span.name for span in spans]
            raise RuntimeError("a library's fault")

    failing = Failing()
    exporter = JourneyExporter(failing, "c-1")
    exporter.offer({"traceparent": 3}, pb.DataPackage(id=1, pipeline="bad"))  # type: ignore[dict-item]
    offer(exporter, 3)
    exporter.close(10)
    assert failing.names.count("process p") == 3 and exporter.dropped == 4


def test_nothing_of_opentelemetry_is_loaded_unless_traces_are_sent() -> None:
    """Roles and clients start without it; only what sends traces needs it."""
    code = (
        "import sys, broker_pipeline.cli.main, broker_pipeline.runtime.roles, "
        "broker_pipeline.runtime.module_server, broker_pipeline.observe.setting_up, "
        "broker_pipeline.observe.journey_spans, broker_pipeline.observe.current; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
