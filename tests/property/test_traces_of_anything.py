"""Whatever headers and packages hold, tracing ignores it or tells a tree that OTLP can carry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import SpanExporter

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.headers import encode, parse
from broker_pipeline.observe import context
from broker_pipeline.observe.exporting import JourneyExporter
from broker_pipeline.observe.journey_spans import SPANS_MAX, spans_of

GOOD = f"00-{'4b' * 16}-{'0f' * 8}-01"
u64 = st.integers(0, 2**64 - 1)
small = st.integers(0, 20)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
statuses = st.integers(0, 12)


def headers_of(parent: str, state: str) -> dict[str, str]:
    """A message's headers."""
    return {"traceparent": parent, "tracestate": state}


near = st.builds(
    lambda where, what: GOOD[:where] + what + GOOD[where + 1 :], st.integers(0, 56), st.text()
)


@given(near | st.text(max_size=80) | st.just(GOOD), st.text(max_size=600))
def test_what_is_carried_on_can_be_published_again(parent: str, state: str) -> None:
    """However a header came to be: it goes on as a good one, or not at all. What could not be
    encoded would stop each leader that reads it."""
    found = context.carried(headers_of(parent, state))
    if found is None:
        return
    assert (
        parse(encode("~w.1.c.p", found)) == {"Nats-Msg-Id": "~w.1.c.p", **found}
        or state.strip(" \t") != state
    )
    read = context.parse(found)
    assert read is not None and len(read.trace_id) == 32 and len(read.span_id) == 16
    assert int(read.trace_id, 16) and int(read.span_id, 16)


@pytest.mark.parametrize(
    "text",
    [
        "", "00", GOOD[:-1], GOOD + "-", GOOD + "-x", GOOD.upper(), "ff" + GOOD[2:], GOOD + "\n",
        "00-" + "0" * 32 + GOOD[35:], GOOD[:36] + "0" * 16 + "-01", GOOD.replace("-", "_"),
        "0٣" + GOOD[2:], " " + GOOD,
    ],
)  # fmt: skip
def test_a_malformed_traceparent_counts_as_none(text: str) -> None:
    """By the standard's rules (W3C Trace Context, section 3.2)."""
    assert context.parse_traceparent(text) is None
    assert context.carried({"traceparent": text}) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    """More may follow then, and other flags may stand beside the one that we know."""
    read = context.parse_traceparent("01" + GOOD[2:-2] + "03-more")
    assert read is not None and read.sampled and read.trace_id == "4b" * 16


@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_a_derived_trace_is_its_own_parent(package: int, arrived: int) -> None:
    """What the leader writes into a header gives the same package span as no header does."""
    root = context.derived("p", 0, package, arrived)
    read = context.parse({"traceparent": root.traceparent})
    assert read == root and context.package_span(root, "p", 0, package) == root


modules = st.deferred(
    lambda: st.builds(
        pb.ModuleRecord, name=texts, status=statuses, start_offset_ns=u64, waiting_time_ns=u64,
        total_time_ns=u64, message=texts, error=small, server=st.just("") | texts,
        sub_modules=st.lists(modules, max_size=2),
    )
)  # fmt: skip
phases = st.builds(
    pb.PhaseRecord, name=texts, status=statuses, worker=texts, start_time_ns=u64,
    total_time_ns=u64, modules=st.lists(modules, max_size=3),
)  # fmt: skip
controllers = st.builds(
    pb.ControllerRecord, name=texts, mode=statuses, sequence=u64, status=statuses,
    start_time_ns=u64, input_waiting_time_ns=u64, output_waiting_time_ns=u64, total_time_ns=u64,
    phases=st.lists(phases, max_size=2, unique_by=lambda each: each.name),
)  # fmt: skip
errors = st.builds(pb.Error, type=texts, message=texts, traceback=texts, path=texts)
packages = st.builds(
    pb.DataPackage, id=u64, pipeline=texts, shard=small, instance=texts, epoch=u64, sequence=u64,
    content_type=texts, data=st.binary(max_size=8), outcome=statuses, start_time_ns=u64,
    end_time_ns=u64, errors=st.lists(errors, max_size=4),
    controllers=st.lists(controllers, max_size=2, unique_by=lambda each: each.name),
)  # fmt: skip


class Nowhere(SpanExporter):
    """Is given nothing here."""


@pytest.fixture(scope="module")
def exporter() -> Any:
    """What makes OpenTelemetry's spans."""
    exporter = JourneyExporter(Nowhere(), "leader-1")
    yield exporter
    exporter.close()


@given(package=packages, parent=st.none() | st.just(GOOD) | near)
def test_any_package_is_one_tree_that_can_be_sent(
    exporter: JourneyExporter, package: pb.DataPackage, parent: str | None
) -> None:
    """One root, children below parents that came before them, times in order, ids once; and the
    same again when it is told again."""
    headers = None if parent is None else {"traceparent": parent}
    spans = spans_of(headers, package, "leader-1")
    seen = {None if headers is None else context.parse(headers)}
    above = {each.span_id for each in seen if each is not None} | {None}
    assert spans[0].parent_id in above
    ids = {spans[0].context.span_id}
    for span in spans[1:]:
        assert span.parent_id in ids and span.context.span_id not in ids
        ids.add(span.context.span_id)
    assert all(0 <= span.start_ns <= span.end_ns < 2**63 for span in spans)
    assert len({span.context.trace_id for span in spans}) == 1
    assert spans == spans_of(headers, package, "leader-1")
    encoded = encode_spans([exporter._readable(each) for each in spans])
    assert sum(len(s.spans) for r in encoded.resource_spans for s in r.scope_spans) == len(spans)


def test_a_package_of_a_stranger_with_endless_records_is_cut() -> None:
    """And the root says how much was left out."""
    record = pb.ModuleRecord(name="m", sub_modules=[pb.ModuleRecord(name="n")] * 5_000)
    phase = pb.PhaseRecord(name="p", modules=[record] * 3)
    package = pb.DataPackage(pipeline="x", id=1)
    package.controllers.add(name="c", phases=[phase])
    spans = spans_of(None, package)
    assert len(spans) == SPANS_MAX
    assert spans[0].attributes["broker_pipeline.spans_left_out"] == 3 + 3 + 15_000 - SPANS_MAX
