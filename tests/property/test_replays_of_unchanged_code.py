"""The same code on a recording of anything gives what was recorded, in memory."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_traffic import actions, record, rule_lists

from broker_pipeline.debug.diff import compare
from broker_pipeline.debug.recording import Recording
from broker_pipeline.debug.replay_memory import replay_in_memory


@settings(max_examples=300, deadline=None)
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
