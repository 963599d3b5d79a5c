"""Cut a stream of 16 kHz mono int16 PCM into utterances: a pure fold with an explicit state.

    state, utterance = step(state, chunk)

`State` is plain data, so that a stream can be carried on in another process from any point. How the
stream was cut into chunks changes nothing but when an utterance is told.

Voice is told from silence by the energy of 20 ms frames above a noise floor, which drops at once to
a quieter frame and creeps up otherwise.
"""

from __future__ import annotations

import msgspec
import numpy as np
from msgspec.structs import replace

RATE = 16_000
FRAME_MS = 20
FRAME = RATE * FRAME_MS // 1000
"""Samples in a frame."""
FRAME_BYTES = FRAME * 2
CHUNK_MS_MAX = 800
"""No two utterances may end in one chunk: between two ends there are 960 ms at least."""
CHUNK_BYTES_MAX = RATE * CHUNK_MS_MAX // 1000 * 2


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where speech begins and ends. The defaults did best on the recordings that we tried.

    Attributes:
        onset_db: a frame this far above the floor may start an utterance ...
        offset_db: ... and one this far above it keeps it going, ...
        range_db: ... no further than this below the loudest recent speech.
        quietest_db: nothing below this is speech; full scale is 0.
        onset_ms: so much voice in a row starts an utterance.
        pause_ms: so much silence ends it, ...
        short_ms: ... but one shorter than this goes on ...
        short_pause_ms: ... until so much silence: recognisers need some context.
        before_ms: kept before the onset.
        after_ms: kept after the last voiced frame.
        voice_min_ms: what has less voice than this is noise.
        max_ms: longer ones are cut at the quietest point of their second half. 12 s are 384 KB,
            well below the broker's 1 MiB.
        rise_db_per_s: how fast the floor creeps up.
    """

    onset_db: float = 12.0
    offset_db: float = 8.0
    range_db: float = 32.0
    quietest_db: float = -60.0
    onset_ms: int = 60
    pause_ms: int = 400
    short_ms: int = 5_000
    short_pause_ms: int = 700
    before_ms: int = 200
    after_ms: int = 200
    voice_min_ms: int = 260
    max_ms: int = 12_000
    rise_db_per_s: float = 3.0


DEFAULT = Settings()


class State(msgspec.Struct, frozen=True):
    """What is known of a stream.

    Attributes:
        rest: what has not been looked at: less than a frame, or what followed an utterance's end.
        pcm: `before_ms` of audio while there is silence; else the whole utterance.
        levels: dB of each frame of `pcm`.
        end: the position of the end of `pcm` in the stream, samples.
        floor: the noise floor, dB.
        peak: the loudest recent speech, dB.
        run: voiced frames in a row.
        voiced: voiced frames in the utterance.
        silent: frames since the last voiced one.
        speaking: whether an utterance is open.
    """

    rest: bytes = b""
    pcm: bytes = b""
    levels: tuple[float, ...] = ()
    end: int = 0
    floor: float = -50.0
    peak: float = -30.0
    run: int = 0
    voiced: int = 0
    silent: int = 0
    speaking: bool = False


class Utterance(msgspec.Struct, frozen=True):
    """What somebody said in one go.

    Attributes:
        pcm: its sound, with some silence around it.
        start: the position of `pcm` in the stream, samples.
        speech_end: the position at which its speech ends, samples.
    """

    pcm: bytes
    start: int
    speech_end: int

    @property
    def start_s(self) -> float:
        """Seconds from the start of the stream to its own."""
        return self.start / RATE

    @property
    def end_s(self) -> float:
        """Seconds from the start of the stream to the end of its speech."""
        return self.speech_end / RATE


def step(
    state: State, chunk: bytes, settings: Settings = DEFAULT
) -> tuple[State, Utterance | None]:
    """Take one chunk; give the utterance that ended in it, if one did.

    Raises:
        ValueError: the chunk is longer than `CHUNK_MS_MAX`.
    """
    if len(chunk) > CHUNK_BYTES_MAX:
        raise ValueError(
            f"a chunk has {len(chunk)} bytes; expected at most {CHUNK_BYTES_MAX}, {CHUNK_MS_MAX} "
            f"ms of 16 kHz mono int16 PCM: send shorter ones"
        )
    data = state.rest + chunk
    at, utterance = 0, None
    while utterance is None and at + FRAME_BYTES <= len(data):
        state, utterance = _frame(state, data[at : at + FRAME_BYTES], settings)
        at += FRAME_BYTES
    return replace(state, rest=data[at:]), utterance


def current(state: State) -> Utterance | None:
    """The utterance that is being spoken, as far as it was heard: for partial captions."""
    if not state.speaking:
        return None
    start = state.end - len(state.pcm) // 2
    return Utterance(state.pcm, start, state.end - state.silent * FRAME)


def _frame(state: State, frame: bytes, s: Settings) -> tuple[State, Utterance | None]:
    level = _level(frame)
    seconds = FRAME_MS / 1000
    # Digital silence says nothing about the room, so the floor does not follow it all the way.
    floor = max(min(level, state.floor + s.rise_db_per_s * seconds), s.quietest_db - s.offset_db)
    margin = s.offset_db if state.speaking else s.onset_db
    voice = level - floor >= margin and level >= max(s.quietest_db, state.peak - s.range_db)
    peak = state.peak - 1.0 * seconds
    state = replace(
        state,
        pcm=state.pcm + frame,
        levels=(*state.levels, level),
        end=state.end + FRAME,
        floor=floor,
        peak=max(level, peak) if voice else peak,
        run=state.run + 1 if voice else 0,
    )
    if not state.speaking:
        return _wait_for_onset(state, s), None
    return _follow(state, voice, s)


def _wait_for_onset(state: State, s: Settings) -> State:
    starts = state.run * FRAME_MS >= s.onset_ms
    keep = s.before_ms // FRAME_MS + state.run
    return replace(_keep(state, keep), speaking=starts, voiced=state.run if starts else 0, silent=0)


def _follow(state: State, voice: bool, s: Settings) -> tuple[State, Utterance | None]:
    voiced = state.voiced + voice
    silent = 0 if voice else state.silent + 1
    frames = len(state.levels)
    start = state.end - frames * FRAME
    short = (frames - silent) * FRAME_MS < s.short_ms
    if silent * FRAME_MS >= (s.short_pause_ms if short else s.pause_ms):
        drop = silent - s.after_ms // FRAME_MS
        keep = min(s.before_ms // FRAME_MS, drop)  # no sample is in two utterances
        after = replace(_keep(state, keep), run=0, voiced=0, silent=0, speaking=False)
        if voiced * FRAME_MS < s.voice_min_ms:
            return after, None
        pcm = state.pcm[: (frames - drop) * FRAME_BYTES]
        return after, Utterance(pcm, start, state.end - silent * FRAME)
    if frames * FRAME_MS >= s.max_ms:
        cut = _quietest(state.levels)
        left = frames - cut
        # How many of the frames left are voiced is known to be no more than this.
        after = replace(_keep(state, left), voiced=max(0, left - silent), silent=min(silent, left))
        return after, Utterance(state.pcm[: cut * FRAME_BYTES], start, start + cut * FRAME)
    return replace(state, voiced=voiced, silent=silent), None


def _keep(state: State, frames: int) -> State:
    """Only the last so many frames of the sound."""
    if not frames:
        return replace(state, pcm=b"", levels=())
    return replace(state, pcm=state.pcm[-frames * FRAME_BYTES :], levels=state.levels[-frames:])


def _level(frame: bytes) -> float:
    """RMS in dB of full scale, without the DC offset."""
    power = float(np.var(np.frombuffer(frame, dtype="<i2"), dtype=np.float64)) / 32768.0**2
    return 10.0 * float(np.log10(max(power, 1e-10)))


def _quietest(levels: tuple[float, ...]) -> int:
    """The middle of the quietest 200 ms in the second half."""
    width = 200 // FRAME_MS
    power = np.power(10.0, np.array(levels) / 10.0)
    mean = np.convolve(power, np.ones(width), mode="valid")
    first = len(levels) // 2
    return first + int(np.argmin(mean[first:])) + width // 2
