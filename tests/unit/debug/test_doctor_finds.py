"""Each thing that `doctor` finds is found where it was planted, and not in a healthy pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker_pipeline import Controller, Phase, Pipeline
from broker_pipeline.broker.introspection import Room
from broker_pipeline.broker.monitoring import ServerSettings
from broker_pipeline.broker.port import ConsumerSpec, StreamSpec
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import (
    STATE_BUCKET,
    attempts_bucket,
    log_subjects,
    module_bucket,
    plan_key,
)
from broker_pipeline.debug.operation.findings import Clock, Severity
from broker_pipeline.journey import NS
from tests.unit.debug.conftest import SETTINGS, announced
from tests.unit.debug.ward import Quiet, Ward, made

MIB = 1 << 20


async def test_a_healthy_pipeline_has_nothing(ward: Ward) -> None:
    """With the monitoring port not a note; without it just that."""
    assert await ward.found(settings=SETTINGS) == {}
    assert list(await ward.found()) == ["not-visible"]


# -- the broker -----------------------------------------------------------------------------------
async def test_an_old_server_and_the_other_ack_format(ward: Ward) -> None:
    """Trouble: what is built here does not work with them."""
    about = (await ward.facts()).broker
    found = await ward.found(broker=replace(about, version="2.14.4-RC1"))
    assert found["server-old"].severity is Severity.TROUBLE
    assert "server-old" not in await ward.found(broker=replace(about, version="2.15.1"))
    found = await ward.found(broker=replace(about, features={"js_ack_fc_v2": True}))
    assert found["ack-format"].severity is Severity.TROUBLE


@pytest.mark.parametrize(
    "room",
    [
        Room(storage_bytes=96, storage_bytes_max=100),
        Room("R3", memory_bytes=96, memory_bytes_max=100),
        Room(streams=100, streams_max=100),
        Room(consumers=100, consumers_max=100),
    ],
)
async def test_an_account_that_is_nearly_full(ward: Ward, room: Room) -> None:
    """Warned of first, then trouble."""
    about = (await ward.facts()).broker
    found = await ward.found(broker=replace(about, rooms=(room,)))
    assert found["account-full"].severity is Severity.TROUBLE
    used = {"storage_bytes": 80, "memory_bytes": 80, "streams": 80, "consumers": 80}
    fewer = replace(room, **{k: v for k, v in used.items() if getattr(room, k)})
    found = await ward.found(broker=replace(about, rooms=(fewer,)))
    assert found["account-full"].severity is Severity.WARNING
    assert "account-full" not in await ward.found()


async def test_a_broker_that_is_far_away(ward: Ward) -> None:
    """Warned of."""
    about = (await ward.facts()).broker
    assert "broker-far" in await ward.found(broker=replace(about, round_trip_s=0.2))


async def test_clocks_that_differ(ward: Ward) -> None:
    """This machine's, beyond what the measurement may be wrong by; and each role's."""
    assert "clocks-differ" in await ward.found(clock=Clock(-2.0, 0.1))
    assert "clocks-differ" not in await ward.found(clock=Clock(-2.0, 1.9))
    ward.skew_ns = -3 * NS
    found = await ward.found()
    assert "3.0 s behind" in found["clocks-differ"].what


async def test_a_window_that_is_too_short(ward: Ward) -> None:
    """The broker would forget ids while a stale leader may still repeat itself."""
    log = (await ward.facts()).log
    assert log is not None
    found = await ward.found(log=replace(log, duplicate_window_s=10.0))
    assert found["dedup-window"].severity is Severity.TROUBLE


@pytest.mark.parametrize(
    ("settings", "name", "severity"),
    [
        (replace(SETTINGS, unhealthy="disk"), "broker-unhealthy", Severity.TROUBLE),
        (replace(SETTINGS, ping_interval_s=120.0), "ping-interval", Severity.TROUBLE),
        (replace(SETTINGS, ping_interval_s=25.0), "ping-interval", Severity.WARNING),
        (replace(SETTINGS, sync_interval_s=120.0), "fsync", Severity.WARNING),
        (replace(SETTINGS, sync_interval_s=1.0), "fsync", Severity.NOTE),
        (replace(SETTINGS, storage_bytes=80, storage_bytes_max=100), "server-full", "warning"),
        (replace(SETTINGS, storage_bytes=99, storage_bytes_max=100), "server-full", "trouble"),
    ],
)
async def test_what_the_monitoring_port_shows(
    ward: Ward, settings: ServerSettings, name: str, severity: Severity
) -> None:
    """Intervals that are too long, and a disk that fills up."""
    found = await ward.found(settings=settings)
    assert {name: found[name].severity} == {name: severity}


async def test_a_log_that_is_kept_three_times_needs_no_fsync(ward: Ward) -> None:
    """A power failure takes one server."""
    log = (await ward.facts()).log
    assert log is not None
    settings = replace(SETTINGS, sync_interval_s=120.0)
    assert "fsync" not in await ward.found(settings=settings, log=replace(log, replicas=3))


# -- plans, streams, consumers --------------------------------------------------------------------
async def test_what_is_not_deployed() -> None:
    """Trouble, and nothing else is looked at."""
    found = await Ward(made()).found(settings=SETTINGS)
    assert {each.name: each.severity for each in found.values()} == {
        "not-deployed": Severity.TROUBLE
    }


async def test_a_deployed_plan_that_is_another_one(ward: Ward) -> None:
    """A warning where the code's could be deployed, trouble where it could not."""
    found = await ward.found(made(instance_idle_s=7.0))
    assert found["plan-differs"].severity is Severity.WARNING
    assert "instance_idle_ns" in found["plan-differs"].what
    other = Pipeline("p", [Controller("d", [Phase("one", [Quiet()])])])
    found = await ward.found(other)
    assert found["plan-unfollowable"].severity is Severity.TROUBLE


