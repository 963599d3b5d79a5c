"""Large payloads in a module server: fetched before a package is run, and stored for its answer.

A server that has a broker fetches by reference, so that a large payload crosses the network once on
its way to the module and never through a bridge. What has no broker for a while does no harm: a
package that waits for its payload is given back, and an answer that fits a message goes inline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from functools import partial
from typing import Any, TypeVar

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.broker.held_bytes import HeldBytes
from broker_pipeline.broker.large_payloads import TRANSFERS_MAX, LargePayloads, Reference
from broker_pipeline.broker.port import Broker
from broker_pipeline.errors import (
    BrokerError,
    BrokerUnavailableError,
    MalformedPackageError,
    PayloadGoneError,
    PayloadTooLargeError,
    ServeError,
)
from broker_pipeline.external.hosting import Call, failed, not_begun
from broker_pipeline.observe.about import about
from broker_pipeline.pipeline import NAME

log = logging.getLogger(__name__)

FETCHED_BYTES_MAX = 256 << 20
"""Payloads that a server holds at the same time, as in a worker; a larger one is held alone."""
BROKER_WAIT_S = 5.0
"""A package waits so long for a broker that is away, then another server may have it. Requests that
are under way then may take as long again."""
RETRY_S = 0.25
"""Between two attempts meanwhile."""

REST_BYTES = 64 << 10
"""What an answer may have besides payload and state that it is worth to look how large it is."""

_T = TypeVar("_T")


class CallPayloads:
    """The payloads of a server's calls. On the loop of the server.

    Args:
        begin: runs a call whose payload is in its place.
        answer: takes the answer of a call.
        changed: called when a call is not here any more, or not yet with the module.
        pipelines: whose payloads are fetched and stored; None: of any.

    Attributes:
        answer_bytes_max: what an answer may have as a message.
    """

    def __init__(
        self,
        description: service.Description,
        *,
        begin: Callable[[Call], None],
        answer: Callable[[Call, service.RunResponse], None],
        changed: Callable[[], None],
        pipelines: Collection[str] | None = None,
    ) -> None:
        self.answer_bytes_max = 0
        self._description = description
        self._begin = begin
        self._answer = answer
        self._changed = changed
        self._pipelines = pipelines
        self._broker: Broker | None = None
        self._sizes: LargePayloads | None = None
        self._there = asyncio.Event()
        self._turn = asyncio.Semaphore(TRANSFERS_MAX)
        self._room = HeldBytes(FETCHED_BYTES_MAX)
        self._held: dict[Call, int] = {}
        self._references: dict[Call, Reference] = {}
        self._fetching: dict[Call, asyncio.Task[None]] = {}
        self._storing: dict[Call, asyncio.Task[None]] = {}

    def connected(self, broker: Broker | None) -> None:
        """The broker is there; None: it is not any more."""
        self._broker = broker
        if broker is None:
            self._sizes = None
            self._there.clear()
        else:
            self._sizes = LargePayloads(broker, "")  # asked for nothing but sizes
            self._there.set()

    @property
    def fetching(self) -> int:
        """How many calls wait for their payload."""
        return len(self._fetching)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._fetching and not self._storing

    async def close(self) -> None:
        """Break everything off."""
        tasks = [*self._fetching.values(), *self._storing.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def serves(self, pipeline: str) -> bool:
        """Whether it may touch a pipeline's payloads: which one it is, the caller says."""
        return self._pipelines is None or pipeline in self._pipelines

    # -- calls ----------------------------------------------------------------------------------
    def fetch(self, call: Call) -> None:
        """Get the payload of a call, then have it begun."""
        self._tend(self._fetching, call, self._fetch(call), "fetch a payload")

    def reference(self, call: Call) -> Reference | None:
        """Of the payload as it came; None: it came inline."""
        return self._references.get(call)

    def drop(self, call: Call) -> None:
        """Nobody waits for the call any more."""
        for tasks in (self._fetching, self._storing):
            if (task := tasks.pop(call, None)) is not None:
                task.cancel()
                self.let_go(call)
                self._changed()

    def withdraw(self) -> list[Call]:
        """Take back what waits for its payload; it is not answered."""
        calls = list(self._fetching)
        for call in calls:
            self.drop(call)
        return calls

    def let_go(self, call: Call) -> None:
        """Its payload is not needed any more."""
        self._references.pop(call, None)
        if (held := self._held.pop(call, None)) is not None:
            self._room.give(held)

    def store(self, call: Call, response: service.RunResponse) -> bool:
        """Answer by reference, where the payload is large; False: it is not, or cannot."""
        size = len(response.payload.data) if response.HasField("payload") else 0
        if not size or not self.serves(call.request.package.pipeline):
            return False
        large = self._sizes is not None and self._sizes.is_large(size)
        if not large and size + len(response.state) + REST_BYTES > self.answer_bytes_max:
            large = response.ByteSize() > self.answer_bytes_max
        if not large:
            return False
        self._tend(self._storing, call, self._store(call, response), "store a payload")
        return True

    def _tend(
        self,
        tasks: dict[Call, asyncio.Task[None]],
        call: Call,
        work: Coroutine[Any, Any, None],
        what: str,
    ) -> None:
        task = asyncio.create_task(work, name=f"{what} of {call.request.package.id}")
        tasks[call] = task
        task.add_done_callback(partial(self._ended, tasks, call))

    def _ended(
        self, tasks: dict[Call, asyncio.Task[None]], call: Call, task: asyncio.Task[None]
    ) -> None:
        if tasks.get(call) is task:
            del tasks[call]
        if not task.cancelled() and (error := task.exception()) is not None:
            named = about(call.request.package)
            log.error("the payload of a package could not be moved", exc_info=error, extra=named)
            self.let_go(call)
            if not call.over:
                what = ServeError(f"the module server failed to move a payload: {error!r}")
                self._answer(call, failed(call.request, what, self._description))
        self._changed()

    async def _fetch(self, call: Call) -> None:
        package = call.request.package
        try:
            self._held[call] = await self._room.take(package.reference.size)
            reference = await self._persist(
                package.pipeline, lambda payloads: payloads.load(package)
            )
        except (PayloadGoneError, MalformedPackageError) as error:
            self._turn_away(call, failed(call.request, error, self._description))
        except BrokerError as error:
            log.warning(
                "a package is given back: its payload cannot be fetched: %s",
                error,
                extra=about(package),
            )
            self._turn_away(call, not_begun(call.request))
        else:
            self._references[call] = reference
            if self._fetching.pop(call, None) is not None:
                self._begin(call)

    def _turn_away(self, call: Call, response: service.RunResponse) -> None:
        self.let_go(call)
        if self._fetching.pop(call, None) is not None:
            self._answer(call, response)

    async def _store(self, call: Call, response: service.RunResponse) -> None:
        package, payload = call.request.package, response.payload
        name = f"{package.id}.{self._description.name}"
        try:
            kept = await self._persist(
                package.pipeline, lambda payloads: payloads.put(payload.data, name)
            )
        except (BrokerError, MalformedPackageError) as error:
            what = about(package)
            log.warning(
                "an answer goes inline: its payload cannot be stored: %s", error, extra=what
            )
        else:
            payload.data = b""
            payload.reference.CopyFrom(kept)
        if self._storing.pop(call, None) is not None:
            self._answer(call, response)

    async def _persist(self, pipeline: str, work: Callable[[LargePayloads], Awaitable[_T]]) -> _T:
        """Until the broker does it, or has been away for BROKER_WAIT_S."""
        if not NAME.fullmatch(pipeline):
            raise MalformedPackageError(
                f"the package is of pipeline {pipeline[:80]!r}; expected the name of one, for its "
                f"bucket of payloads"
            )
        now = asyncio.get_running_loop().time
        ends_at = now() + BROKER_WAIT_S
        while True:
            try:
                broker = await self._broker_by(ends_at)
                async with self._turn:
                    return await work(LargePayloads(broker, pipeline))
            except PayloadTooLargeError:
                raise  # there is no bucket
            except BrokerError:
                if now() + RETRY_S > ends_at:
                    raise
            await asyncio.sleep(RETRY_S)

    async def _broker_by(self, ends_at: float) -> Broker:
        try:
            async with asyncio.timeout_at(ends_at):
                await self._there.wait()
        except TimeoutError:
            pass
        if self._broker is None:
            raise BrokerUnavailableError(
                f"the module server has had no broker for {BROKER_WAIT_S:g} s; expected the one "
                f"that it is announced in: start it, or correct --announce"
            )
        return self._broker
