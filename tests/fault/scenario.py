"""What happens in one run, drawn from one seed before it begins."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from broker_pipeline import Controller, Mode, Phase, Pipeline
from tests.fault.modules import ERROR, EXIT, POISON, build
from tests.fault.network import Weather

NAME = "sim"
LARGE_STATES = 0.25
"""The share of seeds in which no state fits into a message."""

AGED_SHARE = 0.3
"""Of all seeds: those in which packages get too old."""
UNAGED = (5131, 254)
"""Seeds that have found a bug before there were ages: they go on meaning what they meant."""

Kinds = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Send:
    """One thing that a producer does.

    Args:
        kind: data, open or close.
        repeat: publish the same once more, under another message id.
    """

    at: float
    instance: str
    kind: str
    data: bytes = b""
    repeat: bool = False


@dataclass(frozen=True)
class Source:
    """A producer. `style`: sdk (the client's), raw, or numbered (numbers of its own, no msg id)."""

    style: str
    sends: tuple[Send, ...]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at a time. `fuse`: so many callbacks of the victim later."""

    at: float
    kind: str
    victim: int = 0
    lasts_s: float = 0.0
    fuse: int = 0
    flag: bool = False


@dataclass(frozen=True)
class Bounds:
    """A log that is purged, and full now and then.

    Args:
        size: its size in bytes; None: no bound.
        history_s: how long history is kept.
    """

    size: int | None
    history_s: float


@dataclass(frozen=True)
class Large:
    """Payloads that travel by reference.

    Args:
        bytes: those that are larger.
        put_s: how long it may take from putting one to the arrival of its package.
        forgotten: the share of those that raw producers put and never publish.
    """

    bytes: int
    put_s: float
    forgotten: float


@dataclass
class Scenario:
    """A whole run."""

    seed: int
    kinds: Kinds
    pipelines: list[tuple[float, Pipeline]]
    sources: list[Source]
    faults: list[Fault]
    weather: Weather
    calm_at: float
    window_s: float
    snapshot_s: float
    state_every_s: float
    controllers: int
    workers: list[tuple[str, ...] | None]
    slots: int
    lanes: int
    slow: float = 0.0
    log: Bounds | None = None
    whole_max: int = 0
    slices: int = 1
    changed_max: int = 1_000
    large_states: bool = False
    large: Large | None = None
    skews_ns: list[int] = field(default_factory=list)

    @property
    def ages_s(self) -> dict[str, list[float | None]]:
        """The `max_age_s` that each controller has at any time."""
        return {
            c.name: [pipeline.controllers[n].max_age_s for _, pipeline in self.pipelines]
            for n, c in enumerate(self.pipelines[0][1].controllers)
        }

    @property
    def poison(self) -> int:
        """How many kill the workers that run them."""
        end = f"={POISON}".encode()
        return sum(send.data.endswith(end) for source in self.sources for send in source.sends)

    @property
    def packages(self) -> int:
        """How many are sent, repeats not counted."""
        return sum(send.kind == "data" for source in self.sources for send in source.sends)


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    chance = random.Random(f"scenario {seed}")
    kinds, rules = _draw_stages(chance)
    idle_s = chance.choice((600.0, 600.0, 600.0, 2.5))
    ages = random.Random(f"age {seed}")
    aged = seed not in UNAGED and ages.random() < AGED_SHARE
    pipelines = [(0.0, _pipeline(kinds, rules, idle_s, _draw_ages(ages, rules, aged)))]
    length_s = chance.choice((2.0, 4.0, 8.0))
    if chance.random() < 0.2:
        changed = [(mode, *_bounds(chance, mode), phases) for mode, _, _, phases in rules]
        changed_ages = _draw_ages(ages, rules, aged)
        at = chance.uniform(0.3, length_s)
        pipelines.append((at, _pipeline(kinds, changed, idle_s, changed_ages)))
    places = list(kinds)
    workers: list[tuple[str, ...] | None] = [None, None]
    if chance.random() < 0.3:
        workers.append(tuple(chance.sample(places, chance.randint(1, len(places)))))
    faults = _draw_faults(chance, length_s)
    objects = random.Random(f"objects {seed}")  # its own: what was drawn before it came stays
    large_states = objects.random() < LARGE_STATES
    lanes = random.Random(f"lanes {seed}")  # its own, so that the rest of a seed stays as it was
    faults = sorted([*faults, *_draw_lane_faults(lanes, length_s)], key=lambda fault: fault.at)
    scenario = Scenario(
        seed=seed,
        kinds=kinds,
        pipelines=pipelines,
        sources=_draw_sources(chance, places, length_s),
        faults=faults,
        weather=_draw_weather(chance),
        calm_at=length_s + 1.0,
        window_s=chance.choice((8.0, 120.0)),
        snapshot_s=chance.choice((0.0, 0.05, 0.3, 2.0)),
        state_every_s=chance.choice((0.0, 0.1, 1.0)),
        controllers=chance.choice((1, 2, 2, 3)),
        workers=workers,
        slots=chance.randint(1, 3),
        lanes=lanes.choice((1, 2, 3, 3, 5)),
        slow=chance.choice((0.0, 0.0, 0.0, 0.0, 0.03)),
        large_states=large_states,
        skews_ns=[chance.choice((0, 0, -1, 1)) * chance.randrange(3 * 10**9) for _ in range(8)],
        whole_max=chance.choice((0, 0, 0, 2)),
        slices=chance.choice((1, 2, 3, 8)),
        changed_max=chance.choice((1, 2, 1_000)),
    )
    scenario.weather.lost_objects = objects.choice((0.0, 0.0, 0.2))
    return _enlarge(_bound_log(scenario))


LARGE_SHARE = 0.5
"""Of all seeds, those in which payloads travel by reference. Drawn apart, as the log is."""
PROMPT_S = 0.3
LATE_S = 10.0
"""Longer than a producer waits for its connection and a link stalls, together: what is sent just
after its payload was put arrives by then. The other is enough where neither happens."""


def _enlarge(scenario: Scenario) -> Scenario:
    chance = random.Random(f"payloads {scenario.seed}")
    if chance.random() >= LARGE_SHARE:
        return scenario
    late = [f for f in scenario.faults if " client" in f.kind or f.kind == "broker restarts"]
    delays = bool(late or scenario.weather.stalls)
    scenario.large = Large(
        chance.choice((3, 8, 14, 20)), LATE_S if delays else PROMPT_S, chance.choice((0.0, 0.1))
    )
    for _, pipeline in scenario.pipelines:
        pipeline.large_payload_bytes = scenario.large.bytes
    return scenario


LOG_SHARE = 0.4
"""Of all seeds, those whose log is small. Drawn apart: the rest of a seed's scenario stays."""


def _bound_log(scenario: Scenario) -> Scenario:
    chance = random.Random(f"log {scenario.seed}")
    if chance.random() >= LOG_SHARE:
        return scenario
    size = chance.choice((None, 6_000, 15_000, 40_000))
    scenario.log = Bounds(size, chance.choice((0.2, 1.0, 3.0)))
    # Whoever leads without a lease may read across what another has purged, and a stored state
    # that is lost cannot be computed again: see ADR 11.
    scenario.faults = [f for f in scenario.faults if f.kind != "leader without a lease"]
    scenario.weather.lost_objects = 0.0
    for _, pipeline in scenario.pipelines:
        pipeline.replay_window_s = scenario.log.history_s
        pipeline.log_bytes_max = size
        if (
            size is not None
        ):  # an instance with a state keeps what it needs of the log until it ends
            pipeline.instance_idle_s = min(pipeline.instance_idle_s, 2.5)
    return scenario


def _draw_ages(ages: random.Random, rules: list[Rule], aged: bool) -> list[float | None]:
    return [ages.choice((None, None, 0.05, 0.4, 1.5, 4.0)) if aged else None for _ in rules]


def _bounds(chance: random.Random, mode: Mode) -> tuple[int | None, int | None]:
    queue = chance.choice((None, None, 0, 1, 2, 4))
    if mode is Mode.NOT_PARALLEL:
        return None, queue
    window = chance.choice((None, 1, 2, 3, 5))
    return window, queue if window is not None else None


Rule = tuple[Mode, int | None, int | None, tuple[str, ...]]


def _draw_stages(chance: random.Random) -> tuple[Kinds, list[Rule]]:
    kinds: Kinds = {}
    rules: list[Rule] = []
    for index in range(chance.choice((1, 1, 2, 2, 3))):
        mode = chance.choice(list(Mode))
        phases = tuple(f"p{n}" for n in range(chance.choice((1, 1, 2))))
        for phase in phases:
            options = [("mark",)]
            if mode is Mode.NOT_PARALLEL:
                options = [("mark",), ("count",), ("count",), ("mark", "count")]
            kinds[f"c{index}.{phase}"] = chance.choice(options)
        rules.append((mode, *_bounds(chance, mode), phases))
    return kinds, rules


def _pipeline(
    kinds: Kinds, rules: list[Rule], idle_s: float, ages_s: list[float | None]
) -> Pipeline:
    controllers = []
    for index, (mode, window, queue, names) in enumerate(rules):
        phases = [
            Phase(
                name,
                build(f"c{index}.{name}", kinds[f"c{index}.{name}"]),
                ack_wait_s=1.0,
                max_deliver=4,
            )
            for name in names
        ]
        controllers.append(
            Controller(f"c{index}", phases, mode, window, queue, max_age_s=ages_s[index])
        )
    return Pipeline(NAME, controllers, instance_idle_s=idle_s, producer_gap_s=1.0)


def _draw_sources(chance: random.Random, places: list[str], length_s: float) -> list[Source]:
    instances = ["a", "b", "mic 1"][: chance.randint(1, 3)]
    poison = chance.random() < 0.25
    lives = chance.random() < 0.3
    sources = []
    for number in range(chance.randint(1, 4)):
        style = chance.choice(("sdk", "sdk", "raw", "numbered"))
        mine = instances if chance.random() < 0.3 else [chance.choice(instances)]
        count = chance.choice((4, 8, 16, 30, 60))
        burst = chance.random() < 0.4
        times = sorted(
            chance.uniform(0.1, length_s) if not burst else chance.choice((0.1, 0.6, length_s / 2))
            for _ in range(count)
        )
        sends = []
        for index, at in enumerate(times):
            instance = chance.choice(mine)
            if lives and chance.random() < 0.1:
                sends.append(Send(at, instance, chance.choice(("open", "close", "close"))))
                continue
            head = f"{number}.{index}"
            if chance.random() < 0.25:
                order = chance.choice((EXIT, ERROR))
                if poison and chance.random() < 0.15:
                    order = POISON
                head += f";{chance.choice(places)}={order}"
            sends.append(Send(at, instance, "data", head.encode(), chance.random() < 0.15))
        sources.append(Source(style, tuple(sends)))
    return sources


FAULTS = {
    "kill leader": 5,
    "kill controller": 2,
    "kill worker": 5,
    "stop controller": 1,
    "stop worker": 1,
    "pause leader": 4,
    "pause worker": 4,
    "pause client": 1,
    "cut leader": 3,
    "cut worker": 3,
    "cut client": 2,
    "deafen client": 1,
    "broker restarts": 1,
    "no stream leader": 1,
    "log full for ingress": 1,
    "disk full": 2,
    "leader without a lease": 3,
    "redelivery": 3,
    "leaderless": 1,
}


def _draw_faults(chance: random.Random, length_s: float) -> list[Fault]:
    if chance.random() < 0.1:
        return []
    kinds = chance.sample(list(FAULTS), chance.randint(1, 6))
    weights = [FAULTS[kind] for kind in kinds]
    faults = []
    for _ in range(chance.choice((1, 3, 6, 10, 20))):
        kind = chance.choices(kinds, weights)[0]
        faults.append(
            Fault(
                at=chance.uniform(0.1, length_s),
                kind=kind,
                victim=chance.randrange(8),
                lasts_s=chance.choice((0.05, 0.5, 1.5, 3.0, 6.0)) * (0.5 + chance.random()),
                fuse=chance.choice((0, 0, 3, 10, 40, 200)),
                flag=chance.random() < 0.5,
            )
        )
    return sorted(faults, key=lambda fault: fault.at)


LANE_FAULTS = ("member forgotten", "member that is none")


def _draw_lane_faults(chance: random.Random, length_s: float) -> list[Fault]:
    """What workers see of each other is wrong for a while."""
    if chance.random() < 0.7:
        return []
    return [
        Fault(chance.uniform(0.1, length_s), chance.choice(LANE_FAULTS), chance.randrange(8))
        for _ in range(chance.randint(1, 4))
    ]


def _draw_weather(chance: random.Random) -> Weather:
    weather = Weather(latency_s=chance.choice((0.0001, 0.0005, 0.003)))
    if chance.random() < 0.25:
        return weather
    weather.unseen = chance.choice((0.0, 0.05, 0.5))
    for name in ("lost_acks", "late_acks", "stalls", "gaps", "lost_answers"):
        if chance.random() < 0.5:
            setattr(weather, name, chance.choice((0.002, 0.01, 0.05)))
    weather.gaps /= 5
    weather.lost_answers /= 5
    return weather
