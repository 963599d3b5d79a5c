"""The same code on a recording of anything gives what was recorded, in memory."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from recorded_traffic import actions, record, rule_lists

from broker_pipeline.core.plan import compile_plan
from broker_pipeline.debug.recordings.narrowing import narrow
from broker_pipeline.debug.recordings.recording import Recording
from broker_pipeline.debug.recordings.selection import Selection
from broker_pipeline.debug.replays.admission import Admission, Admitted
from broker_pipeline.debug.replays.diff import compare
from broker_pipeline.debug.replays.replay_memory import replay_in_memory
from broker_pipeline.journey import Outcome


@given(
    rules=rule_lists,
    schedule=st.lists(actions, max_size=60),
    to_the_end=st.booleans(),
)
def test_the_same_code_gives_the_same_packages_in_the_same_order(rules, schedule, to_the_end):
    """States, lives, overflows, ages and gaps included; with what was inside at the end besides."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        pipeline, left = record(path, rules, schedule, to_the_end=to_the_end)
        with Recording.open(path) as recording:
            replayed = list(replay_in_memory(recording, pipeline))
            order = [each.package_id for each in replayed]
            assert len(order) == len(set(order)), "a package has left twice"
            assert order[: len(left)] == left
            if to_the_end:
                assert order == left
            for each in replayed[: len(left)]:
                recorded = recording.outcome_of(each.package_id)
                assert compare(recorded, each.package) == []
                assert (recorded.epoch, recorded.sequence) == (
                    each.package.epoch,
                    each.package.sequence,
                )


@given(
    rules=rule_lists,
    schedule=st.lists(actions, max_size=60),
    first=st.integers(1, 6),
    outcomes=st.frozensets(st.sampled_from(list(Outcome)), max_size=2),
)
def test_each_package_of_a_part_leaves_once(rules, schedule, first, outcomes):
    """Whatever was cut out of a log: none is lost or comes twice, in memory and through a log."""
    with tempfile.TemporaryDirectory() as folder:
        whole, part = Path(folder) / "whole", Path(folder) / "part"
        pipeline, _ = record(whole, rules, schedule, to_the_end=True)
        with Recording.open(whole) as recording:
            narrow(recording, Selection(first=first, outcomes=outcomes), part)
        with Recording.open(part) as recording:
            wanted = sorted(each.package_id for each in recording.outcomes())
            replayed = sorted(e.package_id for e in replay_in_memory(recording, pipeline))
            assert replayed == wanted
            admission = Admission(recording, compile_plan(pipeline))
            admitted = [what for event in recording.events() for what in admission.take(event)]
            admitted += admission.rest()
            ids = sorted(each.package_id for each in admitted if isinstance(each, Admitted))
            assert ids == wanted
