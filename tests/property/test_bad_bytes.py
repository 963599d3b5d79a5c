"""Bytes that are not what they claim: each reader gives a value or its documented error."""

import json
import random
import zlib

import msgspec
import pytest
from driving import World, act, make_plan, rough_actions, state_of, whole
from hypothesis import example, given
from hypothesis import strategies as st
from spoiling import HOSTILE, spoil, spoiled, travelled

from broker_pipeline import codecs
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core import snapshot
from broker_pipeline.core.envelope import Ignored, read_event
from broker_pipeline.core.events import Arrived
from broker_pipeline.core.machine import Machine
from broker_pipeline.core.names import Subjects
from broker_pipeline.core.plan import Plan
from broker_pipeline.errors import (
    MalformedPackageError,
    NewerVersionError,
    PayloadError,
    PlanError,
    SnapshotError,
)
from broker_pipeline.journey import Mode
from broker_pipeline.package import CONTENT_TYPE, DataPackage, parse_envelope

subjects = Subjects("demo")
RULES = [(Mode.ORDER_BY_SEQUENCE, 2, 1), (Mode.FIRST_WINS, None, None), (Mode.NOT_PARALLEL, 1, 0)]
PLAN = make_plan(RULES).to_bytes()
PACKAGE = travelled().SerializeToString()


def with_crc(packed):
    """A snapshot's head with the checksum that it should have."""
    return packed + zlib.crc32(packed).to_bytes(4, "big")


def a_snapshot():
    """One with something in every part of it."""
    world = World(make_plan(RULES))
    chance = random.Random(3)
    for number in range(12):
        world.arrive("ab"[number % 2], b"x")
        if number % 3 == 2:
            world.complete(chance.randrange(len(world.queue)))
    world.arrive("a", b"early", producer="p", number="3")
    world.close("b")
    world.arrive("b", b"next life")
    return whole(world.machine)


HEAD, PARTS = a_snapshot()


@given(spoiled(st.just(PACKAGE)))
@example(HOSTILE[10])
def test_a_spoiled_package_is_one_to_its_end_or_malformed(raw):
    """What is taken can be read by people and written again, and means the same then."""
    try:
        package = DataPackage.wrap(parse_envelope(raw))
    except MalformedPackageError:
        return
    json.dumps(package.to_json())
    again = package.envelope.SerializeToString()
    assert parse_envelope(again) == package.envelope


@given(
    st.sampled_from([subjects.ctl_done + "c0.a", subjects.ctl_in + "a", subjects.plan]),
    spoiled(st.sampled_from([PACKAGE, PLAN, travelled(1, 77).SerializeToString()])),
)
def test_a_spoiled_message_is_an_event_or_ignored_and_the_machine_goes_on(subject, raw):
    """Under every subject; a package that is in flight may come back as garbage too. A plan of a
    newer version is the one thing that stops it."""
    world = World(make_plan(RULES))
    world.arrive("a", b"first")
    world.arrive("a", b"second")
    try:
        world.publish(subject, raw, content_type=CONTENT_TYPE)
    except (Ignored, NewerVersionError):
        del world.log[-1]
    head, parts = whole(world.machine)
    again, _ = snapshot.restore(snapshot.read_head(head), parts)
    assert state_of(again) == state_of(world.machine)
    if world.machine.plan == world.plan:
        world.arrive("c", b"after it")
        assert world.given[-1], "the others do not go on"


@given(spoiled(st.just(PLAN)))
def test_a_spoiled_plan_is_a_plan_or_refused(raw):
    """And one that is taken is the same after a journey through its bytes."""
    try:
        plan = Plan.from_bytes(raw)
    except (PlanError, NewerVersionError):
        return
    assert Plan.from_bytes(plan.to_bytes()) == plan


@given(spoiled(st.just(HEAD[:-4])), st.booleans())
def test_a_spoiled_head_of_a_snapshot_is_refused(packed, honest):
    """Also when somebody has made the checksum fit."""
    try:
        head = snapshot.read_head(with_crc(packed) if honest else packed)
        snapshot.restore(head, PARTS)
    except (SnapshotError, NewerVersionError):
        return


@given(spoiled(st.just(b"".join(PARTS))), st.booleans())
def test_a_spoiled_body_of_a_snapshot_is_refused_or_a_machine(body, honest):
    """A checksum keeps what the disk has spoiled out; what fits it is a machine or refused."""
    head = snapshot.read_head(HEAD)
    if honest:
        slices = [snapshot.Slice(snapshot.VERSION, 1, zlib.crc32(body))]
        head = msgspec.structs.replace(head, slices=slices)
    try:
        machine, _ = snapshot.restore(head, [body])
    except SnapshotError:
        return
    assert isinstance(machine, Machine)
    assert honest or body == b"".join(PARTS)


class Struct(msgspec.Struct):
    """A payload type."""

    a: list[float]


kinds = st.one_of(
    st.sampled_from(
        [
            "", "text/plain", "application/json", "application/msgpack; type=Struct",
            "application/x-protobuf; type=DataPackage", "a/b+json", "text/plain; charset=\x00",
            "application/json;" + "type=" * 1_000,
        ]
    ),
    st.text(max_size=40),
)  # fmt: skip


