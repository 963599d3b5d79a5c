"""A package is the same as itself, and whatever is changed in one is found, and nothing else."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.replays.diff import Kind, compare
from broker_pipeline.debug.replays.payload_diff import field_differences, payload_difference
from broker_pipeline.package import DataPackage

FINAL = st.integers(4, 8)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def records(draw, depth=2):
    """What a module did, and those inside it."""
    inner = draw(st.lists(records(depth - 1), max_size=2)) if depth else []
    return pb.ModuleRecord(
        name=draw(names), status=draw(FINAL), message=draw(names),
        total_time_ns=draw(st.integers(0, 2**40)), sub_modules=inner,
    )  # fmt: skip


@st.composite
def packages(draw):
    """Any package, with any journey."""
    envelope = pb.DataPackage(
        data=draw(st.binary(max_size=30)),
        content_type=draw(st.sampled_from(["", "text/plain", "application/json", "audio/pcm"])),
        attributes=draw(st.dictionaries(names, names, max_size=3)),
        outcome=draw(FINAL),
    )
    for _ in range(draw(st.integers(0, 2))):
        controller = envelope.controllers.add(
            name=draw(names), mode=draw(st.integers(1, 4)), status=draw(FINAL)
        )
        for _ in range(draw(st.integers(0, 2))):
            controller.phases.add(
                name=draw(names), status=draw(FINAL),
                modules=draw(st.lists(records(), max_size=2)),
            )  # fmt: skip
    for _ in range(draw(st.integers(0, 2))):
        envelope.errors.add(type=draw(names), message=draw(names), path=draw(names))
    return envelope


def copied(envelope):
    """Another with the same."""
    return DataPackage.from_bytes(envelope.SerializeToString())


@given(packages())
def test_a_package_is_the_same_as_itself(envelope):
    """Whatever is in it."""
    assert compare(copied(envelope), copied(envelope)) == []


def modules_of(envelope):
    """Every module's record, at any depth."""
    pending = [
        record for c in envelope.controllers for phase in c.phases for record in phase.modules
    ]
    for record in pending:
        pending.extend(record.sub_modules)
    return pending


def other_status(status):
    """Another final one."""
    return 4 + (status - 3) % 5


def change(envelope, draw):
    """Change one thing; the kinds that it may be told as."""
    modules = modules_of(envelope)
    options = ["outcome", "data", "attribute", "error", "controller"]
    options += ["status", "message", "name"] if modules else []
    options += ["phase"] if any(c.phases for c in envelope.controllers) else []
    what = draw(st.sampled_from(options))
    if what == "outcome":
        envelope.outcome = other_status(envelope.outcome)
        return {Kind.OUTCOME}
    if what == "data":
        envelope.content_type, envelope.data = "", envelope.data + b"!"
        return {Kind.PAYLOAD}
    if what == "attribute":
        envelope.attributes["more"] = envelope.attributes.get("more", "") + "x"
        return {Kind.ATTRIBUTES}
    if what == "error":
        envelope.errors.add(type="Another")
        return {Kind.ERRORS}
    if what == "controller":
        envelope.controllers.add(name="another")
        return {Kind.JOURNEY}
    if what == "phase":
        record = next(c for c in envelope.controllers if c.phases)
        record.phases[0].status = other_status(record.phases[0].status)
        return {Kind.JOURNEY}
    record = draw(st.sampled_from(modules))
    if what == "status":
        record.status = other_status(record.status)
        return {Kind.JOURNEY}
    if what == "message":
        record.message += "!"
        return {Kind.MESSAGES, Kind.REASON}
    record.name += "!"
    return {Kind.JOURNEY}


@given(packages(), st.data())
def test_one_change_is_found(envelope, data):
    """Of its kind; on either side."""
    changed = pb.DataPackage()
    changed.CopyFrom(envelope)
    wanted = change(changed, data.draw)
    for old, new in ((envelope, changed), (changed, envelope)):
        found = {each.kind for each in compare(copied(old), copied(new))}
        assert found & wanted, f"{wanted} was changed, and {found} found"


@given(plain, plain)
def test_data_differ_in_a_field_exactly_where_they_differ(old, new):
    """And equal data, which may hold NaN, in none."""
    assert list(field_differences("", old, old)) == []
    raws = [msgspec.msgpack.encode(each) for each in (old, new)]
    lines = payload_difference(raws[0], "application/msgpack", raws[1], "application/msgpack", {})
    a, b = (msgspec.msgpack.decode(raw) for raw in raws)
    if raws[0] == raws[1]:
        assert lines == ()
    if repr(a) != repr(b) and not same_numbers(a, b):
        assert lines, "they differ, and nothing was found"


def same_numbers(a, b):
    """Whether two are written differently and mean the same, as 1 and 1.0 do."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_numbers(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_numbers, a, b))
    both_nan = a != a and b != b
    return both_nan or (isinstance(a, bool) is isinstance(b, bool) and a == b)


@given(st.binary(max_size=40), st.binary(max_size=40), st.sampled_from(
    ["", "text/plain", "application/json", "application/msgpack", "audio/pcm",
     "application/x-protobuf; type=T"]))  # fmt: skip
def test_any_bytes_can_be_compared(old, new, content_type):
    """Whatever they claim to be; and bytes that differ and cannot be read are never the same."""
    lines = payload_difference(old, content_type, new, content_type, {"T": pb.Error})
    assert all(isinstance(line, str) for line in lines)
    if content_type in ("", "text/plain", "audio/pcm") and old != new:
        assert lines
