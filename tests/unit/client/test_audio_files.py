"""Audio files as mono PCM, and files as packages."""

from __future__ import annotations

import array
import asyncio
import math
import struct
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from broker_pipeline.broker.memory import MemoryBroker
from broker_pipeline.client import audio, files
from broker_pipeline.client.instance import Instance
from broker_pipeline.core.names import HEADER_CONTENT_TYPE
from broker_pipeline.errors import AudioFileError, ClientError

RATE = 16_000


def write_wav(path: Path, frames: list[tuple[int, ...]], rate: int = RATE) -> Path:
    """A 16-bit WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(frames[0]))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"".join(struct.pack(f"<{len(frame)}h", *frame) for frame in frames))
    return path


def samples_of(path: Path, chunk_ms: int = 100, rate: int = RATE) -> list[int]:
    """All samples of all chunks."""
    return list(array.array("h", b"".join(audio.read_chunks(path, rate=rate, chunk_ms=chunk_ms))))


def tone(seconds: float, rate: int) -> list[float]:
    """440 Hz at half of full scale."""
    count = int(seconds * rate)
    return [0.5 * math.sin(2 * math.pi * 440 * n / rate) for n in range(count)]


def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `broker_pipeline[audio]` were not installed."""

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("broker_pipeline.client.audio.importlib.import_module", missing)


def test_a_wav_file_at_the_rate_is_read_to_the_bit_without_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but Python is needed."""
    without_the_extra(monkeypatch)
    frames = [(n % 30_000 - 15_000,) for n in range(40_001)]
    path = write_wav(tmp_path / "a.wav", frames)
    assert samples_of(path) == [frame[0] for frame in frames]
    assert audio.duration_s(path) == pytest.approx(40_001 / RATE)


def test_every_chunk_but_the_last_is_whole(tmp_path: Path) -> None:
    """100 ms at 16 kHz are 3,200 bytes."""
    path = write_wav(tmp_path / "a.wav", [(1,)] * 4_000)
    sizes = [len(chunk) for chunk in audio.read_chunks(path, rate=RATE, chunk_ms=100)]
    assert sizes == [3_200, 3_200, 1_600]


def test_channels_become_their_mean(tmp_path: Path) -> None:
    """Also where their sum is beyond 16 bits."""
    path = write_wav(tmp_path / "a.wav", [(32_767, 32_767), (-32_768, -32_768), (100, -100)])
    assert samples_of(path) == [32_767, -32_768, 0]


def test_flac_is_read_as_the_same_samples(tmp_path: Path) -> None:
    """It is lossless: the samples are those that were written."""
    written = np.array([0, 1, -1, 32_767, -32_768, 12_345], dtype=np.int16)
    path = tmp_path / "a.flac"
    soundfile.write(path, written, RATE, subtype="PCM_16")
    assert samples_of(path) == written.tolist()


@pytest.mark.parametrize(("suffix", "rate"), [("wav", 44_100), ("flac", 48_000), ("wav", 8_000)])
def test_another_rate_is_resampled(tmp_path: Path, suffix: str, rate: int) -> None:
    """The tone keeps its length, its pitch and its level."""
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.array(tone(1.0, rate)), rate)
    got = np.array(samples_of(path)) / 32_768
    assert abs(len(got) - RATE) <= 2
    spectrum = np.abs(np.fft.rfft(got))
    assert abs(int(spectrum.argmax()) * RATE / len(got) - 440) < 2
    assert np.sqrt(np.mean(got**2)) == pytest.approx(0.5 / math.sqrt(2), rel=0.02)


def test_what_is_no_audio_is_said_to_be_none(tmp_path: Path) -> None:
    """With the file's name."""
    path = tmp_path / "a.wav"
    path.write_bytes(b"not audio at all")
    with pytest.raises(AudioFileError, match=r"BP602 .*a\.wav.*cannot be read as audio"):
        samples_of(path)


