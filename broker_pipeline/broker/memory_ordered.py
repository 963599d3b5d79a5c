"""The in-memory ordered publisher: what it stores is a prefix of what it was given."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from broker_pipeline.broker import headers as header_blocks
from broker_pipeline.errors import BrokerError, PublishRefusedError

if TYPE_CHECKING:
    from broker_pipeline.broker.memory import MemoryBroker


class MemoryOrderedPublisher:
    """An `OrderedPublisher`.

    As with a real broker, a refusal is not known when `publish` returns: it shows in `failed` and
    in later calls, and nothing is stored from then on.
    """

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._refused: BrokerError | None = None
        self._closed = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def failed(self) -> asyncio.Future[None]:
        """See `OrderedPublisher.failed`; cancelled by `close`."""
        return self._failed

    async def publish(
        self, subject: str, data: bytes, *, msg_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """See `OrderedPublisher.publish`."""
        block = header_blocks.encode(msg_id, headers)
        header_blocks.check_size(subject, block, data, self._broker.max_payload)
        if self._failed.done():
            self._check()
        server = self._broker.server()
        if self._refused is None:
            try:
                server.store(subject, data, block)
            except PublishRefusedError as error:
                self._refused = error
                asyncio.get_running_loop().call_soon(self.fail, error)
        await self._broker.take_turns()

    async def seal(self) -> None:
        """See `OrderedPublisher.seal`."""
        await asyncio.sleep(0)
        self._check()
        self._broker.server()

    async def close(self) -> None:
        """See `OrderedPublisher.close`."""
        if self._closed:
            return
        try:
            if self._refused is None:
                await self.seal()
        finally:
            self._closed = True
            self._broker.forget(self)
            self._failed.cancel()

    def fail(self, error: BrokerError) -> None:
        """Nothing more is stored."""
        self._refused = self._refused or error
        if not self._failed.done():
            self._failed.set_exception(self._refused)
            self._failed.exception()  # whoever cares looks; asyncio need not report it

    def _check(self) -> None:
        if self._refused is not None:
            raise self._refused
