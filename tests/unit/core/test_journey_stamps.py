"""What the machine writes into an envelope: addresses, times, and never a negative one."""

import pytest
from driving import SECOND, START, World, make_plan

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.envelope import Ignored, read_event
from broker_pipeline.core.events import Arrived
from broker_pipeline.core.names import Subjects, ingress_subject
from broker_pipeline.core.plan import Plan
from broker_pipeline.journey import Mode, Outcome
from broker_pipeline.package import CONTENT_TYPE, DataPackage

CHAIN = [(Mode.ORDER_BY_SEQUENCE, None, None), (Mode.NOT_PARALLEL, 1, 0)]


def package_of(given):
    """The package in a message."""
    return DataPackage.from_bytes(given[2])


def test_an_envelope_tells_the_whole_journey():
    """Addresses at the start; a record for each controller, with waiting times in and out."""
    world = World(make_plan(CHAIN))
    world.arrive("a", b"one")
    world.arrive("a", b"two")
    world.complete(1)
    world.now += SECOND
    world.complete(0)
    world.finish()
    assert [given[0] for given in world.given[-1]] == ["bp.demo.0.out.success.a"]
    package = package_of(world.given[-1][0])
    assert (package.id, package.instance, package.sequence) == ("demo/0/2", "a", 1)
    assert (package.pipeline, package.epoch, package.data) == ("demo", 2, b"one")
    assert package.outcome is Outcome.SUCCESS
    assert [c.name for c in package.controllers] == ["c0", "c1"]
    assert [c.sequence for c in package.controllers] == [1, 1]
    assert [c.mode for c in package.controllers] == [Mode.ORDER_BY_SEQUENCE, Mode.NOT_PARALLEL]
    assert package.start_time_ns == START + 2
    assert package.end_time_ns == world.now
    overflown = package_of(world.given[-2][1])
    assert overflown.outcome is Outcome.OVERFLOW
    first, second = overflown.controllers
    assert first.output_waiting_time_ns >= SECOND - 10
    assert second.phases == ()
    assert second.input_waiting_time_ns == second.total_time_ns == 0


def test_no_time_is_negative_when_clocks_differ():
    """A worker whose clock is an hour ahead, or behind, gives zeros."""
    for shift in (-3600 * SECOND, 3600 * SECOND):
        world = World(make_plan(CHAIN[:1]))
        world.arrive("a")
        dispatch, raw = world.queue.pop()
        worker = World(make_plan(CHAIN[:1]))
        worker.now += shift
        data = worker.completion(raw, Outcome.SUCCESS, 2)
        world.publish(world.subjects.completion("c0", dispatch.instance), data)
        (record,) = package_of(world.given[-1][0]).controllers
        assert min(record.input_waiting_time_ns, record.output_waiting_time_ns) == 0
        assert record.total_time_ns == 1


def test_a_producers_package_gives_its_payload_and_attributes_and_no_journey():
    """Nobody can make up an outcome, an address or a journey for a package."""
    sent = DataPackage("hello", attributes={"k": "v"})
    sent.envelope.id, sent.envelope.instance = 99, "other"
    sent.envelope.outcome = 5
    sent.envelope.controllers.add(name="c0", sequence=7)
    world = World(make_plan(CHAIN))
    world.arrive_packed("a", sent.to_bytes())
    package = package_of(world.given[-1][0])
    assert (package.data, dict(package.attributes)) == ("hello", {"k": "v"})
    assert (package.id, package.instance, package.outcome) == ("demo/0/2", "a", None)
    assert [c.sequence for c in package.controllers] == [1]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ("", 0)),
        ({"Bp-Producer": "p", "Bp-Number": "7"}, ("p", 7)),
        ({"Bp-Producer": "p"}, ("", 0)),
        ({"Bp-Producer": "p", "Bp-Number": "seven"}, ("", 0)),
        ({"Bp-Producer": "p", "Bp-Number": "0"}, ("", 0)),
        ({"Bp-Producer": "p", "Bp-Number": "-1"}, ("", 0)),
        ({"Bp-Producer": "p", "Bp-Number": "²"}, ("", 0)),
        ({"Bp-Producer": "p", "Bp-Number": "9" * 19}, ("", 0)),
        ({"Bp-Producer": "p" * 129, "Bp-Number": "1"}, ("", 0)),
    ],
)
def test_a_number_that_is_none_counts_as_no_number(headers, expected):
    """The package is then taken in arrival order: it is never refused for a header."""
    event, _ = read_event(Subjects("demo"), "bp.demo.0.ctl.in.a", headers, b"x", 1, 1)
    assert isinstance(event, Arrived)
    assert (event.producer, event.number) == expected


def completion(**changes):
    """A completion's bytes."""
    package = pb.DataPackage(id=2, epoch=2)
    record = package.controllers.add(name=changes.get("name", "c0"), sequence=1)
    if "status" in changes:
        record.phases.add(status=changes["status"])
    return package.SerializeToString()


@pytest.mark.parametrize(
    ("subject", "data", "why"),
    [
        ("bp.demo.0.ctl.other", b"", "none that the design knows"),
        ("bp.demo.0.ctl.in.", b"", "names no instance"),
        ("bp.demo.0.ctl.done.c0.a", b"\xff", "unreadable"),
        ("bp.demo.0.ctl.done.c0.a", b"", "no record of it"),
        ("bp.demo.0.ctl.done.c0.a", completion(name="c1"), "no record of it"),
        ("bp.demo.0.ctl.plan", b"{}", "BP201"),
        ("bp.demo.0.ctl.plan", make_plan(CHAIN).to_bytes().replace(b"demo", b"devo"), "another's"),
    ],
)
def test_what_no_role_writes_is_ignored_with_a_reason(subject, data, why):
    """It changes nothing, and whoever looks at the log is told why."""
    with pytest.raises(Ignored, match=why):
        read_event(Subjects("demo"), subject, {}, data, 9, 9)


def test_a_control_that_is_unknown_leaves_as_an_error():
    """It is of a newer client: run as a package its bytes would be misread, and dropped without a
    word they would be lost."""
    event, found = read_event(
        Subjects("demo"), "bp.demo.0.ctl.in.a", {"Bp-Control": "dance"}, b"x", 9, 9
    )
    assert event.malformed.startswith("BP401 the control 'dance' is none that this program knows")
    assert found.data == b"x"


@pytest.mark.parametrize("status", [0, 1, 2, 3, 7, 9, 77, 2**31 - 1, -1])
def test_a_completion_with_a_status_that_no_phase_ends_with_is_an_error(status):
    """Of a newer worker, or a broken one. Ignored, its package would be in flight for ever."""
    event, found = read_event(
        Subjects("demo"), "bp.demo.0.ctl.done.c0.a", {}, completion(status=status), 9, 9
    )
    assert event.outcome is Outcome.ERROR
    assert f"with status {status}, which is none" in found.errors[-1].message
    assert found.controllers[-1].phases[-1].status == pb.STATUS_ERROR


def test_a_completion_that_reached_no_phase_is_an_error():
    """So a worker reports a package that it could not even read, or that was poison."""
    event, _ = read_event(Subjects("demo"), "bp.demo.0.ctl.done.c0.a", {}, completion(), 9, 9)
    assert (event.outcome, event.phases) == (Outcome.ERROR, 0)


def test_producers_publish_to_the_public_subject():
    """It names the pipeline and the instance, and no shard."""
    assert ingress_subject("demo", "a") == "bp.demo.in.a"
    assert CONTENT_TYPE.endswith("+protobuf")
    assert Plan.from_bytes(make_plan(CHAIN).to_bytes()) == make_plan(CHAIN)
