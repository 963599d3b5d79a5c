"""What `doctor` finds of the roles: planted, one by one."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from broker_pipeline import Controller, ExternalModule, Phase, Pipeline, StatefulModule
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.broker.introspection import Presence
from broker_pipeline.client.deploy import deploy
from broker_pipeline.core.names import (
    LEASE_BUCKET,
    STATE_BUCKET,
    attempts_bucket,
    attempts_key,
    lease_key,
    snapshot_key,
    status_subject,
)
from broker_pipeline.debug.operation.doctor import examine
from broker_pipeline.debug.operation.findings import Severity
from broker_pipeline.journey import NS
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.status import Role
from broker_pipeline.runtime.suspects import Record
from tests.unit.debug.conftest import SETTINGS, announced
from tests.unit.debug.ward import HOLDER, Ward, made


class Counts(StatefulModule):
    """Has a state."""

    def initial(self, instance):
        """Nothing yet."""
        return 0


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
