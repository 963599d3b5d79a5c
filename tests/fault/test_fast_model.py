"""The model that replays long runs answers as the naive one does."""

from __future__ import annotations

import random

import pytest

from broker_pipeline.journey import Mode, Outcome
from tests.fault.real.fast import FastChain
from tests.property.naive import NaiveChain

ENDS = (Outcome.SUCCESS, Outcome.SUCCESS, Outcome.SUCCESS, Outcome.EXIT, Outcome.ERROR)


@pytest.mark.parametrize("seed", range(60))
def test_the_fast_model_is_the_naive_one(seed: int) -> None:
    """On random chains, arrivals, completions and changes of bounds: the same answers each time."""
    chance = random.Random(f"fast {seed}")
    rules = []
    for _ in range(chance.randint(1, 3)):
        window = chance.choice((None, 1, 2, 5))
        queue = chance.choice((None, 0, 1, 4)) if window is not None else None
        rules.append((chance.choice(list(Mode)), window, queue))
    naive, fast = NaiveChain(rules), FastChain(rules)
    for label in range(120):
        assert fast.arrive(label) == naive.arrive(label)
        for index, controller in enumerate(naive.controllers):
            for number in chance.sample(controller.running, len(controller.running) // 2):
                end = chance.choice(ENDS)
                assert fast.complete(index, number, end) == naive.complete(index, number, end)
        if chance.random() < 0.05:
            bounds = [(chance.choice((None, 1, 3)), rule[2]) for rule in rules]
            assert fast.change(bounds) == naive.change(bounds)
        assert fast.inside == naive.inside
