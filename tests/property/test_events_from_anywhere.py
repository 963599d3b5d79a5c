"""What strangers write into the log: it is an event, or ignored, and the machine goes on."""

from driving import World, make_plan, state_of, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.core import envelope, snapshot
from broker_pipeline.core.events import Arrived
from broker_pipeline.core.names import Subjects
from broker_pipeline.errors import MalformedPackageError
from broker_pipeline.journey import Mode
from broker_pipeline.package import CONTENT_TYPE, DataPackage

subjects = Subjects("demo")
as_received = st.binary(max_size=200).map(lambda b: b.decode("utf-8", "surrogateescape"))
some_subjects = st.one_of(
    as_received,
    as_received.map(lambda rest: subjects.ctl_in + rest),
    as_received.map(lambda rest: subjects.ctl_done + rest),
    as_received.map(lambda rest: subjects.ctl_done + "c0." + rest),
    st.sampled_from([subjects.tick, subjects.plan]),
)
values = st.text(st.characters(), max_size=30)
some_headers = st.dictionaries(
    st.sampled_from(["Nats-Msg-Id", "Content-Type", "Bp-Producer", "Bp-Number", "Bp-Control", "X"]),
    st.one_of(
        values,
        st.sampled_from(["open", "close", CONTENT_TYPE, "1", "٣", "-1", "9" * 30, "\ud800"]),
    ),
)


@st.composite
def envelopes(draw):
    """Packages that could be completions, and their fragments."""
    package = DataPackage(b"x").envelope
    package.id, package.epoch = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    for _ in range(draw(st.integers(0, 2))):
        record = package.controllers.add(
            name=draw(st.sampled_from(["c0", "c1", "zz", ""])), sequence=draw(st.integers(0, 3))
        )
        for _ in range(draw(st.integers(0, 3))):
            record.phases.add(status=draw(st.integers(0, 9)), start_time_ns=2**63)
    raw = bytearray(package.SerializeToString())
    if draw(st.booleans()) and raw:
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


some_data = st.one_of(
    st.binary(max_size=80),
    envelopes(),
    st.just(make_plan([(Mode.NO_ORDER, None, None)]).to_bytes()),
    st.sampled_from([b"[" * 100_000, b'{"pipeline":"\xff"}', b"null", b"{}"]),
)


@settings(max_examples=200)
@given(some_subjects, some_headers, some_data)
def test_reading_an_event_raises_nothing_but_ignored(subject, headers, data):
    """Whatever the subject, the headers and the bytes are. An arrival always has an envelope, and
    its instance a name that fits."""
    try:
        event, found = envelope.read_event(subjects, subject, headers, data, 7, 8)
    except envelope.Ignored:
        return
    assert (event.stream_seq, event.time) == (7, 8)
    if found is not None:
        found.SerializeToString()
        assert not isinstance(event, Arrived) or 0 < len(event.instance) <= 600


@given(st.lists(st.tuples(some_subjects, some_headers, some_data), max_size=12))
def test_no_message_of_a_stranger_stops_the_machine(messages):
    """Events from arbitrary messages go through the machine, its bytes and its snapshots."""
    world = World(make_plan([(Mode.ORDER_BY_SEQUENCE, 1, 1), (Mode.NOT_PARALLEL, 1, 0)]))
    for seq, (subject, headers, data) in enumerate(messages, start=2):
        world.now += 10**9
        try:
            event, _ = envelope.read_event(subjects, subject, headers, data, seq, world.now)
        except envelope.Ignored:
            continue
        sources = {seq: (subject, headers, data)}
        for command in world.machine.step(event):
            _, source = envelope.read_event(
                subjects,
                *sources.get(command.package.source, (subjects.ctl_in + "a", {}, b"")),
                1,
                1,
            )
            envelope.write(world.machine.plan, 0, command, source)
            subject_of, message_id = envelope.message_of(world.machine.plan, subjects, command)
            assert subject_of.isascii() and " " not in subject_of and len(subject_of) < 1000
            assert message_id.isascii()
        head, parts = whole(world.machine)
        again, _ = snapshot.restore(snapshot.read_head(head), parts)
        assert state_of(again) == state_of(world.machine)


@settings(max_examples=150)
@given(st.one_of(st.binary(max_size=120), envelopes()))
def test_arbitrary_bytes_are_a_package_or_malformed(raw):
    """`from_bytes` gives a package that can be read to its end, or MalformedPackageError."""
    try:
        package = DataPackage.from_bytes(raw)
    except MalformedPackageError:
        return
    _ = package.controllers, package.errors, package.outcome, repr(package)
    assert DataPackage.from_bytes(package.envelope.SerializeToString()).sequence == package.sequence
