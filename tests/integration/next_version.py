"""`python -m broker_pipeline ...` as the next version might be: for tests of mixed fleets.

It knows one version of the plan more, and says more than this version knows at every level of a
package. With NEXT_PLAN set it deploys a plan that only it can follow.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.cli.main import main
from broker_pipeline.client import deploy
from broker_pipeline.core import plan
from broker_pipeline.runtime import leader, results

TOLD = b"\xf2\x3f\x05newer"
"""Field 1022, which no version of ours has, with five bytes."""
VERSION = plan.VERSION_MAX + 1


def say_more(envelope: pb.DataPackage) -> None:
    """Write what this version does not know into every part that has not got it."""
    parts: list[Any] = [envelope, *envelope.controllers, *envelope.errors]
    for record in envelope.controllers:
        for phase in record.phases:
            parts += [phase, *phase.modules]
    for part in parts:
        if TOLD not in part.SerializeToString():
            part.MergeFromString(TOLD)


def patch() -> None:
    """Become the next version."""
    plan.VERSION_MAX = VERSION
    write, publish, compile_plan = (
        leader.write,
        results.Results._publish,
        plan.compile_plan,
    )

    def write_more(of: Any, shard: int, command: Any, source: pb.DataPackage) -> bytes:
        say_more(source)
        return write(of, shard, command, source)

    async def publish_more(self: Any, here: Any, envelope: pb.DataPackage, status: Any) -> None:
        say_more(envelope)
        await publish(self, here, envelope, status)

    leader.write = write_more  # type: ignore[assignment]
    results.Results._publish = publish_more  # type: ignore[method-assign]
    if os.environ.get("NEXT_PLAN"):
        deploy.compile_plan = lambda pipeline: msgspec.structs.replace(  # type: ignore[attr-defined]
            compile_plan(pipeline), version=VERSION
        )


if __name__ == "__main__":
    patch()
    main()
