"""The producers of a run: the SDK's, raw ones, and ones that number as they like."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.large_payloads import LargePayloads, Upload
from broker_pipeline.client.producer import Log, Producer
from broker_pipeline.core.names import (
    CONTROL_CLOSE,
    CONTROL_OPEN,
    HEADER_CONTENT_TYPE,
    HEADER_CONTROL,
    HEADER_NUMBER,
    HEADER_PRODUCER,
    escape_instance,
    ingress_subject,
    stream_name,
)
from broker_pipeline.errors import BrokerError
from broker_pipeline.package import CONTENT_TYPE
from tests.fault.link import Link, connect
from tests.fault.network import Network
from tests.fault.scenario import NAME, Large, Send, Source

ATTEMPTS = 6
SEND_TIMEOUT_S = 6.0
"""Below the shortest dedup window: a repeat after it would be another package."""


class Acked:
    """Sends that were said to be stored: `(instance, payload) -> stream sequences`."""

    def __init__(self) -> None:
        self.stored: dict[bytes, list[int]] = {}
        self.unexpected: list[BaseException] = []

    def note(self, data: bytes, stream_seq: int) -> None:
        """One was."""
        self.stored.setdefault(data, []).append(stream_seq)


class SourceProcess:
    """One producer process."""

    def __init__(
        self,
        network: Network,
        number: int,
        source: Source,
        acked: Acked,
        chance: random.Random,
        large: Large | None = None,
    ) -> None:
        self._network = network
        self._number = number
        self._source = source
        self._acked = acked
        self._chance = chance
        self._sdk: dict[str, Producer] = {}
        self._numbers: dict[str, int] = {}
        self._large = large
        self._names = 0
        # Half of them wait for as long as it takes, as a pipe does.
        self._wait_full_s = (math.inf, 0.5)[number % 2]
        self.done = False

    async def run(self) -> None:
        """Send everything at its time; sends overlap."""
        link = await self._connected()
        begun = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for index, send in enumerate(self._source.sends):
                wait_s = begun + send.at - asyncio.get_running_loop().time()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                group.create_task(self._send(link, send, index), name=f"send {index}")
        await link.close()
        self.done = True

    async def _connected(self) -> Link:
        while True:
            try:
                return await connect(self._network, reconnect=True)
            except BrokerError:
                await asyncio.sleep(0.1)

    async def _send(self, link: Link, send: Send, index: int) -> None:
        subject = ingress_subject(NAME, escape_instance(send.instance))
        headers: dict[str, str] = {}
        if send.kind != "data":
            headers[HEADER_CONTROL] = CONTROL_CLOSE if send.kind == "close" else CONTROL_OPEN
        if self._source.style == "sdk":
            await self._send_by_sdk(link, subject, send, headers)
            return
        msg_id = f"raw{self._number}.{index}"
        if self._source.style == "numbered" and send.kind == "data":
            number = self._numbers[send.instance] = self._numbers.get(send.instance, 0) + 1
            headers |= {HEADER_PRODUCER: f"n{self._number}", HEADER_NUMBER: str(number)}
            # They overtake each other on the way, as from a pool of threads.
            await asyncio.sleep(self._chance.choice((0.0, 0.0, 0.01, 0.3, 2.0)))
        await self._send_raw(link, subject, send, msg_id, headers)
        if send.repeat and self._source.style == "numbered":
            await asyncio.sleep(self._chance.choice((0.0, 0.1, 3.0)))
            await self._send_raw(link, subject, send, f"{msg_id}.again", headers)

    async def _send_raw(
        self, link: Link, subject: str, send: Send, msg_id: str, headers: Any
    ) -> None:
        upload = self._upload(link, send)
        if upload is not None:
            headers = {**headers, HEADER_CONTENT_TYPE: CONTENT_TYPE}
            assert self._large is not None
            if self._large.forgotten and self._chance.random() < self._large.forgotten:
                with contextlib.suppress(BrokerError):
                    await LargePayloads(link, NAME).put(b"forgotten")
        for _ in range(ATTEMPTS):
            try:
                data = send.data if upload is None else await upload.message()
                ack = await link.publish(
                    subject, data, msg_id=msg_id, headers=headers or None, timeout_s=1.0
                )
            except BrokerError:
                await asyncio.sleep(0.2)
            else:
                if send.kind == "data":
                    self._acked.note(send.data, ack.stream_seq)
                return

    async def _send_by_sdk(
        self, link: Link, subject: str, send: Send, headers: dict[str, str]
    ) -> None:
        producer = self._sdk.get(send.instance)
        if producer is None or send.kind != "data":  # as `Instance.close` does
            producer = Producer(
                link,
                subject,
                timeout_s=SEND_TIMEOUT_S,
                renew_after_s=1.2,
                new_name=self._new_name,
                log=Log(stream_name(NAME), self._wait_full_s),
            )
            if send.kind == "data":
                self._sdk[send.instance] = producer
        if send.kind == "close" and send.instance in self._sdk:
            await self._sdk[send.instance].settled()
        upload = self._upload(link, send)
        if upload is not None:
            headers = {**headers, HEADER_CONTENT_TYPE: CONTENT_TYPE}
        try:
            ack = await producer.send(upload or send.data, headers)
        except BrokerError:
            return  # it may be stored, or not: the log tells
        if send.kind == "data":
            self._acked.note(send.data, ack.stream_seq)

    def _upload(self, link: Link, send: Send) -> Upload | None:
        """What is large goes by reference."""
        if send.kind != "data" or self._large is None or len(send.data) <= self._large.bytes:
            return None
        payloads = LargePayloads(link, NAME, self._large.bytes)
        return Upload(payloads, pb.DataPackage(data=send.data))

    def _new_name(self) -> str:
        self._names += 1
        return f"s{self._number}.{self._names}"
