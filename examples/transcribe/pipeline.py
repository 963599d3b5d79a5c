"""Speech to text over a live stream: `transcribe` gives every text in order, `captions` is fast.

Chunks are 16 kHz mono int16 PCM, any length up to 800 ms. What leaves `transcribe` as SUCCESS is
text/plain; the attributes `start_s` and `end_s` tell where in the stream it was said.
"""

from __future__ import annotations

import msgspec

from broker_pipeline import (
    Controller,
    DataPackage,
    ExecutionModule,
    ExternalModule,
    ExternalOptions,
    Mode,
    Phase,
    Pipeline,
    Run,
    StatefulModule,
)
from examples.transcribe import segmenter
from examples.transcribe.recogniser import Recogniser, load_recogniser
from examples.transcribe.segmenter import RATE, State, Utterance

CAPTION_EVERY_S = 1.0
"""A caption costs as much as a final text: 42 of them in a recording with 7 utterances."""

SILENCE = "silence"
SPEECH_GOES_ON = "speech goes on"
NOISE = "too short to be speech"
NO_WORDS = "no words in it"
UTTERANCE_ENDED = "the utterance ended, its text is on its way"
CAPTION_SOON = "speech goes on, a caption is not due"


class Segment(StatefulModule[bytes, State]):
    """Voice activity and segmentation: a chunk that ends an utterance goes on as that utterance."""

    def initial_state(self) -> State:
        """Nothing was heard."""
        return State()

    def execute(self, package: DataPackage[bytes], run: Run, state: State) -> State:
        """Take one chunk in."""
        after, utterance = segmenter.step(state, _pcm(package))
        if utterance is None:
            run.exit(_what_was_heard(state, after), state=after)
        package.data = utterance
        run.message = f"an utterance, {utterance.start_s:.1f} s to {utterance.end_s:.1f} s"
        return after


class Window(msgspec.Struct, frozen=True):
    """The state of `Grow`: what was heard, and up to where a caption has been given."""

    voice: State = State()
    shown: int = 0


class Grow(StatefulModule[bytes, Window]):
    """While somebody speaks: all of the utterance so far, about once a second."""

    def initial_state(self) -> Window:
        """Nothing was heard."""
        return Window()

    def execute(self, package: DataPackage[bytes], run: Run, state: Window) -> Window:
        """Take one chunk in."""
        voice, ended = segmenter.step(state.voice, _pcm(package))
        speech = segmenter.current(voice)
        if ended is not None:
            run.exit(UTTERANCE_ENDED, state=Window(voice, voice.end))
        if speech is None:
            run.exit(_what_was_heard(state.voice, voice), state=Window(voice, voice.end))
        shown = max(state.shown, speech.start)
        if voice.end - shown < CAPTION_EVERY_S * RATE:
            run.exit(CAPTION_SOON, state=Window(voice, shown))
        package.data = speech
        return Window(voice, voice.end)


class Recognise(ExecutionModule[Utterance]):
    """An utterance becomes its text."""

    _recogniser: Recogniser

    def setup(self) -> None:
        """Load the model."""
        self._recogniser = load_recogniser()

    def execute(self, package: DataPackage[Utterance], run: Run) -> None:
        """Recognise one utterance."""
        utterance = package.data
        text = self._recogniser(utterance.pcm)
        if not text:
            run.exit(NO_WORDS)
        package.data = text
        package.attributes["start_s"] = f"{utterance.start_s:.2f}"
        package.attributes["end_s"] = f"{utterance.end_s:.2f}"
        run.message = f"{len(text.split())} words"


def _pcm(package: DataPackage[bytes]) -> bytes:
    """A chunk's sound. Raises ValueError where its content type says that it is none of ours."""
    _, *parameters = package.content_type.replace(" ", "").lower().split(";")
    expected = {"rate": str(RATE), "channels": "1", "format": "s16le"}
    for name, _, value in (parameter.partition("=") for parameter in parameters):
        if value != expected.get(name, value):
            raise ValueError(
                f"a chunk has the content type {package.content_type!r}; expected 16 kHz mono "
                f"int16 PCM: send it with {name}={expected[name]}"
            )
    return package.data


def _what_was_heard(before: State, after: State) -> str:
    if after.speaking:
        return SPEECH_GOES_ON
    return NOISE if before.speaking else SILENCE


listen = Controller("listen", [Phase("segment", [Segment()])], mode=Mode.NOT_PARALLEL)

transcribe = Pipeline(
    "transcribe",
    [
        listen,
        Controller(
            "transcribe",
            [Phase("recognise", [Recognise()])],
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=4,
        ),
    ],
)

# The same with the recogniser in module servers: `broker-pipeline serve --announce`, as many as
# you like. A text may be recognised twice: one that a server dies with is given to another.
remote = Pipeline(
    "transcribe",
    [
        listen,
        Controller(
            "transcribe",
            [
                Phase(
                    "recognise",
                    [
                        ExternalModule(
                            "recogniser",
                            target="registry:///Recognise",
                            options=ExternalOptions(idempotent=True),
                        )
                    ],
                )
            ],
            mode=Mode.ORDER_BY_SEQUENCE,
            max_workers=4,
        ),
    ],
)

# Captions are worth something only while they are new: when the workers cannot keep up, waiting
# ones leave as OVERFLOW, and one that a later one has overtaken leaves as OUTDATED.
captions = Pipeline(
    "captions",
    [
        Controller("window", [Phase("grow", [Grow()])], mode=Mode.NOT_PARALLEL),
        Controller(
            "captions",
            [Phase("recognise", [Recognise()])],
            mode=Mode.FIRST_WINS,
            max_workers=2,
            queue_size=1,
        ),
    ],
)
