"""Where the servers of a module are now, by its target: an address, a name, or the registry."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.broker.port import Broker
from broker_pipeline.errors import DeclarationError
from broker_pipeline.external.credentials import is_loopback, plaintext_warning
from broker_pipeline.external.endpoints import Place
from broker_pipeline.external.registry import Announcement, Watch
from broker_pipeline.modules import ExternalModule, Tls
from broker_pipeline.target_address import TargetAddress, parse_target

log = logging.getLogger(__name__)

RESOLVE_S = 5.0
"""How often a name is looked up: as long as DNS answers in clusters usually live."""
RESOLVE_MIN_S = 1.0
"""After a failure it is looked up at once, but not more often than this."""
RESOLVE_TIMEOUT_S = 10.0
"""A resolver that has not answered by then is asked again."""
ADDRESSES_MAX = 256
"""Addresses of one name that are used; more are said and left out."""

WARNED_MAX = 100
"""Addresses without TLS that are said, once in a process each."""

_warned: set[str] = set()

Found = Callable[[Mapping[str, Place]], None]
"""Is told all places by key when some have come or gone."""
LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a name. Raises OSError."""


async def look_up(name: str, port: int) -> Sequence[str]:
    """All addresses of a name, IPv4 and IPv6, by the machine's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in found]


class Finder:
    """Tells where a module's servers are.

    Args:
        found: called on the event loop.
        lookup: the resolver.
    """

    def __init__(
        self, module: ExternalModule, broker: Broker | None, found: Found, lookup: LookUp = look_up
    ) -> None:
        self._module = module
        self._broker = broker
        self._found = found
        self._lookup = lookup
        self._hurry = asyncio.Event()
        self._watch: Watch | None = None
        self._places: dict[str, Place] = {}
        self._left_out: set[str] = set()

    async def run(self) -> None:
        """Until it is cancelled. Raises what `Watch.failed` does."""
        address = self.parse()
        if address.kind == "host":
            self._tell([(f"{_bracketed(address.name)}:{address.port}", None)], address)
        elif address.kind == "dns":
            await self._resolve(address)
        else:
            await self._look(address.name)

    def parse(self) -> TargetAddress:
        """The target. Raises DeclarationError where it cannot be used."""
        try:
            address = parse_target(self._module.target)
        except ValueError as error:
            raise DeclarationError(f"ExternalModule {self._module.name!r}", [str(error)]) from None
        if address.kind == "registry" and self._broker is None:
            fault = (
                f"the target {self._module.target!r} is looked up in the broker, and there is "
                f"none here; give it an address"
            )
            raise DeclarationError(f"ExternalModule {self._module.name!r}", [fault])
        return address

    def hurry(self) -> None:
        """A server has failed: look sooner."""
        self._hurry.set()

    # -- a name ---------------------------------------------------------------------------------
    async def _resolve(self, address: TargetAddress) -> None:
        works, full = True, False
        while True:
            self._hurry.clear()
            try:
                async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                    hosts = list(dict.fromkeys(await self._lookup(address.name, address.port)))
                if not hosts:
                    raise OSError("it has no address")
            except (OSError, UnicodeError) as error:  # a TimeoutError is an OSError
                if works:
                    log.warning(
                        "the name %r of %r cannot be looked up: %s; its servers stay as they were",
                        address.name, self._module.name, error or type(error).__name__,
                    )  # fmt: skip
                works = False
            else:
                works = True
                was_full, full = full, len(hosts) > ADDRESSES_MAX
                if full and not was_full:
                    log.warning("%r has more than %d addresses", address.name, ADDRESSES_MAX)
                authority = f"{_bracketed(address.name)}:{address.port}"
                self._tell([(_numeric(host, address.port), authority) for host in hosts], address)
            await asyncio.sleep(RESOLVE_MIN_S)
            try:
                async with asyncio.timeout(RESOLVE_S - RESOLVE_MIN_S):
                    await self._hurry.wait()
            except TimeoutError:
                pass

    def _tell(self, targets: Sequence[tuple[str, str | None]], address: TargetAddress) -> None:
        options = self._module.options
        places: dict[str, Place] = {}
        for target, authority in targets[:ADDRESSES_MAX]:
            shown = target.partition(":")[2] if authority is not None else target
            for number in range(max(1, options.streams)):
                key = f"{target}#{number}"
                places[key] = Place(key, target, shown, None, authority=authority, tls=options.tls)
        self._changed(places)

    def _changed(self, places: dict[str, Place]) -> None:
        if places.keys() != self._places.keys():
            self._places = places
            for address in dict.fromkeys(e.address for e in places.values() if e.tls is None):
                _warn(address, token=self._module.options.token is not None)
            self._found(places)

    # -- the registry ---------------------------------------------------------------------------
    async def _look(self, name: str) -> None:
        assert self._broker is not None
        watch = Watch(self._broker, name, self._announced)
        await watch.start()
        try:
            await watch.failed
        finally:
            await watch.close()

    def _announced(self, servers: Mapping[str, Announcement]) -> None:
        places: dict[str, Place] = {}
        self._left_out &= servers.keys()
        for server, said in servers.items():
            if why := self._unusable(said):
                if server not in self._left_out:
                    self._left_out.add(server)
                    log.error(
                        "server %r of module %r at %r is left out: %s",
                        said.server, said.name, said.address, why,
                    )  # fmt: skip
                continue
            for place in self._announced_one(server, said):
                places[place.key] = place
        self._changed(places)

    def _unusable(self, said: Announcement) -> str:
        """Why an announced server is not called; '' where it is. Whoever writes to the broker may
        announce one, so it decides neither about TLS nor about who learns the token."""
        options, name = self._module.options, self._module.name
        try:
            if parse_target(said.address).kind != "host":
                raise ValueError("that is no 'host:port'")
        except ValueError as error:
            return str(error)
        if said.tls:
            return ""
        if options.tls is not None:
            return f"it has no TLS, and ExternalModule {name!r} asks for it"
        if options.token is not None and not is_loopback(said.address):
            return (
                f"it has no TLS, and the token of ExternalModule {name!r} could be read on the "
                f"way: start it with --tls-cert and --tls-key, or name its address as the target"
            )
        return ""

    def _announced_one(self, server: str, said: Announcement) -> list[Place]:
        options = self._module.options
        tls = options.tls or (Tls() if said.tls else None)
        load = service.Load(
            running=said.running & 0xFFFFFFFF,
            waiting=said.waiting & 0xFFFFFFFF,
            run_time_ns=said.run_time_ns & 0xFFFFFFFFFFFFFFFF,
        )
        return [
            Place(
                f"{server}#{number}", said.address, said.address, said.name, tls=tls,
                server=said.server, hint=(said.capacity & 0xFFFFFFFF, load),
            )
            for number in range(max(1, options.streams))
        ]  # fmt: skip


def _warn(address: str, *, token: bool) -> None:
    line = plaintext_warning(address, tls=False, token=token)
    if line is not None and address not in _warned and len(_warned) < WARNED_MAX:
        _warned.add(address)
        log.warning("%s", line)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _numeric(host: str, port: int) -> str:
    """An address as gRPC takes it without asking a resolver."""
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
