"""The segmenter is a fold: how it is fed, and where it is carried on, change nothing."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

np = pytest.importorskip("numpy", reason="needs the extra 'transcribe'")

from examples.transcribe import segmenter  # noqa: E402
from examples.transcribe.segmenter import CHUNK_BYTES_MAX, RATE, State, Utterance  # noqa: E402

# A stream as spans of (tone, hiss or nothing; 20 ms frames): long enough for cuts and noise.
SPANS = st.lists(
    st.tuples(st.sampled_from(["speech", "hiss", "nothing"]), st.integers(1, 90)),
    min_size=1,
    max_size=16,
)


def sound(spans: list[tuple[str, int]]) -> bytes:
    parts = []
    for kind, frames in spans:
        time = np.arange(frames * segmenter.FRAME) / RATE
        wave = {
            "speech": 8000 * np.sin(2 * np.pi * 220 * time),
            "hiss": 60 * np.sin(2 * np.pi * 3000 * time),
            "nothing": 0 * time,
        }[kind]
        parts.append(wave.astype("<i2").tobytes())
    return b"".join(parts)


def feed(
    pcm: bytes, sizes: list[int], *, carry_over: bool = False
) -> tuple[State, list[Utterance]]:
    """All of `pcm` in chunks of these sizes, again and again, until nothing more happens."""
    state, found, at, turn = State(), [], 0, 0
    while at < len(pcm) or len(state.rest) >= segmenter.FRAME_BYTES:
        size = sizes[turn % len(sizes)]
        state, utterance = segmenter.step(state, pcm[at : at + size])
        at, turn = at + size, turn + 1
        if utterance is not None:
            found.append(utterance)
        if carry_over:
            state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=State)
    return state, found


@settings(max_examples=30, deadline=None)
@given(SPANS, st.lists(st.integers(1, CHUNK_BYTES_MAX), min_size=1, max_size=5))
def test_how_a_stream_is_cut_into_chunks_changes_nothing(
    spans: list[tuple[str, int]], sizes: list[int]
) -> None:
    """The utterances and the final state are those of 100 ms chunks; odd sizes included."""
    pcm = sound(spans)
    sizes = [max(size, 200) for size in sizes]
    assert feed(pcm, sizes) == feed(pcm, [3200])


@settings(max_examples=20, deadline=None)
@given(SPANS)
def test_a_state_that_was_stored_and_read_back_is_the_same(spans: list[tuple[str, int]]) -> None:
    """At every step: any worker can carry the stream on."""
    pcm = sound(spans)
    assert feed(pcm, [3200], carry_over=True) == feed(pcm, [3200])


@settings(max_examples=30, deadline=None)
@given(SPANS)
def test_utterances_are_pieces_of_the_stream_in_order(spans: list[tuple[str, int]]) -> None:
    """Each is the sound at its place, none overlaps the one before, none is over 12 s."""
    pcm = sound(spans)
    _, found = feed(pcm, [3200])
    end = 0
    for utterance in found:
        assert utterance.start >= end
        end = utterance.start + len(utterance.pcm) // 2
        assert utterance.pcm == pcm[utterance.start * 2 : end * 2]
        assert utterance.start < utterance.speech_end <= end
        assert end - utterance.start <= 12 * RATE


def test_speech_between_silences_is_one_utterance() -> None:
    """With 200 ms around it, and its end where the tone ends."""
    _, found = feed(sound([("nothing", 50), ("speech", 100), ("nothing", 50)]), [3200])
    (utterance,) = found
    assert (utterance.start_s, utterance.end_s) == (0.8, 3.0)
    assert len(utterance.pcm) == int(2.4 * RATE) * 2


def test_a_click_is_no_speech() -> None:
    """Less than 260 ms of voice is dropped."""
    assert feed(sound([("nothing", 50), ("speech", 8), ("nothing", 50)]), [3200])[1] == []


def test_speech_without_a_pause_is_cut_and_stays_small() -> None:
    """No state or utterance comes near the broker's limit, however long somebody speaks."""
    pcm = sound([("nothing", 20), *[("speech", 80), ("hiss", 10)] * 20, ("nothing", 50)])
    state, found = State(), 0
    for at in range(0, len(pcm), 3200):
        state, utterance = segmenter.step(state, pcm[at : at + 3200])
        found += utterance is not None
        assert len(msgspec.msgpack.encode(state)) < 400_000
    assert found >= 3


def test_a_chunk_that_is_too_long_is_refused() -> None:
    """Two utterances could end in it."""
    with pytest.raises(ValueError, match="send shorter ones"):
        segmenter.step(State(), bytes(CHUNK_BYTES_MAX + 1))
