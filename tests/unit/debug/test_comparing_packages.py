"""What differs between two packages, how payloads are told, and what a report counts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker_pipeline import DataPackage, Outcome
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.recordings.recorded import RecordedOutcome
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.replays.diff import Kind, compare
from broker_pipeline.debug.replays.diff_report import Comparison, Report
from broker_pipeline.debug.replays.diff_text import (
    diff_lines,
    pace_line,
    summary_lines,
    told_ns,
    told_s,
)
from broker_pipeline.debug.replays.durations import Durations, Times
from broker_pipeline.debug.replays.payload_diff import first_difference, level, payload_difference
from broker_pipeline.debug.replays.replaying import Replayed, Watch
from broker_pipeline.journey import NS, STATUS_TO_PB, Status
from tests.unit.debug.recorded import META, arrival

MS = 1_000_000


def package(**fields: Any) -> DataPackage[Any]:
    """One that went through two modules."""
    envelope = pb.DataPackage(
        id=7, pipeline="talk", instance="room", epoch=1, sequence=3,
        data=fields.pop("data", b"sound"), content_type=fields.pop("content_type", ""),
        outcome=STATUS_TO_PB[fields.pop("outcome", Outcome.SUCCESS)], start_time_ns=NS,
        end_time_ns=NS + fields.pop("total_ns", 20 * MS), attributes=fields.pop("attributes", {}),
    )  # fmt: skip
    controller = envelope.controllers.add(name="c", mode=4, sequence=3, status=4)
    phase = controller.phases.add(name="p", status=4, worker=fields.pop("worker", "w1"))
    for name, message in (("first", ""), ("second", fields.pop("message", "well done"))):
        status = STATUS_TO_PB[fields.get("status", Status.SUCCESS)]
        phase.modules.add(
            name=name, message=message, status=status, total_time_ns=fields.get("took_ns", MS)
        )
    fields.pop("status", None), fields.pop("took_ns", None)
    for error in fields.pop("errors", ()):
        envelope.errors.add(**error)
    assert not fields, fields
    return DataPackage.wrap(envelope)


def kinds(old: DataPackage[Any], new: DataPackage[Any]) -> list[Kind]:
    return [each.kind for each in compare(old, new)]


def test_where_and_when_it_ran_says_nothing() -> None:
    """Workers, hosts, tracebacks, durations, epochs and sequence ids are no differences."""
    error = {"type": "ValueError", "message": "bad", "path": "c/p/second"}
    old = package(errors=[{**error, "host": "a", "worker": "1", "traceback": "line 3"}])
    new = package(
        errors=[{**error, "host": "b", "worker": "2", "traceback": "line 5"}],
        worker="w2", took_ns=9 * MS, total_ns=NS,
    )  # fmt: skip
    new.envelope.sequence, new.envelope.epoch = 9, 8
    assert compare(old, new) == []


def test_objects_may_lie_elsewhere() -> None:
    """The address in a repr is another each time; all else in a text counts."""
    old, new = package(message="<Model at 0x7f12ab>"), package(message="<Model at 0x7f99ff>")
    assert compare(old, new) == []
    assert kinds(old, package(message="<Modem at 0x7f12ab>")) == [Kind.MESSAGES]


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"outcome": Outcome.ERROR}, Kind.OUTCOME),
        ({"data": b"silence"}, Kind.PAYLOAD),
        ({"content_type": "text/plain"}, Kind.PAYLOAD),
        ({"attributes": {"speaker": "A"}}, Kind.ATTRIBUTES),
        ({"errors": [{"type": "ValueError", "message": "bad"}]}, Kind.ERRORS),
        ({"message": "done"}, Kind.MESSAGES),
        ({"status": Status.EXIT}, Kind.JOURNEY),
    ],
)
def test_each_thing_that_changes_is_found_and_can_be_ignored(
    changed: dict[str, Any], kind: Kind
) -> None:
    """Under the name that --ignore takes, on either side."""
    for old, new in ((package(), package(**changed)), (package(**changed), package())):
        assert kind in kinds(old, new)
        assert [each for each in compare(old, new, ignore=[kind]) if each.kind is kind] == []


def test_a_reason_that_changes_is_told_as_one() -> None:
    """What the module said that ended the journey is no message among others."""
    old = package(outcome=Outcome.EXIT, status=Status.EXIT, message="silence")
    new = package(outcome=Outcome.EXIT, status=Status.EXIT, message="noise")
    (found,) = compare(old, new)
    assert (found.kind, found.where) == (Kind.REASON, "c/p/second")
    assert found.told() == ["reason of c/p/second: 'silence' -> 'noise'"]


def test_another_way_is_told_step_by_step() -> None:
    """A module that is not there, one that is new, and another order."""
    old, new = package(), package()
    modules = new.envelope.controllers[0].phases[0].modules
    modules[1].name = "third"
    told = [line for each in compare(old, new) for line in each.told()]
    assert told == [
        "journey of c/p/second: SUCCESS -> absent",
        "journey of c/p/third: absent -> SUCCESS",
    ]
    modules[0].name, modules[1].name = "second", "first"
    modules[0].message, modules[1].message = "well done", ""
    (order,) = compare(old, new)
    assert "the order of steps" in order.where
    again = package()
    again.envelope.controllers[0].phases[0].modules.add(name="first", status=4)
    assert [each.kind for each in compare(old, again)] == [Kind.JOURNEY]


def test_a_payload_that_is_gone_is_not_compared() -> None:
    """A recording says that it could not have it."""
    old = package(data=b"")
    old.envelope.reference.object = "gone"
    assert compare(old, package(data=b"anything")) == []


@pytest.mark.parametrize(
    ("old", "new", "content_type", "lines"),
    [
        (b"one", b"two", "text/plain", ("- one", "+ two")),
        (b"a\nb\nc", b"a\nx\nc", "text/plain",
         ("--- recorded", "+++ replayed", "@@ -1,3 +1,3 @@", " a", "-b", "+x", " c")),
        (b"a\n", b"a\r\n", "text/plain",
         ("2 bytes -> 3 bytes", "from byte 1: 0a -> 0d 0a")),
        (b'{"a": 1, "b": [1, 2]}', b'{"b": [1, 3], "c": null}', "application/json",
         ("a: 1 -> absent", "b[1]: 2 -> 3", "c: absent -> None")),
        (b'{"a": 1}', b'{"a":true}', "application/json", ("a: 1 -> True",)),
        (b'{"a": 1, "b": 2}', b'{"b":2,"a":1}', "application/json", ()),
        (b"{broken", b"{}", "application/json",
         ("7 bytes -> 2 bytes", "from byte 1: 62 72 6f 6b 65 6e -> 7d")),
        (b"\x00\x01\x02", b"\x00\x05\x02", "", ("from byte 1: 01 02 -> 05 02",)),
        (b"\x00\x01", b"\x00\x01\x02", "",
         ("2 bytes -> 3 bytes", "the first 2 bytes are the same")),
        (b"\xff" * 8, b"\xfe" * 8, "text/plain",
         ("- " + r"\xff" * 8, "+ " + r"\xfe" * 8)),
    ],
)  # fmt: skip
def test_payloads_are_told_by_what_they_are(
    old: bytes, new: bytes, content_type: str, lines: tuple[str, ...]
) -> None:
    """Text by lines, data by fields, the rest by bytes; what is equal when read is equal."""
    assert payload_difference(old, content_type, new, content_type, {}) == lines


def test_messagepack_and_protobuf_are_told_by_their_fields() -> None:
    """A protobuf message of a class that is known; of any other, its bytes."""
    a, b = (msgspec.msgpack.encode({"text": t, "n": float("nan")}) for t in ("x", "y"))
    packed = "application/msgpack; type=Utterance"
    assert payload_difference(a, packed, b, packed, {}) == ("text: 'x' -> 'y'",)
    old, new = pb.Error(type="A", message="m"), pb.Error(type="B", message="m")
    name = pb.Error.DESCRIPTOR.full_name
    said = f"application/x-protobuf; type={name}"
    raws = old.SerializeToString(), new.SerializeToString()
    assert payload_difference(raws[0], said, raws[1], said, {name: pb.Error}) == (
        "type: 'A' -> 'B'",
    )
    assert "from byte" in payload_difference(raws[0], said, raws[1], said, {})[0]
    unknown = raws[0] + b"\xf8\x7f\x01"  # a field that this version does not know
    assert payload_difference(raws[0], said, unknown, said, {name: pb.Error})


def test_bytes_of_which_nobody_said_anything_are_read_as_the_others_are() -> None:
    """An arrival that was raw, and text now that a module has had it."""
    assert payload_difference(b"one", "", b"ONE", "text/plain", {}) == (
        "content type: '' -> 'text/plain'",
        "- one",
        "+ ONE",
    )


def test_audio_is_told_by_its_level_too() -> None:
    """So that somebody sees that it has become silent."""
    loud, soft = struct.pack("<4h", *[16384, -16384] * 2), struct.pack("<4h", *[8192, -8192] * 2)
    assert payload_difference(loud, "audio/pcm", soft, "audio/pcm", {})[-1] == (
        "level: -6.0 dB -> -12.0 dB of full scale (as 16-bit PCM)"
    )
    assert level(b"") == level(b"\0" * 9) == float("-inf")


def test_large_and_deep_payloads_are_told_in_little() -> None:
    """Nobody reads more, and comparing takes no longer for it."""
    old = msgspec.json.encode(list(range(1000)))
    new = msgspec.json.encode([-n - 1 for n in range(1000)])
    told = payload_difference(old, "application/json", new, "application/json", {})
    assert len(told) == 21
    assert told[-1] == "and 980 fields more"
    text = b"\n".join(b"%d" % n for n in range(100_000))
    told = payload_difference(text, "text/plain", text + b"!", "text/plain", {})
    assert told == ("588,889 bytes -> 588,890 bytes", "the first 588,889 bytes are the same")
    deep = b"[" * 900 + b"%d" + b"]" * 900
    told = payload_difference(deep % 1, "application/json", deep % 2, "application/json", {})
    assert told
    assert all(len(line) < 2_000 for line in told)
    long = payload_difference(b"a" * 10_000, "text/plain", b"b" * 10_000, "text/plain", {})
    assert all(len(line) < 200 for line in long)


def test_the_first_difference_is_found_by_halves() -> None:
    """At every place, the ends included."""
    for at in (0, 1, 499, 500, 998, 999):
        changed = bytearray(1000)
        changed[at] = 1
        assert first_difference(bytes(1000), bytes(changed)) == at
    assert first_difference(b"", b"") is None


def test_quantiles_are_exact_to_a_few_percent_and_take_no_room() -> None:
    """Buckets, whose number grows with the logarithm of the range only."""
    durations = Durations()
    assert durations.quantile(0.5) == 0
    for n in range(1, 10_001):
        durations.add(n * 1_000)
    assert durations.quantile(0.5) == pytest.approx(5_000_000, rel=0.03)
    assert durations.quantile(0.99) == pytest.approx(9_900_000, rel=0.03)
    assert durations.quantile(1.0) == 10_000_000
    assert len(durations._counts) < 200
    zero = Durations()
    zero.add(0)
    assert zero.quantile(0.99) == 0


def test_slower_is_what_takes_a_multiple_and_more_than_noise() -> None:
    """The median or the 99th percentile; what takes microseconds is never said to be slower."""
    times = Times()
    for took in (MS, MS, MS):
        times.add(package(took_ns=took), replayed=False)
        times.add(package(took_ns=3 * took), replayed=True)
    assert times.slower(2.0) == ["c/p/first", "c/p/second"]
    assert times.slower(3.5) == []
    quick = Times()
    quick.add(package(took_ns=1_000), replayed=False)
    quick.add(package(took_ns=90_000), replayed=True)
    assert quick.slower(2.0) == []


def report_of(tmp_path: Path, *replayed: tuple[int, DataPackage[Any]], **options: Any) -> Report:
    """A report of packages 1 to 3, which left as SUCCESS, and 4, which is inside."""
    path = tmp_path / "recording"
    with Recording.create(path, META) as recording:
        for number in range(1, 5):
            recording.add_event(arrival(number))
            if number < 4:
                raw = package().to_bytes()
                who = (number, "room", 1, number, Outcome.SUCCESS)
                recording.add_outcome(RecordedOutcome(*who, 10 + number, 0, raw))
    with Recording.open(path) as recording:
        comparison = Comparison(recording, Report(**options))
        for number, each in replayed:
            comparison.take(Replayed(number, "room", each))
        return comparison.end()


def test_a_report_counts_what_is_same_changed_missing_new_and_unfinished(tmp_path: Path) -> None:
    """Each once; what was inside when the recording ended has not changed."""
    other = package(data=b"other", outcome=Outcome.ERROR)
    report = report_of(tmp_path, (1, package()), (2, other), (4, package()), (9, package()))
    assert (report.same, report.changed, report.missing) == (1, 1, 1)
    assert (report.new, report.unfinished) == (1, 1)
    assert not report.is_same
    assert report.kinds == {Kind.OUTCOME: 1, Kind.PAYLOAD: 1, Kind.MISSING: 1, Kind.NEW: 1}
    assert report.outcomes[Outcome.SUCCESS] == [3, 3]
    assert report.outcomes[Outcome.ERROR] == [0, 1]
    told = "\n".join(diff_lines(report))
    for part in (
        "1  the same",
        "1  changed",
        "1  missing",
        "1  new",
        "1  not compared",
        "outcome: SUCCESS ('well done') -> ERROR",
        "did not leave",
        "not recorded",
    ):
        assert part in told  # fmt: skip
    assert json.loads(json.dumps(report.to_json()))["kinds"]["missing"] == 1


def test_what_is_ignored_changes_nothing(tmp_path: Path) -> None:
    """Nor is it shown."""
    report = report_of(
        tmp_path, (1, package(data=b"other")), (2, package()), (9, package()),
        ignore={Kind.PAYLOAD, Kind.MISSING, Kind.NEW},
    )  # fmt: skip
    assert report.is_same
    assert report.first == []
    assert diff_lines(report)[-1] == "nothing has changed"


def test_only_so_many_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    """With --show 1."""
    changed = [(n, package(data=b"other")) for n in (1, 2, 3)]
    report = report_of(tmp_path, *changed, show=1)
    assert report.changed == 3
    assert len(report.first) == 1
    assert "the first 1 of 3 that differ:" in diff_lines(report)


def test_a_slower_module_is_a_change_where_somebody_asks(tmp_path: Path) -> None:
    """Not otherwise, and not where time is ignored."""
    slow = [(n, package(took_ns=5 * MS)) for n in (1, 2, 3)]
    assert report_of(tmp_path, *slow).is_same
    again = tmp_path / "again"
    again.mkdir()
    report = report_of(again, *slow, slower_than=2.0)
    assert report.slower == ["c/p/first", "c/p/second"]
    assert not report.is_same
    assert "took 2 times as long or longer" in diff_lines(report)[-1]
    report.ignore = {Kind.TIME}
    assert report.is_same


def test_nothing_is_wider_than_a_terminal(tmp_path: Path) -> None:
    """The tables fit 80 columns, whatever modules are called."""
    wide = package()
    wide.envelope.controllers[0].phases[0].modules[0].name = "a-module-of-a-very-long-name" * 3
    report = report_of(tmp_path, (1, wide))
    assert max(map(len, summary_lines(report))) <= 80


def test_no_terminal_obeys_what_is_shown(tmp_path: Path) -> None:
    """Names, texts and payloads may hold anything; a line stays a line."""
    evil = "\x1b]0;owned\x07\x1b[2J\nnext"
    error = {"type": evil, "message": evil, "path": evil}
    now = package(data=evil.encode(), content_type="text/plain", errors=[error], message=evil)
    now.envelope.controllers[0].phases[0].modules[0].name = evil
    now.attributes[evil] = evil
    for line in diff_lines(report_of(tmp_path, (1, now))):
        assert line.isprintable()


def test_durations_are_told_in_the_unit_that_fits() -> None:
    """Three digits."""
    assert [told_ns(n) for n in (0, 999, 1_500, 2_345_678, 3_210_000_000)] == [
        "0 ns", "999 ns", "1.5 us", "2.35 ms", "3.21 s",
    ]  # fmt: skip
    assert told_ns(5_000 * NS) == "5,000 s"
    assert [told_s(s) for s in (0.5, 59, 61, 3_660)] == [
        "0.5 s", "59 s", "1 min 1 s", "1 h 1 min",
    ]  # fmt: skip


def test_the_pace_is_told_from_the_watch() -> None:
    """Log time over time, and packages a second."""
    now = [0.0]
    watch = Watch(now=lambda: now[0])
    watch.seen(NS, arrival=True)
    now[0] = 2.0
    watch.seen(101 * NS, arrival=True)
    watch.left = 10
    told = "replayed 10 packages of 1 min 40 s in 2 s: 50 times real time, 5 packages/s"
    assert pace_line(watch) == told
    assert (watch.arrived, watch.times_real) == (2, 50.0)
