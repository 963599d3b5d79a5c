"""DataPackage: the payload as users see it, its bytes, and its JSON."""

import json

import msgspec
import pytest

from broker_pipeline import codecs
from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.errors import MalformedPackageError, PayloadError
from broker_pipeline.journey import MODE_TO_PB, STATUS_TO_PB, Mode, Outcome, Status, status_of
from broker_pipeline.package import DataPackage


class Word(msgspec.Struct):
    """A payload."""

    text: str
    scores: list[float] = []


TYPES = {"Word": Word, "broker_pipeline.v1.Error": pb.Error}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x00\xff",
        "",
        "grüße 😀",
        Word("a", [0.5]),
        {"a": [1, {"b": None}], "c": "d"},
        [1, 2.5, True, None],
        7,
        None,
        pb.Error(type="E"),
    ],
)
@pytest.mark.parametrize("content_type", ["", "application/json"])
def test_a_payload_survives_the_way_through_bytes(value, content_type):
    """Whatever may be assigned comes back equal, twice, and reading it changes no byte."""
    package = DataPackage(content_type=content_type)
    package.data = value
    raw = package.to_bytes()
    again = DataPackage.from_bytes(raw, TYPES)
    assert again.data == value
    assert type(again.data) is type(value)
    assert again.to_bytes() == raw


def test_a_constructor_takes_bytes_as_they_stand():
    """They are of the content type that is given; a value is encoded by it."""
    package = DataPackage(b'{"a": 1}', content_type="application/json", attributes={"k": "v"})
    assert package.data == {"a": 1}
    assert dict(package.attributes) == {"k": "v"}
    assert DataPackage({"a": 1}, content_type="application/json").envelope.data == b'{"a":1}'
    assert DataPackage("x").content_type == "text/plain; charset=utf-8"


def test_a_struct_that_was_changed_in_place_is_encoded():
    """Decoded or assigned: what is in it when the package is written counts."""
    package = DataPackage(Word("a"))
    package.data.scores.append(1.5)
    again = DataPackage.from_bytes(package.to_bytes(), TYPES)
    again.data.text = "b"
    final = DataPackage.from_bytes(again.to_bytes(), TYPES)
    assert final.data == Word("b", [1.5])
    assert final.content_type == "application/msgpack; type=Word"


@pytest.mark.parametrize("reader", [bytes, str, dict, None])
@pytest.mark.parametrize("content_type", ["application/json; type=Word", "application/x+json"])
def test_reading_a_payload_as_something_else_does_not_change_it(reader, content_type):
    """A module that looks at the JSON as text must not make a JSON string of it, and one that does
    not know the type must not take its name away."""
    package = DataPackage(b'{"text":"a","scores":[]}', content_type=content_type)
    package.expect(reader)
    assert package.data
    package.encode()
    assert package.envelope.data == b'{"text":"a","scores":[]}'
    assert package.content_type == content_type


def test_a_payload_can_be_read_as_one_type_after_the_other():
    """What a module changed is seen by the next one, which knows it under another type."""
    package = DataPackage(Word("a"))
    package.expect(dict)
    package.data["text"] = "b"
    assert package.decode(Word) == Word("b")
    package.data = "not a word"
    with pytest.raises(PayloadError):
        package.decode(Word)


def test_a_message_read_from_raw_bytes_is_said_to_be_one():
    """Bytes of which nobody said anything have a type once they were read as one."""
    package = DataPackage(pb.Error(type="E").SerializeToString())
    package.decode(pb.Error).message = "m"
    package.encode()
    assert package.content_type == "application/x-protobuf; type=broker_pipeline.v1.Error"
    assert DataPackage.from_bytes(package.to_bytes(), TYPES).data.message == "m"


def test_setting_the_content_type_says_how_a_value_is_written():
    """A value is written anew; bytes are that already, and empty ones wait for what comes."""
    package = DataPackage({"a": 1})
    package.content_type = "application/problem+json"
    assert package.to_bytes()
    assert package.envelope.data == b'{"a":1}'
    assert package.content_type == "application/problem+json"
    raw = DataPackage(b"hello")
    assert raw.data == b"hello"
    raw.content_type = "text/plain"
    assert (raw.data, raw.content_type) == ("hello", "text/plain")
    assert DataPackage.from_bytes(raw.to_bytes()).data == "hello"
    empty = DataPackage()
    empty.content_type = "application/json"
    empty.data = [1]
    empty.encode()
    assert empty.envelope.data == b"[1]"


def test_set_raw_forgets_the_value():
    """The bytes and their type are what counts."""
    package = DataPackage({"a": 1})
    package.set_raw(b"7", "application/json")
    assert package.data == 7
    package.set_raw(b"7")
    assert (package.data, package.content_type) == (b"7", "")


def test_what_cannot_be_written_is_a_payload_error():
    """At `to_bytes`, and the envelope stays as it was."""
    package = DataPackage(b"before")
    package.data = object()
    with pytest.raises(PayloadError, match="BP402"):
        package.to_bytes()
    assert package.envelope.data == b"before"


def test_attributes_travel():
    """They are a mapping that is changed freely."""
    package = DataPackage(b"", attributes={"a": "1"})
    package.attributes["b"] = "2"
    del package.attributes["a"]
    assert dict(DataPackage.from_bytes(package.to_bytes()).attributes) == {"b": "2"}


