"""A stateful module whose outputs are a fold, and what it must give."""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from broker_pipeline import Controller, Mode, Outcome, Phase, Pipeline
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.names import module_key
from broker_pipeline.modules import StatefulModule
from tests.unit.runtime.bench import Bench, results

KEY = module_key(0, "c", "p0", "a")


class Tally(msgspec.Struct):
    """What a `Fold` has seen."""

    seen: list[str] = []
    extra: bytes = b""


class Fold(StatefulModule[bytes, Tally]):
    """Appends what it sees to its state, and writes the state into the package."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.opened = threading.Event()
        self.opened.set()

    def initial_state(self) -> Tally:
        """Nothing."""
        return Tally()

    def execute(self, package: Any, run: Any, state: Tally) -> Tally:
        """One package; its text says how it ends."""
        self.opened.wait(30)
        self.runs += 1
        text = package.data.decode()
        state.seen.append(text)
        if text.startswith("fail"):
            raise ValueError(text)
        if text.startswith("keep"):
            run.exit("with state", state=state)
        if text.startswith("drop"):
            run.exit("without state")
        if text.startswith("big"):
            state.extra = b"x" * 20_000
        package.data = " ".join(state.seen).encode()
        return state


def pipeline(*modules: Any, **options: Any) -> Pipeline:
    """One NOT_PARALLEL controller with a phase for each module."""
    options = {"ack_wait_s": 0.3, **options}
    phases = [Phase(f"p{n}", [module], **options) for n, module in enumerate(modules)]
    return Pipeline("demo", [Controller("c", mode=Mode.NOT_PARALLEL, phases=phases)])


def expected(texts: list[str]) -> list[tuple[bytes, Outcome]]:
    """The same fold in a plain loop."""
    found, seen = [], []
    for text in texts:
        if text.startswith("fail"):
            found.append((text.encode(), Outcome.ERROR))
        elif text.startswith(("drop", "keep")):
            seen += [text] if text.startswith("keep") else []
            found.append((text.encode(), Outcome.EXIT))
        else:
            seen.append(text)
            found.append((" ".join(seen).encode(), Outcome.SUCCESS))
    return found


TEXTS = ["1", "2", "fail", "3", "keep", "4", "5", "6"]


async def one_by_one(bench: Bench, texts: list[str], *, instance: str = "a") -> list[Any]:
    """Send each when the one before has left."""
    already = len(bench.messages(bench.subjects.out))
    left: list[pb.DataPackage] = []
    for number, text in enumerate(texts, start=1):
        await bench.send(text.encode(), instance=instance)
        left = await bench.left(already + number)
    return results(left[already:])
