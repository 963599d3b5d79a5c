"""Payloads as a person reads them, and as files."""

from __future__ import annotations

import array
import math
import wave
from io import BytesIO
from pathlib import Path

import msgspec
import pytest

from broker_pipeline import codecs
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.debug.inspection.payloads import describe, pcm_of
from broker_pipeline.debug.inspection.saving import save_payload
from broker_pipeline.errors import PayloadGoneError, RecordingError, SelectionError
from tests.unit.debug.journeys import failed

PCM = "audio/pcm;rate=16000;channels=1;format=s16le"


class Said(msgspec.Struct):
    """A payload type."""

    text: str
    sound: bytes
    words: list[str]
    nothing: dict[str, int] = {}


def tone(seconds: float, level: float, rate: int = 16_000) -> bytes:
    """A tone of 440 Hz."""
    steps = range(round(seconds * rate))
    wave = (round(32_767 * level * math.sin(2 * math.pi * 440 * n / rate)) for n in steps)
    return array.array("h", wave).tobytes()


def test_text_is_shown_as_text() -> None:
    """Broken at the width, without what would move the cursor, and no more than asked for."""
    head, *rest = describe(b"one\ttwo\x1b[31m\nthree", "text/plain", {}, width=12)
    assert head == "18 bytes of text/plain"
    assert rest == ["one two [31m", "three"]
    assert describe(b"a\n" * 50, "text/plain", {}, lines_max=3) == [
        "100 bytes of text/plain", "a", "a", "a", "... 47 more lines",
    ]  # fmt: skip
    assert describe(b"abcdef", "text/plain", {}, width=3)[1:] == ["abc", "def"]


@pytest.mark.parametrize("kind", ["application/json", "application/msgpack"])
def test_plain_data_is_shown_line_by_line(kind: str) -> None:
    """Nested, in order, lists cut."""
    raw, content_type = codecs.encode({"a": {"b": [1, None]}, "c": "é"}, kind)
    assert describe(raw, content_type, {})[1:] == [
        "dict", "  a: ", "    b: ", "      0: 1", "      1: None", "  c: 'é'"
    ]  # fmt: skip
    many, content_type = codecs.encode(list(range(100)), kind)
    assert describe(many, content_type, {}, lines_max=50)[-1] == "  ... 80 more"


def test_structs_are_shown_by_their_type_where_it_is_known() -> None:
    """Bytes in them by their length and beginning."""
    raw, content_type = codecs.encode(Said("hello", bytes(99), ["a", "b"]))
    assert describe(raw, content_type, {"Said": Said})[1:] == [
        "Said",
        "  text: 'hello'",
        "  sound: <99 bytes: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00...>",
        "  words: ",
        "    0: 'a'",
        "    1: 'b'",
        "  nothing: {}",
    ]
    assert describe(raw, content_type, {})[1] == "dict"


def test_protobuf_is_decoded_where_its_type_is_known() -> None:
    """Else it is bytes."""
    raw, content_type = codecs.encode(pb.PayloadReference(bucket="b", size=7))
    types = {pb.PayloadReference.DESCRIPTOR.full_name: pb.PayloadReference}
    assert describe(raw, content_type, types)[1:] == ['bucket: "b"', "size: 7"]
    assert describe(raw, content_type, {})[1].startswith("000000  0a 01 62 18 07")


def test_bytes_are_dumped() -> None:
    """With what is text in them beside; so are those that are not what they are said to be."""
    assert describe(b"ab\x00\xff", "", {}) == [
        "4 bytes",
        "000000  61 62 00 ff                                      ab..",
    ]
    assert describe(bytes(1_000), "image/png", {}, lines_max=2)[3] == "... 968 more bytes"
    lied = describe(b"\xc1\xff", "application/msgpack", {})
    assert lied[0].startswith("2 bytes of application/msgpack, and is not: BP402")
    assert lied[1].startswith("000000  c1 ff")
    assert describe(b"", "text/plain", {}) == ["0 bytes of text/plain"]


def test_sound_is_described() -> None:
    """How long, how fast, how loud; drawn from silence to full scale."""
    head, said, drawing = describe(bytes(16_000) + tone(0.5, 1.0), PCM, {})
    assert head == f"32,000 bytes of {PCM}"
    assert said == "1.000 s at 16,000 Hz, mono; level -6.0 dBFS, peak 0.0"
    assert (drawing[:23], drawing[24:]) == ("▁" * 23, "█" * 24)
    assert describe(b"\x01\x00", PCM, {})[1].startswith("0.000 s at 16,000 Hz, mono; level -90.3")
    assert describe(b"\x01", PCM, {})[1] == "0.000 s at 16,000 Hz, mono"
    stereo = describe(tone(0.1, 0.5), "audio/pcm; rate=8000; channels=2", {})[1]
    assert stereo.startswith("0.100 s at 8,000 Hz, 2 channels; level -9.")


@pytest.mark.parametrize(
    "content_type",
    ["audio/pcm", "audio/pcm;rate=0", "audio/pcm;rate=x", "audio/pcm;rate=8000;format=f32le",
     "audio/pcm;rate=8000;channels=0", "audio/pcm;rate=99999999", "audio/opus", "audio/wav"],
)  # fmt: skip
def test_sound_of_which_too_little_is_said_is_bytes(content_type: str) -> None:
    """Nothing is guessed."""
    assert pcm_of(tone(0.1, 0.5), content_type) is None
    assert describe(tone(0.1, 0.5), content_type, {})[1].startswith("000000 ")


def test_wav_files_are_described() -> None:
    """As what is in them."""
    file = BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8_000)
        writer.writeframes(tone(0.25, 0.5))
    assert describe(file.getvalue(), "audio/wav", {})[1].startswith("0.500 s at 8,000 Hz, mono")


def test_pcm_is_saved_as_a_wav_file(tmp_path: Path) -> None:
    """That any player opens; other payloads as they are."""
    history = failed()
    sound = tone(0.1, 0.5)
    history.inputs[1].envelope.data, history.inputs[1].envelope.content_type = sound, PCM
    said = save_payload(history, "say.upper", tmp_path / "a.wav")
    assert said.endswith("a.wav': a WAV file of 0.100 s")
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
        assert file.readframes(10_000) == sound
    assert save_payload(history, "end", tmp_path / "b").endswith("6 bytes as they are")
    assert (tmp_path / "b").read_bytes() == b"LOUDER"
    assert save_payload(history, "arrival", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"louder"


def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    """A place that it never came to, a payload that is gone, a file that cannot be written."""
    history = failed()
    with pytest.raises(SelectionError, match=r"'say\.other'.*'arrival', 'end', 'hear\.split'"):
        save_payload(history, "say.other", tmp_path / "a")
    with pytest.raises(RecordingError, match="choose another file"):
        save_payload(history, "end", tmp_path)
    assert history.outcome is not None
    history.outcome.reference.object = "gone"
    with pytest.raises(PayloadGoneError, match="'gone'"):
        save_payload(history, "end", tmp_path / "a")
