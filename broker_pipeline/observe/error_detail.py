"""What an error records beyond its traceback: local variables, the environment, versions.

Off by default: it may hold what users say and what nobody should read. Secrets are masked. No code
of the user's is run for it, no `__repr__` and no property, so it neither fails nor hangs; and it is
bounded, for a package carries its errors through the log.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from types import FrameType, ModuleType, TracebackType

from broker_pipeline.errors import SettingError
from broker_pipeline.observe.masking import MASK, is_secret, masked
from broker_pipeline.observe.values import Writer

DETAIL_ENV = "BROKER_PIPELINE_ERROR_DETAIL"
"""What is recorded, by this process and those that it starts."""
LOCALS, ENVIRONMENT, VERSIONS = "locals", "environment", "versions"
WORDS = (LOCALS, ENVIRONMENT, VERSIONS)
DETAILS_BYTES_MAX = 16 * 1024
"""All details of one error, keys included: twice a traceback."""
KEY_CHARS_MAX = 200
ENVIRONMENT_BYTES_MAX, VERSIONS_BYTES_MAX = 4 * 1024, 2 * 1024
"""Of that; the rest is for local variables."""
FRAMES_MAX = 8
"""Frames whose locals are recorded: the first of user code and the last, half each."""
VARIABLES_MAX = 50
"""In each of them."""
TEXT_CHARS_MAX = 256
"""Of a variable of the environment."""
MODULES_MAX = 200
"""Names that are looked at for versions, in each frame's module."""

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PYTHONS = tuple({sysconfig.get_paths()[kind] + os.sep for kind in ("stdlib", "platstdlib")})
_INSTALLED = ("site-packages", "dist-packages")


def check(text: str) -> frozenset[str]:
    """The words of a setting, with commas between them. Raises SettingError."""
    words = frozenset(word.strip() for word in text.split(",") if word.strip())
    if unknown := sorted(words.difference(WORDS)):
        raise SettingError(
            f"what errors are to record is {text!r}, and {unknown[0]!r} is none of it; expected "
            f"some of {', '.join(WORDS)}, with commas between them",
            unknown=tuple(unknown),
        )
    return words


def set_up(text: str | None) -> None:
    """Have errors record that, here and in the processes that this one starts.

    Args:
        text: see `check`; None: what the environment says. "" is nothing.

    Raises:
        SettingError: a word is none.
    """
    words = check(os.environ.get(DETAIL_ENV, "") if text is None else text)
    if text is not None:
        os.environ[DETAIL_ENV] = text
    if VERSIONS in words:
        _distributions()  # not while packages wait


def details_of(trace: TracebackType | None) -> dict[str, str]:
    """What the setting asks for, of an error with this traceback; {} where it asks for nothing.

    Never raises, and gives at most DETAILS_BYTES_MAX bytes.
    """
    wanted = _wanted(os.environ.get(DETAIL_ENV, ""))
    if not wanted:
        return {}
    details = _Details()
    frames = _users(trace)
    if VERSIONS in wanted:
        details.add(VERSIONS, _versions(frames), VERSIONS_BYTES_MAX)
    if ENVIRONMENT in wanted:
        details.add(ENVIRONMENT, _environment(), ENVIRONMENT_BYTES_MAX)
    if LOCALS in wanted:
        details.add(LOCALS, _locals(frames), DETAILS_BYTES_MAX)
    return details.found


@cache
def _wanted(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in text.split(",")).intersection(WORDS)


class _Details:
    """What is recorded, within its bounds."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._left = DETAILS_BYTES_MAX

    def add(self, kind: str, items: Iterator[tuple[str, str]], bytes_max: int) -> None:
        """Add what fits; a last entry says that there was more."""
        note = f"{kind}/..."
        left = min(bytes_max, self._left) - len(note) - 32
        try:
            for name, text in items:
                key = _clean(f"{kind}/{name}"[:KEY_CHARS_MAX])
                text = _clean(text)
                # Protobuf's own bytes for an entry of a map: tags and lengths.
                size = len(key.encode()) + len(text.encode()) + 12
                if size > left:
                    self.found[note] = "more was left out"
                    self._left -= len(note) + 32
                    break
                self.found[key] = text
                left -= size
                self._left -= size
        except Exception as error:  # whatever user code has made of Python's own types
            self.found[note] = f"cannot be read: {type(error).__name__}"
            self._left -= len(note) + 64


def _clean(text: str) -> str:
    """As protobuf takes it."""
    return text.encode("utf-8", "replace").decode()


def _users(trace: TracebackType | None) -> list[tuple[FrameType, int]]:
    """Frames that are neither ours nor Python's own, with their lines: the first and the last."""
    frames = []
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        pythons = name.startswith(_PYTHONS) and not any(part in name for part in _INSTALLED)
        if not name.startswith(_OURS) and not name.startswith("<frozen") and not pythons:
            frames.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    if len(frames) > FRAMES_MAX:
        half = FRAMES_MAX // 2
        frames = frames[:half] + frames[-half:]
    return frames


def _locals(frames: list[tuple[FrameType, int]]) -> Iterator[tuple[str, str]]:
    """The innermost frame first: it is what there must be room for."""
    writer = Writer()
    for number, (frame, line) in reversed(list(enumerate(frames))):
        code = frame.f_code
        place = f"{number} {code.co_name} ({os.path.basename(code.co_filename)}:{line})"
        for name, value in list(frame.f_locals.items())[:VARIABLES_MAX]:
            yield f"{place}/{name}", MASK if is_secret(name) else writer.write(value)


def _environment() -> Iterator[tuple[str, str]]:
    for name, value in sorted(os.environ.items()):
        yield name, MASK if is_secret(name) else masked(value)[:TEXT_CHARS_MAX]


def _versions(frames: list[tuple[FrameType, int]]) -> Iterator[tuple[str, str]]:
    """Of Python, this package, and the distributions that the frames' modules import."""
    yield "python", sys.version.split()[0]
    names = {"broker_pipeline"}
    for frame, _ in frames:
        names.update(_imports(frame.f_globals))
    distributions = _distributions()
    found = {each for name in names for each in distributions.get(name, ())}
    for each in sorted(found):
        yield each, _version(each)


def _imports(names: Mapping[str, object]) -> Iterator[str]:
    """The top-level packages that the values of a module's names come from."""
    for value in list(names.values())[:MODULES_MAX]:
        kind = type(value)
        if kind is ModuleType:
            name = ModuleType.__getattribute__(value, "__name__")
        elif kind is type or kind.__name__ in ("function", "builtin_function_or_method"):
            name = getattr(value, "__module__", None)
        else:
            continue
        if type(name) is str and name.partition(".")[0] not in sys.stdlib_module_names:
            yield name.partition(".")[0]


@cache
def _version(distribution: str) -> str:
    from importlib import metadata

    return metadata.version(distribution)


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Which distributions hold a package. The first time it costs some 200 ms."""
    from importlib import metadata

    return metadata.packages_distributions()