@given(
    spoiled(st.sampled_from([b'{"a": [1.5]}', b"\x81\xa1a\x91\xcb?\xf8" + b"\0" * 6, PACKAGE])),
    kinds,
    st.sampled_from([None, bytes, str, int, dict, list, Struct, pb.DataPackage]),
)
def test_a_spoiled_payload_is_a_value_or_a_payload_error(raw, content_type, expected):
    """Whatever the content type says and the module asks for."""
    types = {"Struct": Struct, "DataPackage": pb.DataPackage}
    try:
        value = codecs.decode(raw, content_type, expected, types)
    except PayloadError:
        return
    assert codecs.matches(value, expected)


@given(st.integers(0, 2**32), st.lists(rough_actions, max_size=25))
def test_two_leaders_agree_about_a_log_with_garbage_in_it(seed, schedule):
    """Good traffic with spoiled messages between: a leader that begins in the middle, from a
    snapshot, decides byte for byte what the one before it has decided."""
    chance = random.Random(seed)
    first = World(make_plan(RULES, idle_s=3))
    middle, taken = chance.randrange(len(schedule) + 1), None
    kept = 0
    for place, action in enumerate(schedule):
        if place == middle:
            taken, kept = whole(first.machine), len(first.log)
        act(first, action)
        try:
            first.publish(*garbage(chance), content_type=CONTENT_TYPE)
        except (Ignored, NewerVersionError):
            first.log.pop()
    if taken is None:
        return
    second = World(first.plan)
    second.machine, _ = snapshot.restore(snapshot.read_head(taken[0]), taken[1])
    second.log, second.given = first.log[:kept], first.given[:kept]
    names = {"Bp-Producer": "producer", "Bp-Number": "number", "Bp-Control": "control"}
    for message in first.log[kept:]:
        second.now = message.time - 1
        headers = {names.get(k, "content_type"): v for k, v in message.headers.items()}
        second.publish(message.subject, message.data, **headers)
    assert second.given == first.given
    assert state_of(second.machine) == state_of(first.machine)


def garbage(chance):
    """A subject of the log and something spoiled."""
    subject = chance.choice(
        [
            subjects.ctl_done + chance.choice(["c0.a", "c0", "c9.a", "c1.a.b", "", "c0."]),
            subjects.ctl_in + chance.choice(["a", "b", "=F", "=ff", "x" * 200]),
            subjects.plan,
            subjects.tick,
            subjects.prefix + "ctl.pause.a",
        ]
    )
    return subject, spoil(chance.choice([PACKAGE, PLAN, b"", b"\0" * 9]), chance.randint)


@given(st.binary(min_size=129, max_size=300), st.integers(1, 9))
def test_the_machine_keeps_no_producer_name_without_a_bound(name, number):
    """One of a megabyte would go into every snapshot: it counts as none."""
    event, _ = read_event(
        subjects,
        subjects.ctl_in + "a",
        {"Bp-Producer": name.decode("latin-1"), "Bp-Number": str(number)},
        b"",
        7,
        8,
    )
    assert event == Arrived(7, 8, "a")


def test_unknown_fields_survive_an_arrival_and_every_level_of_a_journey():
    """A newer producer, worker or leader may say more: an older one carries it, unread."""
    told = b"\xf2\x3f\x05newer"  # field 1022, five bytes
    sent = pb.DataPackage(data=b"x", id=99, outcome=pb.STATUS_ERROR).SerializeToString() + told
    world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 2, None), (Mode.NO_ORDER, None, None)]))
    world.arrive_packed("a", sent)
    _, _, dispatched = world.given[-1][0]
    assert told in dispatched
    package = pb.DataPackage.FromString(dispatched)
    assert (package.id, package.outcome) == (2, pb.STATUS_UNSPECIFIED), "a forged journey"
    phase = package.controllers[-1].phases.add(name="p0", status=pb.STATUS_SUCCESS)
    module = phase.modules.add(name="m", status=pb.STATUS_SUCCESS)
    parts = [module.sub_modules.add(name="n"), module, phase, package.controllers[-1]]
    parts.append(package.errors.add(type="E"))
    for part in parts:
        part.MergeFromString(told)
    world.publish(subjects.ctl_done + "c0.a", package.SerializeToString())
    _, _, second = world.given[-1][0]
    package = pb.DataPackage.FromString(second)
    package.controllers[-1].phases.add(name="p0", status=pb.STATUS_SUCCESS)
    world.publish(subjects.ctl_done + "c1.a", package.SerializeToString())
    subject, _, left = world.given[-1][0]
    assert subject.startswith(subjects.out)
    assert left.count(told) == 6


@pytest.mark.parametrize("version", [3, 4, 2**40])
def test_a_plan_of_a_newer_version_stops_a_leader_and_says_where_it_is(version):
    """To go on without it would be to decide otherwise than the newer leaders do."""
    raw = json.dumps({"pipeline": "demo", "version": version, "anything": []}).encode()
    with pytest.raises(NewerVersionError, match=rf"BP205 message 7 .* version {version};.*delete"):
        read_event(subjects, subjects.plan, {}, raw, 7, 8)


def test_another_pipelines_newer_plan_stops_nobody():
    """Nor does a version that is no number."""
    for stated in ({"pipeline": "other", "version": 9}, {"pipeline": "demo", "version": "9"}):
        with pytest.raises(Ignored):
            read_event(subjects, subjects.plan, {}, json.dumps(stated).encode(), 7, 8)
