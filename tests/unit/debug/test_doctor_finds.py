"""Each thing that `doctor` finds is found where it was planted, and not in a healthy pipeline."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from broker_pipeline import Controller, ExternalModule, Phase, Pipeline, StatefulModule
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.introspection import Presence, Room
from broker_pipeline.broker.monitoring import ServerSettings
from broker_pipeline.broker.port import ConsumerSpec, StreamSpec
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import (
    LEASE_BUCKET,
    SERVER_BUCKET,
    STATE_BUCKET,
    attempts_bucket,
    attempts_key,
    lease_key,
    log_subjects,
    module_bucket,
    plan_key,
    snapshot_key,
    status_subject,
)
from broker_pipeline.debug.operation.doctor import examine
from broker_pipeline.debug.operation.findings import Clock, Severity
from broker_pipeline.external.registry import Announcement
from broker_pipeline.journey import NS
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.status import Role
from broker_pipeline.runtime.suspects import Record
from tests.unit.debug.ward import HOLDER, Quiet, Ward, made

SETTINGS = ServerSettings("one", 5.0, 2, 0.0, 0, 0, None, "")
MIB = 1 << 20


class Counts(StatefulModule):
    """Has a state."""

    def initial(self, instance):
        """Nothing yet."""
        return 0


async def announced(ward: Ward) -> None:
    """A server of the module that the pipeline needs."""
    await ward.broker.ensure_bucket(SERVER_BUCKET, ttl_s=5)
    value = msgspec.json.encode(Announcement(name="asr", address="a:1"))
    await ward.broker.kv_put(SERVER_BUCKET, "asr.1", value)


@pytest.fixture
async def ward() -> Ward:
    """Healthy."""
    ward = await Ward.healthy()
    await announced(ward)
    return ward


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


# -- roles ----------------------------------------------------------------------------------------
async def test_nobody_leads(ward: Ward) -> None:
    """Trouble; and since when events wait."""
    await ward.ends()
    ward.clock_ns += 90 * NS
    found = await ward.found()
    assert found["no-leader"].severity is Severity.TROUBLE
    assert "90 s" in found["no-leader"].what


async def test_a_leader_that_is_gone_hangs_or_has_changed(ward: Ward) -> None:
    """By the presence of the lease's holder, and by two looks."""
    assert ward.leader is not None
    await ward.leader.close()
    found = await ward.found()
    assert found["leader-gone"].severity is Severity.TROUBLE
    found = await ward.found(holder=Presence.SILENT)
    assert found["leader-silent"].severity is Severity.WARNING
    facts = await ward.facts()
    assert facts.looks is not None and facts.looks[0].lease is not None
    before = replace(
        facts.looks[0], lease=msgspec.structs.replace(facts.looks[0].lease, holder="x")
    )
    found = await ward.found(looks=(before, facts.looks[1]))
    assert f"from x to {HOLDER}" in found["lead-changed"].what


async def test_a_lease_that_is_no_record_is_nobodys(ward: Ward) -> None:
    """Anybody may write one."""
    await ward.broker.kv_put(LEASE_BUCKET, lease_key("p", 0), b"\xff")
    assert "no-leader" in await ward.found()


async def test_nobody_stands_by() -> None:
    """A note."""
    ward = Ward(made())
    await deploy(ward.broker, ward.pipeline)
    await ward.lead()
    assert (await ward.found())["no-standby"].severity is Severity.NOTE


async def test_a_leader_that_falls_behind(ward: Ward) -> None:
    """Trouble while it gets worse."""
    reading = await ward.broker.read("BP_p_0", "bp.p.0.ctl.>", lambda message: None, credit=0)
    for _ in range(1500):
        await ward.broker.publish("bp.p.in.i", b"")
    facts = await ward.facts()
    assert facts.looks is not None
    first, second = facts.looks
    assert second.lag == 1501  # and the plan
    assert (await ward.found())["leader-behind"].severity is Severity.WARNING
    looks = (replace(first, lag=1200), second)
    assert (await ward.found(looks=looks))["leader-behind"].severity is Severity.TROUBLE
    await reading.stop()


