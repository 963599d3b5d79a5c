"""Which module servers there are: they announce themselves in the broker, and callers look.

A server puts what it is under a key of its own once a second; the key vanishes when the server is
silent, and at once when it withdraws. Callers ask for the keys alone, and read a value once: how
busy a server is they hear from itself. Announcing and looking live on while the broker is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Annotated

import msgspec

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import SERVER_BUCKET, SERVER_TTL_S, servers_prefix
from broker_pipeline.errors import BrokerError, NotFoundError

log = logging.getLogger(__name__)

ANNOUNCE_S = 1.0
"""How often a server says that it is there: several times within SERVER_TTL_S."""
LOOK_S = 0.5
"""How often a caller looks who is there: a new server has its share well within two seconds."""
ANSWER_S = 2.0
"""How long one question to the broker may take; then it counts as away, and the next is asked."""
WITHDRAW_S = 1.0
"""How long taking leave may take: a broker that does not answer forgets us after SERVER_TTL_S."""
SERVERS_MAX = 256
"""Servers of one module that a caller knows at once; more are said and left out."""
TEXT_MAX = 1024
"""The longest text in an announcement; anybody may write one."""

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=TEXT_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What a module server says of itself.

    Attributes:
        name: the module's name.
        address: where it is called, `host:port`.
        server: its name, as it stands in errors.
        version: the module's version.
        capacity: how many packages it runs at the same time; 0: it does not say.
        running: packages being run, when it was written.
        waiting: packages that waited for their turn in the server, when it was written.
        run_time_ns: how long a package takes, on average; 0: not known.
        tls: whether it is called by TLS.
        stateful: whether the module has a state.
    """

    name: Text
    address: Text
    server: Annotated[str, msgspec.Meta(max_length=TEXT_MAX)] = ""
    version: Annotated[str, msgspec.Meta(max_length=TEXT_MAX)] = ""
    capacity: Count = 0
    running: Count = 0
    waiting: Count = 0
    run_time_ns: Count = 0
    tls: bool = False
    stateful: bool = False


