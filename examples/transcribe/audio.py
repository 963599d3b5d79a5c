"""An audio file as the chunks that a microphone would give: 16 kHz mono int16 PCM.

python -m examples.transcribe.audio [FILE] > talk.pcm
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from examples.transcribe.recogniser import moonshine_assets
from examples.transcribe.segmenter import DEFAULT, RATE

CHUNK_MS = 100
CHUNK_BYTES = RATE * CHUNK_MS // 1000 * 2

REFERENCE = Path(__file__).with_name("two_cities.txt")
"""What is said in `bundled_recording`: the opening of A Tale of Two Cities."""


def bundled_recording() -> Path:
    """44 s of a person reading, from the moonshine-voice wheel."""
    return moonshine_assets() / "two_cities.wav"


def read_chunks(path: str | Path) -> Iterator[bytes]:
    """Chunks of exactly 100 ms, and after the recording the silence that ends its last utterance.

    Anything that libsndfile reads (WAV, FLAC, OGG, Opus, MP3), at any rate, with any number of
    channels. Memory does not grow with the length of the file.

    Raises:
        OSError: there is no such file.
        soundfile.LibsndfileError: it is no audio.
    """
    pending = bytearray()
    for pcm in _pcm(path):
        pending += pcm
        while len(pending) >= CHUNK_BYTES:
            yield bytes(pending[:CHUNK_BYTES])
            del pending[:CHUNK_BYTES]
    pending += bytes(RATE * (DEFAULT.short_pause_ms + CHUNK_MS) // 1000 * 2)
    pending += bytes(-len(pending) % CHUNK_BYTES)
    for start in range(0, len(pending), CHUNK_BYTES):
        yield bytes(pending[start : start + CHUNK_BYTES])


def _pcm(path: str | Path) -> Iterator[bytes]:
    with Path(path).open("rb") as raw, soundfile.SoundFile(raw) as file:
        resampler = soxr.ResampleStream(file.samplerate, RATE, 1, dtype="float32")
        block = max(1, file.samplerate * CHUNK_MS // 1000)
        last = False
        while not last:
            samples = file.read(block, dtype="float32", always_2d=True)
            last = len(samples) == 0
            mono = np.ascontiguousarray(samples.mean(axis=1), dtype=np.float32)
            out = resampler.resample_chunk(mono, last=last)
            yield np.clip(np.rint(out * 32767.0), -32768, 32767).astype("<i2").tobytes()


if __name__ == "__main__":
    for each in read_chunks(sys.argv[1] if len(sys.argv) > 1 else bundled_recording()):
        sys.stdout.buffer.write(each)
