"""A lease: at most one process at a time believes, for a bounded time, that it holds a name.

It rests on a bucket whose values vanish after a TTL, and on compare-and-set. A holder that cannot
renew in time stops believing before the value can vanish: it counts from before the request of its
last renewal, the broker from after it. A lease keeps leaders few; it fences nothing: two
leaders at once interleave into the same order (docs/design.md, One idea).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import msgspec

from broker_pipeline.broker.port import Broker
from broker_pipeline.errors import BrokerError, ConnectionLostError, LeadershipLostError

# Renewing every third of the TTL leaves room for one renewal that fails and one that is late.
RENEWALS_PER_TTL = 3
# Longer than any host's name (64) with what makes it unlike others; it becomes part of a subject.
HOLDER_LENGTH_MAX = 128


class LeaseRecord(msgspec.Struct, frozen=True):
    """The value of the key.

    Attributes:
        holder: the id of the process that holds the lease.
        term: how many processes have held it, this one included; for people and logs. It starts
            anew when the value has vanished.
    """

    holder: Annotated[str, msgspec.Meta(min_length=1, max_length=HOLDER_LENGTH_MAX)]
    term: int = 1


@dataclass(frozen=True, slots=True)
class Held:
    """A lease as another holds it; a renewal changes the revision."""

    holder: str
    term: int
    revision: int


class Lease:
    """Competes for one name in a bucket.

    Args:
        broker: the connection it uses.
        bucket: a bucket that was made with `ttl_s`.
        name: the key; one lease each.
        holder: this process's id, unlike any other's.
        ttl_s: the bucket's TTL, in seconds.

    Attributes:
        seen: who had it at the last `acquire` in vain; None where that is not known.
    """

    def __init__(
        self, broker: Broker, bucket: str, name: str, *, holder: str, ttl_s: float
    ) -> None:
        self._broker = broker
        self._bucket = bucket
        self._name = name
        self._holder = holder
        self._ttl_s = ttl_s
        self._term = 0
        self._revision: int | None = None
        self._expires = 0.0
        self.seen: Held | None = None

    @property
    def held(self) -> bool:
        """Whether this process may believe that it holds the lease, now."""
        return self._revision is not None and _now() < self._expires

    @property
    def term(self) -> int:
        """The term of the last successful `acquire`; 0 before."""
        return self._term

    @property
    def remaining_s(self) -> float:
        """How long `held` stays true without another renewal, in seconds."""
        return max(0.0, self._expires - _now()) if self._revision is not None else 0.0

    async def acquire(self) -> bool:
        """Take the lease if nobody holds it; False where somebody does."""
        asked = _now()
        self.seen = None
        found = await self._broker.kv_get(self._bucket, self._name)
        if found is None:
            self._term = 1
            revision = await self._broker.kv_create(self._bucket, self._name, self._value())
        else:
            try:
                record = msgspec.json.decode(found.value, type=LeaseRecord)
            except (ValueError, RecursionError):
                return False  # a stranger's: it vanishes with its TTL like any other
            held = Held(record.holder, record.term, found.revision)
            if record.holder != self._holder:
                self.seen = held
                return False
            # Left by this very holder, whose renewal was answered by nobody.
            return await self.take_over(held)
        self._revision = revision
        self._expires = asked + self._ttl_s
        return revision is not None

    async def take_over(self, held: Held) -> bool:
        """Take the lease from a holder that is gone, before its TTL is over; False where it was
        renewed, removed or taken since."""
        asked = _now()
        self._term = held.term + 1
        self._revision = await self._write(held.revision)
        self._expires = asked + self._ttl_s
        return self._revision is not None

    async def renew(self) -> None:
        """Extend the lease by its TTL.

        Raises:
            LeadershipLostError: another process has taken it, or it had run out.
        """
        if self._revision is None:
            raise self._lost("it is not held")
        asked = _now()
        revision = await self._write(self._revision)
        self._revision = revision
        if revision is None:
            raise self._lost("another process has taken or removed it")
        self._expires = asked + self._ttl_s

    async def release(self) -> None:
        """Give the lease up, if it is still held, so that another can take it at once."""
        revision, self._revision = self._revision, None
        if revision is not None:
            await self._broker.kv_delete(self._bucket, self._name, revision)

    async def hold(self) -> None:
        """Renew the lease until it is lost; never returns.

        Raises:
            LeadershipLostError: it could not be renewed within the TTL, or another has taken it.
            ConnectionLostError: the connection is gone for good.
        """
        last = ""
        while True:
            await asyncio.sleep(min(self._ttl_s / RENEWALS_PER_TTL, self.remaining_s))
            if not self.held:
                raise self._lost(f"it could not be renewed within {self._ttl_s:g} s{last}")
            try:
                async with asyncio.timeout(self.remaining_s):
                    await self.renew()
            except TimeoutError as error:
                raise self._lost(f"no answer came within its {self._ttl_s:g} s") from error
            except ConnectionLostError:
                if self._broker.lost.done():
                    raise
            except BrokerError as error:
                # One try in vain is no loss; the deadline above decides.
                if not error.retriable:
                    raise
                last = f" ({error})"

    async def _write(self, revision: int) -> int | None:
        return await self._broker.kv_update(self._bucket, self._name, self._value(), revision)

    def _value(self) -> bytes:
        return msgspec.json.encode(LeaseRecord(self._holder, self._term))

    def _lost(self, what: str) -> LeadershipLostError:
        self._revision = None
        return LeadershipLostError(
            f"the lease {self._name!r} of {self._holder!r} is lost: {what}; expected to renew it "
            f"every {self._ttl_s / RENEWALS_PER_TTL:g} s; stop leading, and compete again",
            name=self._name,
            holder=self._holder,
        )


def _now() -> float:
    return asyncio.get_running_loop().time()
