"""A real Prometheus reads real roles, and is asked everything that infra/ asks it.

Where it is not installed these are skipped: `make tools` installs it where it may. That the queries
name what there is, tests/unit/observe/test_infra_queries.py holds without it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from broker_pipeline.broker.embedded import EmbeddedServer
from broker_pipeline.broker.jetstream import connect
from broker_pipeline.broker.port import Broker
from broker_pipeline.client.deploy import deploy
from broker_pipeline.observe.catalogue import ALL, ENDS, OUTCOMES
from tests.integration import monitored
from tests.integration.processes import Outputs, Role, send, until
from tests.integration.prometheus import MISSING, Prometheus, installed, local_copy, promtool
from tests.monitoring import (
    INFRA,
    Query,
    dashboard_queries,
    parse,
    rule_queries,
    rules,
    series,
)

pytestmark = [
    pytest.mark.skipif(not installed, reason=MISSING),
    pytest.mark.asyncio(loop_scope="module"),
]
TARGET = "tests.integration.monitored:pipeline"
INSTANCES = 3
INSIDE = 20
"""With fewer inside more is sent."""
WAIT_S = 30.0
POLL_S = 0.2
VARIABLES = {"$__rate_interval": "5s", "$pipeline": ".+"}


class Site:
    """A broker, the roles, and a Prometheus that reads them.

    Attributes:
        roles: by the address of their metrics.
    """

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.roles: dict[str, Role] = {}
        self.prometheus: Prometheus
        self._stack = stack

    async def start_roles(self) -> None:
        """Two controllers, a worker, a bridge and a module server."""
        shout = "tests.integration.monitored:Shout"
        at = ("--url", self.url)
        told_apart = ("--metrics-instances", str(INSTANCES - 1))
        commands = [
            ("controller", TARGET, *at, *told_apart),
            ("controller", TARGET, *at, *told_apart),
            ("worker", TARGET, *at),
            ("bridge", TARGET, *at),
            ("serve", shout, "--port", "0", "--announce", self.url),
        ]
        started = [await Role.start(*each, "--metrics-port", "0") for each in commands]
        for role in started:
            self._stack.push_async_callback(role.end)
        for role in started:
            self.roles[await address_of(role)] = role

    async def start_prometheus(self, directory: Path) -> None:
        """It finds two of them in its configuration, and the others in a file."""
        addresses = list(self.roles)
        config = local_copy(directory, addresses[1:3], [addresses[0], *addresses[3:]])
        self.prometheus = await Prometheus.start(config)
        self._stack.push_async_callback(self.prometheus.end)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """All of it, under load for as long as the tests ask."""
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(EmbeddedServer())
        broker = await connect(nats.url, reconnect=True, name="test")
        stack.push_async_callback(broker.close)
        await deploy(broker, monitored.pipeline)
        site = Site(nats.url, stack)
        await site.start_roles()
        await site.start_prometheus(tmp_path_factory.mktemp("prometheus"))
        outputs = await Outputs.watch(broker, monitored.pipeline.name)
        load = asyncio.create_task(keep_sending(broker, outputs), name="load")
        yield site
        load.cancel()
        with suppress(asyncio.CancelledError):
            await load
        for role in site.roles.values():
            assert role.process.returncode is None, role.lines


async def address_of(role: Role) -> str:
    """Where it says that its metrics are."""
    await role.said("metrics: http://")
    line = next(line for line in role.lines if "metrics: " in line)
    return line.split("http://")[1].removesuffix("/metrics")


async def keep_sending(broker: Broker, outputs: Outputs) -> None:
    """Bursts to each instance, the next when most have left."""
    sent = 0
    while True:
        await send(broker, monitored.pipeline.name, INSTANCES, monitored.BURST, begin=sent)
        sent += monitored.BURST
        due = sent * INSTANCES - INSIDE
        await until(lambda due=due: len(outputs.ids) >= due, f"{due} packages leave")


def without_data(prometheus: Prometheus, queries: Iterable[Query]) -> list[Query]:
    """Those that have given nothing yet."""
    return [query for query in queries if not has_data(prometheus, query)]


def has_data(prometheus: Prometheus, query: Query) -> bool:
    """Whether there was a number, with every label that is shown beside it."""
    expr = query.expr
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    found = prometheus.values(expr)
    shown = set(re.findall(r"{{(\w+)}}", query.shown))
    return bool(found) and all(shown <= set(labels) for labels, _ in found)


async def all_have_data(site: Site, queries: list[Query]) -> None:
    """Wait until each has had a number."""
    missing = queries
    try:
        async with asyncio.timeout(WAIT_S):
            while True:
                missing = await asyncio.to_thread(without_data, site.prometheus, missing)
                if not missing:
                    return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"no data within {WAIT_S} s: {missing}") from None


async def test_promtool_accepts_what_is_shipped() -> None:
    """The configuration and the rules; and each alert fires where it must, and nowhere else."""
    folder = INFRA / "prometheus"
    await asyncio.to_thread(promtool, "check", "config", str(folder / "prometheus.yml"))
    await asyncio.to_thread(promtool, "check", "rules", str(folder / "rules.yml"))
    await asyncio.to_thread(promtool, "test", "rules", str(folder / "rules_test.yml"))


async def test_every_query_of_the_dashboards_gives_data(site: Site) -> None:
    """Of every panel, from what real roles export."""
    await all_have_data(site, dashboard_queries())


async def test_every_outcome_is_counted(site: Site) -> None:
    """Each has happened, at each level that gives it: the tests beside this one see real counts."""
    levels = [
        ("packages_out", OUTCOMES),
        ("controller_packages_out", OUTCOMES),
        ("phase_packages_out", ENDS),
        ("module_packages_out", ENDS),
        ("server_calls_out", ("success",)),
    ]
    happened = [
        f'sum(broker_pipeline_{counter}_total{{outcome="{value}"}}) > 0'
        for counter, values in levels
        for value in values
    ]
    await all_have_data(site, [Query("an outcome", expr) for expr in happened])


async def test_every_series_in_the_rules_gives_data(site: Site) -> None:
    """Alerts give nothing while all is well, so each series that they ask for is asked for alone;
    what is recorded gives data as it stands."""
    selectors = {str(each) for query in rule_queries() for each in parse(query.expr)[0]}
    recorded = [Query(rule.name, rule.expr) for rule in rules() if rule.kind == "record"]
    await all_have_data(site, [*(Query("a rule", each) for each in sorted(selectors)), *recorded])
    groups = (await asyncio.to_thread(site.prometheus.get, "rules"))["groups"]
    states = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert set(states) == {rule.name for rule in rules()}
    assert set(states.values()) <= {"ok", "unknown"}, states


async def test_what_came_is_what_left_and_is_inside(site: Site) -> None:
    """At every scrape and at every level: the alert for that had nothing to say."""
    rule = next(rule for rule in rules() if rule.name == "BrokerPipelineCountsDiffer")
    levels = rule.expr.split(" != 0")
    assert await asyncio.to_thread(site.prometheus.values, rule.expr) == []
    for level in levels[:-1]:  # without `!= 0` each level gives what there is
        expr = level.removeprefix(" or ")
        await all_have_data(site, [Query(rule.name, expr)])


async def test_what_is_exported_is_in_the_catalogue(site: Site) -> None:
    """All of the catalogue is exported; and every name and label that begins as ours is in it."""
    whole = {name: f'{{__name__=~"{name}(_count)?"}}' for name in ALL}
    await all_have_data(site, [Query(name, expr) for name, expr in whole.items()])
    known = series()
    found = await asyncio.to_thread(
        site.prometheus.get,
        "series",
        **{"match[]": '{__name__=~".*broker_pipeline_.*"}', "start": site.prometheus.begun},
    )
    for labels in found:
        own = set(labels) - {"__name__", "site"}
        assert own <= known[labels["__name__"]], labels


async def test_a_query_with_a_typo_gives_no_data(site: Site) -> None:
    """In a name, in a label, in a value: so the tests above can fail."""
    query = next(query for query in dashboard_queries() if "ratio_rate5m{pipeline" in query.expr)
    await all_have_data(site, [query])
    for old, new in [("ratio_rate5m", "ratio_rate"), ("$pipeline", "monitord"), ("outcome", "out")]:
        assert old in query.expr
        changed = Query(query.where, query.expr.replace(old, new))
        assert not await asyncio.to_thread(has_data, site.prometheus, changed)
    legend = Query(query.where, query.expr, "{{controller}}")
    assert not await asyncio.to_thread(has_data, site.prometheus, legend)
    broken = Query(query.where, query.expr + ")")
    with pytest.raises(AssertionError, match="parse error"):
        await asyncio.to_thread(has_data, site.prometheus, broken)


async def test_counts_go_on_over_a_takeover(site: Site) -> None:
    """The leader is killed: what is recorded of its counts never goes back, and grows again."""
    leads, counts = "broker_pipeline_leader == 1", "shard:broker_pipeline_packages_in_total:max"
    prometheus = site.prometheus
    await all_have_data(site, [Query("leads", leads), Query("counts", counts)])
    [found] = (await asyncio.to_thread(prometheus.get, "query", query=leads))["result"]
    address = found["metric"]["instance"]
    await site.roles.pop(address).end()
    gone = f'up{{instance="{address}"}} == 0'
    another = f'broker_pipeline_leader{{instance!="{address}"}} == 1'
    await all_have_data(site, [Query("gone", gone), Query("another leads", another)])
    [(_, values)] = await asyncio.to_thread(prometheus.values, counts)
    await all_have_data(site, [Query("it goes on", f"{counts} > {values[-1]}")])
    [(_, values)] = await asyncio.to_thread(prometheus.values, counts)
    assert values == sorted(values)
