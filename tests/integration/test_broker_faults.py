"""The broker and the wires to it go wrong under load: nothing is lost, doubled or out of order.

One test, one kind of fault; `python -m tests.fault.real` mixes them all, for longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from broker_pipeline.broker.jetstream import connect
from broker_pipeline.client.client import Client
from broker_pipeline.client.reader import CREDIT, WAITING_MAX
from broker_pipeline.core.names import ingress_subject
from tests.fault.real.chaos import Fault
from tests.fault.real.pipeline import pipeline
from tests.fault.real.report import summary
from tests.fault.real.running import SPIN_SHARE, Settings, Site, run
from tests.fault.real.watching import Watch
from tests.fault.scenario import NAME
from tests.integration.processes import until

PACKAGES = 1_200
RATE = 200.0
"""Some 6 s of load, with the fault in it."""
AWAY_S = 3.0


async def check(*script: Fault, replicas: int = 1, packages: int = PACKAGES) -> None:
    """Run under these faults, and look at everything that was promised."""
    settings = Settings(
        seed=1,
        packages=packages,
        replicas=replicas,
        rate=RATE,
        fault_every_s=1.0,
        poison=0,
        script=script,
        idle_watch_s=2.0,
    )
    result = await run(settings)
    assert result.violations == [], summary(result)
    assert sum(result.faults.values()) == len(script), "the fault did not happen: it shows nothing"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["server restarts", "server killed"])
async def test_a_broker_that_restarts_or_is_killed(kind: str) -> None:
    """One server, under load: roles and producers wait for it and go on by themselves."""
    await check(Fault(2.0, kind, 0, 1.0))


@pytest.mark.timeout(240)
async def test_three_servers_killed_restarted_and_stepping_down() -> None:
    """The log three times: every server is killed or restarted, and leaders step down."""
    await check(
        Fault(1.0, "log steps down", 0, 1.0),
        Fault(2.0, "server killed", 0, 1.0),
        Fault(3.0, "consumer steps down", 2, 1.0),
        Fault(3.5, "server restarts", 1, 1.0),
        Fault(4.0, "leases step down", 0, 1.0),
        Fault(5.0, "server killed", 2, 1.0),
        replicas=3,
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("what", ["cut", "half-open", "stall"])
async def test_wires_that_are_cut_half_open_or_stalled(what: str) -> None:
    """Of the leader, a worker, and the producers and readers, one after the other."""
    await check(
        Fault(1.5, f"{what} leader", 0, 3.0),
        Fault(2.0, f"{what} worker", 0, 3.0),
        Fault(2.5, f"{what} client", 0, 3.0),
    )


@pytest.mark.timeout(120)
async def test_no_role_spins_while_the_broker_is_away(tmp_path: Path) -> None:
    """Nor dies: processor time stays low, and the same processes go on when it is back."""
    settings = Settings(seed=1, packages=0, replicas=1, rate=RATE, fault_every_s=1.0)
    async with AsyncExitStack() as stack:
        site = Site(settings, tmp_path)
        await site.begin(stack)
        before = {role.name: role.pid for role in site.roles}
        await site.servers.all[0].end(signal.SIGKILL)
        watch = Watch(lambda: {role.name: role.pid for role in site.roles}, 1.0)
        shares = await watch.cpu_shares(AWAY_S)
        await site.servers.all[0].start()
        ack = await site.brokers["raw"].publish(ingress_subject(NAME, "a"), b"0.0", timeout_s=5.0)
        await until(lambda: site.recording.left == 1, "the package that was sent afterwards")
        assert ack.stream_seq > 0
        assert {role.name: role.pid for role in site.roles} == before
    assert shares.keys() == before.keys()
    assert max(shares.values()) < SPIN_SHARE, shares


@pytest.mark.timeout(120)
async def test_a_reader_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    """What waits for it is bounded, others are served, and it misses nothing in the end."""
    settings = Settings(seed=1, packages=0, replicas=1, rate=RATE, fault_every_s=1.0)
    count = 2 * (WAITING_MAX + CREDIT)
    async with AsyncExitStack() as stack:
        site = Site(settings, tmp_path)
        await site.begin(stack)
        broker = await connect(site.servers.url, reconnect=True, name="test")
        stack.push_async_callback(broker.close)
        client = await stack.enter_async_context(Client(site.servers.url, name="slow"))
        slow = client.results(pipeline, start="beginning")
        first = asyncio.ensure_future(anext(slow))
        for begin in range(0, count, 50):
            acks = [
                await broker.start_publish(ingress_subject(NAME, f"r{n % 50}"), b"%d.0" % n)
                for n in range(begin, begin + 50)
            ]
            await asyncio.gather(*acks)
        await until(lambda: site.recording.left == count, f"{count} packages for others")
        waiting = [len(each._waiting) for reader in client._readers for each in reader._open]
        assert waiting and max(waiting) <= WAITING_MAX + 2 * CREDIT
        got = [(await first).envelope.id]
        async with asyncio.timeout(20):
            while len(got) < count:
                got.append((await anext(slow)).envelope.id)
        assert len(set(got)) == count
        with contextlib.suppress(asyncio.CancelledError):
            await slow.aclose()
