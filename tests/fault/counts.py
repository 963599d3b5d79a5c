"""Whether what a snapshot counts is what its log holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from broker_pipeline.broker.port import Message
from broker_pipeline.core.names import Subjects
from broker_pipeline.core.snapshot import Head
from broker_pipeline.core.tallies import OUTCOMES
from tests.fault.model import Model


def wrong_counts(head: Head, log: list[Message], subjects: Subjects) -> Iterator[str]:
    """What is counted otherwise than the model has it at the same place."""
    model = Model(subjects)
    for message in log:
        if message.stream_seq <= head.applied:
            model.feed(message)
    pipeline, *controllers = head.tallies
    out = Counter(outcome for _, _, outcome in model.outs)
    came, inside = len(model.admitted), len(model.admitted) - len(model.outs)
    said = (pipeline.came, pipeline.left, pipeline.inside)
    if said != (came, [out[outcome] for outcome in OUTCOMES], inside):
        yield f"{said} are counted at {head.applied}; the model says {came}, {out}"
    by_outcome = [sum(left) for left in zip(*(c.left for c in controllers), strict=True)]
    if by_outcome[1:] != pipeline.left[1:]:
        yield f"{by_outcome} left early, by controller; of the pipeline {pipeline.left}"
    for index, tally in enumerate(controllers):
        inside = sum(life.chain.controllers[index].inside for life in model.lives.values())
        said = (tally.came, sum(tally.left), tally.inside)
        if said != (came, came - inside, inside):
            yield f"{said} are counted in controller {index}; of {came} {inside} inside"
        came = tally.left[0]
