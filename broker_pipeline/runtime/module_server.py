"""The module server role: a module behind gRPC, announced in the broker where that is wanted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broker_pipeline.broker import jetstream
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.names import server_status_subject
from broker_pipeline.errors import BrokerPipelineError, ServeError
from broker_pipeline.external.credentials import (
    MESSAGE_BYTES_MAX,
    is_loopback,
    plaintext_warning,
    server_credentials,
)
from broker_pipeline.external.server import HEARTBEAT_S, ModuleServer
from broker_pipeline.modules import Module
from broker_pipeline.observe.meter import Meter
from broker_pipeline.observe.metering import NOT_EXPOSED, Exposure
from broker_pipeline.observe.status import Role
from broker_pipeline.pipeline import NAME
from broker_pipeline.runtime.addresses import advertised, join, next_address
from broker_pipeline.runtime.lifecycle import unless_stopped
from broker_pipeline.runtime.reporting import reporter
from broker_pipeline.runtime.roles import READY, RETRY_MAX_S, RETRY_MIN_S, Announce
from broker_pipeline.runtime.serving import ExecutorHost
from broker_pipeline.runtime.supervisor import Child, Supervisor
from broker_pipeline.runtime.worker import LOST_SLOTS_CHECK_S, WorkerEnd, default_slots

if TYPE_CHECKING:
    from broker_pipeline.external.registry import Announcer

log = logging.getLogger(__name__)

DEFAULT_PORT = 50051
PORT_MAX = 65535


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a module is served.

    Args:
        host: the address to listen at; "0.0.0.0" are all of this machine.
        port: 0 takes a free one.
        slots: packages at the same time; None: one a processor.
        name: under which it is announced; None: the module's.
        announce: the broker in which callers find it, and from which it fetches large payloads by
            reference; None: it is not announced, and gets all payloads in messages.
        advertise: `HOST:PORT` or `HOST` as callers reach it; None: the address that it listens at,
            or this machine's name.
        cert: the server's certificate, PEM; None: plaintext.
        key: its private key.
        client_ca: who must have signed the certificates of callers; None: they need none.
        token: what callers must show; None: nothing.
        pipelines: those whose payloads it fetches and stores by reference; None: any, but none
            where it can be called from elsewhere by whoever wants to.
        target: the module's TARGET, for modules that are isolated in processes.
        message_bytes_max: the largest message that is taken and sent.
        heartbeat_s: each stream gets a message at least so often.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    slots: int | None = None
    name: str | None = None
    announce: str | None = None
    advertise: str | None = None
    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    token: str | None = None
    pipelines: Sequence[str] | None = None
    target: str | None = None
    message_bytes_max: int = MESSAGE_BYTES_MAX
    heartbeat_s: float = HEARTBEAT_S


class RunningServer:
    """A module server that is there.

    Attributes:
        name: under which the module is served.
        address: `host:port` that it listens at.
    """

    def __init__(
        self, server: ModuleServer, host: ExecutorHost, options: Serving, meter: Meter | None
    ) -> None:
        self.name = host.description.name
        self.address = join(options.host, server.port)
        self.advertised = advertised(options.host, server.port, options.advertise)
        self._server = server
        self._host = host
        self._options = options
        self._status = reporter(
            Role.SERVER, meter=meter, phases=(self.name,), address=self.advertised
        )
        self._announcing: asyncio.Task[None] | None = None
        self._announcement: asyncio.Task[bool] | None = None
        self._unannounced = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def exhausted(self) -> bool:
        """Whether too many slots are lost in modules that do not come back."""
        return self._host.exhausted

    def announce(self) -> None:
        """Have callers find it, where that is wanted; for as long as it is there."""
        if self._options.announce is not None:
            self._announcing = asyncio.create_task(
                self._announce(self._options.announce), name=f"announce {self.address}"
            )
            self._announcing.add_done_callback(self._announced)

    async def withdraw(self) -> None:
        """Have nobody find it any more."""
        self._unannounced.set()
        if self._announcement is not None:
            await asyncio.wait((self._announcement,))

    async def close(self) -> None:
        """Let go of the broker."""
        await self.withdraw()
        self._ended.set()
        if self._announcing is not None:
            await asyncio.wait((self._announcing,))

    async def drain(self) -> None:
        """Not healthy, not announced, nothing new; what runs is finished and answered."""
        await self._server.unhealthy()
        await self.withdraw()
        await self._server.drain()

    def _announced(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("module server %s is not announced any more", self.address, exc_info=error)

    async def _announce(self, url: str) -> None:
        """A broker that is away costs nothing but being found: it is tried again for ever."""
        retry_s, told = RETRY_MIN_S, False
        while not self._ended.is_set():
            try:
                await unless_stopped(self._ended, self._while_connected(url))
            except BrokerPipelineError as error:
                if not told:
                    told = True
                    log.warning("module server %s is not announced: %s", self.address, error)
            else:
                retry_s, told = RETRY_MIN_S, False
            retry_s = min(RETRY_MAX_S, retry_s * 2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry_s):
                    await self._ended.wait()

    async def _while_connected(self, url: str) -> None:
        broker = await jetstream.connect(url, reconnect=True, name=f"bp module {self.name}")
        payloads = self._host.payloads
        try:
            if payloads is not None:
                payloads.connected(broker)
            if not self._unannounced.is_set():
                working = unless_stopped(self._unannounced, self._while_announced(broker))
                self._announcement = asyncio.create_task(working, name=f"announced {self.address}")
                await self._announcement
            await asyncio.wait((broker.lost,))  # what runs still may have large answers
            broker.lost.result()
        finally:
            if payloads is not None:
                payloads.connected(None)
            with contextlib.suppress(RuntimeError):  # nats-py's last flush, as in roles._close
                await broker.close()

    async def _while_announced(self, broker: Broker) -> None:
        announcer = self._announcer(broker)
        await broker.answer(server_status_subject(self.name), self._status.answer)
        try:
            await announcer.start()
            log.info("module server %s is announced as %r", self.advertised, self.name)
            ends = (broker.lost, announcer.failed)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for each in ends:
                if each.done():
                    each.result()
        finally:
            await announcer.withdraw()

    def _announcer(self, broker: Broker) -> Announcer:
        from broker_pipeline.external.registry import Announcer

        tls = self._options.cert is not None
        description = self._server.servicer.description
        return Announcer(broker, description, self.advertised, self._host.load, tls=tls)


@contextlib.asynccontextmanager
async def running(
    module: Module[Any], options: Serving, meter: Meter | None = None
) -> AsyncIterator[RunningServer]:
    """A module server for as long as the context lasts; it is drained at its end.

    Args:
        meter: what it counts, for whoever asks; None: nothing.

    Raises:
        ServeError, CredentialsError, SetupError: it cannot begin.
    """
    slots = default_slots() if options.slots is None else options.slots
    if slots < 1:
        raise ServeError(f"slots is {slots!r}; expected at least 1, or None: one a processor")
    advertised(options.host, options.port, options.advertise)
    credentials = server_credentials(options.cert, options.key, options.client_ca)
    address = join(options.host, options.port)
    pipelines = _pipelines(options, address)
    host = ExecutorHost(
        module, slots=slots, name=options.name, target=options.target,
        references=options.announce is not None, pipelines=pipelines, meter=meter,
    )  # fmt: skip
    server = ModuleServer(
        host,
        address,
        credentials=credentials,
        token=options.token,
        message_bytes_max=options.message_bytes_max,
        heartbeat_s=options.heartbeat_s,
    )
    host.changed = server.servicer.rebalance
    if host.payloads is not None:
        host.payloads.answer_bytes_max = server.servicer.answer_bytes_max
    await server.check()
    token = options.token is not None
    if line := plaintext_warning(address, tls=credentials is not None, token=token, serving=True):
        log.warning(line)
    if options.announce is not None and not pipelines and pipelines is not None:
        log.warning(_NOT_BY_REFERENCE, address)
    await host.start()
    try:
        await server.start()
        there = RunningServer(server, host, options, meter)
        there.announce()
        try:
            yield there
            await there.drain()
        finally:
            await there.close()
    finally:
        await server.close()
        await host.close()


def serve(
    module: Module[Any],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    slots: int | None = None,
    name: str | None = None,
    announce: str | None = None,
    advertise: str | None = None,
    cert: str | None = None,
    key: str | None = None,
    client_ca: str | None = None,
    token: str | None = None,
    pipelines: Sequence[str] | None = None,
    target: str | None = None,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    heartbeat_s: float = HEARTBEAT_S,
) -> contextlib.AbstractAsyncContextManager[RunningServer]:
    """Serve a module behind gRPC: `async with serve(Upper()) as server: ... server.address`.

    At the end of the context it drains: what runs is finished. A module that is busy in Python
    takes turns with whatever else the process does: give it a program of its own.

    Args:
        module: what to run; its attributes `version` (text) and `content_types` (texts), where it
            has them, are told to callers.
        port: 0 takes a free one.
        host, slots, name, announce, advertise, cert, key, client_ca, token, pipelines, target,
            message_bytes_max, heartbeat_s: see `Serving`.

    Raises:
        ServeError, CredentialsError, SetupError: on entering; it cannot begin.
    """
    options = Serving(
        host=host,
        port=port,
        slots=slots,
        name=name,
        announce=announce,
        advertise=advertise,
        cert=cert,
        key=key,
        client_ca=client_ca,
        token=token,
        pipelines=pipelines,
        target=target,
        message_bytes_max=message_bytes_max,
        heartbeat_s=heartbeat_s,
    )
    return running(module, options)


_NOT_BY_REFERENCE = (
    "large payloads are not fetched by reference: whoever reaches the module server at %s can call "
    "it, and could have payloads of any pipeline read or stored; say whose with --pipeline NAME, "
    "or give it --token-file or --client-ca"
)


def _pipelines(options: Serving, address: str) -> Sequence[str] | None:
    """Whose payloads are fetched and stored; None: of any pipeline. Raises ServeError."""
    given = options.pipelines
    if given is None:
        known = options.token is not None or options.client_ca is not None
        return None if known or is_loopback(address) else ()
    if isinstance(given, str) or not all(NAME.fullmatch(name) for name in given):
        raise ServeError(f"pipelines is {given!r}; expected names of pipelines, such as ['speech']")
    return given


async def run_server(
    module: Module[Any],
    options: Serving,
    stop: asyncio.Event,
    *,
    announce: Announce,
    meter: Meter | None = None,
) -> WorkerEnd:
    """The role: serve until `stop` is set, then drain.

    Returns:
        RESTART where too many slots are lost in modules that do not come back.
    """
    async with running(module, options, meter) as server:
        announce(f"module server of {server.name!r} {READY}: {server.address}")
        while not stop.is_set() and not server.exhausted:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOST_SLOTS_CHECK_S):
                    await stop.wait()
        if stop.is_set():
            return WorkerEnd.DRAINED
    return WorkerEnd.RESTART


async def run_servers(
    options: Serving,
    workers: int,
    stop: asyncio.Event,
    *,
    token_file: str | None,
    exposure: Exposure,
    announce: Announce,
) -> None:
    """Several servers of `options.target` as processes, until `stop` is set; one that dies is
    started again. Raises ChildFailedError, ServeError."""
    children = plan_servers(options, workers, token_file, exposure)
    await Supervisor(children, None, announce).run(stop)


def plan_servers(
    options: Serving, workers: int, token_file: str | None, exposure: Exposure = NOT_EXPOSED
) -> list[Child]:
    """Which processes to start: each on the next ports. Raises ServeError."""
    if options.port + workers - 1 > PORT_MAX:
        raise ServeError(
            f"{workers} servers from port {options.port} on would need ports above {PORT_MAX}; "
            f"take a lower port, or 0 for free ones"
        )
    given = {
        "--host": options.host,
        "--slots": options.slots,
        "--name": options.name,
        "--announce": options.announce,
        "--tls-cert": options.cert,
        "--tls-key": options.key,
        "--client-ca": options.client_ca,
        "--token-file": token_file,
    }
    shared = [part for key, value in given.items() if value is not None for part in (key, value)]
    shared += [part for name in options.pipelines or () for part in ("--pipeline", name)]
    children = []
    for number in range(workers):
        own = ["--port", options.port and options.port + number]
        if options.advertise is not None:
            own += ["--advertise", next_address(options.advertise, number)]
        arguments = ("serve", options.target, *shared, *own, *exposure.arguments(number))
        children.append(Child(f"server {number + 1}", tuple(str(each) for each in arguments)))
    return children
