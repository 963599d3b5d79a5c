"""What a module may change about a package, and how the record follows it."""

from __future__ import annotations

from broker_pipeline._proto.v1 import data_package_pb2 as pb


def changed_fields(theirs: pb.DataPackage, record: pb.DataPackage) -> tuple[str, ...]:
    """In which of them the modules' package is not as the record has it."""
    found: tuple[str, ...] = ()
    if theirs.data != record.data:
        found += ("data",)
    if theirs.content_type != record.content_type:
        found += ("content_type",)
    labels, kept = theirs.attributes, record.attributes
    if (len(labels) or len(kept)) and labels != kept:
        found += ("attributes",)
    referred = theirs.HasField("reference") or record.HasField("reference")
    if referred and theirs.reference != record.reference:
        found += ("reference",)
    return found


def bring_up(theirs: pb.DataPackage, record: pb.DataPackage, fields: tuple[str, ...]) -> None:
    """Make the record what the modules' package is, in these fields."""
    for field in fields:
        if field == "attributes":
            record.attributes.clear()
            record.attributes.MergeFrom(theirs.attributes)
        elif field == "reference":
            record.ClearField("reference")
            if theirs.HasField("reference"):
                record.reference.CopyFrom(theirs.reference)
        else:
            setattr(record, field, getattr(theirs, field))
