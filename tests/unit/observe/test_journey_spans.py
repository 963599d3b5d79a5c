"""What a journey is as a trace."""

from __future__ import annotations

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.journey import MODE_TO_PB, STATUS_TO_PB, Mode, Status
from broker_pipeline.observe import context
from broker_pipeline.observe.journey_spans import Kind, SpanData, spans_of

SUCCESS, ERROR = STATUS_TO_PB[Status.SUCCESS], STATUS_TO_PB[Status.ERROR]
PARENT = {"traceparent": f"00-{'4b' * 16}-{'0f' * 8}-01", "tracestate": "a=b"}


def journey(outcome: int = SUCCESS) -> pb.DataPackage:
    """Of a package that waited 100 ns, was worked on for 300 and waited 100 for its place."""
    package = pb.DataPackage(
        id=7, pipeline="talks", instance="room", sequence=3, outcome=outcome,
        start_time_ns=1000, end_time_ns=1500,
    )  # fmt: skip
    package.controllers.add(
        name="asr", mode=MODE_TO_PB[Mode.ORDER_BY_SEQUENCE], sequence=3, status=outcome,
        start_time_ns=1000, input_waiting_time_ns=100, output_waiting_time_ns=100,
        total_time_ns=500,
        phases=[
            pb.PhaseRecord(
                name="cut", worker="w-1", status=outcome, start_time_ns=1100, total_time_ns=300,
                modules=[pb.ModuleRecord(name="a", start_offset_ns=10, total_time_ns=290,
                         status=outcome, message="cut 3", sub_modules=[
                             pb.ModuleRecord(name="b", start_offset_ns=20, total_time_ns=30)])],
            )
        ],
    )  # fmt: skip
    return package


def by_name(spans: list[SpanData]) -> dict[str, SpanData]:
    """Spans whose names are different."""
    found = {span.name: span for span in spans}
    assert len(found) == len(spans)
    return found


def test_what_happened_stands_where_it_happened() -> None:
    """Arrival, waiting, work and waiting for the place in the order, with their times."""
    spans = by_name(spans_of(PARENT, journey(), "c-1"))
    times = {name: (span.start_ns, span.end_ns) for name, span in spans.items()}
    assert times == {
        "process talks": (1000, 1500), "controller asr": (1000, 1500), "wait in": (1000, 1100),
        "phase asr.cut": (1100, 1400), "module a": (1110, 1400), "module b": (1120, 1150),
        "wait out": (1400, 1500),
    }  # fmt: skip
    root = spans["process talks"]
    assert root.parent_id == "0f" * 8 and root.context.trace_id == "4b" * 16
    assert root.context.state == "a=b" and root.attributes["broker_pipeline.outcome"] == "SUCCESS"
    assert spans["controller asr"].attributes["broker_pipeline.mode"] == "ORDER_BY_SEQUENCE"
    assert (spans["phase asr.cut"].role, spans["phase asr.cut"].process) == ("worker", "w-1")
    assert spans["module a"].attributes["broker_pipeline.message"] == "cut 3"
    assert all(span.failed is None for span in spans.values())


def test_a_worker_knows_the_ids_before_anybody_tells_of_them() -> None:
    """From the header and the package as it gets it, without a word from the leader."""
    inside = journey()
    del inside.controllers[0].phases[:]
    phase = context.span_in_phase(PARENT, inside, "cut")
    assert phase is not None
    spans = by_name(spans_of(PARENT, journey()))
    assert spans["phase asr.cut"].context == phase
    module = context.module_span(phase, 0, "a")
    assert spans["module a"].context == module
    assert spans["module b"].context == context.module_span(module, 0, "b")


def test_a_package_without_a_trace_has_one_that_follows_from_it() -> None:
    """The same from whoever tells of it; another for another package, also of another pipeline."""
    first, again = spans_of(None, journey()), spans_of(None, journey())
    assert first == again and first[0].parent_id is None
    other = journey()
    other.id = 8
    assert spans_of(None, other)[0].context.trace_id != first[0].context.trace_id
    other = journey()
    other.pipeline = "others"
    assert spans_of(None, other)[0].context.trace_id != first[0].context.trace_id


def test_an_error_stands_in_the_innermost_module_and_fails_all_around_it() -> None:
    """With its exception once."""
    package = journey(ERROR)
    package.errors.add(type="ValueError", message="no", traceback="...", path="asr/cut/a/b")
    package.controllers[0].phases[0].modules[0].sub_modules[0].error = 1
    package.controllers[0].phases[0].modules[0].sub_modules[0].status = ERROR
    spans = by_name(spans_of(PARENT, package))
    failed = {name: span.failed for name, span in spans.items() if span.failed is not None}
    assert failed == {
        "process talks": "no", "controller asr": "", "phase asr.cut": "", "module a": "",
        "module b": "no",
    }  # fmt: skip
    assert [name for name, span in spans.items() if span.exceptions] == ["module b"]


def test_an_error_that_is_no_modules_stands_where_it_belongs() -> None:
    """In the phase by its path, or else in the package."""
    package = journey(ERROR)
    package.errors.add(type="PayloadGoneError", message="gone", path="asr/cut")
    package.errors.add(type="MalformedPackageError", message="bad")
    spans = by_name(spans_of(PARENT, package))
    assert [error.message for error in spans["phase asr.cut"].exceptions] == ["gone"]
    assert [error.message for error in spans["process talks"].exceptions] == ["bad"]


def test_what_a_server_did_is_its_work_and_the_rest_the_bridges() -> None:
    """The external module is the bridge's call, and the server's records hang below its answer."""
    package = journey()
    phase = package.controllers[0].phases[0]
    phase.modules[0].server, phase.modules[0].waiting_time_ns = "gpu-1", 5
    spans = by_name(spans_of(PARENT, package))
    call, serve = spans["module a"], spans["serve a"]
    assert (spans["phase asr.cut"].role, call.role, call.kind) == ("bridge", "bridge", Kind.CLIENT)
    assert (serve.role, serve.process, serve.kind) == ("server", "gpu-1", Kind.SERVER)
    assert serve.parent_id == call.context.span_id
    assert (
        spans["module b"].parent_id
        == serve.context.span_id
        == context.server_span(call.context).span_id
    )
    assert (spans["module b"].role, spans["module b"].process) == ("server", "gpu-1")
    assert (serve.start_ns, serve.end_ns) == (1120, 1150)


def test_of_a_trace_that_is_not_recorded_an_error_is_told_under_the_same_trace() -> None:
    """A producer's own sampler said no; the spans are different ones all the same."""
    headers = {"traceparent": PARENT["traceparent"][:-1] + "0"}
    spans = spans_of(headers, journey(ERROR))
    assert len({span.context.span_id for span in spans}) == len(spans)
    assert spans[0].context.trace_id == "4b" * 16
    assert context.span_in_phase(headers, journey(), "cut") == context.parse(headers)
