"""What a module server bounds: credit, time, sizes; and callers that break the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc
import pytest

from broker_pipeline import DataPackage, ExecutionModule, Run
from broker_pipeline._proto.v1 import module_service_pb2 as service
from tests.integration.processes import until
from tests.integration.served_modules import (
    ERROR,
    SUCCESS,
    WAITING,
    AsyncUpper,
    Calls,
    Gate,
    Words,
    request,
    served,
)

pytestmark = pytest.mark.timeout(60)

STREAM = "/broker_pipeline.v1.ModuleService/Stream"
RUN = "/broker_pipeline.v1.ModuleService/Run"


async def test_a_slow_module_gets_about_one_package_a_slot() -> None:
    """The first grant is one a slot; what comes beyond it is not begun, and said to be so."""
    gate = Gate()
    async with served(gate, slots=2) as (_, calls):
        stream = await calls.stream()
        assert stream.credit == 2
        await stream.send(*(request(n, b"%d" % n) for n in range(5)))
        refused = await stream.answered(2, 3, 4)
        assert {answer.status for answer in refused} == {WAITING}
        assert [answer.package for answer in refused] == [1002, 1003, 1004]
        gate.open.set()
        assert {answer.status for answer in await stream.answered(0, 1)} == {SUCCESS}
        assert sorted(gate.begun) == [b"0", b"1"]


async def test_credit_follows_the_speed_of_the_module() -> None:
    """Hundreds for a fast one, and few again when it becomes slow."""

    class Changing(ExecutionModule[bytes]):
        def execute(self, package: DataPackage[bytes], run: Run) -> None:
            if package.data:
                gate.execute(package, run)

    gate = Gate()
    async with served(Changing(), slots=2, heartbeat_s=0.1) as (_, calls):
        stream = await calls.stream()
        for n in range(2000):
            await stream.send(request(n))
            await stream.answered(n)
            if stream.credit > 100:
                break
        assert stream.credit > 100, f"a fast module: {stream.credits}"
        await stream.send(request(2000, b"slow"), request(2001, b"slow"))
        await until(lambda: stream.credit <= 4, f"credit for a slow module: {stream.credits}")
        gate.open.set()
        await stream.answered(2000, 2001)


@pytest.mark.parametrize("count", [3, 8])
async def test_open_streams_share_the_window_and_none_is_left_without(count: int) -> None:
    """At least 1 each; when streams end the others get their share."""
    async with served(Gate(), slots=4) as (_, calls):
        streams = [await calls.stream() for _ in range(count)]
        share = max(1, 4 // count)
        await until(
            lambda: [stream.credit for stream in streams] == [share] * count,
            f"equal shares: {[stream.credits for stream in streams]}",
        )
        for stream in streams[1:]:
            await stream.close()
        await until(lambda: streams[0].credit == 4, f"all of it: {streams[0].credits}")
        assert min(streams[0].credits) >= 1


async def test_what_was_sent_under_a_larger_grant_is_still_taken() -> None:
    """A caller cannot know of a smaller grant before it gets it."""
    gate = Gate()
    async with served(gate, slots=4, heartbeat_s=30) as (_, calls):
        first = await calls.stream()
        assert first.credit == 4
        second = await calls.stream()
        await first.send(*(request(n) for n in range(4)))
        gate.open.set()
        answers = await first.answered(*range(4))
        assert {answer.status for answer in answers} == {SUCCESS}
        assert second.credits[0] == 2, "the first had to give way"


@pytest.mark.parametrize("busy", [False, True])
async def test_a_stream_hears_from_the_server_while_nothing_happens(busy: bool) -> None:
    """A message at least each heartbeat, idle or while modules block; with the load."""
    gate = Gate()
    async with served(gate, slots=1, heartbeat_s=0.2) as (_, calls):
        stream = await calls.stream()
        if busy:
            await stream.send(request(1, b"a"), request(2, b"b"))
            await until(lambda: gate.begun, "it runs")
        count = len(stream.messages)
        begun = time.monotonic()
        await until(lambda: len(stream.messages) >= count + 5, "five messages")
        assert time.monotonic() - begun < 5 * 0.2 * 3, "three times what was promised"
        load = stream.messages[-1].load
        assert (load.running, load.waiting) == ((1, 0) if busy else (0, 0))
        gate.open.set()


async def test_a_package_whose_time_is_over_is_not_begun() -> None:
    """ModuleTimeoutError: at once, or while it waits behind another. What runs is left alone."""
    gate = Gate()
    async with served(gate, slots=1) as (server, calls):
        stream = await calls.stream()
        longest = request(9, b"longest")
        longest.timeout_ns = 2**64 - 1
        late = await calls.run(request(0, b"late", timeout_s=1e-9))
        assert late.status == ERROR and late.errors[0].type == "ModuleTimeoutError"
        await stream.send(request(1, b"runs", timeout_s=1.0))
        await until(lambda: gate.begun == [b"runs"], "it runs")
        queued = asyncio.create_task(calls.run(request(0, b"queued", timeout_s=0.1)))
        assert (await queued).errors[0].type == "ModuleTimeoutError"
        (answer,) = await stream.answered(1)
        assert answer.status == ERROR and "BP501" in answer.errors[0].message
        assert answer.errors[0].worker
        gate.open.set()
        await until(lambda: server._host.window, "it is back")
        assert (await calls.run(longest)).status == SUCCESS
        assert gate.begun == [b"runs", b"longest"]


async def test_the_timeout_of_the_module_itself_holds() -> None:
    """As in a worker: ERROR, with where the module was."""
    async with served(Gate(timeout_s=0.1), slots=1) as (_, calls):
        answer = await calls.run(request(0, b"a"))
        assert answer.status == ERROR and answer.errors[0].type == "ModuleTimeoutError"
        assert "execute" in answer.errors[0].traceback and answer.modules[0].error == 1


async def test_a_cancelled_call_is_not_begun_or_its_result_is_dropped() -> None:
    """And its place is free for others at once."""
    gate = Gate()
    async with served(gate, slots=2) as (_, calls):
        other = await calls.stream()
        stream = await calls.stream()
        await stream.send(request(1, b"1"))
        await until(lambda: gate.begun == [b"1"], "it runs")
        await stream.send(cancelled=(1, 99))
        await other.send(request(1, b"2"))
        await until(lambda: len(gate.begun) == 2, "both slots are busy")
        await stream.send(request(2, b"never"))
        await stream.send(request(3, b"3"), service.RunRequest(call=4), cancelled=(2,))
        await stream.answered(4)
        gate.open.set()
        await stream.answered(3)
        await other.answered(1)
        assert set(stream.answers) == {3, 4}
        assert sorted(gate.begun) == [b"1", b"2", b"3"]


async def test_a_server_whose_slots_hang_takes_nothing_more() -> None:
    """What nobody waits for leaves with its payload, or counts against the window while it runs; so
    nothing piles up. When the module is back so is the window."""
    gate = Gate()
    async with served(gate, slots=2) as (server, calls):
        host = server._host
        stream = await calls.stream()
        await stream.send(request(1, b"1"), request(2, b"2"))
        await until(lambda: len(gate.begun) == 2, "both slots are busy")
        for _ in range(3):
            queued = [calls.stub.Run(request(0, b"queued", timeout_s=0.05)) for _ in range(4)]
            answers = [await each for each in queued]
            assert any("BP501" in each.errors[0].message for each in answers if each.errors)
            assert (host.load().running, host.load().waiting) == (2, 0)
        await stream.send(cancelled=(1, 2))
        await until(lambda: stream.credit == 0, "nothing is granted")
        assert (await calls.stream()).credit == 0, "to nobody"
        assert (await calls.run(request(0, b"alone"))).status == WAITING
        gate.open.set()
        await until(lambda: stream.credit >= 1, "it is back")
        await stream.send(request(3, b"3"))
        assert (await stream.answered(3))[0].status == SUCCESS
        assert sorted(gate.begun) == [b"1", b"2", b"3"]


async def test_a_caller_that_is_gone_leaves_nothing_running() -> None:
    """Its packages that have not begun are dropped; so are calls of `Run` that were given up."""
    gate = Gate()
    async with served(gate, slots=1) as (server, calls):
        stream = await calls.stream()
        await stream.send(request(1, b"runs"))
        await until(lambda: gate.begun, "it runs")
        alone = calls.stub.Run(request(0, b"given up"))
        assert await code_of(calls, timeout=0.2) in ("ERROR", "DEADLINE_EXCEEDED"), "who is faster"
        alone.cancel()
        await stream.close()
        await until(lambda: server._server.servicer.empty, "the server has noticed")
        gate.open.set()
        await until(lambda: server._host.window, "it is back")
        assert (await calls.run(request(0, b"last"))).status == SUCCESS
        assert gate.begun == [b"runs", b"last"]


async def code_of(calls: Calls, *, timeout: float) -> str:
    """How a call of `Run` ends."""
    try:
        answer = await calls.run(request(0, b"too long"), timeout=timeout)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "ERROR" if answer.status == ERROR else "something else"


async def test_run_is_bounded_too() -> None:
    """The window and one more a slot; beyond that WAITING, at once."""
    gate = Gate()
    async with served(gate, slots=2) as (_, calls):
        running = [asyncio.create_task(calls.run(request(0, b"%d" % n))) for n in range(10)]
        await until(lambda: sum(task.done() for task in running) >= 6, "those beyond it")
        refused = [task.result() for task in running if task.done()]
        assert len(refused) == 6 and {each.status for each in refused} == {WAITING}
        gate.open.set()
        taken = [(await task).status for task in running]
        assert taken.count(SUCCESS) == 4


async def test_a_request_without_a_package_is_an_error_of_its_call() -> None:
    """MalformedPackageError; the stream goes on."""
    async with served(Words()) as (_, calls):
        assert (await calls.run(service.RunRequest())).errors[0].type == "MalformedPackageError"
        stream = await calls.stream()
        await stream.send(service.RunRequest(call=1), request(2, b"upper a"))
        empty, good = await stream.answered(1, 2)
        assert empty.status == ERROR and empty.errors[0].type == "MalformedPackageError"
        assert good.payload.data == b"A"


async def test_a_number_that_is_outstanding_already_ends_the_stream() -> None:
    """INVALID_ARGUMENT: an answer could mean either. Other streams go on."""
    gate = Gate()
    async with served(gate, slots=4) as (_, calls):
        stream, other = await calls.stream(), await calls.stream()
        await stream.send(request(1), request(1))
        assert await stream.ended() is grpc.StatusCode.INVALID_ARGUMENT
        assert "call 1 is outstanding" in await stream.call.details()
        gate.open.set()
        await other.send(request(1))
        await other.answered(1)


async def test_a_message_of_too_many_requests_ends_its_stream() -> None:
    """No server grants so many: its answers would fill the memory."""
    async with served(Words()) as (_, calls):
        flood = service.StreamRequest(requests=[service.RunRequest(call=1)] * 65_537)
        assert (
            await raw_stream(calls, flood.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
        )


async def raw_stream(calls: Calls, message: bytes) -> grpc.StatusCode:
    """Send bytes to a stream; the status with which it ends."""
    call: Any = calls.channel.stream_stream(STREAM)()
    await call.write(message)
    async with asyncio.timeout(20):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        code: grpc.StatusCode = await call.code()
    return code


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\xff\xff\xff\xff\x7f", b"\x0a\x02\x12"])
async def test_bytes_that_are_no_message_end_their_call_only(garbage: bytes) -> None:
    """INVALID_ARGUMENT, on a stream and in `Run`; the server lives."""
    async with served(Words()) as (_, calls):
        assert await raw_stream(calls, garbage) is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await calls.channel.unary_unary(RUN)(garbage)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await calls.run(request(0, b"upper a"))).payload.data == b"A"


async def test_messages_above_the_limit_are_refused_in_both_directions() -> None:
    """Requests by gRPC; an answer is an ERROR that says its size. The limit is told."""
    async with served(Words(), message_bytes_max=1 << 20) as (_, calls):
        described = (await calls.stub.Describe(service.DescribeRequest())).description
        assert described.message_bytes_max == 1 << 20
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await calls.run(request(0, b"x" * (1 << 20)))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        stream = await calls.stream()
        await stream.send(request(1, b"grow 2000000"))
        (large,) = await stream.answered(1)
        for answer in (large, await calls.run(request(0, b"grow 2000000"))):
            assert answer.status == ERROR and answer.errors[0].type == "PayloadTooLargeError"
            assert "1047552" in answer.errors[0].message
        await stream.send(request(2, b"grow 900000"))
        assert len((await stream.answered(2))[0].payload.data) == 900_000


async def test_large_answers_do_not_share_a_message() -> None:
    """Callers take 4 MiB by default: what is larger together goes out apart."""
    async with served(Words(), slots=4) as (_, calls):
        stream = await calls.stream()
        await stream.send(*(request(n, b"grow 900000") for n in range(4)))
        await stream.answered(*range(4))
        assert max(message.ByteSize() for message in stream.messages) < 2 << 20


async def test_a_caller_that_has_closed_its_side_gets_its_answers() -> None:
    """And then the end, with OK."""
    gate = Gate()
    async with served(gate, slots=2) as (_, calls):
        stream = await calls.stream()
        await stream.send(request(1), request(2))
        await stream.call.done_writing()
        gate.open.set()
        assert await stream.ended() is grpc.StatusCode.OK
        assert set(stream.answers) == {1, 2}


async def test_a_caller_that_reads_nothing_stops_being_read() -> None:
    """A flood of which no answer is taken does not grow without bound."""
    async with served(Words(), slots=1) as (server, calls):
        call: Any = calls.channel.stream_stream(STREAM)()
        bad = [service.RunRequest(call=n) for n in range(1000)]  # each answer has 200 bytes
        raw = service.StreamRequest(requests=bad).SerializeToString()

        async def flood() -> None:
            for _ in range(1000):
                await call.write(raw)

        flooding = asyncio.create_task(flood())
        (stream,) = await streams_of(server)
        await until(lambda: len(stream._answers) >= 8192 or flooding.done(), "it is full")
        for _ in range(20):
            assert (await calls.run(request(0, b"upper a"))).payload.data == b"A"
        assert not flooding.done() and len(stream._answers) < 8192 + 1000 + 1
        flooding.cancel()
        call.cancel()
        await asyncio.wait((flooding,))


async def streams_of(server: Any) -> set[Any]:
    """The open streams of a server in this process."""
    servicer = server._server.servicer
    await until(lambda: servicer._streams, "a stream")
    found: set[Any] = servicer._streams
    return found


async def test_an_async_module_shares_its_loop_with_nobody() -> None:
    """A hundred packages that wait are run together, as many as there are slots."""
    async with served(AsyncUpper(), slots=16) as (_, calls):
        stream = await calls.stream()
        await stream.send(*(request(n, b"a") for n in range(16)))
        answers = await stream.answered(*range(16))
        assert {answer.payload.data for answer in answers} == {b"A"}
