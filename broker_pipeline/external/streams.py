"""One stream of a module server: requests in, answers out, and how many more may come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import MalformedPackageError
from broker_pipeline.external.framing import append_response
from broker_pipeline.external.hosting import Call, failed, not_begun
from broker_pipeline.external.windows import is_notable

if TYPE_CHECKING:
    from broker_pipeline.external.service import Servicer

ANSWERS_MAX = 8192
"""Answers that a caller has not taken: with more, no more of its requests are read."""
REQUESTS_MAX = 65_536
"""Requests in one message: more than is ever granted."""
MESSAGE_BYTES = 1 << 20
"""Answers go out together up to this size; it is below what any caller takes by default (4 MiB)."""
HEEDED_S = 2.0
"""A caller that does not heed a smaller grant after so long is refused what is beyond it."""
LINGER_S = 0.5
"""A draining server answers so long after it has granted 0 what was sent before that was known."""


class Stream:
    """A caller on a stream.

    Attributes:
        calls: those that are outstanding, by their number.
        granted: how many may be.
    """

    def __init__(self, servicer: Servicer, context: Any) -> None:
        self._servicer = servicer
        self._context = context
        self.calls: dict[int, Call] = {}
        self.granted = 0
        self._limit = 0
        self._lowered_at = 0.0
        self._credit: int | None = None
        self._answers: list[bytes] = []
        self._taken = asyncio.Event()
        self._introduced = False
        self._load_due = True
        self._sent_at = 0.0
        self._ends_at: float | None = None
        self._sleeper: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._breach = ""

    async def serve(self) -> None:
        """Until the caller has closed its side and has its answers, or the server has drained."""
        self._reader = reader = asyncio.create_task(self._read(), name="read a stream")
        reader.add_done_callback(lambda _: self._wake())
        try:
            while not self._over():
                message = self._message()
                if message is None:
                    await self._sleep()
                else:
                    await self._context.write(message)
                    self._taken.set()
            if self._breach:
                await self._context.abort(grpc.StatusCode.INVALID_ARGUMENT, self._breach)
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            await asyncio.wait((reader,))
            for call in self.calls.values():
                self._servicer.host.drop(call)
            self.calls.clear()

    # -- what the servicer says -----------------------------------------------------------------
    def grant(self, credit: int) -> None:
        """So many may be outstanding from now on. What is already on its way under a larger grant
        is taken still."""
        if credit != self.granted or not self._introduced:
            if credit < self.granted:
                self._lowered_at = asyncio.get_running_loop().time()
            self.granted = credit
            self._limit = max(self._limit, credit)
            self._credit = credit
            self._wake()

    def adjust(self, credit: int) -> None:
        """Grant anew where it matters."""
        if is_notable(self.granted, credit):
            self.grant(credit)

    def beat(self, credit: int, period_s: float) -> None:
        """A part of the heartbeat's period has passed."""
        now = asyncio.get_running_loop().time()
        if now - self._lowered_at >= HEEDED_S:
            self._limit = self.granted
        self.grant(credit)
        if now - self._sent_at >= period_s / 2:
            self._load_due = True
        self._wake()

    def drain(self) -> None:
        """Take nothing more; end when the calls are answered."""
        loop = asyncio.get_running_loop()
        self._ends_at = loop.time() + LINGER_S
        loop.call_at(self._ends_at, self._wake)
        self.grant(0)

    # -- in -------------------------------------------------------------------------------------
    async def _read(self) -> None:
        while (raw := await self._context.read()) is not grpc.aio.EOF:
            try:
                message = service.StreamRequest.FromString(raw)
            except DecodeError as error:
                self._breach = (
                    f"{len(raw)} bytes are no StreamRequest ({error}); expected the message that "
                    f"module_service.proto describes"
                )
                return
            for number in message.cancelled:
                if (call := self.calls.pop(number, None)) is not None:
                    self._servicer.host.drop(call)
            if not self._begin(message.requests):
                return
            while len(self._answers) > ANSWERS_MAX:
                self._taken.clear()
                await self._taken.wait()

    def _begin(self, requests: Sequence[service.RunRequest]) -> bool:
        """Have packages run; False where the caller does not keep to the protocol."""
        if len(requests) > REQUESTS_MAX:
            self._breach = f"a message has {len(requests)} requests; expected what was granted"
            return False
        calls, servicer = self.calls, self._servicer
        now_ns = time.monotonic_ns()
        begun: list[Call] = []
        for request in requests:
            number = request.call
            if number in calls:
                self._breach = (
                    f"call {number} is outstanding and was sent again; expected a number that was "
                    f"never used on this stream"
                )
                break
            if servicer.draining or len(calls) >= self._limit:
                self._put(not_begun(request))
                continue
            if not request.HasField("package"):
                self._put(failed(request, no_package(), servicer.description))
                continue
            timeout_ns = request.timeout_ns
            call = Call(request, self.answered, now_ns, now_ns + timeout_ns if timeout_ns else None)
            calls[number] = call
            begun.append(call)
        if begun:
            servicer.begin(begun)
        return not self._breach

    # -- out ------------------------------------------------------------------------------------
    def answered(self, call: Call, response: service.RunResponse) -> None:
        """What became of a package."""
        if self.calls.pop(call.request.call, None) is not None:
            self._put(response, call)

    def _put(self, response: service.RunResponse, call: Call | None = None) -> None:
        raw = response.SerializeToString()
        if call is not None and len(raw) > self._servicer.answer_bytes_max:
            raw = self._servicer.too_large(call, len(raw)).SerializeToString()
        self._answers.append(raw)
        self._wake()

    def _message(self) -> bytes | None:
        """The next message, put together from answers that are bytes already; None: there is
        nothing to say."""
        answers = self._answers
        if not answers and self._credit is None and not self._load_due:
            return None
        parts: list[bytes] = []
        count = size = 0
        for raw in answers:
            if count and size + len(raw) > MESSAGE_BYTES:
                break
            append_response(parts, raw)
            count += 1
            size += len(raw)
        del answers[:count]
        rest = service.StreamResponse(load=self._servicer.host.load())
        if self._credit is not None:
            rest.credit = self._credit
            self._credit = None
        if not self._introduced:
            rest.description.CopyFrom(self._servicer.description)
            self._introduced = True
        parts.append(rest.SerializeToString())
        self._load_due = False
        self._sent_at = asyncio.get_running_loop().time()
        return b"".join(parts)

    def _over(self) -> bool:
        reader = self._reader
        assert reader is not None
        if self._breach or (reader.done() and reader.exception() is not None):
            return True
        if self.calls or self._answers or self._credit is not None:
            return False
        now = asyncio.get_running_loop().time()
        return reader.done() or (self._ends_at is not None and now >= self._ends_at)

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def _sleep(self) -> None:
        self._sleeper = asyncio.get_running_loop().create_future()
        await self._sleeper
        self._sleeper = None


def no_package() -> MalformedPackageError:
    """A request without its package."""
    return MalformedPackageError(
        "a request came without a package; expected RunRequest.package, with whatever payload"
    )
