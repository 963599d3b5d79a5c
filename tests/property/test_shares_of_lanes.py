"""Lanes: every one has an owner, shares are even, and few move."""

import random

from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline.core.lanes import LANES, fnv1a, lane_of, lanes_of

NAMES = st.lists(st.text("abcdef0123456789-", min_size=1, max_size=12), min_size=1, unique=True)
MOVED_MORE_MAX = 9
"""Lanes that move at a join or a leave besides a member's share; 6 is the most that was seen."""


def owners(members, lanes):
    """Who has which, as each of them works it out."""
    return {lane: member for member in members for lane in sorted(lanes_of(member, members, lanes))}


@given(NAMES, st.integers(1, 70))
def test_every_lane_has_one_owner_and_shares_are_even(members, lanes):
    """Floor or ceil of lanes / members each."""
    shares = [lanes_of(member, members, lanes) for member in members]
    assert sorted(lane for share in shares for lane in share) == list(range(lanes))
    low = lanes // len(members)
    assert {len(share) for share in shares} <= {low, low + (lanes % len(members) > 0)}


@given(NAMES, st.randoms(use_true_random=False))
def test_the_order_in_which_members_are_listed_does_not_matter(members, chance):
    """Nor that one is listed twice, or that one's own key is not there yet."""
    mixed = [*members, members[0]]
    chance.shuffle(mixed)
    for member in members:
        others = [each for each in mixed if each != member]
        assert lanes_of(member, members, LANES) == lanes_of(member, mixed, LANES)
        assert lanes_of(member, members, LANES) == lanes_of(member, others, LANES)


def test_a_join_or_a_leave_moves_few_lanes():
    """At most a member's share and MOVED_MORE_MAX; read backwards a join is a leave."""
    chance = random.Random(3)
    for _ in range(60):
        names = [f"host-{chance.randrange(10**5)}-{chance.getrandbits(32):08x}" for _ in range(13)]
        count = chance.randint(1, 12)
        before, after = owners(names[:count], LANES), owners(names[: count + 1], LANES)
        moved = sum(before[lane] != after[lane] for lane in range(LANES))
        assert moved <= -(-LANES // (count + 1)) + MOVED_MORE_MAX


def test_the_hash_is_the_one_that_the_broker_partitions_by():
    """FNV-1a of 32 bits: the published test vectors."""
    assert fnv1a("") == 0x811C9DC5
    assert fnv1a("a") == 0xE40C292C
    assert fnv1a("foobar") == 0xBF9CF968


def test_instances_are_spread_over_the_lanes():
    """Also those of one shard, whose hashes have one remainder."""
    for shards in (1, 2, 4, 32):
        tokens = [f"room-{n}" for n in range(32_000) if fnv1a(f"room-{n}") % shards == 0]
        counts = [0] * LANES
        for token in tokens:
            counts[lane_of(token, LANES)] += 1
        even = len(tokens) / LANES
        assert min(counts) > even / 3 and max(counts) < even * 3


@given(st.text("abc=0123456789", min_size=1), st.integers(1, 70))
def test_a_lane_is_one_of_those_there_are(token, lanes):
    """Whatever their number."""
    assert 0 <= lane_of(token, lanes) < lanes