def test_bytes_that_are_no_package_are_malformed():
    """The error says how many, what was expected and what to do."""
    with pytest.raises(MalformedPackageError, match="BP401 2 bytes claim") as caught:
        DataPackage.from_bytes(b"\xff\xff")
    assert caught.value.values == {"size": 2}


def journey():
    """A package that went through everything."""
    package = DataPackage({"a": 1}, content_type="application/json", attributes={"k": "v"})
    envelope = package.envelope
    envelope.id, envelope.pipeline, envelope.shard, envelope.instance = 7, "talk", 2, "mic"
    envelope.epoch, envelope.sequence = 5, 3
    envelope.outcome = STATUS_TO_PB[Status.ERROR]
    envelope.start_time_ns, envelope.end_time_ns = 1_000_000_000, 3_500_000_000
    envelope.errors.add(
        type="ValueError", message="no", traceback="tb", host="h", worker="w", path="c/p/outer/m"
    )
    record = envelope.controllers.add(
        name="c",
        mode=MODE_TO_PB[Mode.FIRST_WINS],
        sequence=3,
        status=STATUS_TO_PB[Status.ERROR],
        start_time_ns=1_000_000_000,
        input_waiting_time_ns=500_000_000,
        output_waiting_time_ns=250_000_000,
        total_time_ns=2_500_000_000,
    )
    phase = record.phases.add(
        name="p", status=STATUS_TO_PB[Status.ERROR], worker="w", total_time_ns=1_750_000_000
    )
    outer = phase.modules.add(name="outer", status=STATUS_TO_PB[Status.ERROR], total_time_ns=9)
    outer.sub_modules.add(name="m", status=STATUS_TO_PB[Status.ERROR], error=1, message="hm")
    outer.sub_modules.add(name="n", waiting_time_ns=1_500_000_000, error=9)
    return package


def test_the_json_has_exactly_these_keys_in_seconds():
    """What tools and people read; it is plain JSON."""
    found = json.loads(json.dumps(journey().to_json()))
    (controller,) = found["controllers"]
    (phase,) = controller["phases"]
    (outer,) = phase["modules"]
    assert list(found) == [
        "id",
        "pipeline",
        "instance",
        "epoch",
        "sequence",
        "outcome",
        "content_type",
        "data",
        "attributes",
        "start_time",
        "end_time",
        "total_time",
        "errors",
        "controllers",
    ]
    assert list(controller) == [
        "name",
        "mode",
        "sequence",
        "status",
        "input_waiting_time",
        "output_waiting_time",
        "total_time",
        "phases",
    ]
    assert list(phase) == ["name", "status", "worker", "total_time", "modules"]
    assert list(outer) == [
        "name",
        "status",
        "waiting_time",
        "total_time",
        "message",
        "error",
        "sub_modules",
    ]
    assert list(found["errors"][0]) == [
        "type",
        "message",
        "path",
        "host",
        "worker",
        "traceback",
    ]
    assert (found["id"], found["outcome"], found["total_time"]) == ("talk/2/7", "ERROR", 2.5)
    assert (found["data"], found["attributes"]) == ('{"a":1}', {"k": "v"})
    assert (controller["mode"], controller["input_waiting_time"]) == ("FIRST_WINS", 0.5)
    assert outer["error"] is None
    assert outer["sub_modules"][0]["error"]["path"] == "c/p/outer/m"
    assert outer["sub_modules"][1]["error"] is None
    assert outer["sub_modules"][1]["waiting_time"] == 1.5


def test_a_package_that_is_inside_has_no_end():
    """Nor an outcome; binary data is base64, text is text."""
    found = DataPackage(b"\x00\xff").to_json()
    assert (found["outcome"], found["end_time"], found["total_time"]) == (None, None, None)
    assert found["data"] == "AP8="
    assert DataPackage("hi").to_json()["data"] == "hi"
    assert DataPackage(b"\xff", content_type="text/plain").to_json()["data"] == "\ufffd"


def test_a_package_reads_well_in_a_debugger():
    """Its address, instance, sequence and outcome."""
    assert repr(journey()) == "<DataPackage talk/2/7 instance='mic' sequence=3 ERROR>"
    assert repr(DataPackage()).endswith("sequence=0 inside>")
    package = journey()
    assert (package.pipeline, package.epoch, package.outcome) == ("talk", 5, Outcome.ERROR)
    assert package.end_time_ns - package.start_time_ns == 2_500_000_000
    assert package.controllers[0].phases[0].modules[0].sub_modules[0].error == package.errors[0]


def test_a_number_that_no_version_knows_is_still_running():
    """A status of a later program does not break an earlier one."""
    assert status_of(99) is Status.RUNNING
    assert codecs.matches("x", None)


def test_a_phase_with_one_module_costs_at_most_150_bytes():
    """The journey must not outweigh a small payload."""
    package = DataPackage(b"x")
    record = package.envelope.controllers.add(name="transcribe", sequence=1)
    before = len(package.to_bytes())
    phase = record.phases.add(
        name="transcription",
        status=STATUS_TO_PB[Status.SUCCESS],
        worker="worker-host-17.example-1234",
        start_time_ns=1_700_000_000_000_000_000,
        total_time_ns=3_600_000_000_000,
    )
    phase.modules.add(
        name="SpeechRecognition",
        status=STATUS_TO_PB[Status.SUCCESS],
        start_offset_ns=1_000_000_000,
        waiting_time_ns=60_000_000_000,
        total_time_ns=3_600_000_000_000,
    )
    assert len(package.to_bytes()) - before <= 150
