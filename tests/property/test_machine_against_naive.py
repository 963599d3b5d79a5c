"""The machine against a naive model of every mode, step by step, and its outputs on their own."""

from collections import Counter

from driving import World, act, actions, ages, bounds, dispatches, emits, make_plan, rule_lists
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import NaiveChain

from broker_pipeline.core.commands import Dispatch
from broker_pipeline.core.events import Arrived, Completed, Deployed, Ticked
from broker_pipeline.core.machine import Machine
from broker_pipeline.journey import Mode, Outcome

STRAYS = ("epoch", "instance", "controller", "sequence", "id")

schedules = st.lists(
    st.one_of(
        actions,
        st.tuples(st.just("stray"), st.integers(0, 9), st.sampled_from(STRAYS)),
        st.tuples(st.just("wait"), st.integers(0, 2**31), st.none()),
        st.tuples(
            st.just("deploy"),
            st.lists(st.tuples(bounds, ages), min_size=3, max_size=3),
            st.none(),
        ),
    ),
    max_size=50,
)


def by_token(out):
    """No order is promised between two instances."""
    return out[0]


class Pair:
    """A machine and a naive chain for each instance, given the same schedule."""

    def __init__(self, rules):
        self.rules = rules
        self.machine = Machine()
        self.machine.step(Deployed(1, 1, make_plan(rules)))
        self.naive = {}
        self.seq = 1
        self.now = 1
        self.running = []  # (token, controller, number, label)
        self.finished = []  # completions, for repeats
        self.emitted = []
        self.arrived = []

    def act(self, action):
        """One step of both; what they say must be the same."""
        kind, what, how = action
        outcome = getattr(self, kind)(what, how)
        if outcome is None:
            return
        event, expected = outcome
        expected = [self.aged[0] + expected[0], self.aged[1] + expected[1]]
        commands = self.machine.step(event)
        starts, outs = [], []
        for command in commands:
            label = command.package.id
            if isinstance(command, Dispatch):
                number = command.stamps[-1].sequence
                starts.append((command.instance, command.controller, number, label))
            else:
                outs.append((command.instance, label, command.outcome))
        for index in range(len(self.rules)):  # no order is promised between two controllers
            for token in self.naive:
                assert [s for s in starts if s[:2] == (token, index)] == [
                    s for s in expected[0] if s[:2] == (token, index)
                ]
        assert len(starts) == len(expected[0])
        assert sorted(outs, key=by_token) == sorted(expected[1], key=by_token)
        self.running += starts
        self.emitted += outs
        for token, chain in self.naive.items():
            assert self.machine.instances[token].inside == chain.inside
            states = self.machine.instances[token].controllers
            assert [s.inside for s in states] == [c.inside for c in chain.controllers]

    def begin(self, *, aging=True):
        """An event comes: what is too old by then has left before."""
        self.seq += 1
        self.now += 1
        self.aged = ([], [])
        for token, chain in self.naive.items():
            chain.now = self.now
            starts, outs = self.tell(token, chain.pass_time(self.now)) if aging else ([], [])
            self.aged[0].extend(starts)
            self.aged[1].extend(outs)
        gone = {(token, label) for token, label, _ in self.aged[1]}
        assert not gone & {(token, label) for token, _, _, label in self.running}

    def wait(self, span, _):
        self.now += span
        self.begin()
        return Ticked(self.seq, self.now), ([], [])

    def tell(self, token, told):
        starts, outs = told
        return [(token, *s) for s in starts], [(token, *o) for o in outs]

    def arrive(self, token, _):
        chain = self.naive.setdefault(token, NaiveChain(self.rules))
        self.begin()
        self.arrived.append((token, self.seq))
        told = self.tell(token, chain.arrive(self.seq, self.now))
        return Arrived(self.seq, self.now, token), told

    def event(self, running, outcome, **changed):
        token, index, number, label = running
        values = {
            "instance": token,
            "epoch": self.machine.instances[token].epoch,
            "id": label,
            "controller": f"c{index}",
            "sequence": number,
            "arrived": self.naive[token].born[label],
            **changed,
        }
        return Completed(self.seq, self.now, outcome=outcome, phases=2, **values)

    def complete(self, pick, outcome):
        if not self.running:
            return None
        running = self.running.pop(pick % len(self.running))
        self.finished.append(running)
        token, index, number, _ = running
        self.begin()
        told = self.naive[token].complete(index, number, outcome)
        return self.event(running, outcome), self.tell(token, told)

    def repeat(self, pick, outcome):
        if not self.finished:
            return None
        self.begin()
        return self.event(self.finished[pick % len(self.finished)], outcome), ([], [])

    def stray(self, pick, wrong):
        if not self.running:
            return None
        running = self.running[pick % len(self.running)]
        changed = {
            "epoch": {"epoch": 999_999},
            "instance": {"instance": "nobody"},
            "controller": {"controller": "nowhere"},
            "sequence": {"sequence": 999_999},
            "id": {"id": 999_999},
        }[wrong]
        self.begin()
        return self.event(running, Outcome.SUCCESS, **changed), ([], [])

    def deploy(self, changes, _):
        self.begin(aging=False)  # by the new plan, not by the old one
        self.rules = [
            (mode, 1 if mode is Mode.NOT_PARALLEL else window, queue_size, age)
            for (mode, *_), ((window, queue_size), age) in zip(self.rules, changes, strict=False)
        ]
        starts, outs = [], []
        for token, chain in self.naive.items():
            told = self.tell(token, chain.change([rule[1:] for rule in self.rules]))
            starts += told[0]
            outs += told[1]
        return Deployed(self.seq, self.now, make_plan(self.rules)), (starts, outs)


