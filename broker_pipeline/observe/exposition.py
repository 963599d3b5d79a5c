"""A meter as Prometheus reads it, over HTTP.

The server has a thread of its own. For each scrape it has one reading made on the event loop, so
that all values are of one moment, and renders it in its own thread. A scraper that is slow, or does
not go away, holds up other scrapers for a bounded time and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import TimeoutError as NoReadingError
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import accumulate
from socket import AF_INET, AF_INET6, SHUT_RDWR, socket
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from broker_pipeline import __version__
from broker_pipeline.errors import MetricsError
from broker_pipeline.observe.catalogue import ALL, BUILD_INFO
from broker_pipeline.observe.meter import Kind, Meter, Sample

log = logging.getLogger(__name__)

READING_S = 2.0
"""How long the event loop may take to make a reading: Prometheus gives up after 10 s."""
REQUEST_S = 5.0
"""How long a client may take, from its first byte to its last: then it is cut off."""
POLL_S = 0.1
"""How long the end of the server may wait for it."""
PATH = "/metrics"
_SECONDS = {name: [bound / metric.scale for bound in metric.bounds] for name, metric in ALL.items()}


class MeterCollector(Collector):
    """Gives a meter's readings to prometheus_client; from any thread but the event loop's."""

    def __init__(self, read: Callable[[], list[Sample]]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Nothing: it is asked before there is anything to read."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One reading, by metric. Raises NoReadingError where the event loop does not answer."""
        families: dict[str, list[Sample]] = {}
        for sample in self._read():
            families.setdefault(sample.name, []).append(sample)
        for name, samples in families.items():
            yield _family(name, samples)


def _family(name: str, samples: list[Sample]) -> Metric:
    metric = ALL[name]
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
        bounds = [*map(str, _SECONDS[name]), "+Inf"]
        for sample in samples:
            buckets = list(zip(bounds, accumulate(sample.counts), strict=True))
            histogram.add_metric(sample.labels, buckets, sample.value)
        return histogram
    simple: CounterMetricFamily | GaugeMetricFamily
    if metric.kind is Kind.COUNTER:
        simple = CounterMetricFamily(name, metric.help, labels=metric.labels)
    else:
        simple = GaugeMetricFamily(name, metric.help, labels=metric.labels)
    for sample in samples:
        simple.add_metric(sample.labels, sample.value)
    return simple


@contextlib.asynccontextmanager
async def exposed(meter: Meter, *, host: str, port: int, role: str) -> AsyncIterator[str]:
    """Answer scrapers for as long as the context lasts; gives the URL.

    Args:
        meter: of this event loop.
        host: the address to listen at; "0.0.0.0" or "::" are all of this machine.
        port: 0 takes a free one.
        role: what this process is, for `build_info`.

    Raises:
        MetricsError: it cannot listen there.
    """
    loop = asyncio.get_running_loop()
    build = BUILD_INFO.sample(role, __version__, platform.python_version(), value=1)

    async def read() -> list[Sample]:
        return [build, *meter.read()]

    def reading() -> list[Sample]:
        asked = asyncio.run_coroutine_threadsafe(read(), loop)
        try:
            return asked.result(READING_S)
        except NoReadingError:
            asked.cancel()
            raise

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(MeterCollector(reading))
    server = _listen(registry, host, port)
    thread = threading.Thread(
        target=server.serve_forever, args=(POLL_S,), name="metrics", daemon=True
    )
    thread.start()
    try:
        name = f"[{host}]" if ":" in host else host
        yield f"http://{name}:{server.server_address[1]}{PATH}"
    finally:
        server.cut_off()
        # Beside the loop, on which the server may be waiting for a reading.
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join, REQUEST_S)


class _Server(HTTPServer):
    """Scrapes one after the other: there are few, and none can hold the others up for long."""

    allow_reuse_address = True
    registry: CollectorRegistry
    _scraper: socket | None = None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer one scraper, within REQUEST_S whatever it does."""
        self._scraper = request
        timer = threading.Timer(REQUEST_S, self.cut_off)
        timer.daemon = True
        timer.start()
        try:
            super().process_request(request, client_address)
        finally:
            timer.cancel()
            self._scraper = None

    def cut_off(self) -> None:
        """End the scrape that is going on, if there is one."""
        if (scraper := self._scraper) is not None:
            with contextlib.suppress(OSError):  # it has just ended
                scraper.shutdown(SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper has gone away, or is too slow."""
        log.debug("a scrape from %s failed", client_address, exc_info=True)


def _listen(registry: CollectorRegistry, host: str, port: int) -> _Server:
    kind = type("Server", (_Server,), {"address_family": AF_INET6 if ":" in host else AF_INET})
    try:
        server: _Server = kind((host, port), _Handler)
    except (OSError, OverflowError) as error:
        raise MetricsError(
            f"metrics cannot be served at {host!r}, port {port} ({error}); expected an address of "
            f"this machine and a port that is free: take another --metrics-port, or 0 for any",
            host=host,
            port=port,
        ) from error
    server.registry = registry
    return server


class _Handler(BaseHTTPRequestHandler):
    """Answers one scrape."""

    server: _Server
    server_version = "broker-pipeline"
    sys_version = ""

    def do_GET(self) -> None:
        """The metrics, in the format that the scraper asks for."""
        if self.path.partition("?")[0] != PATH:
            self._answer(404, f"metrics are at {PATH}\n".encode())
            return
        encode, content_type = choose_encoder(self.headers.get("Accept") or "")
        try:
            body = encode(self.server.registry)
        except NoReadingError:
            self._answer(503, f"no reading within {READING_S:g} s: the role is busy\n".encode())
        else:
            self._answer(200, body, content_type)

    def _answer(self, status: int, body: bytes, content_type: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A scrape every few seconds is not worth a line."""
