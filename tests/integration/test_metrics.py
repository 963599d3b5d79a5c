"""Metrics of real roles, scraped while packages pass and processes are killed."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator

import pytest

from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import JetStreamBroker, connect
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import HEADER_CONTENT_TYPE, ingress_subject
from broker_pipeline.observe.catalogue import ALL
from broker_pipeline.package import CONTENT_TYPE
from tests.integration.metered import metered
from tests.integration.processes import Outputs, Role, send, until
from tests.integration.scraping import Scrape, balance, counts, not_less, scrape, total

INSTANCES, PACKAGES = 4, 80
TARGET = "tests.integration.metered:metered"
PAUSE_S = 0.05
"""Between two rounds of scrapes: what is scraped needs processors, too."""
LEADERS_OWN = ("broker_pipeline_packages_", "broker_pipeline_controller_packages_")


class Watched:
    """A role whose metrics are read again and again, each time checked."""

    def __init__(self, role: Role, url: str) -> None:
        self.role = role
        self.url = url
        self.last: Scrape = {}
        self.scrapes = 0
        self.looked = 0
        self.gone = False

    async def look(self) -> None:
        """One scrape: it balances, and nothing has gone back."""
        try:
            found = await scrape(self.url)
        except OSError:
            await self.role.ended()  # fails where it has not ended, and should have answered
            self.gone = True
            return
        self.looked += balance(found)
        if self.scrapes:
            not_less(counts(self.last), counts(found) | self.leaders(counts(self.last), found))
        self.last = found
        self.scrapes += 1

    def leaders(self, before: Scrape, found: Scrape) -> Scrape:
        """What only a leader tells, and one that leads no more does not."""
        leads = any(value for value in total(found, "leader").values())
        gone = {k: v for k, v in before.items() if k[0].startswith(LEADERS_OWN)}
        return {} if leads else gone


class Site:
    """A broker, a deployed pipeline, and roles that are watched."""

    def __init__(self, url: str, broker: JetStreamBroker) -> None:
        self.url = url
        self.broker = broker
        self.watched: list[Watched] = []
        self.watching = asyncio.create_task(self.watch())
        self.servers = "127.0.0.1:9"

    async def start(self, *words: str) -> Watched:
        """Start a role with metrics on a free port, which it says."""
        role = await Role.start(*words, "--metrics-port", "0", MODULE_SERVER=self.servers)
        await role.said("metrics: ")
        url = next(line for line in role.lines if "metrics: " in line).partition("metrics: ")[2]
        watched = Watched(role, url)
        self.watched.append(watched)
        return watched

    async def watch(self) -> None:
        """Look at all that are there, in turns and for ever."""
        while True:
            for each in list(self.watched):
                if not each.gone:
                    await each.look()
            await asyncio.sleep(PAUSE_S)

    async def start_all(self) -> None:
        """A module server, two controllers, two workers and a bridge."""
        server = await self.start(
            "serve", "tests.integration.served_modules:Words", "--name", "upper", "--port", "0",
        )  # fmt: skip
        await server.role.said("is ready")
        line = next(line for line in server.role.lines if "is ready" in line)
        self.servers = line.rpartition(" ")[2]
        at = (TARGET, "--url", self.url)
        self.leader, bridge, *self.workers = await asyncio.gather(
            self.start("controller", *at, "--metrics-instances", "2"),
            self.start("bridge", *at),
            self.start("worker", *at, "--slots", "3"),
            self.start("worker", *at, "--slots", "3"),
        )
        await self.leader.role.said("leads")
        self.standby = await self.start("controller", *at)
        for each in (self.standby, *self.workers, bridge):
            await each.role.said("stands by" if each is self.standby else "is ready")

    async def end(self) -> None:
        """Stop watching, raise what was found, and kill what runs."""
        self.watching.cancel()
        await asyncio.wait((self.watching,))
        for each in self.watched:
            await each.role.end()
        if not self.watching.cancelled():
            self.watching.result()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Everything but the roles."""
    async with EmbeddedServer() as nats:
        broker = await connect(nats.url, reconnect=True, name="test")
        await deploy(broker, metered)
        site = Site(nats.url, broker)
        yield site
        await site.end()
        await broker.close()


