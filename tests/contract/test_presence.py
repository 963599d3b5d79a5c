"""Whether a peer is there, on both brokers."""

from __future__ import annotations

import asyncio

from broker_pipeline.broker.introspection import Presence
from broker_pipeline.broker.port import Broker, StreamSpec
from tests.contract.waiting import Connect, until

SUBJECT = "bp-presence.p.0.one"
TIMEOUT_S = 5.0


async def test_who_is_connected_is_here(broker: Broker, open_connection: Connect) -> None:
    """And whoever never said so is gone, at once: nobody waits for the timeout."""
    other = await open_connection()
    await broker.be_present(SUBJECT)
    async with asyncio.timeout(TIMEOUT_S / 2):
        assert await other.presence(SUBJECT, timeout_s=TIMEOUT_S) is Presence.HERE
        assert await broker.presence(SUBJECT, timeout_s=TIMEOUT_S) is Presence.HERE
        assert await other.presence(f"{SUBJECT}x", timeout_s=TIMEOUT_S) is Presence.GONE


async def test_who_has_left_is_gone(broker: Broker, open_connection: Connect) -> None:
    """As soon as the last connection that answers has ended."""
    one, two = await open_connection(), await open_connection()
    await one.be_present(SUBJECT)
    await two.be_present(SUBJECT)
    await one.close()
    assert await broker.presence(SUBJECT, timeout_s=TIMEOUT_S) is Presence.HERE
    await two.close()

    async def gone() -> bool:
        return await broker.presence(SUBJECT, timeout_s=TIMEOUT_S) is Presence.GONE

    await until(gone)


async def test_presence_stores_nothing(broker: Broker, open_connection: Connect) -> None:
    """Neither the question nor the answer reaches the log, and other messages are not disturbed."""
    await broker.ensure_stream(StreamSpec("BP_p_0", ("bp.p.0.>",)))
    other = await open_connection()
    await other.be_present(SUBJECT)
    for _ in range(50):
        assert await broker.presence(SUBJECT, timeout_s=TIMEOUT_S) is Presence.HERE
    assert (await broker.publish("bp.p.0.ctl.tick", b"")).stream_seq == 1