async def test_a_deployed_plan_that_cannot_be_read(ward: Ward) -> None:
    """Damaged, or of a newer program."""
    await ward.broker.kv_put(STATE_BUCKET, plan_key("p"), b"{}")
    assert (await ward.found())["plan-unreadable"].severity is Severity.TROUBLE
    newer = b'{"pipeline":"p","version":99}'
    await ward.broker.kv_put(STATE_BUCKET, plan_key("p"), newer)
    assert "version 99" in (await ward.found())["plan-unreadable"].what


async def test_streams_and_buckets_that_are_missing_or_different(ward: Ward) -> None:
    """By their names, with what is different."""
    del ward.server.buckets[module_bucket("p")]
    found = await ward.found()
    assert module_bucket("p") in found["missing"].what
    await deploy(ward.broker, ward.pipeline)
    await ward.broker.ensure_bucket(attempts_bucket("p"), ttl_s=1)
    found = await ward.found()
    assert found["differs"].severity is Severity.WARNING
    await deploy(ward.broker, ward.pipeline)
    subjects = log_subjects("p")
    await ward.broker.ensure_stream(StreamSpec("BP_p_0", (*subjects, "more.>"), max_bytes=MIB))
    found = await ward.found()
    assert found["differs"].severity is Severity.TROUBLE
    for setting in ("subjects", "transform", "max_bytes"):
        assert setting in found["differs"].what


async def test_consumers_that_are_missing_different_or_nobodys(ward: Ward) -> None:
    """A wrong filter is trouble, another ack_wait a warning, one too many a note."""
    consumers = ward.server.stream("BP_p_0").consumers
    spec = consumers["c=one"].spec
    await ward.broker.ensure_consumer("BP_p_0", replace(spec, ack_wait_s=77))
    found = await ward.found()
    assert "77 s" in found["consumer-differs"].what
    assert found["consumer-differs"].severity is Severity.WARNING
    await ward.broker.ensure_consumer("BP_p_0", replace(spec, filter="bp.p.0.work.c.>"))
    assert (await ward.found())["consumer-differs"].severity is Severity.TROUBLE
    await ward.broker.ensure_consumer("BP_p_0", ConsumerSpec("mine", "bp.p.0.out.>"))
    assert "mine" in (await ward.found())["consumer-stray"].what
    del consumers["c=one"]
    found = await ward.found()
    assert found["consumer-missing"].severity is Severity.TROUBLE


async def test_replicas_that_are_behind_or_only_one(ward: Ward) -> None:
    """Trouble when one more away is one too many."""
    facts = await ward.facts()
    assert facts.log is not None
    behind = replace(facts.log, replicas=5, current=4)
    assert (await ward.found(log=behind))["replicas-behind"].severity is Severity.WARNING
    behind = replace(facts.log, replicas=3, current=2)
    assert (await ward.found(log=behind))["replicas-behind"].severity is Severity.TROUBLE
    cluster = replace(facts.broker, cluster="east")
    assert "one-replica" in await ward.found(broker=cluster)


async def test_a_log_that_fills_up() -> None:
    """Too small for the broker's messages; nearly full; closed, which is no difference."""
    ward = await Ward.healthy(made(log_bytes_max=100 * MIB))
    await announced(ward)
    assert await ward.found(settings=SETTINGS) == {}
    about = replace((await ward.facts()).broker, max_payload=32 * MIB)
    assert (await ward.found(broker=about))["log-small"].severity is Severity.TROUBLE
    for _ in range(65):
        await ward.broker.publish("bp.p.0.out.success.i", bytes(MIB - 100))
    assert "log-nearly-full" in await ward.found(settings=SETTINGS)
    closed = log_subjects("p", ingress=False)
    await ward.broker.limit_stream("BP_p_0", subjects=closed, max_bytes=900 * MIB)
    found = await ward.found(settings=SETTINGS)
    assert list(found) == ["ingress-closed"]
    assert found["ingress-closed"].severity is Severity.TROUBLE
