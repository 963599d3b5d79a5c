"""A module server and a client that was generated from the .proto: what becomes of packages."""

from __future__ import annotations

import asyncio

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from broker_pipeline import ExecutionModule, ExternalModule, ModuleOptions, serve
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import ServeError, SetupError
from tests.integration.served_modules import (
    ERROR,
    EXIT,
    SUCCESS,
    Adds,
    AsyncUpper,
    Shout,
    Sum,
    Words,
    nested,
    request,
    served,
)

pytestmark = pytest.mark.timeout(60)


async def test_it_says_what_it_serves() -> None:
    """Describe, and the first message of a stream with the first grant and the load."""

    class Versioned(Words):
        version = "1.2"
        content_types = ("audio/pcm",)

    async with served(Versioned(name="asr"), slots=3) as (_, calls):
        described = (await calls.stub.Describe(service.DescribeRequest())).description
        assert (described.name, described.version, described.capacity) == ("asr", "1.2", 3)
        assert list(described.content_types) == ["audio/pcm"]
        assert not described.stateful and not described.references
        assert described.message_bytes_max == 64 << 20 and described.heartbeat_ns == 10**9
        stream = await calls.stream()
        first = stream.messages[0]
        assert first.description == described
        assert first.credit == 3 and first.HasField("load")


async def test_a_package_comes_back_with_what_the_module_did() -> None:
    """Payload, message, record and times; both ways of calling."""
    async with served(Words()) as (_, calls):
        alone = await calls.run(request(0, b"upper hello"))
        assert alone.HasField("load")
        stream = await calls.stream()
        await stream.send(request(7, b"upper hello"))
        (answer,) = await stream.answered(7)
        assert (alone.call, answer.call) == (0, 7)
        assert (alone.package, answer.package) == (1000, 1007)
        for each in (alone, answer):
            assert each.status == SUCCESS and each.payload.data == b"HELLO"
            (record,) = each.modules
            assert (record.name, record.status, record.message) == ("Words", SUCCESS, "upper")
            assert each.message == "upper" and not each.errors
            assert 0 < record.start_offset_ns < each.total_time_ns
            assert record.start_offset_ns + record.total_time_ns <= each.total_time_ns


async def test_a_payload_that_was_not_changed_does_not_travel_back() -> None:
    """Absent: unchanged. Attributes count as a part of it."""
    async with served(Words()) as (_, calls):
        same = await calls.run(request(0, b"nothing", attributes={"label": "old"}))
        assert same.status == SUCCESS and not same.HasField("payload")
        other = await calls.run(request(0, b"label new", attributes={"label": "old", "a": "b"}))
        assert other.payload.data == b"label new"
        assert dict(other.payload.attributes) == {"label": "new", "a": "b"}
        again = await calls.run(request(0, b"label old", attributes={"label": "old"}))
        assert not again.HasField("payload")


async def test_an_exit_comes_back_with_its_reason() -> None:
    """EXIT is no error."""
    async with served(Words()) as (_, calls):
        answer = await calls.run(request(0, b"exit silence"))
        assert (answer.status, answer.message) == (EXIT, "silence")
        assert answer.modules[0].status == EXIT and not answer.errors


async def test_an_error_comes_back_as_a_local_one_looks() -> None:
    """Type, message, traceback of user code, the server's name; and nothing of the payload."""
    async with served(Words()) as (_, calls):
        bad = request(0, b"raise no luck")
        bad.package.errors.add(type="Earlier", message="of another phase")
        answer = await calls.run(bad)
        described = (await calls.stub.Describe(service.DescribeRequest())).description
        assert answer.status == ERROR and not answer.HasField("payload")
        (error,) = answer.errors
        assert (error.type, error.message, error.path) == ("ValueError", "no luck", "Words")
        assert error.worker == described.server and error.host
        assert "in execute" in error.traceback and "no luck" in error.traceback
        assert answer.modules[0].error == 1, "counted in the answer's own errors"


