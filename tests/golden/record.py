"""Records what the machine decides for a log that uses everything: golden/commands.json.

Run `python tests/golden/record.py` after a change that is meant to change decisions - and only
together with a new version of the plan or the snapshot, for running logs hold the old ones: a new
leader computes again what the last one decided, and must decide the same.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

FILE = Path(__file__).with_name("commands.json")


def schedule(world):
    """Every kind of event, through every mode."""
    from driving import SECOND, make_plan

    from broker_pipeline.journey import Mode, Outcome

    for token in ("mic-1", "=C3=A9"):
        world.open(token)
        for number in range(6):
            world.arrive(token, bytes([number]), content_type="audio/pcm")
    for outcome in (Outcome.SUCCESS, Outcome.EXIT, Outcome.SUCCESS, Outcome.ERROR):
        world.complete(len(world.queue) // 2, outcome)
    dispatch, raw = world.queue[0]
    world.complete(0)
    world.repeat(dispatch, raw)
    world.arrive("num", b"3", producer="p", number="3")
    world.arrive("num", b"1", producer="p", number="1")
    world.arrive("num", b"1", producer="p", number="1")
    world.tick(world.machine.next_deadline())
    world.arrive_packed("bad", b"\xff")
    world.arrive("x" * 200)
    world.close("mic-1")
    world.arrive("mic-1", b"next life")
    old = world.machine.plan.controllers
    world.deploy(make_plan([(c.mode, c.window and 3, c.queue_size) for c in old], idle_s=30))
    while world.queue:
        world.complete(-1)
    world.arrive("a", b"last")
    world.finish()
    world.tick(world.now + 60 * SECOND)
    world.deploy(make_plan([(Mode.NOT_PARALLEL, 1, 0)]))
    world.arrive("a", b"one")
    world.arrive("a", b"two")


def recorded():
    """The log and what was decided, as plain data."""
    from driving import World, make_plan

    from broker_pipeline.journey import Mode

    world = World(
        make_plan(
            [
                (Mode.ORDER_BY_SEQUENCE, 4, 1),
                (Mode.FIRST_WINS, 2, None),
                (Mode.NO_ORDER, None, None),
                (Mode.NOT_PARALLEL, 1, 1),
            ]
        )
    )
    schedule(world)
    return [
        {
            "subject": message.subject,
            "headers": message.headers,
            "data": base64.b64encode(message.data).decode(),
            "time": message.time,
            "commands": [
                [subject, message_id, base64.b64encode(raw).decode()]
                for subject, message_id, raw in given
            ],
        }
        for message, given in zip(world.log, world.given, strict=True)
    ]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "property"))
    lines = ",\n".join(json.dumps(step) for step in recorded())
    FILE.write_text(f"[\n{lines}\n]\n")
    print(f"{FILE}: {len(recorded())} steps")
