"""Somebody who writes into a log what nobody of ours would."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from broker_pipeline import Pipeline
from broker_pipeline.broker.port import Broker
from broker_pipeline.core.envelope import Ignored, read_event
from broker_pipeline.core.events import Deployed
from broker_pipeline.core.names import Subjects
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.errors import NewerVersionError
from broker_pipeline.package import CONTENT_TYPE

sys.path.insert(0, str(Path(__file__).parents[2] / "property"))
from spoiling import HOSTILE, spoil, travelled

NOBODYS = 10**9
"""Ids of packages that there are not."""


class Stranger:
    """Publishes what nobody of ours would, on every subject of the log."""

    def __init__(self, broker: Broker, pipeline: Pipeline, chance: random.Random) -> None:
        self.broker = broker
        self.subjects = Subjects(pipeline.name)
        self.chance = chance
        self.plan = compile_plan(pipeline).to_bytes()
        self.names = [c.name for c in pipeline.controllers] + ["zz"]
        self.queues = [f"{c.name}.{p.name}" for c in pipeline.controllers for p in c.phases]
        self.written = 0

    def _data(self) -> bytes:
        chance = self.chance
        package = travelled(chance.randint(0, 2), chance.choice([1, 4, 5, 6, 9]))
        package.id = NOBODYS + self.written
        package.epoch = chance.choice([0, 2, 2**64 - 1])
        record = package.controllers[-1]
        record.name = chance.choice(self.names)
        record.sequence = chance.choice([0, 1, 2**64 - 1])
        record.previous_sequences[:] = [chance.choice([0, 7, 2**64 - 1])] * chance.randint(0, 2)
        whole = package.SerializeToString()
        choices = [whole, spoil(whole, chance.randint), spoil(self.plan, chance.randint)]
        return chance.choice([*choices, chance.choice(HOSTILE), chance.randbytes(40)])

    def _subject(self) -> str:
        chance, at = self.chance, self.subjects.prefix
        token = chance.choice(["s1", "s2", "=F", "=ff=00", "s.s", "x" * 600, "\udcff", "~"])
        name, queue = chance.choice(self.names), chance.choice([*self.queues, "zz.p0"])
        kinds = [
            f"ctl.in.{token}", f"ctl.in.{token}", f"ctl.done.{name}.{token}", f"ctl.done.{token}",
            f"ctl.done.{name}", "ctl.done", "ctl.in", "ctl", f"ctl.pause.{token}", "ctl.tick",
            "ctl.plan", "ctl.plan.x", f"work.{queue}.{token}", f"work.{queue}.{token}",
        ]  # fmt: skip
        return at + chance.choice(kinds)

    async def write(self) -> None:
        """One message; not a plan that holds, for that is a deploy, whoever publishes it."""
        chance = self.chance
        self.written += 1
        subject, data = self._subject(), self._data()
        headers = {
            chance.choice(["Content-Type", "Bp-Control", "Bp-Producer", "X"]): chance.choice(
                [CONTENT_TYPE, CONTENT_TYPE, "open", "close", "jump", "é\0", "v" * 3_000]
            )
        }
        try:
            event, _ = read_event(self.subjects, subject, headers, data, 1, 1)
            if isinstance(event, Deployed):
                return
        except Ignored:
            pass
        except NewerVersionError:
            return
        msg_id = f"~d.{NOBODYS}.{self.names[0]}" if chance.random() < 0.1 else None
        await self.broker.publish(subject, data, headers=headers, msg_id=msg_id)
