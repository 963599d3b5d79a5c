"""Traces of real roles, as a receiver of OTLP sees them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from broker_pipeline import connect
from broker_pipeline.broker import jetstream
from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.observe.exporting import otlp
from broker_pipeline.observe.setting_up import endpoint_of
from tests.integration import traced
from tests.integration.otlp_sink import OtlpSink, Received, one_tree, parent_of
from tests.integration.processes import Outputs, Role, send, until

TARGET = "tests.integration.traced:pipeline"
PLAIN = "tests.integration.traced:plain"


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """A receiver that keeps what comes."""
    with OtlpSink() as sink:
        yield sink


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A broker."""
    async with EmbeddedServer() as server:
        yield server.url


@pytest.fixture
async def roles() -> AsyncIterator[list[Role]]:
    """Those that a test starts; killed at its end."""
    started: list[Role] = []
    yield started
    for role in started:
        await role.end()


@pytest.fixture
def producer(sink: OtlpSink, monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """This program's own spans go to the same receiver."""
    provider = TracerProvider(resource=Resource({"service.name": "producer"}))
    provider.add_span_processor(SimpleSpanProcessor(otlp(endpoint_of(sink.url))))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield provider
    provider.shutdown()


async def start(roles: list[Role], ready: str, *arguments: str, **environment: str) -> Role:
    """Start a role and wait until it says that."""
    role = await Role.start(*arguments, **environment)
    roles.append(role)
    await role.said(ready)
    return role


async def start_all(roles: list[Role], url: str, sink: OtlpSink, *controller: str) -> None:
    """Every role of `traced.pipeline`."""
    to = ("--traces", sink.url)
    server = await start(
        roles, "is ready", "serve", "tests.integration.traced:served", "--port", "0", *to
    )
    address = server.lines[0].rpartition(" ")[2]
    at = {"MODULE_SERVER": address}
    await start(roles, "leads", "controller", TARGET, "--url", url, *to, *controller, **at)
    await start(roles, "is ready", "worker", TARGET, "--url", url, *to, **at)
    await start(roles, "is ready", "bridge", TARGET, "--url", url, **at)


def names_below(name: str, spans: list[Received]) -> set[str]:
    """The names of what hangs below the only span of that name."""
    (above,) = [each for each in spans if each.span.name == name]
    found = [each for each in spans if each.span.parent_span_id == above.span.span_id]
    return {each.span.name for each in found}


async def test_a_package_is_one_tree_from_its_producer_to_a_module_server(
    url: str, sink: OtlpSink, roles: list[Role], producer: TracerProvider
) -> None:
    """Each span is of the process that did the work, and what user code traces hangs below its
    module: in a thread, on the loop, in a process, in a batch, in a module server."""
    await start_all(roles, url, sink)
    async with connect(url) as client, client.instance(traced.pipeline, "room-1") as room:
        with trace.get_tracer("producer").start_as_current_span("a meeting"):
            package = await room.send(b"hello")
        left = await anext(room.results())
    assert left.data == b"hello thread process loop batch server"
    user = {f"user {each}" for each in ("thread", "process", "loop", "batch", "server")}
    await until(lambda: user <= {each.span.name for each in sink.received}, "spans of user code")
    await until(lambda: sink.named("process traced"), "the journey")
    (spans,) = sink.traces().values()
    assert one_tree(spans).span.name == "a meeting"
    assert names_below("a meeting", spans) == {"send traced"}
    assert names_below("send traced", spans) == {"process traced"}
    assert names_below("process traced", spans) == {"controller first", "controller second"}
    assert names_below("controller first", spans) == {
        "phase first.sync", "phase first.async", "wait in", "wait out",
    }  # fmt: skip
    assert names_below("phase first.sync", spans) == {"module InThread", "module Apart"}
    assert names_below("module both", spans) == {"module OnLoop", "module Together"}
    for module, code in (
        ("InThread", "thread"), ("Apart", "process"), ("OnLoop", "loop"), ("Together", "batch"),
        ("inside", "server"),
    ):  # fmt: skip
        assert names_below(f"module {module}", spans) == {f"user {code}"}
    (serve,) = sink.named("serve served")
    assert parent_of(serve, spans).service == "broker_pipeline.bridge"
    assert names_below("serve served", spans) == {"module served"}
    services = {each.span.name: each.service.removeprefix("broker_pipeline.") for each in spans}
    assert services["process traced"] == services["controller first"] == "controller"
    assert services["phase first.sync"] == services["module Together"] == "worker"
    assert services["phase second.out"] == "bridge"
    assert services["serve served"] == services["module inside"] == "server"
    assert services["user thread"] == "worker" and services["user server"] == "server"
    (root,) = sink.named("process traced")
    assert root.attributes["messaging.message.id"] == package
    assert root.attributes["broker_pipeline.instance"] == "room-1"
    assert root.attributes["broker_pipeline.outcome"] == "SUCCESS"
    assert sink.paths == {"/v1/traces"}


async def test_an_error_is_always_told_with_its_traceback(
    url: str, sink: OtlpSink, roles: list[Role]
) -> None:
    """At a ratio of 0, with a raw producer: of ten packages the one that failed."""
    await start(
        roles, "leads", "controller", PLAIN, "--url", url, "--traces", sink.url,
        "--trace-ratio", "0",
    )  # fmt: skip
    await start(roles, "is ready", "worker", PLAIN, "--url", url)
    async with connect(url) as client, client.instance(traced.plain, "room") as room:
        await room.send_many([b"fine"] * 9)
        await room.send(b"fail thread")
        results = room.results()
        outcomes = [(await anext(results)).outcome for _ in range(10)]
    assert outcomes.count("ERROR") == 1
    await until(lambda: sink.named("process plain"), "the trace of an error")
    roles[0].send(signal.SIGTERM)
    assert await roles[0].ended() == 0
    (spans,) = sink.traces().values()
    assert one_tree(spans).attributes["broker_pipeline.outcome"] == "ERROR"
    (module,) = [each for each in spans if each.span.name == "module InThread"]
    assert module.span.status.code == 2 and module.span.status.message == "thread was asked to"
    (event,) = module.span.events
    told = {each.key: each.value.string_value for each in event.attributes}
    assert told["exception.type"] == "ValueError" and "traced.py" in told["exception.stacktrace"]


async def test_a_ratio_chooses_packages_that_come_without_a_trace(
    url: str, sink: OtlpSink, roles: list[Role]
) -> None:
    """At 1 all of them, from a raw producer too, each a trace of its own."""
    await start(
        roles, "leads", "controller", PLAIN, "--url", url, "--traces", sink.url,
        "--trace-ratio", "1",
    )  # fmt: skip
    await start(roles, "is ready", "worker", PLAIN, "--url", url, "--traces", sink.url)
    broker = await jetstream.connect(url, reconnect=True, name="test")
    try:
        outputs = await Outputs.watch(broker, "plain")
        await send(broker, "plain", 2, 10)
        await outputs.until(20)
    finally:
        await broker.close()
    await until(lambda: len(sink.named("process plain")) == 20, "twenty journeys")
    await until(lambda: len(sink.named("user thread")) == 20, "twenty spans of user code")
    assert len(sink.traces()) == 20
    for spans in sink.traces().values():
        assert one_tree(spans).span.name == "process plain"


@pytest.mark.parametrize("trouble", ["away", "hangs", "refuses"])
async def test_a_receiver_in_trouble_costs_nothing_but_traces(
    url: str, roles: list[Role], trouble: str
) -> None:
    """Packages leave as fast as they come, and roles end in time."""
    with OtlpSink(hangs=trouble == "hangs", status=503 if trouble == "refuses" else 200) as sink:
        to = ("--traces", "http://127.0.0.1:9" if trouble == "away" else sink.url)
        await start(roles, "leads", "controller", PLAIN, "--url", url, *to, "--trace-ratio", "1")
        await start(roles, "is ready", "worker", PLAIN, "--url", url, *to)
        broker = await jetstream.connect(url, reconnect=True, name="test")
        try:
            outputs = await Outputs.watch(broker, "plain")
            begun = time.monotonic()
            await send(broker, "plain", 4, 750)
            await outputs.until(3000)
            took_s = time.monotonic() - begun
        finally:
            await broker.close()
        begun = time.monotonic()
        for role in roles:
            role.send(signal.SIGTERM)
        assert [await role.ended() for role in roles] == [0, 0]
        ended_s = time.monotonic() - begun
    # Far above what it takes (2 s on a slow machine), far below one timeout of the receiver each.
    assert took_s < 20 and ended_s < 8
    assert trouble == "away" or sink.asked


async def test_a_takeover_doubles_no_trace(url: str, sink: OtlpSink, roles: list[Role]) -> None:
    """Leaders die; whatever they told of a package has the same ids."""
    options = ("controller", PLAIN, "--url", url, "--traces", sink.url, "--trace-ratio", "1")
    first = await start(roles, "leads", *options)
    await start(roles, "stands by", *options)
    await start(roles, "is ready", "worker", PLAIN, "--url", url)
    broker = await jetstream.connect(url, reconnect=True, name="test")
    try:
        outputs = await Outputs.watch(broker, "plain")
        sending = asyncio.create_task(send(broker, "plain", 2, 500))
        await until(lambda: len(outputs.ids) > 100, "packages leave")
        first.send(signal.SIGKILL)
        await sending
        await outputs.until(1000)
    finally:
        await broker.close()
    await until(lambda: len(sink.named("process plain")) > 100, "journeys")
    roles[1].send(signal.SIGTERM)
    assert await roles[1].ended() == 0
    by_package: dict[object, set[bytes]] = {}
    for each in sink.named("process plain"):
        package = each.attributes["messaging.message.id"]
        by_package.setdefault(package, set()).add(each.span.span_id + each.span.trace_id)
    assert len(by_package) > 100 and all(len(ids) == 1 for ids in by_package.values())


async def test_a_header_that_is_none_stops_nobody(
    url: str, sink: OtlpSink, roles: list[Role]
) -> None:
    """Whatever a producer writes into traceparent and tracestate, its package goes on."""
    await start(
        roles, "leads", "controller", PLAIN, "--url", url, "--traces", sink.url,
        "--trace-ratio", "0",
    )  # fmt: skip
    await start(roles, "is ready", "worker", PLAIN, "--url", url)
    broker = await jetstream.connect(url, reconnect=True, name="test")
    good = f"00-{'ab' * 16}-{'cd' * 8}-01"
    try:
        outputs = await Outputs.watch(broker, "plain")
        for parent, state in [
            ("", ""), ("00", "x"), ("00-" + "0" * 32 + "-" + "1" * 16 + "-01", ""),
            (good.upper(), ""), (good, "a=" + "b" * 5000), (good, "ä=ö"), ("é" * 60, ""),
        ]:  # fmt: skip
            headers = {"traceparent": parent, "tracestate": state}
            await broker.publish("bp.plain.in.i0", b"fine", headers=headers)
        await outputs.until(7)
    finally:
        await broker.close()
    await until(lambda: len(sink.named("process plain")) >= 2, "the two with a good traceparent")
    assert {each.span.trace_id.hex() for each in sink.received} == {"ab" * 16}
