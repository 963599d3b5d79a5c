"""Payloads as a person reads them, by their content type; and as files that other programs open."""

from __future__ import annotations

import array
import math
import sys
import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf.message import Message

from broker_pipeline import codecs
from broker_pipeline.codecs import Types
from broker_pipeline.errors import PayloadError

LINES_MAX = 12
"""Lines of a payload that are shown, unless somebody asks for more."""
TEXT_CHARS_MAX = 64 << 10
"""Of a text, so much is looked at; it is far more than is shown, mostly."""
ITEMS_MAX = 20
"""Of a list or a dict in a payload, so many are shown."""
DEPTH_MAX = 8
BYTES_SHOWN = 16
ROW_BYTES = 16
ROW_COLUMNS = 73
"""Of a dump; in narrower terminals a row has half of the bytes."""
LEVELS = "▁▂▃▄▅▆▇█"
SILENCE_DB = -96.0
"""What a level of nothing is called, and the floor of the drawing: 16 bits have no less."""
WAVE_COLUMNS = 48
SAMPLE_BYTES = 2
SAMPLES_MAX = 100_000
"""Of longer sound, about so many samples make up the level."""


@dataclass(frozen=True, slots=True)
class Pcm:
    """Sound: 16-bit samples, little endian, channels interleaved."""

    rate: int
    channels: int
    samples: bytes

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / (SAMPLE_BYTES * self.channels * self.rate)


def describe(
    raw: bytes, content_type: str, types: Types, *, width: int = 76, lines_max: int = LINES_MAX
) -> list[str]:
    """A payload: what it is, and behind that as much of it as there is room for.

    Args:
        types: payload types by name.
        width: how long a line may be.
        lines_max: of the payload; the first line, which says what it is, is not counted.
    """
    head = f"{len(raw):,} bytes" + (f" of {content_type}" if content_type else "")
    if not raw:
        return [head]
    sound = pcm_of(raw, content_type)
    if sound is not None:
        return [head, *_sound_lines(sound)]
    try:
        value = codecs.decode(raw, content_type, None, types)
    except PayloadError as error:
        return [f"{head}, and is not: {_one_line(str(error))}", *_hex_lines(raw, width, lines_max)]
    if isinstance(value, bytes):
        return [head, *_hex_lines(value, width, lines_max)]
    if isinstance(value, str):
        lines = _text_lines(value[:TEXT_CHARS_MAX], width)
    elif isinstance(value, Message):
        lines = _text_lines(str(value), width)
    else:
        lines = pretty(value, width)
    return [head, *_bounded(lines, lines_max)]


def pretty(value: object, width: int = 76) -> Iterator[str]:
    """Plain data, a Struct, or anything else, a line each for what is in it."""
    yield from _pretty(value, "", "", width, DEPTH_MAX)


def _pretty(value: object, indent: str, label: str, width: int, depth: int) -> Iterator[str]:
    if isinstance(value, msgspec.Struct):
        label += type(value).__name__
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, Mapping | list | tuple) and value and depth:
        if label or not indent:
            yield from _text_lines(f"{indent}{label or type(value).__name__}", width)
        pairs: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
        for shown, (key, item) in enumerate(pairs):
            if shown == ITEMS_MAX:
                yield f"{indent}  ... {len(value) - shown} more"
                return
            yield from _pretty(item, f"{indent}  ", f"{key}: ", width, depth - 1)
        return
    if isinstance(value, bytes | bytearray | memoryview):
        more = "..." if len(value) > BYTES_SHOWN else ""
        said = f"<{len(value):,} bytes: {bytes(value[:BYTES_SHOWN]).hex(' ')}{more}>"
    else:
        said = repr(value)
    line = f"{indent}{label}{said}"
    yield line if len(line) <= width else f"{line[: width - 3]}..."


def _text_lines(text: str, width: int) -> Iterator[str]:
    for line in text.splitlines() or [""]:
        shown = "".join(each if each.isprintable() else " " for each in line.expandtabs(4))
        for start in range(0, max(1, len(shown)), width):
            yield shown[start : start + width]


def _bounded(lines: Iterator[str], lines_max: int) -> list[str]:
    shown = list(islice(lines, lines_max))
    more = sum(1 for _ in lines)
    return [*shown, f"... {more} more lines"] if more else shown


