"""A module that runs for a caller elsewhere: where it stands, and what is told of its run."""

from __future__ import annotations

from collections.abc import Sequence

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline._proto.v1 import module_service_pb2 as service

CONTROLLER, PHASE = "server", "module"
"""Where the module stands, for the executor; callers put it where it belongs."""
_PATH = f"{CONTROLLER}/{PHASE}/"


def tell_errors(response: service.RunResponse, envelope: pb.DataPackage, before: int) -> None:
    """What went wrong here; so many errors the package came with."""
    for error in envelope.errors[before:]:
        error.path = error.path.removeprefix(_PATH)
        response.errors.append(error)


def shift(modules: Sequence[pb.ModuleRecord], waited_ns: int, errors: int) -> None:
    """Let records begin later, and count errors without those that the package came with."""
    for module in modules:
        module.start_offset_ns += waited_ns
        if module.error:
            module.error -= errors
        if module.sub_modules:
            shift(module.sub_modules, waited_ns, errors)
