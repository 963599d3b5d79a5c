"""The yardstick: one ordered controller hand-written on nats-py, as fast as nats-py allows.

The same topology as ours: one stream, a leader that orders, a worker, four messages stored for each
package. It has no snapshots, no takeover, no dedup, no journey, no timeouts, and forgets everything
when a process dies: what it costs to have those is the difference.

    python -m benchmarks.hand_written leader|worker URL WINDOW
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api

STREAM = "HAND"
INGRESS = "hand.ctl.in."
OUT = "hand.out."
_PULL = 2_000
_FLOW = 200


async def provision(url: str) -> None:
    """The stream and the worker's consumer."""
    nc = await nats.connect(url)
    js = nc.jetstream()
    await js.add_stream(
        api.StreamConfig(name=STREAM, subjects=["hand.>"], allow_direct=True, allow_batched=True)
    )
    await js.add_consumer(
        STREAM,
        api.ConsumerConfig(
            durable_name="worker",
            ack_policy=api.AckPolicy.EXPLICIT,
            filter_subject="hand.work.>",
            max_ack_pending=20_000,
        ),
    )
    await js.add_consumer(
        STREAM,
        api.ConsumerConfig(
            durable_name="leader", ack_policy=api.AckPolicy.NONE, filter_subject="hand.ctl.>"
        ),
    )
    await nc.close()


async def _pull(nc: Client, consumer: str, handle: Callable[[Msg], None]) -> None:
    inbox, subject, got = nc.new_inbox(), f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}", 0

    def ask(count: int) -> bytes:
        return json.dumps({"batch": count, "expires": 60_000_000_000}).encode()

    async def take(message: Msg) -> None:
        nonlocal got
        if not message.reply.startswith("$JS.ACK"):
            return
        got += 1
        if got % (_PULL // 2) == 0:
            await nc.publish(subject, ask(_PULL // 2), reply=inbox)
        handle(message)

    await nc.subscribe(inbox, cb=take, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await nc.publish(subject, ask(_PULL), reply=inbox)


class _Outbox:
    """Messages on their way out, in order, sent by one task."""

    def __init__(self) -> None:
        self._items: deque[tuple[str, bytes, str]] = deque()
        self._wake = asyncio.Event()

    def put(self, subject: str, data: bytes, ack: str = "") -> None:
        self._items.append((subject, data, ack))
        self._wake.set()

    async def get(self) -> tuple[str, bytes, str]:
        while not self._items:
            self._wake.clear()
            await self._wake.wait()
        return self._items.popleft()


async def leader(url: str, window: int) -> None:
    """Order by sequence, one instance a subject token."""
    nc = await nats.connect(url, pending_size=1 << 27)
    outbox = _Outbox()
    instances: dict[str, dict[str, Any]] = {}

    def handle(message: Msg) -> None:
        _, _, kind, name = message.subject.split(".")
        state = instances.get(name)
        if state is None:
            state = instances[name] = {"next": 0, "busy": 0, "wait": deque(), "done": {}, "turn": 0}
        if kind == "in":
            sequence = state["next"]
            state["next"] += 1
            state["wait"].append((sequence, message.data))
        else:
            state["done"][int.from_bytes(message.data[:8], "big")] = message.data
            state["busy"] -= 1
            while state["turn"] in state["done"]:
                outbox.put(OUT + name, state["done"].pop(state["turn"]))
                state["turn"] += 1
        while state["wait"] and state["busy"] < window:
            sequence, data = state["wait"].popleft()
            state["busy"] += 1
            outbox.put("hand.work." + name, sequence.to_bytes(8, "big") + data)

    await _pull(nc, "leader", handle)
    await _fast_ingest(nc, outbox)


async def _fast_ingest(nc: Client, outbox: _Outbox) -> None:
    prefix = f"{nc.new_inbox()}.{uuid.uuid4().hex}"
    acked, block, sent = 0, 1, 0
    news = asyncio.Event()

    async def answered(message: Msg) -> None:
        nonlocal acked, block
        answer = json.loads(message.data)
        if answer.get("type") == "ack":
            acked, block = max(acked, answer["seq"]), answer["msgs"]
        news.set()

    await nc.subscribe(f"{prefix}.>", cb=answered)
    while True:
        subject, data, _ = await outbox.get()
        sent += 1
        operation = 0 if sent == 1 else 1
        await nc.publish(subject, data, reply=f"{prefix}.{_FLOW}.fail.{sent}.{operation}.$FI")
        while (sent == 1 and not news.is_set()) or acked + block * 2 <= sent:
            news.clear()
            await news.wait()


async def worker(url: str) -> None:
    """Do nothing with each package; publish, then ack when the broker has stored it."""
    nc = await nats.connect(url, pending_size=1 << 27)
    outbox = _Outbox()
    acks: dict[str, str] = {}
    inbox = nc.new_inbox()
    count = 0

    def handle(message: Msg) -> None:
        name = message.subject.rpartition(".")[2]
        outbox.put("hand.ctl.done." + name, message.data, message.reply)

    async def stored(message: Msg) -> None:
        await nc.publish(acks.pop(message.subject[len(inbox) + 1 :]))

    await nc.subscribe(f"{inbox}.*", cb=stored, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await _pull(nc, "worker", handle)
    while True:
        subject, data, ack = await outbox.get()
        count += 1
        acks[str(count)] = ack
        await nc.publish(subject, data, reply=f"{inbox}.{count}")


if __name__ == "__main__":
    if sys.argv[1] == "leader":
        uvloop.run(leader(sys.argv[2], int(sys.argv[3])))
    else:
        uvloop.run(worker(sys.argv[2]))