def _hex_lines(raw: bytes, width: int, lines_max: int) -> list[str]:
    size = ROW_BYTES if width >= ROW_COLUMNS else ROW_BYTES // 2
    lines = []
    for start in range(0, min(len(raw), size * lines_max), size):
        row = raw[start : start + size]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:06x}  {row.hex(' '):{3 * size - 1}}  {text}")
    left = len(raw) - size * lines_max
    return [*lines, f"... {left:,} more bytes"] if left > 0 else lines


def _one_line(text: str) -> str:
    return " ".join(text.split())


# -- sound --------------------------------------------------------------------------------------
def pcm_of(raw: bytes, content_type: str) -> Pcm | None:
    """The sound in a payload: of `audio/pcm; rate=...` and of WAV files with 16-bit samples; None
    where it is something else, or is not said completely."""
    media, said = _parameters(content_type)
    if media in ("audio/wav", "audio/x-wav", "audio/wave"):
        return _wav(raw)
    if media != "audio/pcm" or said.get("format", "s16le") != "s16le":
        return None
    rate, channels = said.get("rate", ""), said.get("channels", "1")
    numbers = rate.isascii() and rate.isdigit() and channels.isascii() and channels.isdigit()
    if not numbers or len(rate) > 7 or len(channels) > 2 or not int(rate) or not int(channels):
        return None
    whole = len(raw) // (SAMPLE_BYTES * int(channels)) * SAMPLE_BYTES * int(channels)
    return Pcm(int(rate), int(channels), raw[:whole])


def _parameters(content_type: str) -> tuple[str, dict[str, str]]:
    media, *rest = content_type.lower().split(";")
    pairs = (each.partition("=") for each in rest)
    return media.strip(), {key.strip(): value.strip().strip('"') for key, _, value in pairs}


def _wav(raw: bytes) -> Pcm | None:
    try:
        with wave.open(BytesIO(raw), "rb") as file:
            if file.getsampwidth() != SAMPLE_BYTES or not file.getframerate():
                return None
            samples = file.readframes(file.getnframes())
            return Pcm(file.getframerate(), file.getnchannels(), samples)
    except (wave.Error, EOFError, RuntimeError):
        return None


def _sound_lines(sound: Pcm) -> list[str]:
    samples = array.array("h", sound.samples)
    if sys.byteorder == "big":
        samples.byteswap()
    channels = "mono" if sound.channels == 1 else f"{sound.channels} channels"
    head = f"{sound.seconds:.3f} s at {sound.rate:,} Hz, {channels}"
    if not samples:
        return [head]
    peak = max(max(samples), -min(samples))
    lines = [f"{head}; level {_decibels(_rms(samples)):.1f} dBFS, peak {_decibels(peak):.1f}"]
    step = max(1, math.ceil(len(samples) / WAVE_COLUMNS))
    parts = (samples[at : at + step] for at in range(0, len(samples), step))
    return [*lines, "".join(_column(_decibels(_rms(part))) for part in parts)]


def _rms(samples: array.array[int]) -> float:
    some = samples[:: max(1, len(samples) // SAMPLES_MAX)]
    return math.sqrt(sum(sample * sample for sample in some) / len(some))


def _decibels(level: float) -> float:
    if not level:
        return SILENCE_DB
    return max(SILENCE_DB, round(20 * math.log10(level / 32_768), 1) + 0.0)  # and never -0.0


def _column(level_db: float) -> str:
    """From -60 dB, which nobody hears, to full scale."""
    height = (level_db + 60) / 60 * len(LEVELS)
    return LEVELS[min(len(LEVELS) - 1, max(0, int(height)))]


# -- files --------------------------------------------------------------------------------------
def save(raw: bytes, content_type: str, path: Path) -> str:
    """Write a payload to a file: PCM as a WAV file that players open, all else as it is.

    Returns: a line that says what was written. Raises OSError.
    """
    sound = pcm_of(raw, content_type) if content_type.lower().startswith("audio/pcm") else None
    if sound is None:
        path.write_bytes(raw)
        return f"{str(path)!r}: {len(raw):,} bytes as they are"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.channels)
        file.setsampwidth(SAMPLE_BYTES)
        file.setframerate(sound.rate)
        file.writeframes(sound.samples)
    return f"{str(path)!r}: a WAV file of {sound.seconds:.3f} s"
