"""One instance of a pipeline, as a program sees it: send, read results, close."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from functools import partial
from types import TracebackType
from typing import Any

from broker_pipeline import codecs
from broker_pipeline.broker.large_payloads import LargePayloads, Upload
from broker_pipeline.broker.port import Broker
from broker_pipeline.client.deploy import SHARD, require_deployed
from broker_pipeline.client.pipelining import each_in_order
from broker_pipeline.client.producer import RENEW_AFTER_S, Log, OnFull, Producer
from broker_pipeline.client.results import ResultsReader
from broker_pipeline.client.sent import SentPackages
from broker_pipeline.core.names import (
    CONTROL_CLOSE,
    HEADER_CONTENT_TYPE,
    HEADER_CONTROL,
    escape_instance,
    ingress_subject,
    stream_name,
)
from broker_pipeline.errors import ClientError
from broker_pipeline.journey import Outcome
from broker_pipeline.observe import producing
from broker_pipeline.observe.about import about
from broker_pipeline.package import CONTENT_TYPE, DataPackage
from broker_pipeline.pipeline import Pipeline

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""`send` gives up after so long; well below the broker's dedup window of 120 s."""

Callback = Callable[[DataPackage[Any]], Awaitable[None] | None]


class Instance:
    """One stream through a pipeline; made by `Client.instance`, used as `async with`.

    Entering it notes the end of the log, so that `results()` begins there and misses nothing.
    Leaving it ends this object's readers and callbacks, and does NOT close the instance: others may
    be writing to it. An instance ends when somebody calls `close`, or when it was idle for the
    pipeline's `instance_idle_s`.
    """

    def __init__(
        self,
        broker: Broker,
        pipeline: Pipeline,
        name: str,
        *,
        timeout_s: float = TIMEOUT_S,
        wait_full_s: float = 0.0,
        on_full: OnFull | None = None,
    ) -> None:
        self.name = name
        self._broker = broker
        self._pipeline = pipeline
        self._token = escape_instance(name)
        self._stream = stream_name(pipeline.name, SHARD)
        self._subject = ingress_subject(pipeline.name, self._token)
        self._log = Log(self._stream, wait_full_s, on_full)
        self._payloads = LargePayloads(broker, pipeline.name, pipeline.large_payload_bytes)
        self._producer = Producer(
            broker,
            self._subject,
            timeout_s=timeout_s,
            log=self._log,
            renew_after_s=min(RENEW_AFTER_S, pipeline.instance_idle_s / 2),
        )
        self._reader = ResultsReader(broker, pipeline, self._token)
        self._sent = SentPackages(broker, self._stream, self._reader.subject(None))
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ended.add_done_callback(_look_at)
        self._reader.end = self._ended
        self._reader.seen = self._sent.left
        self._is_closed = False
        self._callbacks: list[tuple[Outcome | None, Callback]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._calling: asyncio.Task[None] | None = None

    # -- writing --------------------------------------------------------------------------------
    async def send(
        self, data: Any, *, attributes: Mapping[str, str] | None = None, content_type: str = ""
    ) -> str:
        """Send one package; returns its id, `pipeline/shard/stream sequence`, when it is stored.

        Sends may run at the same time: packages arrive in the order of the calls. A send that gets
        no answer is repeated for 30 s; the package comes out once. In a program that has loaded
        OpenTelemetry it is a span, and the package's trace hangs below that.

        Args:
            data: bytes (sent as they are), str, a msgspec.Struct, plain data, a protobuf message or
                a DataPackage.
            attributes: text that travels along.
            content_type: what the bytes are; derived from `data` where it is empty.

        Raises:
            PayloadTooLargeError: over the broker's limit without its payload, or there is no
                place for a large one; nothing was sent.
            PayloadError: `data` cannot be encoded; nothing was sent.
            LogFullError: the log is full, and was so for `wait_full_s`; it is not stored.
            PublishRefusedError: the broker did not store it for another reason.
            PublishTimeoutError: whether it is stored is not known.
            ConnectionLostError: there was no connection; it is not stored.
        """
        if self._is_closed:
            raise ClientError(
                f"instance {self.name!r} was closed by this object; expected it to be open: take a "
                "new one from client.instance() to begin its next life",
                instance=self.name,
            )
        raw, content_type = _encode(data, attributes, content_type, self._payloads)
        headers = {HEADER_CONTENT_TYPE: content_type} if content_type else {}
        if producing.is_loaded():
            ack = await producing.send_in_span(
                partial(self._producer.send, raw), headers,
                pipeline=self._pipeline.name, subject=self._subject, instance=self.name,
            )  # fmt: skip
        else:
            ack = await self._producer.send(raw, headers)
        await self._sent.add(ack.stream_seq)
        return f"{self._pipeline.name}/{SHARD}/{ack.stream_seq}"

    async def send_many(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        attributes: Mapping[str, str] | None = None,
        content_type: str = "",
    ) -> list[str]:
        """Send many packages, a bounded number at a time; returns their ids, in order.

        The first that fails ends it: nothing more is sent, and its error is raised.
        """

        async def send(data: Any) -> str:
            return await self.send(data, attributes=attributes, content_type=content_type)

        return [package_id async for _, package_id in each_in_order(send, items)]

    async def close(self) -> None:
        """End the instance: what is inside finishes, and what comes later begins its next life.

        Returns when the broker has stored that. `results()` then end by themselves, once everything
        that this object sent has left.
        """
        if self._is_closed:
            return
        self._is_closed = True
        await self._producer.settled()
        closing = Producer(self._broker, self._subject, timeout_s=TIMEOUT_S, log=self._log)
        await closing.send(b"", {HEADER_CONTROL: CONTROL_CLOSE})
        self._start(self._find_end(), "end")

    async def _find_end(self) -> None:
        try:
            end = await self._sent.all_left()
        except Exception as error:
            if not self._ended.done():
                self._ended.set_exception(error)
        else:
            self._ended.set_result(end)

    # -- reading --------------------------------------------------------------------------------
    def results(
        self, *, start: str = "opened", outcome: Outcome | None = None
    ) -> AsyncGenerator[DataPackage[Any], None]:
        """What leaves the instance, in order, whoever sent it; goes on until `close` is called.

        Reading takes nothing away from other readers. A lost connection is waited for; nothing is
        skipped or repeated.

        Args:
            start: "opened": where the log ended when this object was entered; "now": where it ends
                when the first package is asked for; "beginning": the oldest that the log has; or
                the id of a package: what left after that one.
            outcome: only packages with this outcome.

        Raises:
            ClientError: `start` names no place in the log of this instance.
        """
        self._require_entered()
        return self._reader.read(start, outcome)

    def on(self, outcome: Outcome | None, callback: Callback) -> None:
        """Call `callback(package)` for what leaves from "opened" on; None: with whatever outcome.

        Callbacks are called one after the other, in the order of the packages, on the event loop;
        one that is `async` is awaited. What it raises is logged. Register before what it should
        see leaves: a later one sees what is read from then on.
        """
        self._require_entered()
        self._callbacks.append((outcome, callback))
        if self._calling is None:
            self._calling = self._start(self._call_back(), "callbacks")

    async def _call_back(self) -> None:
        try:
            async for package in self.results():
                for outcome, callback in self._callbacks:
                    if outcome is None or outcome is package.outcome:
                        await self._call(callback, package)
        except Exception:
            what = {"pipeline": self._pipeline.name, "instance": self.name}
            log.exception(
                "callbacks of instance %r have ended: results failed", self.name, extra=what
            )

    async def _call(self, callback: Callback, package: DataPackage[Any]) -> None:
        try:
            result = callback(package)
            if inspect.isawaitable(result):
                await result
        except Exception:  # user code: the next package has its own chance
            what = about(package.envelope)
            log.exception("a callback of instance %r failed on %r", self.name, package, extra=what)

    def _require_entered(self) -> None:
        if not self._reader.opened_seq:
            raise ClientError(
                f"instance {self.name!r} was not entered; expected `async with` around it",
                instance=self.name,
            )

    # -- its life -------------------------------------------------------------------------------
    async def __aenter__(self) -> Instance:
        """Note where the log ends. Raises PlanError where the pipeline is not deployed."""
        state = await require_deployed(self._broker, self._pipeline.name)
        self._reader.opened_seq = state.last_seq + 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End readers and callbacks; callbacks of a closed instance get to its end first."""
        if self._is_closed and kind is None and self._calling is not None:
            await asyncio.wait([self._calling])
        self._reader.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"{what} of {self.name}")
        self._tasks.add(task)
        return task


def _encode(
    data: Any, attributes: Mapping[str, str] | None, content_type: str, payloads: LargePayloads
) -> tuple[bytes | Upload, str]:
    """The bytes of a message and their content type; an envelope where there are attributes, or
    where the payload is large and travels by reference."""
    if isinstance(data, DataPackage):
        data.encode()
        data.require_payload()
        attributes = {**data.attributes, **(attributes or {})}
        raw, content_type = data.envelope.data, content_type or data.content_type
    elif isinstance(data, bytes | bytearray | memoryview):
        raw = bytes(data)
    else:
        raw, content_type = codecs.encode(data, content_type)
    large = payloads.is_large(len(raw))
    if not attributes and not large:
        return raw, content_type
    if content_type == CONTENT_TYPE and large:  # the bytes are a package
        package = DataPackage[Any].from_bytes(raw)
        package.attributes.update(attributes or {})
        large = payloads.is_large(len(package.envelope.data))
    else:
        package = DataPackage[Any](raw, content_type=content_type, attributes=attributes)
    if large:
        return Upload(payloads, package.envelope), CONTENT_TYPE
    return package.to_bytes(), CONTENT_TYPE


def _look_at(ended: asyncio.Future[int]) -> None:
    """Whoever reads results sees the error; where nobody does, nobody misses it."""
    if not ended.cancelled():
        ended.exception()