async def test_modules_inside_come_back_inside() -> None:
    """A tree keeps its shape, with offsets from the arrival; an error points to its cause."""
    async with served(nested()) as (_, calls):
        answer = await calls.run(request(0, b"raise deep"))
        (tree,) = answer.modules
        (which,) = tree.sub_modules
        (words,) = which.sub_modules
        assert [each.name for each in (tree, which, words)] == ["tree", "which", "Words"]
        assert [each.error for each in (tree, which, words)] == [0, 0, 1]
        assert answer.errors[0].path == "tree/which/Words"
        assert 0 < tree.start_offset_ns <= which.start_offset_ns <= words.start_offset_ns


async def test_async_modules_and_structured_payloads_are_served() -> None:
    """On the module loop; and a msgspec type that the module names."""
    async with served(AsyncUpper()) as (_, calls):
        assert (await calls.run(request(0, b"a"))).payload.data == b"A"
    async with served(Shout()) as (_, calls):
        raw = msgspec.msgpack.encode({"text": "a"})
        kind = "application/msgpack; type=Utterance"
        answer = await calls.run(request(0, raw, content_type=kind))
        assert msgspec.msgpack.decode(answer.payload.data) == {"text": "A"}
        assert answer.payload.content_type == kind


async def test_a_payload_that_cannot_be_read_is_an_error_of_its_package() -> None:
    """PayloadError in the module's record; the next package is fine."""
    async with served(Shout()) as (_, calls):
        kind = "application/msgpack; type=Utterance"
        answer = await calls.run(request(0, b"\xc1 garbage", content_type=kind))
        assert answer.status == ERROR and answer.errors[0].type == "PayloadError"
        raw = msgspec.msgpack.encode({"text": "a"})
        assert (await calls.run(request(0, raw, content_type=kind))).status == SUCCESS


async def test_a_state_comes_and_goes_with_each_package() -> None:
    """Absent at the beginning; given back after SUCCESS and EXIT, and not after an ERROR."""
    async with served(Adds()) as (_, calls):
        described = (await calls.stub.Describe(service.DescribeRequest())).description
        assert described.stateful
        one = await calls.run(request(0, b"1"))
        two = await calls.run(request(0, b"20", state=one.state))
        assert two.payload.data == b"21"
        failed = await calls.run(request(0, b"raise 5", state=two.state))
        assert failed.status == ERROR and not failed.HasField("state")
        left = await calls.run(request(0, b"last 300", state=two.state))
        assert left.status == EXIT
        after = await calls.run(request(0, b"0", state=left.state))
        assert after.payload.data == b"321"
        assert (await calls.run(request(0, b"00"))).payload.data == b"0", "another instance"


async def test_all_states_of_a_tree_travel_together() -> None:
    """One blob for all stateful modules inside; also where none of them ran."""
    async with served(nested()) as (_, calls):
        state = None
        for _ in range(2):
            answer = await calls.run(request(0, b"1", state=state))
            state = answer.state
        assert answer.payload.data == b"3", "1, 1+1 in the first; 1, 1+2 in the second"
        other = await calls.run(request(0, b"nothing", state=state))
        assert other.state == state


@pytest.mark.parametrize(
    "state",
    [
        b"garbage",
        b"",
        msgspec.msgpack.encode({"0": b"\xc1"}),
        msgspec.msgpack.encode({"7.7": msgspec.msgpack.encode(Sum())}),
    ],
)
async def test_a_state_that_is_none_is_an_error_of_its_package(state: bytes) -> None:
    """StateError says what was expected; nothing runs."""
    async with served(Adds()) as (_, calls):
        answer = await calls.run(request(0, b"1", state=state))
        assert answer.status == ERROR and answer.errors[0].type == "StateError"
        assert "BP505" in answer.errors[0].message and not answer.modules