async def test_snapshots_that_are_old_or_unreadable(ward: Ward) -> None:
    """What came half a minute ago should be in one."""
    ward.clock_ns += 31 * NS
    assert (await ward.found())["snapshot-old"].severity is Severity.TROUBLE
    await ward.broker.kv_put(STATE_BUCKET, snapshot_key("p", 0), b"?")
    assert (await ward.found())["snapshot-unreadable"].severity is Severity.TROUBLE


async def test_phases_without_anybody() -> None:
    """A warning; trouble when packages wait. Bridges run the external ones."""
    ward = Ward(made())
    await deploy(ward.broker, ward.pipeline)
    await ward.lead()
    facts = await ward.facts()
    missing = [each for each in examine(facts) if each.name == "no-worker"]
    assert [each.severity for each in missing] == [Severity.WARNING] * 2
    assert "broker-pipeline worker app:pipeline --phase c.one" in missing[0].remedy
    assert "broker-pipeline bridge app:pipeline --phase c.two" in missing[1].remedy
    await ward.queue("c.one", 3)
    worst = examine(await ward.facts())[0]
    assert (worst.name, worst.severity) == ("no-worker", Severity.TROUBLE)
    assert "waiting: 3" in worst.what


async def test_packages_that_a_dead_worker_has_still_wait_for_one() -> None:
    """They are with nobody until somebody asks."""
    ward = await Ward.healthy()
    await ward.queue("c.one", 3)
    ward.take_nothing()
    await ward.joined[2].close()
    found = await ward.found()
    assert found["no-worker"].severity is Severity.TROUBLE


async def test_a_stateful_phase_without_members() -> None:
    """Its lanes are nobody's."""
    pipeline = Pipeline("p", [Controller("c", [Phase("one", [Counts()])])])
    ward = Ward(pipeline)
    await deploy(ward.broker, pipeline)
    await ward.lead()
    assert "no-worker" in await ward.found()
    await ward.broker.kv_put(LEASE_BUCKET, f"{ward.subjects.members('c', 'one')}m", b"")
    assert "no-worker" not in await ward.found()


async def test_workers_that_ask_for_nothing(ward: Ward) -> None:
    """They say that they run the phase, and leave its packages alone."""
    other = await Ward.healthy(made("q"))
    await announced(other)
    other.take_nothing()
    await other.queue("c.one")
    assert "workers-idle" in await other.found()
    assert "workers-idle" not in await ward.found()


async def test_module_servers_that_are_not_announced() -> None:
    """A warning; trouble when packages wait for them."""
    ward = await Ward.healthy()
    assert (await ward.found())["no-server"].severity is Severity.WARNING
    await ward.queue("c.two")
    assert (await ward.found())["no-server"].severity is Severity.TROUBLE
    await announced(ward)
    assert "no-server" not in await ward.found()


async def test_module_servers_at_an_address_that_do_not_answer() -> None:
    """By what bridges say: only where all of them have nobody."""
    there = ExternalModule("asr", target="asr:50051")
    ward = await Ward.healthy(Pipeline("p", [Controller("c", [Phase("two", [there])])]))
    assert "no-server" not in await ward.found()
    labels = ("p", "c", "two", "asr", "asr:50051")
    away = catalogue.RELAY_SERVERS.sample(*labels, "away", value=1)
    none = catalogue.RELAY_SERVERS.sample(*labels, "good", value=0)
    await ward.join(Role.BRIDGE, ("c.two",), samples=(away, none))
    found = await ward.found()
    assert found["no-server"].severity is Severity.WARNING
    assert "'asr:50051'" in found["no-server"].what
    good = catalogue.RELAY_SERVERS.sample(*labels, "good", value=1)
    await ward.join(Role.BRIDGE, ("c.two",), samples=(good,))
    assert "no-server" not in await ward.found()