@settings(max_examples=200)
@given(rule_lists(), schedules)
def test_the_machine_does_what_the_naive_model_does_at_every_step(rules, schedule):
    """Arrivals, completions, repeats, strays and deploys of several interleaved instances through
    one to three controllers give the starts and leavings that the naive model gives."""
    pair = Pair(rules)
    for action in schedule:
        pair.act(action)
    while pair.running:
        pair.act(("complete", 0, Outcome.SUCCESS))
    assert sorted(pair.arrived) == sorted((token, label) for token, label, _ in pair.emitted)


@given(st.sampled_from(Mode), bounds, st.lists(actions, max_size=60))
def test_the_outputs_alone_keep_every_promise(mode, bound, schedule):
    """Whatever the model says: one outcome each, nothing lost, the order that the mode gives."""
    window, queue_size = (1, bound[1]) if mode is Mode.NOT_PARALLEL else bound
    world = World(make_plan([(mode, window, queue_size)]))
    arrived, out, started = Counter(), {}, {}
    for action in [*schedule, *[("complete", 0, Outcome.SUCCESS)] * len(schedule)]:
        waiting = {}
        for token, instance in world.machine.instances.items():
            waiting[token] = [t.sequence for t in instance.controllers[0].waiting or ()]
        commands = act(world, action)
        if action[0] == "arrive":
            arrived[action[1]] += 1
        for command in dispatches(commands):
            started.setdefault(command.instance, []).append(command.package.id)
        for command in emits(commands):
            out.setdefault(command.instance, []).append((command.package.id, command.outcome))
            if command.outcome is Outcome.OVERFLOW:
                before = waiting.get(command.instance, [])
                assert queue_size is not None
                assert len(before) == queue_size
                oldest = [*before, arrived[command.instance]][0]
                assert command.stamps[0].sequence == oldest
        for token, instance in world.machine.instances.items():
            state = instance.controllers[0]
            assert window is None or len(state.in_flight) <= window
            assert queue_size is None or len(state.waiting or ()) <= queue_size
            assert arrived[token] == len(out.get(token, [])) + instance.inside
    for token, count in arrived.items():
        assert len(out[token]) == count
        assert len({package for package, _ in out[token]}) == count
        assert started[token] == sorted(started[token])
        won = [package for package, outcome in out[token] if outcome is Outcome.SUCCESS]
        if mode is not Mode.NO_ORDER:
            assert won == sorted(won)
        outdated = [package for package, outcome in out[token] if outcome is Outcome.OUTDATED]
        assert mode is Mode.FIRST_WINS or not outdated
        order = [package for package, _ in out[token]]
        for package in outdated:
            assert any(w > package and order.index(w) < order.index(package) for w in won)