async def test_a_payload_that_is_elsewhere_is_refused_clearly() -> None:
    """A server that fetches no references says so instead of running on nothing."""
    async with served(Words()) as (_, calls):
        reference = pb.PayloadReference(bucket="b", object="o", size=10)
        answer = await calls.run(request(0, reference=reference))
        assert answer.status == ERROR and answer.errors[0].type == "PayloadGoneError"


async def test_ten_thousand_packages_on_concurrent_streams_come_back_once_each() -> None:
    """Each caller gets the answers to its own requests, all of them, with its own payloads."""

    async def use(calls: object, start: int, count: int) -> None:
        stream = await calls.stream()  # type: ignore[attr-defined]
        sent = 0
        while sent < count:
            room = stream.credit - (sent - len(stream.answers))
            batch = range(sent, min(count, sent + max(0, room)))
            if batch:
                await stream.send(*(request(n, b"upper n%d" % (start + n)) for n in batch))
                sent = batch.stop
            await asyncio.sleep(0)
        answers = await stream.answered(*range(count))
        assert {answer.status for answer in answers} == {SUCCESS}
        assert [answer.payload.data for answer in answers] == [
            b"N%d" % (start + n) for n in range(count)
        ]
        assert len(stream.messages) < count / 2, "answers that finish together go out together"

    async with served(Words()) as (_, calls):
        await asyncio.gather(*(use(calls, start, 2500) for start in range(0, 10_000, 2500)))


async def test_health_and_reflection_are_there() -> None:
    """The standard services, for proxies and tools."""
    async with served(Words()) as (_, calls):
        health = health_pb2_grpc.HealthStub(calls.channel)
        for name in ("", "broker_pipeline.v1.ModuleService"):
            asked = health_pb2.HealthCheckRequest(service=name)
            assert (await health.Check(asked)).status == health_pb2.HealthCheckResponse.SERVING
        tool = reflection_pb2_grpc.ServerReflectionStub(calls.channel)
        asking = tool.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        async for answer in asking:
            names = {each.name for each in answer.list_services_response.service}
            assert "broker_pipeline.v1.ModuleService" in names
            break
        asking.cancel()


async def test_what_cannot_be_served_is_refused_at_the_start() -> None:
    """ServeError BP513 and SetupError, before anything listens."""

    class Broken(ExecutionModule[bytes]):
        def setup(self) -> None:
            raise OSError("no model")

    isolated = Words(options=ModuleOptions(isolation="process"))
    outside = ExternalModule("asr", target="registry:///asr")
    nonsense = Words(options=ModuleOptions(timeout_s=-1))
    text = Words()
    text.content_types = "audio/pcm"  # type: ignore[attr-defined]
    for module in (isolated, outside, nonsense, text):
        with pytest.raises(ServeError, match="BP513"):
            async with serve(module):
                pytest.fail("it is served")
    for wrong in ({"slots": 0}, {"heartbeat_s": 0}, {"message_bytes_max": 1}, {"advertise": ":x"}):
        with pytest.raises(ServeError, match=next(iter(wrong))):
            async with serve(Words(), **wrong):  # type: ignore[arg-type]
                pytest.fail("it is served")
    with pytest.raises(SetupError, match="no model"):
        async with serve(Broken()):
            pytest.fail("it is served")
    async with serve(Words()) as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(ServeError, match=r"(?i)in use"):
            async with serve(Words(), port=port):
                pytest.fail("it is served")


async def test_an_isolated_module_is_served_with_a_target() -> None:
    """Its processes import the module, not a pipeline."""
    target = "tests.integration.served_modules:Words"
    module = Words(options=ModuleOptions(isolation="process"))
    async with served(module, target=target, slots=1) as (_, calls):
        assert (await calls.run(request(0, b"upper a"))).payload.data == b"A"
        failed = await calls.run(request(0, b"raise there"))
        assert failed.errors[0].message == "there"


async def test_a_method_that_is_not_there_is_unimplemented() -> None:
    """As with any gRPC server."""
    async with served(Words()) as (_, calls):
        other = calls.channel.unary_unary("/broker_pipeline.v1.ModuleService/Other")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await other(b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
