"""Errors as data: an exception in user code, told so that it can be read on another machine."""

from __future__ import annotations

import os
import sys
import traceback
from types import FrameType, TracebackType

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.observe import current
from broker_pipeline.observe.error_detail import details_of

# A package carries its errors through the whole log: long enough to find the fault, no longer.
TRACEBACK_BYTES_MAX = 8 * 1024
MESSAGE_BYTES_MAX = 2 * 1024
NAME_BYTES_MAX = 256
_FRAMES_MAX = 32

_HERE = os.path.dirname(os.path.abspath(__file__))
_OURS = (
    _HERE + os.sep,
    os.path.normpath(os.path.join(_HERE, "../../debug")) + os.sep,
    os.path.abspath(current.__file__),
)
"""Where what runs modules is, and what looks on meanwhile: no module of a user is below these."""
_CUT = "[...]"


class RemoteFailure(Exception):
    """A module failed in another process, which told what happened."""

    def __init__(self, error: pb.Error) -> None:
        super().__init__(error.message)
        self.error = error


def bounded(text: object, bytes_max: int, *, keep_end: bool = False) -> str:
    """`text` as UTF-8 that protobuf takes, cut to so many bytes; what is no str gives ''."""
    if not isinstance(text, str):
        return ""
    if len(text) * 4 <= bytes_max and text.isascii():
        return str(text)
    raw = text.encode("utf-8", "replace")
    if len(raw) > bytes_max:
        room = bytes_max - len(_CUT)
        raw = _CUT.encode() + raw[-room:] if keep_end else raw[:room] + _CUT.encode()
    return raw.decode("utf-8", "ignore")


def describe(error: BaseException, *, host: str, worker: str, path: str) -> pb.Error:
    """The exception as it stands in a package's `errors`, with what `--error-detail` asks for."""
    if isinstance(error, RemoteFailure):
        told = pb.Error()
        told.CopyFrom(error.error)
        told.host, told.worker, told.path = host, worker, path
        return told
    try:
        message = str(error)
    except Exception:  # user code: a __str__ that fails must not hide the error itself
        message = "(its text cannot be read: __str__ failed)"
    return pb.Error(
        type=bounded(type(error).__name__, NAME_BYTES_MAX),
        message=bounded(message, MESSAGE_BYTES_MAX),
        traceback=_traceback(error),
        host=host,
        worker=worker,
        path=path,
        details=details_of(error.__traceback__),
    )


def stack_of(thread: int | None) -> str:
    """Where a thread is now, from the first frame of user code on; '' if it cannot be told."""
    frame = sys._current_frames().get(thread) if thread is not None else None
    frames: list[traceback.FrameSummary] = []
    if frame is not None:
        for each, line in traceback.walk_stack(frame):
            if _is_ours(each):
                break
            frames.append(
                traceback.FrameSummary(each.f_code.co_filename, line, each.f_code.co_name)
            )
            if len(frames) == _FRAMES_MAX:
                break
    text = "".join(traceback.StackSummary.from_list(frames[::-1]).format())
    return bounded(text, TRACEBACK_BYTES_MAX, keep_end=True)


def _traceback(error: BaseException) -> str:
    try:
        lines = traceback.format_exception(
            type(error), error, _users(error.__traceback__), limit=-_FRAMES_MAX
        )
    except Exception:  # user code again: __str__, __cause__, a source file that is gone
        return ""
    return bounded("".join(lines), TRACEBACK_BYTES_MAX, keep_end=True)


def _users(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback after the last frame of this package."""
    users = here = trace
    while here is not None:
        if _is_ours(here.tb_frame):
            users = here.tb_next
        here = here.tb_next
    return users


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OURS)
