"""What a producer cannot send because the log is full is not given up meanwhile."""

from __future__ import annotations

from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.envelope import read_event
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import HEADER_NUMBER, HEADER_PRODUCER, TICK_PAUSE, TICK_RESUME
from broker_pipeline.runtime.retention import Retention
from tests.unit.runtime.gate import Gate, pipeline
from tests.unit.runtime.shard import STREAM, SUBJECTS

SIZE = 4 << 20
LARGE = bytes(100_000)


class Site:
    """A bounded log, a machine that reads it, and who keeps house."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.machine = Machine()
        self.retention = Retention(broker, SUBJECTS.pipeline, 0, lambda: self.machine)

    @classmethod
    async def begin(cls) -> Site:
        """The plan is deployed, and read."""
        site = cls(MemoryServer().connect())
        bounded = pipeline(Gate())
        bounded.log_bytes_max = SIZE
        await deploy(site.broker, bounded)
        await site.read()
        return site

    async def read(self) -> None:
        """Let the machine read on to the end."""
        for message in await self.broker.read_range(
            STREAM, f"{SUBJECTS.prefix}ctl.>", start_seq=self.machine.applied + 1
        ):
            headers, seq, time = message.headers, message.stream_seq, message.time
            event, _ = read_event(SUBJECTS, message.subject, headers, message.data, seq, time)
            self.machine.step(event)

    async def look(self) -> list[bytes]:
        """Let it keep house once; what it said meanwhile."""
        before = (await self.broker.stream_state(STREAM)).last_seq
        await self.retention.look()
        await self.read()
        said = await self.broker.read_range(STREAM, SUBJECTS.tick, start_seq=before + 1)
        return [message.data for message in said]

    async def send(self, number: int, data: bytes = b"") -> None:
        """A package of a producer that numbers."""
        headers = {HEADER_PRODUCER: "p", HEADER_NUMBER: str(number)}
        await self.broker.publish(SUBJECTS.arrival("a"), data, headers=headers)

    async def fill(self, first: int) -> int:
        """Until more than 70 % is used; the next number."""
        while (await self.broker.stream_state(STREAM)).bytes < 0.75 * SIZE:
            await self.send(first, LARGE)
            first += 1
        return first


async def test_gaps_are_paused_while_producers_are_kept_out() -> None:
    """Said once when the log closes, and once when it opens."""
    site = await Site.begin()
    assert await site.look() == []
    missing = await site.fill(1)
    await site.send(missing + 1)
    await site.read()
    assert site.machine.gaps
    assert await site.look() == [TICK_PAUSE]
    assert site.machine.gaps.paused
    assert await site.look() == []
    await site.broker.purge(STREAM, below=site.machine.applied - 1)
    assert await site.look() == [TICK_RESUME]
    assert not site.machine.gaps.paused and site.machine.gaps
    assert await site.look() == []
    await site.broker.close()


async def test_what_fills_the_log_and_waits_for_the_missing_one_is_not_waited_for() -> None:
    """Nothing else is inside, so there will never be room for it: the gap has its time again, and
    once more where the log opens all the same."""
    site = await Site.begin()
    await site.fill(2)  # number 1 is missing
    await site.read()
    assert site.machine.gaps and not site.machine.tallies.pipeline.inside
    assert await site.look() == []
    assert not site.machine.gaps.paused
    await site.broker.purge(STREAM, below=site.machine.applied)
    assert await site.look() == [TICK_RESUME]
    await site.broker.close()


async def test_a_leader_that_has_not_read_its_log_says_nothing() -> None:
    """It does not know whether that was said."""
    site = await Site.begin()
    await site.fill(1)
    site.machine = Machine()
    assert TICK_PAUSE not in await site.look()
    await site.broker.close()
