"""Any NATS client can feed a pipeline and read its results; this one is plain nats-py.

    python -m broker_pipeline up examples.shout:pipeline --port 4222      # in another terminal
    python examples/plain_nats.py shout room-1 hello world

A result is the protobuf message of proto/broker_pipeline/v1/data_package.proto; its subject tells
the outcome and the instance.
"""

import asyncio
import os
import sys

import nats
from nats.js.api import DeliverPolicy


async def main(pipeline: str, instance: str, *chunks: str) -> None:
    client = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    jetstream = client.jetstream()
    results = await jetstream.subscribe(
        f"bp.{pipeline}.*.out.*.{instance}", ordered_consumer=True, deliver_policy=DeliverPolicy.NEW
    )
    for chunk in chunks:
        await jetstream.publish(f"bp.{pipeline}.in.{instance}", chunk.encode())
    for _ in chunks:
        message = await results.next_msg(timeout=30)
        print(message.metadata.sequence.stream, message.subject, len(message.data), "bytes")
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
