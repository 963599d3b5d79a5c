"""What a module server counts: calls in, out and inside, and what it grants."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from broker_pipeline._proto.v1 import module_service_pb2 as service
from broker_pipeline.external.hosting import Call
from broker_pipeline.journey import STATUS_TO_PB, Status
from broker_pipeline.observe import catalogue
from broker_pipeline.observe.meter import Meter, Sample, Source

_END_OF: dict[Any, str] = {STATUS_TO_PB[Status(end.upper())]: end for end in catalogue.ENDS}


class ServingMeter:
    """Counts for one module in one process; all on its event loop.

    Args:
        module: the name under which it is served.
        others: gives what else is known when somebody reads.

    Attributes:
        close: ends it.
    """

    def __init__(self, meter: Meter, module: str, others: Source) -> None:
        self._labels, self._others = (module,), others
        self._inside: dict[Call, None] = {}
        self._came = 0
        self._left = dict.fromkeys((*catalogue.ENDS, catalogue.GIVEN_BACK), 0)
        self._times = {
            end: meter.histogram(catalogue.SERVER_TIME, module, end) for end in catalogue.ENDS
        }
        self.close = meter.add_source(self.read)

    def came(self, calls: Sequence[Call]) -> None:
        """Callers have sent packages. Takes 0.1 us a package."""
        self._came += len(calls)
        self._inside.update(dict.fromkeys(calls))

    def answered(self, call: Call, response: service.RunResponse) -> None:
        """One is answered. Takes 1 us."""
        if call in self._inside:
            del self._inside[call]
            end = _END_OF.get(response.status, catalogue.GIVEN_BACK)
            self._left[end] += 1
            if end in self._times:
                self._times[end].observe(time.monotonic_ns() - call.arrived_ns)

    def given_up(self, call: Call) -> None:
        """Nobody waits for one any more, or it goes back before it has begun."""
        if call in self._inside:
            del self._inside[call]
            self._left[catalogue.GIVEN_BACK] += 1

    def read(self) -> Iterator[Sample]:
        """What came, what left, and what is inside now."""
        yield catalogue.SERVER_IN.sample(*self._labels, value=self._came)
        for end, count in self._left.items():
            yield catalogue.SERVER_OUT.sample(*self._labels, end, value=count)
        yield catalogue.SERVER_INSIDE.sample(*self._labels, value=len(self._inside))
        yield from self._others()
