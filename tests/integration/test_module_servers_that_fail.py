"""Module servers that end, hang, lie or die: it costs time, or an error that says so, and never an
answer that is not one."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import (
    ModuleMismatchError,
    ModuleServerError,
    ModuleTimeoutError,
)
from broker_pipeline.external import endpoints, links
from broker_pipeline.external.statuses import VERDICTS, Verdict
from tests.contract.waiting import until
from tests.integration.calling import Calls, call, calls, several
from tests.integration.scripted_server import Side, answer, echo, silent

__all__ = ["calls"]

FAILURES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]

OF_RUN = {
    Verdict.SERVER_FAILED: ModuleServerError,
    Verdict.PACKAGE_FAILED: ModuleServerError,
    Verdict.REFUSED: ModuleMismatchError,
    Verdict.TIMED_OUT: ModuleServerError,  # the server's own deadline, not the package's
}

ONLY_ONCE = (Verdict.PACKAGE_FAILED,)


def test_every_status_has_a_row() -> None:
    """But for OK."""
    assert list(VERDICTS) and set(VERDICTS) == set(FAILURES)


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
async def test_run_ends_with_a_status(
    calls: Calls, code: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may be repeated is, unless the package is at fault; what may not is ERROR with the
    status in it; who refuses us gets no package as long as that lasts."""
    monkeypatch.setattr(endpoints, "REFUSED_RETRY_NS", 200_000_000)
    server = await calls.server()
    fails = True

    async def run(request: service.RunRequest, context: Any) -> bytes:
        if fails:
            await context.abort(code, "as told")
        return answer(request).SerializeToString()  # type: ignore[no-any-return]

    server.run = run
    found = VERDICTS[code]
    strict = await calls.relay(server.address, method="run")
    with pytest.raises(OF_RUN[found], match=f"{code.name}: as told"):
        await call(strict, 1, timeout_s=0.6)
    assert found is Verdict.REFUSED or server.got == [1]
    loose = await calls.relay(server.address, method="run", idempotent=True)
    if found in ONLY_ONCE:
        server.got.clear()
        with pytest.raises(ModuleServerError):
            await call(loose, 2)
        assert server.got == [2]
    else:
        two = several(loose, range(2, 3))
        await until(lambda: server.got[-1] == 2)
        fails = False
        assert (await two[0]).response.package == 2


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: code.name)
async def test_a_stream_ends_with_a_status(
    calls: Calls, code: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of two packages: they may have begun."""
    monkeypatch.setattr(endpoints, "REFUSED_RETRY_NS", 200_000_000)

    async def abort(side: Side, request: service.RunRequest) -> None:
        if request.package.id % 2:
            await side.end(code)

    server = await calls.server(abort)
    strict = await calls.relay(server.address)
    found = await asyncio.gather(*several(strict, range(2)), return_exceptions=True)
    for each in found:
        assert isinstance(each, ModuleServerError) and f"{code.name}: as told" in str(each)
    loose = await calls.relay(server.address, idempotent=True)
    two = several(loose, range(2))
    await until(lambda: len(server.got) >= 4)
    server.script = echo
    assert len(await asyncio.gather(*two)) == 2


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
@pytest.mark.parametrize("method", ["stream", "run"])
async def test_a_token_that_is_refused_ends_no_package_without_a_timeout(
    calls: Calls, method: str, code: str, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It is said loudly, and when somebody has mended it, what waited is run."""
    monkeypatch.setattr(endpoints, "REFUSED_RETRY_NS", 200_000_000)
    server = await calls.server()
    server.run = lambda request, context: answer(request).SerializeToString()
    server.refuse = grpc.StatusCode[code]
    relay = await calls.relay(server.address, method=method, token="wrong")
    patient = several(relay, range(3), timeout_s=None)
    with pytest.raises(ModuleMismatchError, match=code):
        await call(relay, 9, timeout_s=0.7)
    assert caplog.text.count("cannot be used") == 1 and server.got == []
    server.refuse = None
    assert len(await asyncio.gather(*patient)) == 3


def _deep() -> pb.ModuleRecord:
    record = pb.ModuleRecord(name="m")
    record.sub_modules.add(name="n", error=1)
    return record


LIES: dict[str, dict[str, Any]] = {
    "another package": {"package": 99},
    "call 4711": {"call": 4711},
    "status 0": {"status": pb.STATUS_UNSPECIFIED},
    "status 1,": {"status": pb.STATUS_RUNNING},
    "status 7": {"status": pb.STATUS_OVERFLOW},
    "status 77": {"status": 77},
    "names no error": {"status": pb.STATUS_ERROR},
    "with a state": {"state": b""},
    "has error 1 of 0": {"modules": [_deep()]},
    "more than 1000 modules": {"modules": [pb.ModuleRecord(name="m")] * 1001},
    "101 errors": {"status": pb.STATUS_ERROR, "errors": [pb.Error(type="E")] * 101},
    "its message has": {"status": pb.STATUS_EXIT, "message": "x" * (1 << 20 | 1)},
    "an error of more": {
        "status": pb.STATUS_ERROR, "errors": [pb.Error(type="E", message="x" * (1 << 20 | 1))],
    },
}  # fmt: skip


@pytest.mark.parametrize("method", ["stream", "run"])
@pytest.mark.parametrize("why", LIES)
async def test_an_answer_that_cannot_be_is_none(
    calls: Calls, why: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is left alone for a while, with a word; the package is not run twice."""
    if why == "call 4711" and method == "run":
        return  # nothing depends on it there
    match = {"another package": "answers package 99 instead of 1"}.get(why, why)

    def lies(request: service.RunRequest) -> Any:
        return answer(request, **LIES[why])

    async def script(side: Side, request: service.RunRequest) -> None:
        await side.say(lies(request))

    server = await calls.server(script)
    server.run = lambda request, context: lies(request).SerializeToString()
    relay = await calls.relay(server.address, method=method)
    with pytest.raises(ModuleServerError, match=match):
        await call(relay, 1)
    assert server.got == [1] and caplog.text.count(match) == 1
    server.script = echo
    server.run = lambda request, context: answer(request).SerializeToString()
    await call(relay, 2)


async def test_a_state_that_is_missing_is_a_lie(calls: Calls) -> None:
    """Not with ERROR, which leaves none."""

    async def script(side: Side, request: service.RunRequest) -> None:
        failed = request.package.id == 1
        errors = [pb.Error(type="E")] if failed else []
        status = pb.STATUS_ERROR if failed else pb.STATUS_SUCCESS
        await side.say(answer(request, status, errors=errors))

    server = await calls.server(script, stateful=True)
    relay = await calls.relay(server.address, stateful=True)
    assert (await call(relay, 1)).response.status == pb.STATUS_ERROR
    with pytest.raises(ModuleServerError, match="without the state"):
        await call(relay, 2)


async def test_who_answers_twice_is_broken_off(calls: Calls) -> None:
    """The first answer counts."""

    async def twice(side: Side, request: service.RunRequest) -> None:
        await side.say(answer(request, message="one"), answer(request, message="two"))

    server = await calls.server(twice)
    relay = await calls.relay(server.address)
    assert (await call(relay, 1)).response.message == "one"
    await until(lambda: len(server.sides) == 2)


@pytest.mark.parametrize("size", [100, 100_000_000])
@pytest.mark.parametrize("method", ["stream", "run"])
async def test_garbage_is_no_answer(calls: Calls, method: str, size: int) -> None:
    """A little, or 100 MB of it: the package ends, and the next is run."""
    garbage = random.Random(1).randbytes(100) * (size // 100)

    async def script(side: Side, request: service.RunRequest) -> None:
        await side.send(garbage)

    server = await calls.server(script)
    server.run = lambda request, context: garbage
    relay = await calls.relay(server.address, method=method)
    with pytest.raises(ModuleServerError, match=r"is no|RESOURCE_EXHAUSTED"):
        await call(relay, 1)
    server.script = echo
    server.run = lambda request, context: answer(request).SerializeToString()
    await call(relay, 2)


async def test_a_first_message_that_is_garbage(calls: Calls) -> None:
    """Nothing is sent there."""

    server = await calls.server(before=lambda s: setattr(s, "says_first", False))
    relay = await calls.relay(server.address)
    await until(lambda: server.sides)
    await server.sides[0].send(b"\xff\xff\xff")
    await until(lambda: len(server.sides) == 2)
    assert server.got == [] and relay.room == 0


async def test_a_server_that_says_nothing_at_first_is_left(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded time, and tried again."""
    monkeypatch.setattr(links, "FIRST_S", 0.1)
    server = await calls.server(before=lambda s: setattr(s, "says_first", False))
    relay = await calls.relay(server.address)
    await until(lambda: len(server.sides) == 3)
    server.says_first = True
    await call(relay, 1)


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_server_that_promised_heartbeats_and_hangs(
    calls: Calls, idempotent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its packages are repeated where they may be; else they wait for it, and it may come back."""
    monkeypatch.setattr(links, "SILENCE_MIN_NS", 0)
    requests: list[service.RunRequest] = []

    async def keep(side: Side, request: service.RunRequest) -> None:
        requests.append(request)

    server = await calls.server(keep, heartbeat_ns=100_000_000)
    relay = await calls.relay(server.address, idempotent=idempotent)
    tasks = several(relay, range(1, 3))
    await until(lambda: len(requests) == 2)
    side = server.sides[0]
    for _ in range(5):  # a second's worth of what it promised, much sooner
        await side.say()
    assert relay._standings[0].ejections == 0
    await until(lambda: relay._standings[0].ejections > 0)
    if idempotent:
        server.script = echo
        await asyncio.gather(*tasks)
        assert len(server.sides) == 2
    else:
        assert not any(task.done() for task in tasks)
        for each in requests:
            await side.say(answer(each))
        await asyncio.gather(*tasks)
        assert len(server.sides) == 1 and len(requests) == 2


async def test_a_server_that_hangs_for_good_is_given_up(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it has that may not be repeated: ERROR, in a bounded time, without a timeout."""
    monkeypatch.setattr(links, "SILENCE_MIN_NS", 0)
    monkeypatch.setattr(links, "DEAD_NS", 500_000_000)
    server = await calls.server(silent, heartbeat_ns=50_000_000)
    relay = await calls.relay(server.address)
    with pytest.raises(ModuleServerError, match="has been silent"):
        await call(relay, 1, timeout_s=None)
    assert server.got == [1]


async def test_a_server_that_never_answers(calls: Calls) -> None:
    """Without a promise of heartbeats its packages' timeouts find it; without one they wait."""
    server = await calls.server(silent)
    relay = await calls.relay(server.address)
    patient = several(relay, range(1), timeout_s=None)
    for number in (1, 2):
        with pytest.raises(ModuleTimeoutError):
            await call(relay, number, timeout_s=0.2)
    assert not patient[0].done()
    patient[0].cancel()
    await asyncio.wait(patient)
