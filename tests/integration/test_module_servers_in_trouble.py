"""Module servers that trouble others: silent ones, closing ones, and such as fail at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import ModuleMismatchError, ModuleServerError, ModuleTimeoutError
from broker_pipeline.external import endpoints
from broker_pipeline.external.port import Answer
from tests.contract.waiting import until
from tests.integration.calling import Calls, call, calls, in_s, package, several
from tests.integration.scripted_server import Side, answer, silent

__all__ = ["calls"]


@pytest.mark.parametrize("method", ["stream", "run"])
async def test_a_server_that_never_answers_is_ejected(calls: Calls, method: str) -> None:
    """By its packages' deadlines: after a few that leave as ERROR the good one has them all."""

    async def never(request: service.RunRequest, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    hung, good = await calls.server(silent), await calls.server()
    hung.run = never
    good.run = lambda request, context: answer(request).SerializeToString()
    relay = await calls.registered(hung.address, good.address, method=method, timeout_s=0.3)
    standing = next(s for s, each in relay._of.items() if each.place.address == hung.address)
    lost = number = 0
    while standing.ejections < 4:  # all after the first are of a probe, which is one package
        some = several(relay, range(number, number + 5), timeout_s=0.2)
        found = await asyncio.gather(*some, return_exceptions=True)
        lost += sum(isinstance(each, ModuleTimeoutError) for each in found)
        number += 5
        assert lost < 30, "it still gets packages"


async def test_an_orderly_close_costs_no_package(calls: Calls) -> None:
    """As of a proxy that is reloaded: what is there is finished, and all else goes to the next
    connection. Not even one that may not be repeated is lost."""
    gates = [asyncio.Event() for _ in range(4)]

    async def run(request: service.RunRequest, context: Any) -> bytes:
        await gates[request.package.id].wait()
        return answer(request).SerializeToString()  # type: ignore[no-any-return]

    old = await calls.server(before=lambda s: setattr(s, "run", run))
    relay = await calls.relay(old.address, method="run")
    first = several(relay, range(2))
    await until(lambda: len(old.got) == 2)
    closing = asyncio.create_task(old.stop(20))
    await until(lambda: relay.servers == 0)
    new = await calls.server(
        before=lambda s: (setattr(s, "run", run), setattr(s, "port", old.port))
    )
    later = several(relay, range(2, 4))
    for task, gate in zip(first, gates, strict=False):
        gate.set()
        await task
    await closing
    await until(lambda: new.got)
    for gate in gates:
        gate.set()
    await asyncio.gather(*later)
    assert (old.got, new.got) == ([0, 1], [2, 3])


async def test_of_replicas_an_error_wins_last(calls: Calls) -> None:
    """A module that fails at once is not taken for the fastest: the other's answer counts, and the
    ERROR where that has none, by its connection's end too."""
    held: list[tuple[Side, service.RunRequest]] = []

    async def fail(side: Side, request: service.RunRequest) -> None:
        error = pb.Error(type="RuntimeError", message="no memory")
        await side.say(answer(request, pb.STATUS_ERROR, errors=[error]))

    async def hold(side: Side, request: service.RunRequest) -> None:
        held.append((side, request))

    bad, good = await calls.server(fail), await calls.server(hold)
    relay = await calls.registered(bad.address, good.address, replicas=2, idempotent=True)
    failing = next(s for s, each in relay._of.items() if each.place.address == bad.address)

    async def raced(number: int) -> asyncio.Task[Answer]:
        (task,) = several(relay, range(number, number + 1))
        await until(lambda: len(held) > number and len(bad.got) > number)
        await until(lambda: failing.outstanding == 0)
        assert not task.done()
        return task

    tasks = [await raced(0)]
    await held[0][0].say(answer(held[0][1]))
    tasks.append(await raced(1))
    await held[1][0].say(answer(held[1][1], pb.STATUS_ERROR, errors=[pb.Error(type="Late")]))
    tasks.append(await raced(2))
    await good.stop()
    found = [(each.server, each.response.status) for each in await asyncio.gather(*tasks)]
    assert found == [("s1", pb.STATUS_SUCCESS), ("s1", pb.STATUS_ERROR), ("s0", pb.STATUS_ERROR)]


async def test_a_flapping_server_is_no_flood(
    calls: Calls, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once a minute, and then how often it was not."""

    async def flap(side: Side, request: service.RunRequest) -> None:
        if request.package.id % 2:
            await side.end(grpc.StatusCode.INTERNAL)
        await side.say(answer(request))

    server = await calls.server(flap)
    relay = await calls.relay(server.address)
    await until(lambda: relay.servers)
    now_ns = time.monotonic_ns()
    (endpoint,) = relay._endpoints.values()
    monkeypatch.setattr(endpoint, "_now", lambda: now_ns)
    endpoint._warned_ns = now_ns - endpoints.SAID_NS

    async def fails(number: int) -> None:
        assert (await call(relay, number)).response.status == pb.STATUS_SUCCESS
        with pytest.raises(ModuleServerError):
            await call(relay, number + 1)

    for number in (0, 2, 4):
        await fails(number)
    assert caplog.text.count("gets no packages") == 1
    now_ns += endpoints.SAID_NS
    await fails(6)
    assert caplog.text.count("gets no packages") == 2 and "and 2 times since" in caplog.text


async def test_streams_are_asked_for_again_with_the_next_connection(calls: Calls) -> None:
    """A proxy may have none for a moment."""
    server = await calls.server(before=lambda s: setattr(s, "streams", False))
    server.run = lambda request, context: answer(request).SerializeToString()
    relay = await calls.relay(server.address)
    await call(relay, 1)
    assert server.sides == []
    await server.stop()
    await until(lambda: relay.servers == 0)
    server.streams = True
    await server.start()
    await call(relay, 2)
    assert len(server.sides) == 1 and server.got == [1, 2]


async def test_a_relay_whose_work_ends_unforeseen_says_so(calls: Calls) -> None:
    """Whoever has it can see what was wrong; its calls raise the same, and there is no room."""
    server = await calls.server()
    relay = await calls.relay(server.address)
    await call(relay, 1)
    assert relay.failed is None
    error = ZeroDivisionError("nobody foresaw it")

    async def dies() -> None:
        raise error

    relay._tend(dies(), "die for")
    await until(lambda: relay.failed is not None)
    assert relay.failed is error and relay.room == 0
    with pytest.raises(ZeroDivisionError):
        await call(relay, 2)
    relay._failed = None  # or its end would say it


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_server_that_takes_the_content_type_is_chosen(calls: Calls, replicas: int) -> None:
    """Where servers of a module differ; only where none takes it the package fails."""
    text, sound = [await calls.server(content_types=[each]) for each in ("text/plain", "audio/pcm")]
    relay = await calls.registered(text.address, sound.address, replicas=replicas)

    def one(number: int, content_type: str) -> asyncio.Task[Answer]:
        envelope = package(number, content_type=content_type)
        calling = relay.call(envelope, state=None, deadline_ns=in_s(10))
        return asyncio.create_task(calling)

    some = [one(number, ("text/plain", "audio/pcm")[number % 2]) for number in range(20)]
    await asyncio.gather(*some)
    assert sorted(text.got) == list(range(0, 20, 2))
    assert sorted(sound.got) == list(range(1, 20, 2))
    with pytest.raises(ModuleMismatchError, match="image/png"):
        await one(20, "image/png")