class Announcer:
    """Says that a module server is there, for as long as it is.

    Args:
        description: what is served.
        address: where callers reach it.
        load: how busy it is now.
        tls: whether callers need TLS.

    Attributes:
        id: this server's, new for each process start.
        failed: ends with an exception when announcing has ended by itself, which it never should.
    """

    def __init__(
        self,
        broker: Broker,
        description: service.Description,
        address: str,
        load: Callable[[], service.Load],
        *,
        tls: bool = False,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._broker = broker
        self._key = servers_prefix(description.name) + self.id
        self._description = description
        self._address = address
        self._load = load
        self._tls = tls
        self._has_bucket = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; does not wait for the broker."""
        tending = _again_and_again(self._announce, ANNOUNCE_S, f"announcing {self._address}")
        self._task = _tended(tending, f"announce {self._address}", self.failed)

    async def withdraw(self) -> None:
        """Be found no more, at once where the broker answers; idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        await _end(task, self.failed)
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(WITHDRAW_S):
                await self._broker.kv_erase(SERVER_BUCKET, self._key)

    async def _announce(self) -> None:
        if not self._has_bucket:
            await self._broker.ensure_bucket(SERVER_BUCKET, ttl_s=SERVER_TTL_S)
        self._has_bucket = False  # after any error it is looked for: the broker may be a new one
        value = msgspec.json.encode(self._announcement())
        await self._broker.kv_put(SERVER_BUCKET, self._key, value)
        self._has_bucket = True

    def _announcement(self) -> Announcement:
        what, load = self._description, self._load()
        return Announcement(
            name=what.name,
            address=self._address,
            server=what.server[:TEXT_MAX],
            version=what.version[:TEXT_MAX],
            capacity=what.capacity,
            running=load.running,
            waiting=load.waiting,
            run_time_ns=load.run_time_ns,
            tls=self._tls,
            stateful=what.stateful,
        )


Changed = Callable[[Mapping[str, Announcement]], None]


class Watch:
    """Looks which servers of a module there are.

    While the broker does not answer they stay as they were, and for SERVER_TTL_S after that: those
    that are still there need a moment to say so again.

    Args:
        name: the module's name.
        changed: called on the event loop with all servers by id when some have come or gone.

    Attributes:
        failed: ends with an exception when looking has ended by itself, which it never should.
    """

    def __init__(self, broker: Broker, name: str, changed: Changed) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._broker = broker
        self._name = name
        self._prefix = servers_prefix(name)
        self._changed = changed
        self._known: dict[str, Announcement] = {}
        self._refused: set[str] = set()
        self._answered = True
        self._full = False
        self._gone_from = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; does not wait for the broker."""
        tending = _again_and_again(self._look, LOOK_S, f"looking for servers of {self._name!r}")
        self._task = _tended(tending, f"watch {self._name}", self.failed)

    async def close(self) -> None:
        """Look no more; `changed` is not called any more."""
        task, self._task = self._task, None
        if task is not None:
            await _end(task, self.failed)

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time
        try:
            there = set(await _ids(self._broker, self._prefix))
        except BaseException:
            self._answered = False
            raise
        if not self._answered:
            self._answered = True
            self._gone_from = now() + SERVER_TTL_S
        self._refused &= there
        gone = self._known.keys() - there if now() >= self._gone_from else set()
        room = SERVERS_MAX - (len(self._known) - len(gone))
        new = sorted(there - self._known.keys() - self._refused)
        full, self._full = self._full, len(new) > room
        if self._full and not full:
            log.warning(
                "module %r has more than %d servers; the rest gets no packages from here",
                self._name,
                SERVERS_MAX,
            )
        found = await asyncio.gather(*(self._read(each) for each in new[: max(0, room)]))
        came = {each.id: each.said for each in found if each is not None}
        if came or gone:
            stayed = {key: said for key, said in self._known.items() if key not in gone}
            self._known = stayed | came
            self._changed(dict(self._known))

    async def _read(self, server: str) -> _Found | None:
        entry = await self._broker.kv_get(SERVER_BUCKET, self._prefix + server)
        said = None if entry is None else _decode(entry.value)
        if entry is not None and (said is None or said.name != self._name):
            log.warning(
                "%s%s in bucket %r is no server of module %r: %r",
                self._prefix, server, SERVER_BUCKET, self._name, entry.value[:200],
            )  # fmt: skip
            self._refused.add(server)
            return None
        return None if said is None else _Found(server, said)


class _Found(msgspec.Struct, frozen=True):
    id: str
    said: Announcement


async def listed(broker: Broker) -> list[Announcement]:
    """All servers of all modules, by name and address; none where none was ever announced."""
    # Not `kv_keys`, which misses values that are just being renewed.
    keys = await _ids(broker, "")
    entries = [await broker.kv_get(SERVER_BUCKET, key) for key in keys]
    said = [_decode(entry.value) for entry in entries if entry is not None]
    found = [each for each in said if each is not None]
    return sorted(found, key=lambda each: (each.name, each.address, each.server))


def _decode(value: bytes) -> Announcement | None:
    try:
        return msgspec.json.decode(value, type=Announcement)
    except (ValueError, RecursionError):
        return None  # a stranger's: it vanishes with its TTL like any other


async def _ids(broker: Broker, prefix: str) -> list[str]:
    try:
        keys = await broker.kv_listed(SERVER_BUCKET, prefix)
    except NotFoundError:
        return []  # no server was ever announced here
    return [key[len(prefix) :] for key in keys]


async def _again_and_again(work: Callable[[], Awaitable[None]], every_s: float, what: str) -> None:
    """What fails is tried again; it is said when it begins to fail and when it is over."""
    works = True
    while True:
        try:
            async with asyncio.timeout(ANSWER_S):
                await work()
        except (BrokerError, TimeoutError) as error:
            if works:
                log.warning("%s: the broker does not answer; goes on trying: %s", what, error)
            works = False
        else:
            if not works:
                log.info("%s: the broker answers again", what)
            works = True
        await asyncio.sleep(every_s)


def _tended(
    tending: Coroutine[None, None, None], name: str, failed: asyncio.Future[None]
) -> asyncio.Task[None]:
    """A task whose end by itself is told to `failed`."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not failed.done():
            log.error("%s has ended", name, exc_info=error)
            failed.set_exception(error)

    task = asyncio.get_running_loop().create_task(tending, name=name)
    task.add_done_callback(ended)
    return task


async def _end(task: asyncio.Task[None], failed: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    failed.cancel()
