"""Both pipelines of the example on the bundled recording, in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("onnxruntime", reason="needs the extra 'transcribe'")
pytest.importorskip("soundfile", reason="needs the extra 'transcribe'")
pytest.importorskip("soxr", reason="needs the extra 'transcribe'")

from broker_pipeline import DataPackage, Outcome
from broker_pipeline.errors import SetupError
from broker_pipeline.testing import run_in_memory
from examples.transcribe import recogniser
from examples.transcribe.audio import REFERENCE, bundled_recording, read_chunks
from examples.transcribe.pipeline import captions, transcribe
from examples.transcribe.wer import word_errors


@pytest.fixture(scope="module")
def chunks() -> list[bytes]:
    return list(read_chunks(bundled_recording()))


def test_the_recording_becomes_its_text_in_order(chunks: list[bytes]) -> None:
    """Every chunk has an outcome, the texts stand in order, and at most 10 % of words are wrong."""

    def duration(phase: str, package: DataPackage[Any]) -> float:
        return (7 * package.sequence) % 5 if phase == "transcribe.recognise" else 0.001

    packages = run_in_memory(transcribe, chunks, interval_s=0.1, duration_s=duration)
    assert Counter(package.sequence for package in packages) == Counter(range(1, len(chunks) + 1))
    texts = [package for package in packages if package.outcome is Outcome.SUCCESS]
    assert {package.outcome for package in packages} == {Outcome.SUCCESS, Outcome.EXIT}
    starts = [float(package.attributes["start_s"]) for package in texts]
    assert starts == sorted(starts)
    assert all(package.content_type.startswith("text/plain") for package in texts)
    errors = word_errors(REFERENCE.read_text(), " ".join(package.data for package in texts))
    assert errors.rate <= 0.10


def test_silence_leaves_with_a_reason_and_no_model() -> None:
    """Nothing is recognised in it."""
    packages = run_in_memory(transcribe, [bytes(3200)] * 20, interval_s=0.1)
    reasons = {p.controllers[-1].phases[-1].modules[-1].message for p in packages}
    assert reasons == {"silence"}
    assert {len(p.controllers) for p in packages} == {1}


def test_sound_of_another_rate_is_an_error() -> None:
    """Where the content type says so; it would be taken for another voice."""
    kinds = ["audio/pcm;rate=16000;channels=1;format=s16le", "audio/pcm; rate=48000"]
    right, wrong = run_in_memory(
        transcribe, [DataPackage(bytes(3200), content_type=kind) for kind in kinds]
    )
    assert right.outcome is Outcome.EXIT
    assert wrong.outcome is Outcome.ERROR
    assert "rate=16000" in wrong.errors[0].message


def test_captions_shed_load_and_drop_what_was_overtaken(chunks: list[bytes]) -> None:
    """Slow recognition: OVERFLOW; uneven recognition: OUTDATED. Captions never go back in time."""

    def duration(phase: str, package: DataPackage[Any]) -> float:
        if phase != "captions.recognise":
            return 0.0
        return 5.0 if package.sequence < 60 and package.sequence % 2 else 1.5

    packages = run_in_memory(captions, chunks[:120], interval_s=0.1, duration_s=duration)
    outcomes = Counter(package.outcome for package in packages)
    assert sum(outcomes.values()) == 120
    assert outcomes[Outcome.SUCCESS] and outcomes[Outcome.OVERFLOW] and outcomes[Outcome.OUTDATED]
    shown = [package.sequence for package in packages if package.outcome is Outcome.SUCCESS]
    assert shown == sorted(shown)


def test_an_engine_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that do."""
    monkeypatch.setenv("TRANSCRIBE_ENGINE", "parrot")
    with pytest.raises(SetupError, match="'parrot'; expected 'moonshine' or 'whisper'"):
        run_in_memory(transcribe, [])


def test_a_model_that_is_another_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are checked against this very model."""
    monkeypatch.setitem(recogniser.MOONSHINE_FILES, "tokenizer.bin", "0" * 64)
    with pytest.raises(recogniser.EngineError, match=r"install moonshine-voice==0\.0\.73"):
        recogniser.load_recogniser("moonshine")
