"""The way of an `ExternalModule`'s packages to its servers: see `port.Relay` and docs/adr/0021."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.broker.port import Broker
from broker_pipeline.external import endings
from broker_pipeline.external.calls import Call
from broker_pipeline.external.checking import takes
from broker_pipeline.external.credentials import call_metadata, channel_credentials
from broker_pipeline.external.endpoints import Endpoint, Place, Terms
from broker_pipeline.external.finding import Finder, LookUp, look_up
from broker_pipeline.external.fitting import Fitting
from broker_pipeline.external.picking import MORE_MIN, Health, Standing, pick
from broker_pipeline.external.port import Answer, RelayFactory, RelayState, WithdrawnError
from broker_pipeline.external.sessions import open_session, state_of
from broker_pipeline.modules import ExternalModule

log = logging.getLogger(__name__)

SWEEP_S = 0.05
"""How often it is looked whose deadline has passed, who hangs, and whose backoff is over. A timer
for each package would cost more than the package."""
LATE_NS = 500_000_000
"""A look that comes so much too late says that this process was away, not its servers."""
FAILURES_MAX = 4
"""So many servers may fail one package that may be repeated: it may be what they fail of."""


def relay_factory(broker: Broker | None, *, caller: str, lookup: LookUp = look_up) -> RelayFactory:
    """Makes relays.

    Args:
        broker: where servers announce themselves; None: there is no registry.
        caller: this process's name, as servers see it.
        lookup: the resolver of names.
    """

    def make(module: ExternalModule, on_room: Callable[[], None]) -> ServerRelay:
        return ServerRelay(module, on_room, broker=broker, caller=caller, lookup=lookup)

    return make


class ServerRelay:
    """A `Relay` over gRPC."""

    def __init__(
        self,
        module: ExternalModule,
        on_room: Callable[[], None],
        *,
        broker: Broker | None,
        caller: str,
        lookup: LookUp,
    ) -> None:
        self._module = module
        self._on_room = on_room
        self._idempotent = module.options.idempotent
        self._fitting = Fitting(module, broker, tend=self._tend, done=self._fitted)
        self._finder = Finder(module, broker, self._found, lookup)
        metadata = call_metadata(module.options.token, caller)
        self._terms = Terms(
            module.name, module.stateful, self._idempotent, module.options.method, metadata, self,
            open_session,
        )  # fmt: skip
        self._endpoints: dict[str, Endpoint] = {}
        self._leaving: set[Endpoint] = set()
        self._standings: list[Standing] = []
        self._of: dict[Standing, Endpoint] = {}
        self._waiting: deque[Call] = deque()
        self._calls: set[Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._deadline_ns: int | None = None
        self._swept_ns = 0
        self._told = self._repeats = self._ejections = 0
        self._taken = False  # some room, since it was told
        self._closed = self._withdrawn = False
        self._failed: BaseException | None = None

    # -- its life -------------------------------------------------------------------------------
    async def start(self) -> None:
        """See `Relay.start`."""
        self._finder.parse()
        channel_credentials(self._module.options.tls)
        self._swept_ns = time.monotonic_ns()
        self._tend(self._finder.run(), "find")
        self._tend(self._sweep(), "sweep")

    async def close(self) -> None:
        """See `Relay.close`."""
        self._closed = True
        for call in list(self._calls):
            self._finish(call, self._end_of(call, "the caller closes"))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._endpoints.clear()
        self._leaving.clear()
        self._rebuild()

    def _tend(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        name = f"{what} {self._module.name}"
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # Nobody foresaw it: whoever has packages must hear of it, and end.
        log.critical("%s has ended", task.get_name(), exc_info=error)
        self._failed = error
        for call in list(self._calls):
            self._finish(call, error)

    # -- calls ----------------------------------------------------------------------------------
    async def call(
        self,
        package: pb.DataPackage,
        *,
        state: bytes | None,
        deadline_ns: int | None,
        traceparent: str = "",
    ) -> Answer:
        """See `Relay.call`."""
        if self._failed is not None:
            raise self._failed
        future = asyncio.get_running_loop().create_future()
        now_ns = time.monotonic_ns()
        call = Call(package, state, deadline_ns, future, now_ns, traceparent)
        self._calls.add(call)
        self._waiting.append(call)
        self._taken = True
        if self._closed:
            self._finish(call, self._end_of(call, "the caller is closed"))
        elif deadline_ns is not None and (self._deadline_ns or deadline_ns) >= deadline_ns:
            self._deadline_ns = deadline_ns
        try:
            self._dispatch(now_ns)
            if self._withdrawn and not call.sent and not future.done():
                raise WithdrawnError
            response, server, sent_ns, received_ns = await future
        except BaseException:
            self._let_go(call)
            raise
        finally:
            self._fitting.let_go(call)
        return Answer(response, server, sent_ns, received_ns)

    def withdraw(self) -> None:
        """See `Relay.withdraw`."""
        self._withdrawn = True
        for call in (*self._waiting, *self._fitting.calls):
            self._finish(call, WithdrawnError())

    @property
    def servers(self) -> int:
        """See `Relay.servers`."""
        return sum(s.credit > 0 and s.health is not Health.EJECTED for s in self._standings)

    @property
    def room(self) -> int:
        """See `Relay.room`."""
        if self._failed is not None or self._closed:
            return 0
        now_ns = time.monotonic_ns()
        ahead = len(self._waiting) + len(self._fitting.calls)
        return max(0, sum([s.room(now_ns) for s in self._standings]) - ahead)

    @property
    def failed(self) -> BaseException | None:
        """See `Relay.failed`."""
        return self._failed

    def state(self) -> RelayState:
        """See `Relay.state`."""
        return state_of(self._standings, self._calls, self._repeats, self._ejections)

    def _let_go(self, call: Call) -> None:
        """Nothing of it stays anywhere."""
        self._calls.discard(call)
        for endpoint in list(call.sent):
            endpoint.cancel(call)
        if call in self._waiting:
            self._waiting.remove(call)

    def _finish(self, call: Call, error: BaseException | None) -> None:
        if not call.future.done():
            if call.answer is not None:
                call.future.set_result(call.answer)
            elif error is not None:
                call.future.set_exception(error)
        self._let_go(call)

    # -- sending --------------------------------------------------------------------------------
    def _dispatch(self, now_ns: int) -> None:
        waiting = self._waiting
        # A worker that fills all the room there is would take more.
        more = len(waiting) >= MORE_MIN and self.room == 0
        while waiting:
            call = waiting[0]
            endpoint = self._pick(call, now_ns, more)
            if endpoint is None:
                return
            waiting.popleft()
            if self._send(endpoint, call, now_ns):
                for _ in range(self._module.replicas - 1):
                    servers = {each.server for each in call.sent}
                    avoid = [
                        standing
                        for standing, each in self._of.items()
                        if each.server in servers or not self._fitting.suits(each, call)
                    ]
                    other = self._draw(call, now_ns, avoid, more)
                    if other is None or not self._send(self._of[other], call, now_ns):
                        break

    def _pick(self, call: Call, now_ns: int, more: bool) -> Endpoint | None:
        found = self._draw(call, now_ns, () if call.avoid is None else (call.avoid,), more)
        if found is None and call.avoid is not None:
            found = self._draw(call, now_ns, (), more)
        if found is not None and not self._fitting.suits(self._of[found], call):
            unfit = self._fitting.unfit(call, self._endpoints.values())
            found = self._draw(call, now_ns, [e.standing for e in unfit], more) if unfit else found
        return None if found is None else self._of[found]

    def _draw(
        self, call: Call, now_ns: int, avoid: Sequence[Standing], more: bool
    ) -> Standing | None:
        return pick(
            self._standings,
            now_ns=now_ns,
            waiting=len(self._waiting) or 1,
            waited_ns=now_ns - (0 if call.sent else call.since_ns),  # another replica: now or never
            draws=(random.random(), random.random()),
            more=more,
            avoid=avoid,
        )

    def _send(self, endpoint: Endpoint, call: Call, now_ns: int) -> bool:
        """Whether the call is there now; if not, it has ended, or changes its form."""
        if not takes(endpoint.takes, call.content_type):
            self._finish(call, endings.not_taken(self._module, endpoint, call))
            return False
        if not self._fitting.ready(endpoint, call):
            if not call.sent and not self._fitting.begin(endpoint, call):
                size = self._fitting.size(call)
                self._finish(call, endings.too_large(self._module, endpoint, size))
            return False
        endpoint.send(call, now_ns)
        return True

    def _fitted(self, call: Call, error: Exception | None) -> None:
        if error is not None:
            self._finish(call, error)
        elif not call.future.done():
            self._waiting.appendleft(call)
            self.moved()

    # -- what endpoints say (`Owner`) -----------------------------------------------------------
    def answered(
        self, endpoint: Endpoint, call: Call, response: service.RunResponse, sent_ns: int, now: int
    ) -> None:
        """See `Owner.answered`. The first that is no ERROR wins; others are cancelled."""
        del call.sent[endpoint]
        answer = (response, endpoint.server, sent_ns, now)
        if call.sent and response.status == pb.STATUS_ERROR:
            call.answer = answer
            return
        if not call.future.done():
            call.future.set_result(answer)
        self._calls.discard(call)
        for other in list(call.sent):
            other.cancel(call)

    def given_back(self, endpoint: Endpoint, call: Call, *, begun: bool, why: str) -> None:
        """See `Owner.given_back`."""
        call.sent.pop(endpoint, None)
        if call.future.done():
            return
        if begun:
            call.begun = True
            call.failures += 1
            call.error = endings.server_failed(self._module, endpoint, why)
        if call.sent:
            return  # another still has it
        over = not self._idempotent or call.failures >= FAILURES_MAX
        if call.answer is not None or (call.begun and over):
            self._finish(call, call.error)
            return
        if self._withdrawn:
            self._finish(call, WithdrawnError())
            return
        self._repeats += begun
        call.avoid = endpoint.standing
        call.since_ns = time.monotonic_ns()
        self._waiting.appendleft(call)

    def spoiled(self, endpoint: Endpoint, call: Call, why: str) -> None:
        """See `Owner.spoiled`."""
        del call.sent[endpoint]
        call.error = endings.server_failed(self._module, endpoint, why)
        if not call.sent:
            self._finish(call, call.error)

    def timed_out(self, endpoint: Endpoint, call: Call) -> None:
        """See `Owner.timed_out`."""
        del call.sent[endpoint]
        self._time_out(call, [endpoint, *call.sent], time.monotonic_ns())

    def moved(self) -> None:
        """See `Owner.moved`."""
        if self._closed:
            return
        self._dispatch(time.monotonic_ns())
        room = self.room
        grown, self._told = room > (0 if self._taken else self._told), room
        if grown:
            self._taken = False
            self._on_room()

    def lost(self) -> None:
        """See `Owner.lost`."""
        self._ejections += 1
        self._finder.hurry()

    # -- servers --------------------------------------------------------------------------------
    def _found(self, places: Mapping[str, Place]) -> None:
        for key in [key for key in self._endpoints if key not in places]:
            gone = self._endpoints.pop(key)
            self._leaving.add(gone)
            gone.retire()
        for key, place in places.items():
            if key not in self._endpoints:
                self._add(key, place)
        self._rebuild()

    def _add(self, key: str, place: Place) -> None:
        endpoint = Endpoint(place, self._terms)
        self._endpoints[key] = endpoint
        task = self._tend(endpoint.tend(), f"tend {key} of")
        task.add_done_callback(lambda _: self._leaving.discard(endpoint))

    def _rebuild(self) -> None:
        self._of = {each.standing: each for each in self._endpoints.values()}
        self._standings = list(self._of)

    # -- time -----------------------------------------------------------------------------------
    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now_ns = time.monotonic_ns()
            late = now_ns - self._swept_ns > SWEEP_S * 1e9 + LATE_NS
            self._swept_ns = now_ns
            for endpoint in (*self._endpoints.values(), *self._leaving):
                endpoint.check(now_ns, late=late)
                endpoint.standing.rested()
            if self._deadline_ns is not None and now_ns >= self._deadline_ns:
                self._expire(now_ns)
            self.moved()

    def _expire(self, now_ns: int) -> None:
        expired, first_ns = [], None
        for call in self._calls:
            if call.deadline_ns is None:
                continue
            if call.deadline_ns <= now_ns:
                expired.append(call)
            elif first_ns is None or call.deadline_ns < first_ns:
                first_ns = call.deadline_ns
        self._deadline_ns = first_ns
        for call in expired:
            if call.sent:
                self._time_out(call, list(call.sent), now_ns)
            else:
                self._finish(call, self._end_of(call, "its deadline has passed"))

    def _time_out(self, call: Call, having: Sequence[Endpoint], now_ns: int) -> None:
        for endpoint in having:
            endpoint.overdue(call, now_ns)
        self._finish(call, endings.timed_out(self._module, having))

    def _end_of(self, call: Call, what: str) -> Exception:
        return endings.end_of(self._module, call, list(self._endpoints.values()), what)
