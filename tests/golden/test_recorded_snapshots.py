"""A stored snapshot must mean the same to the next release: snapshot_v1.json holds a log, and the
snapshot that the last program of version 1 took after it."""

import base64
import json
from pathlib import Path

from driving import Shelf, World, make_plan, state_of

from broker_pipeline.core import snapshot
from broker_pipeline.journey import Mode, Outcome

RECORDED = json.loads(Path(__file__).with_name("snapshot_v1.json").read_text())
RULES = [
    (Mode.ORDER_BY_SEQUENCE, 2, None),
    (Mode.FIRST_WINS, 2, None),
    (Mode.NO_ORDER, None, None),
    (Mode.NOT_PARALLEL, 1, 1),
]


def recorded():
    """The snapshot's head and parts."""
    head = snapshot.read_head(base64.b64decode(RECORDED["head"]))
    return head, [base64.b64decode(part) for part in RECORDED["parts"]]


def replayed():
    """A world that has seen the recorded log."""
    world = World(make_plan(RULES))
    names = {"Bp-Producer": "producer", "Bp-Number": "number", "Bp-Control": "control"}
    for step in RECORDED["log"][1:]:
        world.now = step["time"] - 1
        headers = {names.get(k, "content_type"): v for k, v in step["headers"].items()}
        world.publish(step["subject"], base64.b64decode(step["data"]), **headers)
    return world


def test_a_whole_snapshot_of_version_1_is_still_read():
    """A controller of this version takes over from one of the last, and decides as it would."""
    world, steady = replayed(), replayed()
    head, parts = recorded()
    assert (head.version, len(parts)) == (1, 2)
    machine, _ = snapshot.restore(head, parts)
    assert state_of(machine) == state_of(world.machine)
    assert machine.next_deadline() == RECORDED["next_deadline"]
    assert machine.oldest_source() == head.oldest_source == RECORDED["oldest_source"]
    world.machine = machine
    for each in (world, steady):
        each.complete(0, Outcome.EXIT)
        each.finish()
        each.tick(each.machine.next_deadline())
    assert world.given == steady.given


def test_a_chain_goes_on_from_a_snapshot_of_version_1(monkeypatch):
    """The whole one is its first slice, so that the first snapshot after an upgrade need not be
    whole: it is moved on a little with each."""
    monkeypatch.setattr(snapshot, "WHOLE_MAX", 0)
    monkeypatch.setattr(snapshot, "SLICES", 2)
    world, (head, parts) = replayed(), recorded()
    world.machine, chain = snapshot.restore(head, parts)
    shelf = Shelf(parts=parts)
    versions = []
    for _ in range(6):
        world.arrive("num")
        shelf.put(chain.take(world.machine))
        versions.append([each.version for each in snapshot.read_head(shelf.head).slices])
        assert state_of(shelf.restore()[0]) == state_of(world.machine)
    assert versions[0] == [1, 2]
    assert versions[-1] == [2] * len(versions[-1])