async def test_queues_that_grow_and_packages_that_are_old(ward: Ward) -> None:
    """By two looks, and by when the oldest was queued."""
    ward.take_nothing()
    await ward.queue("c.one", 300)
    facts = await ward.facts()
    assert facts.looks is not None
    first, second = facts.looks
    fewer = replace(first, queues=(replace(first.queues[0], pending=0), first.queues[1]))
    assert "queue-grows" in await ward.found(looks=(fewer, second))
    assert "queue-grows" not in await ward.found()
    ward.clock_ns += 61 * NS
    assert "since 61 s" in (await ward.found())["package-old"].what


async def test_packages_that_may_be_killing_their_workers(ward: Ward) -> None:
    """With their ids; what is done, and what is no record, is not among them."""
    for number, instance in ((77, "done"), (78, "a=20b")):
        envelope = pb.DataPackage(id=number)
        subject = f"{ward.subjects.work}c.one.{instance}"
        ack = await ward.broker.publish(subject, envelope.SerializeToString())
        key = attempts_key(0, "c", "one", ack.stream_seq)
        await ward.broker.kv_put(attempts_bucket("p"), key, msgspec.msgpack.encode(Record(begun=2)))
        if number == 77:
            ward.server.stream("BP_p_0").consumers["c=one"].take(0)
            ward.server.stream("BP_p_0").consumers["c=one"].forget(ack.stream_seq)
    for key in (
        "0.c.one.x",
        "0.c.none.1",
        "strange",
        "0.c.one.999",
        "0.c.one.²",
        f"0.c.one.{10**18}",
    ):
        await ward.broker.kv_put(attempts_bucket("p"), key, b"?")
    found = await ward.found()
    assert "p/0/78 of 'a b' in c.one (4 of 5)" in found["poison"].what
    assert "/77" not in found["poison"].what
    assert "inspect app:pipeline p/0/78" in found["poison"].remedy


async def test_what_roles_say_of_themselves(ward: Ward) -> None:
    """Results without room, lost slots, servers left out, and versions."""
    phase = ("p", "c", "one")
    samples = (
        catalogue.PHASE_HELD.sample(*phase, value=3),
        catalogue.PHASE_LOST_SLOTS.sample(*phase, value=1),
        catalogue.RELAY_SERVERS.sample(*phase, "ejected", "t", "ejected", value=2),
        catalogue.RELAY_SERVERS.sample(*phase, "ejected", "t", "good", value=5),
    )
    await ward.join(Role.WORKER, ("c.one",), version="2", samples=samples)
    found = await ward.found()
    assert found["results-held"].severity is Severity.TROUBLE
    assert ": 1" in found["slots-lost"].what
    assert ": 2" in found["servers-ejected"].what
    assert "1, 2" in found["versions"].what


async def test_strange_answers_are_nobodys(ward: Ward) -> None:
    """Anybody may answer anything."""
    await ward.broker.answer(status_subject("p"), lambda question: b"hello")
    assert await ward.found(settings=SETTINGS) == {}


async def test_what_a_replay_has_left_behind(ward: Ward) -> None:
    """Its streams, unless somebody runs it; other pipelines' are nobody's business."""
    replayed = made("p-replay-x1")
    await deploy(ward.broker, replayed)
    await deploy(ward.broker, made("p-x"))
    await deploy(ward.broker, made("q-replay-x1"))
    found = await ward.found()
    assert "BP_p-replay-x1_0" in found["replay-left"].what
    assert "q-replay" not in found["replay-left"].what
    await ward.broker.answer(status_subject("p-replay-x1"), lambda question: b"here")
    found = await ward.found()
    assert "replay-left" not in found and "p-replay-x1" in found["replay"].what
