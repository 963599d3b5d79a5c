"""One endpoint of a module: an address that is connected to again and again, with its standing.

What a connection is, is a `Session`: a stream (`links.py`), or a gRPC call for each package where
that is asked for or all that the server has (`unary.py`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.errors import BrokerPipelineError
from broker_pipeline.external.calls import Call
from broker_pipeline.external.checking import content_types, mismatch
from broker_pipeline.external.credentials import channel_credentials, channel_options
from broker_pipeline.external.picking import Standing
from broker_pipeline.modules import Tls

log = logging.getLogger(__name__)

MESSAGE_BYTES_DEFAULT = 4 << 20
"""gRPC's own limit, where a server does not say another."""
REFUSED_RETRY_NS = 10_000_000_000
"""How often a server is tried that refuses us or serves something else: people mend that."""
SAID_NS = 60_000_000_000
"""How often that is said meanwhile, and how often that a server fails which works in between."""
PING_MS = 10_000
PING_TIMEOUT_MS = 10_000
"""With both a dead connection is found after 20 s, where a server promises no heartbeats. gRPC asks
at most twice while no package is sent, so no server takes it for abuse."""
CREDIT_MAX = 10_000
"""More outstanding packages than any worker takes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an endpoint is.

    Attributes:
        key: unlike any other's of the module.
        target: as gRPC takes it.
        address: for people.
        name: what is to be served there; None: whatever its server calls it.
        authority: what the server is called by, where `target` is a resolved address.
        tls: None: plaintext.
        server: its name, where that is known already.
        hint: how many it runs at once and how busy it is, where that is known already.
    """

    key: str
    target: str
    address: str
    name: str | None
    authority: str | None = None
    tls: Tls | None = None
    server: str = ""
    hint: tuple[int, service.Load] | None = None


class Owner(Protocol):
    """Who has the calls. None of these may raise."""

    def answered(
        self, endpoint: Endpoint, call: Call, response: service.RunResponse, sent_ns: int, now: int
    ) -> None:
        """A checked answer: SUCCESS, EXIT or ERROR."""

    def given_back(self, endpoint: Endpoint, call: Call, *, begun: bool, why: str) -> None:
        """The endpoint has the call no more, without an answer."""

    def spoiled(self, endpoint: Endpoint, call: Call, why: str) -> None:
        """The server refuses this package, and any other server would."""

    def timed_out(self, endpoint: Endpoint, call: Call) -> None:
        """The call's deadline has passed there."""

    def moved(self) -> None:
        """There may be more room."""

    def lost(self) -> None:
        """An endpoint has failed: its address may be another now."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all endpoints of a module share.

    Attributes:
        module: its declared name.
        method: "stream" or "run".
        metadata: sent with each call.
        open: makes a session; a call for each package where the last argument is true.
    """

    module: str
    stateful: bool
    idempotent: bool
    method: str
    metadata: tuple[tuple[str, str], ...]
    owner: Owner
    open: Callable[[Endpoint, grpc.aio.Channel, bool], Session]


class SessionEnd(Exception):
    """A session has ended.

    Attributes:
        why: for people.
        loud: whether something is wrong.
        refused: whether somebody must mend it.
        only_run: the server has no streams.
    """

    def __init__(
        self, why: str, *, loud: bool = True, refused: bool = False, only_run: bool = False
    ) -> None:
        super().__init__(why)
        self.why = why
        self.loud = loud
        self.refused = refused
        self.only_run = only_run


class Session(Protocol):
    """One connection's life."""

    async def run(self) -> None:
        """Until it ends. Raises SessionEnd; what is outstanding then is given back by `end`."""

    def send(self, call: Call, now_ns: int) -> int:
        """Take a call; its number here."""

    def cancel(self, number: int) -> None:
        """Nobody waits for it any more."""

    def late(self, now_ns: int) -> None:
        """This process was away for a while: nobody was silent because of that."""

    def check(self, now_ns: int) -> None:
        """Look whether it hangs."""

    def end(self, why: str) -> None:
        """Give back what is outstanding."""


