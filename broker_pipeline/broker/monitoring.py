"""What nats-server shows on its monitoring port and to no client: its intervals, and its disk.

The port is off unless the server's configuration has `http`. It is asked only where a person names
it.
"""

from __future__ import annotations

import asyncio
import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from broker_pipeline.broker.api import UNREADABLE
from broker_pipeline.errors import MonitoringError
from broker_pipeline.journey import NS

TIMEOUT_S = 3.0
PAGE_BYTES_MAX = 4 << 20
"""A page of a server with everything switched on has some kilobytes."""
WHY_MAX = 100
SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What one nats-server is set to.

    Attributes:
        server: its name.
        ping_interval_s, pings_max: a peer that does not answer is cut off after `pings_max` pings,
            one each interval.
        sync_interval_s: so long what is acknowledged may not be on the disk yet; 0: it always is.
        storage_bytes, storage_bytes_max: what streams of all accounts use, and may.
        consumers_max: of a stream, unless it says otherwise; None: without a bound.
        unhealthy: why the server says that it is not well; '' where it is.
    """

    server: str
    ping_interval_s: float
    pings_max: int
    sync_interval_s: float
    storage_bytes: int
    storage_bytes_max: int
    consumers_max: int | None
    unhealthy: str

    @property
    def noticed_s(self) -> float:
        """After so long, at most, a peer is cut off that is paused or gone without a word."""
        return self.ping_interval_s * (self.pings_max + 1)


class _Config(msgspec.Struct, frozen=True):
    max_storage: int = 0
    sync_interval: int = 0
    sync_always: bool = False


class _Stats(msgspec.Struct, frozen=True):
    storage: int = 0


class _Limits(msgspec.Struct, frozen=True):
    default_max_consumers: int = 0


class _JetStream(msgspec.Struct, frozen=True):
    config: _Config | None = None
    stats: _Stats = _Stats()
    limits: _Limits = _Limits()


class _Varz(msgspec.Struct, frozen=True):
    server_name: str
    ping_interval: int
    ping_max: int
    jetstream: _JetStream = _JetStream()


class _Health(msgspec.Struct, frozen=True):
    status: str = ""
    error: str = ""


async def server_settings(url: str) -> ServerSettings:
    """Ask the monitoring port, such as `http://127.0.0.1:8222`.

    Raises:
        MonitoringError: nothing answers there, or not nats-server.
    """
    base = url.rstrip("/")
    if urlsplit(base).scheme not in SCHEMES:
        raise _error(url, "it is no http address")
    varz, health = await asyncio.gather(
        asyncio.to_thread(_page, url, f"{base}/varz"),
        asyncio.to_thread(_page, url, f"{base}/healthz"),
    )
    try:
        said = msgspec.json.decode(varz, type=_Varz)
        well = msgspec.json.decode(health, type=_Health)
    except UNREADABLE as error:
        raise _error(url, f"what answers is not nats-server ({error})") from error
    config = said.jetstream.config or _Config()
    most = said.jetstream.limits.default_max_consumers
    return ServerSettings(
        server=said.server_name,
        ping_interval_s=said.ping_interval / NS,
        pings_max=said.ping_max,
        sync_interval_s=0.0 if config.sync_always else config.sync_interval / NS,
        storage_bytes=said.jetstream.stats.storage,
        storage_bytes_max=config.max_storage,
        consumers_max=most if most > 0 else None,
        unhealthy="" if well.status == "ok" else well.error or well.status or "no reason given",
    )


def _page(url: str, page: str) -> bytes:
    try:
        with urllib.request.urlopen(page, timeout=TIMEOUT_S) as answer:
            return bytes(answer.read(PAGE_BYTES_MAX))
    except urllib.error.HTTPError as error:  # an unhealthy server says so with 503, and why
        with error:
            return error.read(PAGE_BYTES_MAX)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _error(url, str(error)) from error


def _error(url: str, why: str) -> MonitoringError:
    return MonitoringError(
        f"the monitoring address {url!r} tells nothing: {why[:WHY_MAX]}; expected that of a "
        "nats-server with `http` in its configuration, such as http://127.0.0.1:8222; correct it, "
        "or go without",
        url=url,
    )
