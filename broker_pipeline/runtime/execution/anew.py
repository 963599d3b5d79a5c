"""A package as a module was given it, for a module that gets it again."""

from __future__ import annotations

import copy
from typing import Any

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.package import DataPackage


def anew(package: DataPackage[Any], record: pb.DataPackage) -> DataPackage[Any]:
    """A package of its own, so that what still holds the old one does no harm.

    Args:
        package: what a module had, and may have changed.
        record: the walk's: as the module before left it, with the journey up to now.
    """
    fresh = copy.copy(package)  # how it is read stays: the payload types, the expected one
    fresh.envelope = pb.DataPackage()
    fresh.envelope.CopyFrom(record)
    del fresh.envelope.controllers[-1].phases[-1]  # the packages of a phase do not have it yet
    fresh.set_raw(record.data, record.content_type)
    return fresh