class Endpoint:
    """An address and what is known of it.

    Attributes:
        standing: how busy it is, and whether it works.
        server: the server's name, as it stands in errors.
        bytes_max: the largest message that it takes.
        references: whether it fetches payloads by reference.
        refusal: why it is no server for us; '' where it is one, as far as is known.
        trouble: what it failed of last.
    """

    def __init__(self, place: Place, terms: Terms) -> None:
        self.place = place
        self.terms = terms
        self.standing = Standing()
        if place.hint is not None:
            self.standing.capacity, load = place.hint
            self.standing.reported(load.running, load.waiting, load.run_time_ns)
        self.server = place.server or place.address
        self.bytes_max = MESSAGE_BYTES_DEFAULT
        self.references = False
        self.takes: frozenset[str] = frozenset()
        self.refusal = ""
        self.trouble = "it has not answered yet"
        self._unary = False
        self._session: Session | None = None
        self._retired = False
        self._said_ns = 0
        self._warned = False
        self._warned_ns = -SAID_NS
        self._untold = 0
        self._wake = asyncio.Event()
        self._now = time.monotonic_ns

    # -- calls ----------------------------------------------------------------------------------
    def send(self, call: Call, now_ns: int) -> None:
        """Give it a call, for which it has room."""
        assert self._session is not None
        self.standing.sent()
        call.sent_ns = now_ns
        call.sent[self] = self._session.send(call, now_ns)

    def cancel(self, call: Call) -> None:
        """Nobody waits for the call any more."""
        number = call.sent.pop(self)
        if self._session is not None:
            self._session.cancel(number)
        self._leave_if_done()

    def check(self, now_ns: int, *, late: bool) -> None:
        """Look whether it hangs, and go if there is nothing left to stay for.

        Args:
            late: this process was away for a while, and hears only now what was said meanwhile.
        """
        if self._session is not None:
            if late:
                self._session.late(now_ns)
            self._session.check(now_ns)
        self._leave_if_done()

    # -- what sessions say ----------------------------------------------------------------------
    def described(self, what: service.Description) -> None:
        """Take its description. Raises SessionEnd where it is not what is declared."""
        terms, place = self.terms, self.place
        self.server = what.server or place.server or place.address
        wrong = mismatch(what, module=terms.module, name=place.name, stateful=terms.stateful)
        if wrong is not None:
            raise SessionEnd(wrong, refused=True)
        self.bytes_max = int(what.message_bytes_max) or MESSAGE_BYTES_DEFAULT
        self.references = what.references
        self.takes = content_types(what)
        self.standing.capacity = what.capacity

    def grant(self, credit: int) -> None:
        """It takes so many packages."""
        if self.refusal:
            log.info("module server %s is one for %r again", self.server, self.terms.module)
        self.refusal = ""
        self.standing.credit = 0 if self._retired else min(credit, CREDIT_MAX)

    def call_failed(self, why: str) -> None:
        """One call has failed: several in a row eject it."""
        self.trouble = why
        if not self.standing.ejections:
            self._warned = False
        if self.standing.failed(self._now(), random.random()):
            self._ejected(why, loud=True)

    def overdue(self, call: Call, now_ns: int) -> None:
        """A call's deadline has passed there: one that never answers is found by that."""
        if self.standing.is_silent(call.came_ns, call.sent_ns, now_ns):
            self.call_failed("it answers nothing, and a package's deadline has passed")

    def eject(self, why: str, *, loud: bool = True) -> None:
        """Give it nothing for a while."""
        if not self.standing.ejections:
            self._warned = False
        self.standing.eject(self._now(), random.random())
        self._ejected(why, loud=loud)

    def _ejected(self, why: str, *, loud: bool) -> None:
        self.trouble = why
        now, level, more = self._now(), logging.DEBUG, ""
        if loud and not self._warned and not self._retired:  # once, until it works again
            if now < self._warned_ns + SAID_NS:
                self._untold += 1
            else:
                level = logging.WARNING
                more = f" (and {self._untold} times since that was said last)" * bool(self._untold)
                self._warned, self._warned_ns, self._untold = True, now, 0
        log.log(
            level, "module server %s of %r gets no packages for %.1f s: %s%s",
            self.server, self.terms.module, (self.standing.until_ns - now) / 1e9, why, more,
        )  # fmt: skip
        self.terms.owner.lost()

    def refuse(self, why: str) -> None:
        """It is no server for us, until somebody mends it."""
        standing, now = self.standing, self._now()
        standing.eject(now, 0.5)
        standing.until_ns = now + REFUSED_RETRY_NS
        if not self.refusal or now >= self._said_ns + SAID_NS:
            self._said_ns = now
            log.error(
                "module server %s cannot be used for %r: %s; it is tried again every %d s",
                self.server, self.terms.module, why, REFUSED_RETRY_NS // 1_000_000_000,
            )  # fmt: skip
        self.refusal = self.trouble = why

    # -- its life -------------------------------------------------------------------------------
    def retire(self) -> None:
        """It is not among the servers any more: nothing new goes there, what is there stays."""
        self._retired = True
        self.standing.credit = 0
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._retired and not self.standing.outstanding:
            self._wake.set()

    async def tend(self) -> None:
        """Connect, again and again, until it is retired and has nothing left; cancel to close."""
        loop = asyncio.get_running_loop()
        leaving = loop.create_task(self._wake.wait(), name=f"retire {self.place.key}")
        session = None
        try:
            while not leaving.done():
                session = loop.create_task(self._one(), name=f"session {self.place.key}")
                await asyncio.wait((session, leaving), return_when=asyncio.FIRST_COMPLETED)
                if session.done():
                    session.result()
                    if self._retired:
                        return
                    pause_s = (self.standing.until_ns - self._now()) / 1e9
                    if pause_s > 0:
                        await asyncio.wait((leaving,), timeout=pause_s)
        finally:
            ending = [each for each in (leaving, session) if each is not None]
            for each in ending:
                each.cancel()
            await asyncio.wait(ending)

    async def _one(self) -> None:
        """One session, from its channel to its end."""
        try:
            channel = self._channel()
        except BrokerPipelineError as error:  # a certificate's file that was there at the start
            self.eject(str(error))
            return
        # Where there were no streams they are asked for again: a proxy may have said so in passing.
        unary, self._unary = self._unary or self.terms.method == "run", False
        session = self.terms.open(self, channel, unary)
        self._session = session
        why = "the caller closes"
        try:
            await session.run()
        except SessionEnd as end:
            why = end.why
            if end.only_run:
                self._unary = True
                log.info("module server %s has no streams: a call for each package", self.server)
            elif end.refused:
                self.refuse(why)
            else:
                self.eject(why, loud=end.loud)
        finally:
            self._session = None
            self.standing.credit = 0
            session.end(why)
            await channel.close()
        self.terms.owner.moved()

    def _channel(self) -> grpc.aio.Channel:
        place = self.place
        options = [
            *channel_options(place.tls),
            # Each its own connection: a proxy may give each to another server.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.keepalive_time_ms", PING_MS),
            ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
            # Without it a stopped process was held on to for more than 45 s (grpcio 1.85).
            ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ]
        if place.authority is not None:
            options.append(("grpc.default_authority", place.authority))
            if place.tls is not None and place.tls.server_name is None:
                name = place.authority.rpartition(":")[0].strip("[]")
                options.append(("grpc.ssl_target_name_override", name))
        credentials = channel_credentials(place.tls)
        if credentials is None:
            return grpc.aio.insecure_channel(place.target, options=options)
        return grpc.aio.secure_channel(place.target, credentials, options=options)
