"""A meter over HTTP: what scrapers get, and what they cannot do."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from broker_pipeline.errors import MetricsError
from broker_pipeline.journey import NS
from broker_pipeline.observe import catalogue, exposition
from broker_pipeline.observe.exposition import exposed
from broker_pipeline.observe.meter import Meter, Sample
from broker_pipeline.observe.metering import SWITCH, Exposure, metering

LOCAL = "127.0.0.1"


def get(url: str, **headers: str) -> tuple[int, str]:
    """Status and body."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def scrape(url: str, **headers: str) -> tuple[int, str]:
    """Beside the loop, which makes the reading."""
    return await asyncio.to_thread(get, url, **headers)


async def test_a_scrape_gives_what_was_counted_in_base_units() -> None:
    """Counters, gauges and histograms with the bounds of the catalogue, cumulative as Prometheus
    wants them, and what the process uses."""
    meter = Meter()
    meter.counter(catalogue.LEADER_TERMS, "demo", "0").value = 3
    times = meter.histogram(catalogue.PACKAGE_TIME, "demo", "0", "success")
    for took_ns in (NS // 1000, NS // 1000, 2 * NS, 1000 * NS):
        times.observe(took_ns)
    async with exposed(meter, host=LOCAL, port=0, role="controller") as url:
        status, body = await scrape(url)
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert families["broker_pipeline_leader_terms"].samples[0].value == 3
    found = {
        (sample.name.rpartition("_")[2], sample.labels.get("le")): sample.value
        for sample in families["broker_pipeline_package_time_seconds"].samples
    }
    assert found["sum", None] == 1002.002 and found["count", None] == 4
    assert found["bucket", "0.0005"] == 0 and found["bucket", "0.001"] == 2
    assert found["bucket", "2.5"] == 3 and found["bucket", "+Inf"] == 4
    (build,) = families["broker_pipeline_build_info"].samples
    assert build.labels["role"] == "controller" and build.value == 1
    assert ("process_cpu_seconds" in families) == (sys.platform == "linux")


async def test_names_of_any_kind_are_served_as_they_are() -> None:
    """Quotes, backslashes, line ends, and 100 kB of text, in both formats."""
    names = ['a"b', "back\\slash", "two\nlines", "\N{SNOWMAN}", "x" * 100_000, ""]
    meter = Meter()
    for name in names:
        meter.counter(catalogue.LEADER_TERMS, name, "0")
    async with exposed(meter, host=LOCAL, port=0, role="worker") as url:
        _, plain = await scrape(url)
        _, other = await scrape(url, Accept="application/openmetrics-text; version=1.0.0")
    assert other.endswith("# EOF\n")
    for read, body in ((text_string_to_metric_families, plain), (open_metrics, other)):
        (family,) = [f for f in read(body) if f.name == "broker_pipeline_leader_terms"]
        assert [sample.labels["pipeline"] for sample in family.samples] == names


async def test_every_path_but_one_is_not_found() -> None:
    """It says where the metrics are; and other methods are refused."""
    async with exposed(Meter(), host=LOCAL, port=0, role="worker") as url:
        assert await scrape(url.replace("/metrics", "/")) == (404, "metrics are at /metrics\n")
        assert (await scrape(f"{url}?name=x"))[0] == 200
        request = urllib.request.Request(url, method="DELETE")
        with pytest.raises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(urllib.request.urlopen, request)
        refused.value.close()
        assert refused.value.code == 501


async def test_a_loop_that_is_busy_gives_no_reading_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scraper is told so, and the next one gets its reading."""
    monkeypatch.setattr(exposition, "READING_S", 0.05)
    async with exposed(Meter(), host=LOCAL, port=0, role="worker") as url:
        got: list[tuple[int, str]] = []
        scraper = threading.Thread(target=lambda: got.append(get(url)))
        scraper.start()
        scraper.join()  # on the loop: it cannot make a reading
        assert got[0][0] == 503 and "busy" in got[0][1]
        assert (await scrape(url))[0] == 200


async def test_a_reading_that_fails_fails_the_scrape_and_nothing_else() -> None:
    """The scraper sees it; the role goes on, and so does the server."""
    meter = Meter()

    def broken() -> Iterator[Sample]:
        raise RuntimeError("a fault of ours")

    close = meter.add_source(broken)
    async with exposed(meter, host=LOCAL, port=0, role="worker") as url:
        with pytest.raises(OSError, match=r"closed|reset"):
            await scrape(url)
        close()
        assert (await scrape(url))[0] == 200


async def test_a_scraper_that_does_not_go_on_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that connects and says nothing, and one that says half a request: the next is served."""
    monkeypatch.setattr(exposition, "REQUEST_S", 0.05)
    async with exposed(Meter(), host=LOCAL, port=0, role="worker") as url:
        address = (LOCAL, int(url.rpartition(":")[2].partition("/")[0]))
        for said in (b"", b"GET /metr", b"\xff" * 1000):
            with socket.create_connection(address) as idle:
                idle.sendall(said)
                assert (await scrape(url))[0] == 200


async def test_the_end_does_not_wait_for_a_scraper_that_hangs() -> None:
    """A drain has better things to do."""
    async with exposed(Meter(), host=LOCAL, port=0, role="worker") as url:
        port = int(url.rpartition(":")[2].partition("/")[0])
        hanging = socket.create_connection((LOCAL, port))
        hanging.sendall(b"GET ")
        await asyncio.to_thread(lambda: None)
    with hanging, pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOCAL, port)).close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "::2"])
async def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    """With what to do."""
    with pytest.raises(MetricsError, match=r"BP518 .*--metrics-port"):
        async with exposed(Meter(), host=host, port=0, role="worker"):
            pass


async def test_a_port_that_is_taken_or_none_is_refused() -> None:
    """The message names it."""
    with socket.create_server((LOCAL, 0)) as taken:
        for port in (taken.getsockname()[1], 70_000):
            with pytest.raises(MetricsError, match=f"port {port} "):
                async with exposed(Meter(), host=LOCAL, port=port, role="worker"):
                    pass


async def test_the_switch_turns_counting_off_and_nothing_is_ignored() -> None:
    """Off: no meter. Off with a port, or another word: an error."""
    said: list[str] = []

    async def measured(exposure: Exposure, **environment: str) -> Meter | None:
        async with metering(
            exposure, role="worker", announce=said.append, environment=environment
        ) as meter:
            return meter

    assert await measured(Exposure()) is not None
    assert await measured(Exposure(), **{SWITCH: "off"}) is None
    assert said == []
    assert await measured(Exposure(0)) is not None
    assert said[0].startswith("metrics: http://127.0.0.1:") and said[0].endswith("/metrics")
    with pytest.raises(MetricsError, match=SWITCH):
        await measured(Exposure(0), **{SWITCH: "off"})
    with pytest.raises(MetricsError, match="--metrics-instances was given"):
        await measured(Exposure(instances=2), **{SWITCH: "off"})
    with pytest.raises(MetricsError, match="'no'; expected 'off'"):
        await measured(Exposure(), **{SWITCH: "no"})


def test_children_get_ports_of_their_own() -> None:
    """From the given one on; with 0 each takes a free one."""
    assert Exposure().arguments(3) == ()
    assert Exposure(9000, "::").arguments(3) == ("--metrics-port", "9003", "--metrics-host", "::")
    assert Exposure(0).arguments(3)[:2] == ("--metrics-port", "0")
