"""What a log line is about, as the fields that `extra=` takes (see `logs.FIELDS`)."""

from __future__ import annotations

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.core.names import readable_instance


def about(envelope: pb.DataPackage, phase: str = "") -> dict[str, object]:
    """A package, and the phase that it is in, as CONTROLLER.PHASE."""
    return {
        "package": f"{envelope.pipeline}/{envelope.shard}/{envelope.id}",
        "pipeline": envelope.pipeline,
        "instance": envelope.instance,
        "phase": phase,
    }


def in_phase(phase: str, token: str = "") -> dict[str, object]:
    """A phase, as CONTROLLER.PHASE, and the instance of that token."""
    return {"phase": phase, "instance": readable_instance(token) if token else ""}