async def test_every_scrape_balances_through_kills_and_no_count_goes_back(site: Site) -> None:
    """Load through all roles, each scraped without a pause, while a worker and the leader are
    killed: in = all outcomes + what is inside, in every scrape at every level; no counter and no
    bucket goes back, and the next leader goes on from the counts of the one before."""
    await site.start_all()
    outputs = await Outputs.watch(site.broker, metered.name)
    await send(site.broker, metered.name, INSTANCES, PACKAGES)
    await outputs.until(INSTANCES * PACKAGES // 4)
    site.workers[0].role.send(signal.SIGKILL)
    await outputs.until(INSTANCES * PACKAGES // 2)
    site.leader.role.send(signal.SIGKILL)
    await site.leader.role.ended()
    await site.standby.role.said("leads")
    await send(site.broker, metered.name, INSTANCES, PACKAGES, begin=PACKAGES)
    await site.broker.publish(
        ingress_subject(metered.name, "i0"),
        b"\xff\xff",
        headers={HEADER_CONTENT_TYPE: CONTENT_TYPE},
    )
    everything = 2 * INSTANCES * PACKAGES + 1
    await outputs.until(everything)
    await until(lambda: is_at_rest(site.standby.last, everything), "the leader tells of all")
    before = {k: v for k, v in counts(site.leader.last).items() if k[0].startswith(LEADERS_OWN)}
    assert before
    not_less(before, site.standby.last)
    left = total(site.standby.last, "packages_out_total", "pipeline", "shard")
    said = {dict(labels)["outcome"]: value for labels, value in left.items()}
    assert said == {**dict.fromkeys(said, 0), **told(outputs)}
    assert min(said[outcome] for outcome in ("success", "exit", "error")) > 0
    for each in site.watched:
        assert each.scrapes > 0, each.role.lines
    assert sum(each.looked for each in site.watched) > 200


def is_at_rest(found: Scrape, count: int) -> bool:
    """Whether a leader has told that so many have left and none is inside."""
    left = sum(total(found, "packages_out_total").values())
    return left == count and not any(total(found, "packages_inside").values())


def told(outputs: Outputs) -> dict[str, int]:
    """How many left, by outcome, by the log."""
    found: dict[str, int] = {}
    for left in outputs.by_instance.values():
        for _, _, outcome in left:
            found[outcome.lower()] = found.get(outcome.lower(), 0) + 1
    return found


async def test_the_roles_export_the_catalogue_and_nothing_else(site: Site) -> None:
    """Each metric of the catalogue is served by some role that has work, and none besides."""
    await site.start_all()
    outputs = await Outputs.watch(site.broker, metered.name)
    seen: set[str] = set()

    def all_there() -> bool:
        for each in site.watched:
            for name, _ in each.last:
                for end in ("_bucket", "_count", "_sum"):
                    if name not in ALL:
                        name = name.removesuffix(end)
                seen.add(name)
        return seen >= ALL.keys()

    for sent in range(0, 400, 8):  # what is oldest is told only while something is inside
        await send(site.broker, metered.name, INSTANCES, 8, begin=sent)
        await outputs.until(INSTANCES * (sent + 8))
        if all_there():
            break
    assert seen == ALL.keys()


async def test_a_port_that_is_taken_is_a_clear_error(site: Site) -> None:
    """The role ends at once, and says which port, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        role = await Role.start(
            "worker", TARGET, "--url", site.url, "--metrics-port", port,
            errors=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert role.process.stderr is not None
        said = (await role.process.stderr.read()).decode()
        assert await role.ended() == 2
    assert "broker-pipeline: BP518 metrics cannot be served at '127.0.0.1', port" in said
    assert port in said and "--metrics-port" in said
