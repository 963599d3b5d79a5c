"""What the broker's answers, and its silence, say about the room that it has.

Seen with nats-server 2.15.1: docs/adr/0017-a-full-disk.md. A full log (a stream's `max_bytes`) is
none of this: work in progress has room in it, and it opens again by itself.
"""

from __future__ import annotations

from typing import Any

from broker_pipeline.errors import LogFullError, NotStoringError, StorageFullError

# By JetStream's error code: what is used up.
_USED_UP = {
    10002: "the limit of this account (max_file, max_mem) is used up; raise it",
    10023: "the limit of the server (max_file_store, unless set 3/4 of the disk) is used up; raise "
    "it in its configuration",
    10028: "the server's memory for streams (max_memory_store) is used up; raise it",
    10047: "the server's storage (max_file_store) cannot hold that much; raise it",
    10049: "a stream's files cannot be written: the disk is full or failing; make room",
}
STREAM_FULL = 10077
_DISK_IS_FULL = "no space left"
# The same code says that a stream is full, which is no matter of the broker's disk.

WHY_SILENT = (
    "the broker answers and stores nothing: a write to its disk has failed, as when it is full "
    "(its log says `critical write error`), or too few of the stream's replicas are up; make "
    "room and restart nats-server, which stores nothing more until then; what it acknowledged is "
    "safe"
)


def storage_full(subject: str, err_code: int, description: str) -> StorageFullError | None:
    """The error for a refusal for want of room; None for any other refusal."""
    used_up = _USED_UP.get(err_code)
    if used_up is None and err_code == STREAM_FULL and _DISK_IS_FULL in description:
        used_up = "the disk is full; make room"
    if used_up is None:
        return None
    return StorageFullError(
        f"the broker has no room for {subject!r}: {description} (code {err_code}); it is not "
        f"stored; {used_up}, or delete streams that are not needed; everything goes on by itself "
        "when there is room",
        err_code=err_code,
        subject=subject,
        description=description,
    )


def log_full(subject: str, err_code: int, description: str) -> LogFullError | None:
    """The error for a refusal by a stream that is full; None for any other refusal."""
    if err_code != STREAM_FULL:
        return None
    return LogFullError(
        f"the broker refused a message on {subject!r}: {description} (code {err_code}); it is not "
        f"stored; the log is full, and takes messages again by itself when there is room",
        err_code=err_code,
        subject=subject,
        description=description,
    )


def not_storing(subject: str, timeout_s: float, **values: Any) -> NotStoringError:
    """The error for a message without an acknowledgement from a broker that does answer."""
    return NotStoringError(
        f"no acknowledgement for a message on {subject!r} came within {timeout_s:g} s; it may or "
        f"may not be stored; {WHY_SILENT}",
        subject=subject,
        timeout_s=timeout_s,
        **values,
    )
