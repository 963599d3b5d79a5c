"""A running log must mean the same to the next release: recorded events give recorded commands."""

import base64
import json

from driving import World, make_plan
from record import FILE

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.journey import Mode

STEPS = json.loads(FILE.read_text())


class Replay(World):
    """A world that reads a recorded log."""

    def __post_init__(self):
        """Nothing is deployed but what the log has."""


def test_a_recorded_log_gives_the_recorded_commands():
    """Same subjects, same message ids, same envelopes, in the same order. Where this fails, an
    upgrade would break every running log: see record.py for what to do if that is meant."""
    world = Replay(make_plan([(Mode.NO_ORDER, None, None)]))
    names = {"Bp-Producer": "producer", "Bp-Number": "number", "Bp-Control": "control"}
    for place, step in enumerate(STEPS):
        world.now = step["time"] - 1
        headers = {names.get(k, "content_type"): v for k, v in step["headers"].items()}
        world.publish(step["subject"], base64.b64decode(step["data"]), **headers)
        found = [
            (subject, message_id, pb.DataPackage.FromString(raw))
            for subject, message_id, raw in world.given[-1]
        ]
        expected = [
            (subject, message_id, pb.DataPackage.FromString(base64.b64decode(raw)))
            for subject, message_id, raw in step["commands"]
        ]
        assert found == expected, f"step {place} of {FILE.name}: {step['subject']}"


def test_the_recording_uses_every_outcome():
    """A recording that shows nothing would protect nothing."""
    subjects = {command[0].split(".")[4] for step in STEPS for command in step["commands"]}
    assert {"success", "exit", "error", "overflow", "outdated"} <= subjects
