"""What a role answers when somebody asks how it is doing."""

from __future__ import annotations

import msgspec
import pytest

from broker_pipeline.observe import catalogue, status
from broker_pipeline.observe.meter import Meter, Sample
from broker_pipeline.observe.status import Reporter, Role, Status, read_status

WHO = Status(role=Role.WORKER, name="host-1", pipeline="p", phases=("c.one", "c.two"), version="1")


def test_a_status_comes_back_as_it_was_sent() -> None:
    """Who it is, since when, and all that is counted."""
    meter = Meter()
    meter.counter(catalogue.PHASE_IN, "p", "c", "one").value += 3
    meter.histogram(catalogue.PHASE_PUBLISH, "p", "c", "one").observe(1_000)
    clock = iter((5, 7))
    reporter = Reporter(WHO, meter, now_ns=lambda: next(clock))
    found = read_status(reporter.answer(b""))
    assert found is not None
    assert (found.since, found.at) == (5, 7)
    assert msgspec.structs.replace(found, since=0, at=0, samples=()) == WHO
    assert list(found.samples) == meter.read()


class Slow(Meter):
    """A meter of which a reading takes so long."""

    def __init__(self, now: list[float], takes_s: float) -> None:
        super().__init__()
        self.now, self.takes_s, self.readings = now, takes_s, 0

    def read(self) -> list[Sample]:
        """Takes its time."""
        self.now[0] += self.takes_s
        self.readings += 1
        return []


@pytest.mark.parametrize(("takes_s", "readings"), [(0.0001, 10), (0.004, 2)])
def test_however_many_ask_the_role_is_not_slowed(
    monkeypatch: pytest.MonkeyPatch, takes_s: float, readings: int
) -> None:
    """In a second of a thousand questions the meter is read ten times at most, and where that takes
    longer less often; in between the last answer counts."""
    now = [0.0]
    monkeypatch.setattr(status.time, "perf_counter", lambda: now[0])
    meter = Slow(now, takes_s)
    reporter = Reporter(WHO, meter, now_ns=lambda: 0)
    answers = set()
    while now[0] < 1:
        answers.add(reporter.answer(b""))
        now[0] += 0.001
    assert meter.readings == readings
    assert len(answers) == 1 and read_status(answers.pop()) == WHO


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x81",
        b"hello",
        b"\xff" * 100,
        msgspec.msgpack.encode({"role": "king", "name": "x"}),
        msgspec.msgpack.encode({"role": "worker"}),
        msgspec.msgpack.encode({"role": "worker", "name": "x" * 1000}),
        msgspec.msgpack.encode({"role": "worker", "name": "x", "samples": [[1, 2]]}),
    ],
)
def test_what_is_no_status_is_none(raw: bytes) -> None:
    """Anybody may answer anything."""
    assert read_status(raw) is None


def test_a_newer_status_is_read_as_far_as_it_is_known() -> None:
    """Programs of two versions may run on one broker."""
    newer = {"role": "worker", "name": "x", "mood": "good", "samples": [["m", ["a"], 1.0, [], 7]]}
    found = read_status(msgspec.msgpack.encode(newer))
    assert found is not None and found.samples[0].value == 1.0
