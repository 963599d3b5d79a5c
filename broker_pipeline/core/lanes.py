"""Lanes: the parts of a stateful phase's queue, and which worker has which.

All packages of an instance are in one lane, and a worker pulls its own lanes: the states that it
holds are those that its packages need (docs/adr/0015). Nothing here decides what is right, only
what is cheap: two workers with one lane, or a lane that changes its worker, cost a few inputs that
are run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

LANES = 32
"""Lanes of a stateful phase in a shard: the most workers that can have a part of it. Each is a
consumer, of which a stream has 1,000 by default."""
TOKENS_CACHED = 4096
"""Instances whose hash is at hand: the leader needs it for each package."""

_FNV_OFFSET = 0x811C9DC5
_FNV_PRIME = 0x01000193
_WORD = 0xFFFFFFFF
_SPREAD = 0x9E3779B1
"""2^32 divided by the golden ratio: multiplying by it moves what differs into the high bits."""


@lru_cache(TOKENS_CACHED)
def fnv1a(token: str) -> int:
    """FNV-1a of 32 bits, by which nats-server also partitions subjects."""
    value = _FNV_OFFSET
    for byte in token.encode():
        value = (value ^ byte) * _FNV_PRIME & _WORD
    return value


def lane_of(token: str, lanes: int) -> int:
    """The lane of an instance, by its token.

    From the hash's high bits: the shard is its remainder, so the low bits are alike in a shard.
    """
    return (fnv1a(token) * _SPREAD & _WORD) * lanes >> 32


def lanes_of(member: str, members: Iterable[str], lanes: int) -> frozenset[int]:
    """The lanes of one of the members; every lane has exactly one, whatever the order of members.

    Each member weighs each lane by a hash of both, and the heaviest pair comes first (rendezvous
    hashing), as long as the member has no more than its share: `lanes / len(members)`, rounded
    down, and up for as many members as that leaves lanes over. So a join or a leave moves few
    lanes besides those that it must.
    """
    everyone = sorted({member, *members})
    share, more = divmod(lanes, len(everyone))
    owner: dict[int, str] = {}
    taken = dict.fromkeys(everyone, 0)
    pairs = [(_weight(each, lane), lane, each) for each in everyone for lane in range(lanes)]
    for _, lane, each in sorted(pairs):
        if lane in owner or taken[each] >= share + (more > 0):
            continue
        more -= taken[each] == share
        taken[each] += 1
        owner[lane] = each
    return frozenset(lane for lane, each in owner.items() if each == member)


def _weight(member: str, lane: int) -> bytes:
    return hashlib.blake2b(f"{lane} {member}".encode(), digest_size=8).digest()
