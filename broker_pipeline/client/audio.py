"""Audio files as mono 16-bit PCM, chunk by chunk: what a microphone would have given.

A 16-bit WAV file at the wanted rate needs nothing but Python. Everything else - other rates, FLAC,
Ogg, MP3 - is read by soundfile and resampled by soxr: the extra `audio`.
"""

from __future__ import annotations

import array
import importlib
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from broker_pipeline.errors import AudioFileError

SAMPLE_BYTES = 2
BLOCK_FRAMES = 16_384
"""Frames read at once: memory does not grow with the file."""
AUDIO_SUFFIXES = frozenset(
    {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf"}
)
"""Files that are read as audio unless told otherwise: what libsndfile knows and people have."""


def is_audio_name(path: str | Path) -> bool:
    """Whether the file's name says that it is audio."""
    return Path(path).suffix.lower() in AUDIO_SUFFIXES


def content_type_of(rate: int) -> str:
    """What the chunks are."""
    return f"audio/pcm;rate={rate};channels=1;format=s16le"


def chunk_size(rate: int, chunk_ms: int) -> int:
    """The bytes of a chunk: a whole number of samples."""
    return rate * chunk_ms // 1000 * SAMPLE_BYTES


def read_chunks(path: str | Path, *, rate: int, chunk_ms: int) -> Iterator[bytes]:
    """Yield mono little-endian int16 PCM; every chunk but the last is `chunk_ms` long.

    Several channels become one, their mean.

    Args:
        rate: samples a second of what is yielded.

    Raises:
        AudioFileError: it cannot be opened, is no audio, or needs the extra `audio`.
    """
    size = chunk_size(rate, chunk_ms)
    pending = bytearray()
    for block in _pcm(Path(path), rate):
        pending += block
        while len(pending) >= size:
            yield bytes(pending[:size])
            del pending[:size]
    if pending:
        yield bytes(pending)


def duration_s(path: str | Path) -> float:
    """How long the audio is, in seconds. Raises AudioFileError where it cannot be read."""
    path = Path(path)
    _require_openable(path)
    header = _wave_header(path)
    if header is not None:
        return header.getnframes() / header.getframerate()
    soundfile = _extra("soundfile", path)
    with _opened(soundfile, path) as file:
        return float(file.frames / file.samplerate)


def _pcm(path: Path, rate: int) -> Iterator[bytes]:
    _require_openable(path)
    header = _wave_header(path)
    if header is not None and header.getframerate() == rate:
        return _wave_pcm(path)
    return _resampled_pcm(path, rate)


def _require_openable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise AudioFileError(
            f"the audio file {str(path)!r} cannot be opened: {error.strerror}; expected one "
            "that may be read",
            path=str(path),
        ) from error


def _wave_header(path: Path) -> wave.Wave_read | None:
    """The header of a 16-bit PCM WAV file with samples in it; None for everything else."""
    try:
        with wave.open(str(path), "rb") as file:
            usable = file.getsampwidth() == SAMPLE_BYTES and file.getframerate() > 0
            return file if usable else None
    except (wave.Error, EOFError):
        return None


def _wave_pcm(path: Path) -> Iterator[bytes]:
    with wave.open(str(path), "rb") as file:
        channels = file.getnchannels()
        while block := file.readframes(BLOCK_FRAMES):
            # A file that ends early may end in the middle of a frame.
            whole = block[: len(block) - len(block) % (SAMPLE_BYTES * channels)]
            yield whole if channels == 1 else _mixed(whole, channels)


def _mixed(block: bytes, channels: int) -> bytes:
    """The mean of the channels."""
    samples = array.array("h", block)
    if sys.byteorder == "big":
        samples.byteswap()
    mono = array.array(
        "h",
        [
            round(sum(samples[first : first + channels]) / channels)
            for first in range(0, len(samples), channels)
        ],
    )
    if sys.byteorder == "big":
        mono.byteswap()
    return mono.tobytes()


def _resampled_pcm(path: Path, rate: int) -> Iterator[bytes]:
    soundfile = _extra("soundfile", path)
    with _opened(soundfile, path) as file:
        resampler = None
        if file.samplerate != rate:
            soxr = _extra("soxr", path)
            resampler = soxr.ResampleStream(file.samplerate, rate, 1, dtype="float32")
        while True:
            try:
                frames = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise _unreadable(path, error) from error
            is_last = len(frames) == 0
            mono = frames.mean(axis=1)
            if resampler is not None:
                mono = resampler.resample_chunk(mono, last=is_last)
            yield bytes((mono * 32768.0).round().clip(-32768, 32767).astype("<i2").tobytes())
            if is_last:
                return


def _opened(soundfile: Any, path: Path) -> Any:
    try:
        return soundfile.SoundFile(str(path))
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> AudioFileError:
    return AudioFileError(
        f"the file {str(path)!r} cannot be read as audio: {error}; expected WAV, FLAC, Ogg, MP3 or "
        "another format that libsndfile reads",
        path=str(path),
    )


def _extra(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise AudioFileError(
            f"reading {str(path)!r} needs {name!r}, which is not installed; expected a 16-bit WAV "
            "file at the wanted rate, or: pip install 'broker_pipeline[audio]'",
            path=str(path),
            missing=name,
        ) from error