def test_a_missing_file_and_a_missing_extra_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to do is in the line."""
    with pytest.raises(AudioFileError, match="cannot be opened"):
        samples_of(tmp_path / "none.wav")
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(10), RATE)
    without_the_extra(monkeypatch)
    with pytest.raises(AudioFileError, match=r"pip install 'broker_pipeline\[audio\]'"):
        samples_of(path)


@pytest.fixture
async def room(broker: MemoryBroker, pipeline: Any, log: Any) -> AsyncIterator[Instance]:
    """An instance, entered."""
    async with Instance(broker, pipeline, "room") as room:
        yield room


def plan(*names: Path | str, **options: Any) -> list[files.Source]:
    defaults = {"chunk_ms": None, "chunk_bytes": None, "rate": RATE, "realtime": False}
    return files.sources([str(name) for name in names], **{**defaults, **options})


async def test_audio_and_other_files_are_published_in_order(
    room: Instance, log: Any, tmp_path: Path
) -> None:
    """Audio as PCM with its content type, the rest as bytes without one."""
    sound = write_wav(tmp_path / "a.wav", [(7,)] * 2_000)
    text = tmp_path / "b.txt"
    text.write_bytes(b"0123456789")
    sources = plan(sound, text)
    assert [source.chunks for source in sources] == [2, 1]
    done = await files.publish(room, sources, realtime=False, stop=asyncio.Event())
    arrivals = await log.arrivals()
    assert [len(m.data) for m in arrivals] == [3_200, 800, 10]
    assert [m.headers.get(HEADER_CONTENT_TYPE) for m in arrivals] == [
        "audio/pcm;rate=16000;channels=1;format=s16le",
        "audio/pcm;rate=16000;channels=1;format=s16le",
        None,
    ]
    assert (done.packages, done.bytes) == (3, 4_010)
    assert str(done).startswith("published 3 packages, 4,010 bytes in ")


async def test_chunk_bytes_sends_every_file_as_it_is(
    room: Instance, log: Any, tmp_path: Path
) -> None:
    """An audio file too, header and all."""
    path = write_wav(tmp_path / "a.wav", [(7,)] * 100)
    sources = plan(path, chunk_bytes=100)
    await files.publish(room, sources, realtime=False, stop=asyncio.Event())
    arrivals = await log.arrivals()
    assert b"".join(m.data for m in arrivals) == path.read_bytes()
    assert [len(m.data) for m in arrivals] == [100, 100, 44]


async def test_realtime_takes_as_long_as_it_was_spoken(room: Instance, tmp_path: Path) -> None:
    """Not less: the chunk's last sample must have been spoken."""
    path = write_wav(tmp_path / "a.wav", [(7,)] * 1_600)
    sources = plan(path, chunk_ms=20, realtime=True)
    done = await files.publish(room, sources, realtime=True, stop=asyncio.Event())
    assert done.packages == 5
    assert done.seconds >= 0.1


async def test_stopping_ends_publishing_between_two_chunks(room: Instance, tmp_path: Path) -> None:
    """What was sent is counted."""
    stop = asyncio.Event()
    path = write_wav(tmp_path / "a.wav", [(7,)] * RATE * 60)
    done = await files.publish(
        room,
        plan(path, chunk_ms=20, realtime=True),
        realtime=True,
        stop=stop,
        progress=lambda source: stop.set(),
    )
    assert 1 <= done.packages <= 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"chunk_ms": 10, "chunk_bytes": 10}, "expected one of them"),
        ({"chunk_ms": 0}, "at least 1"),
        ({"rate": 0}, "at least 1"),
        ({"realtime": True}, "--realtime"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    """Before anything is sent."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    with pytest.raises(ClientError, match=said):
        plan(path, **options)


def test_an_unreadable_file_is_found_before_the_first_is_sent(tmp_path: Path) -> None:
    """Directories and missing files, audio or not."""
    with pytest.raises(ClientError, match="cannot be opened"):
        plan(tmp_path)
    with pytest.raises(AudioFileError):
        plan(tmp_path / "none.wav")
