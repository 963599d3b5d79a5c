"""Large payloads on their way to module servers: by reference to those that fetch, else inline.

A package that came with a reference goes on with it to a server that fetches; for another it is
loaded here. One that is too large for its server, which fetches, is stored and goes by reference.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.held_bytes import HeldBytes
from broker_pipeline.broker.large_payloads import LargePayloads, refer
from broker_pipeline.broker.port import Broker
from broker_pipeline.errors import BrokerError, BrokerPipelineError, PayloadTooLargeError
from broker_pipeline.external import endings
from broker_pipeline.external.calls import Call
from broker_pipeline.external.checking import takes
from broker_pipeline.external.endpoints import Endpoint
from broker_pipeline.external.framing import OVERHEAD_BYTES
from broker_pipeline.external.picking import Health
from broker_pipeline.modules import ExternalModule

log = logging.getLogger(__name__)

LOADED_BYTES_MAX = 256 << 20
"""Payloads that were loaded for servers and are in memory at the same time, as in a worker."""
RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
"""Between two attempts to load or store where the broker fails, doubling from the first to the
last, until the call's deadline."""

_T = TypeVar("_T")
Tend = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


class Fitting:
    """Brings calls into the form that their servers take. On the loop of the relay.

    Args:
        broker: where payloads are kept; None: what came by reference can only go on so.
        tend: runs a task that ends with the relay at the latest.
        done: takes a call that is in another form now, or None and the error that ends it.

    Attributes:
        calls: those that are being changed; no server has them.
    """

    def __init__(
        self,
        module: ExternalModule,
        broker: Broker | None,
        *,
        tend: Tend,
        done: Callable[[Call, Exception | None], None],
    ) -> None:
        self.calls: dict[Call, asyncio.Task[None]] = {}
        self._module = module
        self._broker = broker
        self._tend = tend
        self._done = done
        self._payloads: LargePayloads | None = None
        self._room = HeldBytes(LOADED_BYTES_MAX)
        self._held: dict[Call, int] = {}

    # -- what goes where ------------------------------------------------------------------------
    def ready(self, endpoint: Endpoint, call: Call) -> bool:
        """Whether a server takes the call as it is; its bytes are that then. While a server has it
        (`replicas`) they stay: they may not be written yet."""
        data = call.referring if endpoint.references and call.referring is not None else call.inline
        if data is None or (call.sent and data is not call.data):
            return False
        if size_of(call, len(data)) > endpoint.bytes_max:
            return False
        call.data = data
        return True

    def suits(self, endpoint: Endpoint, call: Call) -> bool:
        """Whether a server takes the call in any form that can be made here."""
        if not takes(endpoint.takes, call.content_type):
            return False
        if endpoint.references and (call.referring is not None or self._broker is not None):
            return True
        if call.inline is None and self._broker is None:
            return False
        return self.size(call) <= endpoint.bytes_max

    def unfit(self, call: Call, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        """Servers that do not take it, where one is there that does."""
        unfit, suited = [], False
        for each in endpoints:
            if not self.suits(each, call):
                unfit.append(each)
            elif each.standing.credit > 0 and each.standing.health is not Health.EJECTED:
                suited = True
        return unfit if suited else []

    def size(self, call: Call) -> int:
        """Of the message with the payload in it."""
        if call.inline is not None:
            return size_of(call, len(call.inline))
        return size_of(call, len(call.data) + call.payload_bytes)

    # -- changing it ----------------------------------------------------------------------------
    def begin(self, endpoint: Endpoint, call: Call) -> bool:
        """Bring a call that is not `ready` into the other form; False where that is no use."""
        if call.sent or self._broker is None or not self.suits(endpoint, call):
            return False
        if call.inline is not None and call.referring is not None:
            return False  # both are there, and too large
        if self._payloads is None:
            self._payloads = LargePayloads(self._broker, call.pipeline)
        self.calls[call] = self._tend(self._fit(self._payloads, call), "fit for")
        return True

    def let_go(self, call: Call) -> None:
        """The call has ended."""
        if (task := self.calls.pop(call, None)) is not None:
            task.cancel()
        if (held := self._held.pop(call, None)) is not None:
            self._room.give(held)

    async def _fit(self, payloads: LargePayloads, call: Call) -> None:
        error: Exception | None = None
        try:
            await (self._load if call.inline is None else self._store)(payloads, call)
        except BrokerPipelineError as failure:
            error = failure
        if self.calls.pop(call, None) is not None:
            self._done(call, error)

    async def _load(self, payloads: LargePayloads, call: Call) -> None:
        assert call.referring is not None
        self._held[call] = await self._room.take(call.payload_bytes)
        envelope = pb.DataPackage.FromString(call.referring)
        await self._persist(call, partial(payloads.load, envelope))
        call.inline = envelope.SerializeToString()

    async def _store(self, payloads: LargePayloads, call: Call) -> None:
        assert call.inline is not None
        envelope = pb.DataPackage.FromString(call.inline)
        name = f"{call.package}.{self._module.name}"
        refer(envelope, await self._persist(call, partial(payloads.put, envelope.data, name)))
        call.referring = envelope.SerializeToString()

    async def _persist(self, call: Call, work: Callable[[], Awaitable[_T]]) -> _T:
        """Until the broker does it: it may be away, or have no room. Whoever has the call ends it
        at its deadline, and says why it was in vain."""
        delay, before = RETRY_MIN_S, call.error
        while True:
            try:
                found = await work()
            except PayloadTooLargeError:
                raise
            except BrokerError as error:
                if delay == RETRY_MIN_S:
                    log.warning("a large payload for module %r waits: %s", self._module.name, error)
                call.error = before or endings.not_moved(self._module, error)
            else:
                call.error = before
                return found
            await asyncio.sleep(delay)
            delay = min(RETRY_MAX_S, delay * 2)


def size_of(call: Call, package_bytes: int) -> int:
    """Of the message with a package of so many bytes in it."""
    return package_bytes + OVERHEAD_BYTES + (len(call.state) if call.state else 0)
