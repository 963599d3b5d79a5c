"""Whatever user code holds when it fails: details never fail, stay bounded, and keep secrets."""

from __future__ import annotations

import collections
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_pipeline._proto.v1 import data_package_pb2 as pb
from broker_pipeline.observe import error_detail
from broker_pipeline.observe.error_detail import DETAIL_ENV, DETAILS_BYTES_MAX
from broker_pipeline.observe.masking import WINDOW
from broker_pipeline.runtime.execution.failure import describe

SECRET = "hunter2-S3CR3T"


class Hostile:
    """Runs away whatever is asked of it."""

    def _never(self, *_: Any) -> Any:
        raise AssertionError("user code was run")

    __repr__ = __str__ = __iter__ = __len__ = __bool__ = __hash__ = __eq__ = _never  # type: ignore[assignment]
    __getattr__ = __format__ = __bytes__ = _never

    @property
    def total(self) -> int:
        """Costs an hour."""
        raise AssertionError("user code was run")


class HostileList(list[Any]):
    """A list in name."""

    __repr__ = __iter__ = __len__ = __getitem__ = Hostile._never  # type: ignore[assignment]


class HostileDict(dict[Any, Any]):
    """A dictionary in name."""

    __repr__ = __iter__ = __len__ = items = keys = Hostile._never  # type: ignore[assignment]


class HostileText(str):
    """A text in name."""

    __repr__ = __str__ = __len__ = __getitem__ = Hostile._never  # type: ignore[assignment]


@dataclasses.dataclass(slots=True)
class Slotted:
    """Keeps its fields in slots."""

    api_key: Any
    other: Any


class Struct(msgspec.Struct):
    """As payloads are."""

    token: Any
    other: Any


class Plain:
    """Keeps its attributes in a dictionary."""

    def __init__(self, other: Any) -> None:
        self.session_id = SECRET
        self.other = other


def endless() -> Any:
    """Holds itself."""
    found: list[Any] = [{}]
    found[0]["again"] = found
    return found


leaves: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.builds(lambda: 10**20_000) | st.builds(lambda: "x" * 1_000_000) | st.builds(Hostile)
    | st.builds(endless) | st.just("\ud800")
    | st.builds(lambda: HostileText("text")) | st.datetimes()
)  # fmt: skip
keys = st.text(max_size=5) | st.integers() | st.tuples(st.integers())
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=30).map(lambda each: HostileList(each))
        | st.lists(inner, max_size=30)
        | st.dictionaries(keys, inner, max_size=30)
        | st.dictionaries(keys, inner, max_size=5).map(lambda each: HostileDict(each))
        | st.tuples(inner, inner) | st.lists(inner, max_size=3).map(collections.deque)
        | st.builds(Slotted, inner, inner) | st.builds(Struct, inner, inner)
        | st.builds(Plain, inner)
    ),
    max_leaves=60,
)  # fmt: skip


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that can be recorded is."""
    monkeypatch.setenv(DETAIL_ENV, "locals,environment,versions")
    monkeypatch.setenv("MY_API_TOKEN", SECRET)
    monkeypatch.setenv("DATABASE", f"postgres://me:{SECRET}@db/x")


def failing(value: Any) -> pb.Error:
    """User code fails while it holds the value."""

    def execute(held: Any) -> None:
        again = [held]
        raise ValueError(len(again))

    try:
        execute(value)
    except ValueError as error:
        return describe(error, host="h", worker="w", path="c/p/m")
    raise AssertionError("it did not fail")


@given(value=values)
def test_details_never_fail_and_stay_bounded(value: Any) -> None:
    """And no code of the user's is run for them."""
    told = failing(value)
    bare = pb.Error()
    bare.CopyFrom(told)
    bare.ClearField("details")
    assert told.ByteSize() - bare.ByteSize() <= DETAILS_BYTES_MAX
    held = [text for name, text in told.details.items() if name.endswith("/held")]
    assert held or "locals/..." in told.details
    assert "AssertionError" not in str(told.details)


plants: list[Callable[[Any], Any]] = [
    lambda s: {"password": s},
    lambda s: {"a": [{"X-Auth-Key": s}]},
    lambda s: {b"secret": s},
    lambda s: [("Authorization", f"Bearer {s}"), ("Cookie", f"id=1; sid={s}")],
    lambda s: [["api_key", s], ["other", 1]],
    lambda s: Slotted(s, 1),
    lambda s: Struct(s, 1),
    lambda s: {"deep": Plain(Slotted({"x": s}, 2))},
    lambda s: f"Authorization: Bearer {s}",
    lambda s: f"call with bearer  {s} and more",
    lambda s: f"https://user:{s}@host/path?x=1",
    lambda s: f"amqp://{s}@host and text",
    lambda s: f"-----BEGIN RSA PRIVATE KEY-----\n{s}\n-----END RSA PRIVATE KEY-----",
    lambda s: f"-----BEGIN PRIVATE KEY-----\n{s}",
    lambda s: f"x=1&access_token={s}&y=2",
    lambda s: f'{{"client_secret": "{s}", "a": 1}}',
    lambda s: f"{{'password': 'two words {s}'}}",
    lambda s: f"password = {s}".encode(),
    lambda s: f"host=db password='{s}' dbname=x",
    lambda s: (x for x in [s]),
    lambda s: {"credentials": {"user": "me", "pass": [s] * 3}},
    lambda s: ValueError(f"token={s}"),
]


@given(
    plant=st.sampled_from(plants),
    around=st.sampled_from(["", " ", "x" * 200, "word " * 600]),
    wrap=st.sampled_from([lambda v: v, lambda v: [v], lambda v: {"k": (v,)}, lambda v: Plain(v)]),
)
def test_a_planted_secret_is_never_in_the_bytes(plant: Any, around: str, wrap: Any) -> None:
    """By the name of what holds it or by its shape, at whatever depth; and neither those of the
    environment."""
    planted = plant(SECRET)
    if isinstance(planted, str):
        planted = around + (" " if around.strip() else "") + planted
    told = failing(wrap(planted)).SerializeToString()
    assert SECRET.encode() not in told and b"S3CR3T" not in told


@given(cut=st.integers(WINDOW - 120, WINDOW + 5))
def test_a_secret_at_the_end_of_what_is_looked_at_is_not_half_shown(cut: int) -> None:
    """What is cut through has lost the shape by which it is known."""
    for shape in (f"https://me:{SECRET}@host/", f"password={SECRET}", f"Bearer {SECRET}"):
        text = ("word " * WINDOW)[:cut] + " " + shape
        assert b"hunter2" not in failing(text).SerializeToString()


def test_nothing_is_recorded_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off by default; each word asks for its part."""
    for setting, kinds in (
        ("", set()), ("locals", {"locals"}), ("versions, environment", {"versions", "environment"}),
    ):  # fmt: skip
        monkeypatch.setenv(DETAIL_ENV, setting)
        found = failing(1).details
        assert {name.partition("/")[0] for name in found} == kinds
    monkeypatch.delenv(DETAIL_ENV)
    assert not failing(1).details


def test_a_word_that_is_none_is_refused() -> None:
    """With those that there are."""
    with pytest.raises(error_detail.SettingError, match=r"BP517 .*'globals' is none.*locals, env"):
        error_detail.check("locals,globals")


def test_a_person_finds_what_went_wrong() -> None:
    """The variables of the frame that failed, the versions of what its module imports."""
    details = failing({"text": "hello", "size": 3}).details
    (held,) = [name for name in details if name.endswith("/held")]
    assert "execute (test_error_details.py:" in held
    assert details[held] == "{'text': 'hello', 'size': 3}"
    assert details["versions/msgspec"] == msgspec.__version__ and "versions/python" in details
    assert details["environment/MY_API_TOKEN"] == "***"


def deep(depth: int) -> None:
    """Fails far inside, with much in each frame."""
    held = [os.environ["MY_API_TOKEN"], "y" * 5_000, list(range(1_000))]
    if depth:
        deep(depth - 1)
    raise ValueError(len(held))


def test_an_error_far_inside_costs_a_bounded_time_and_tells_of_the_innermost_frame() -> None:
    """A thousand frames with large variables."""
    try:
        deep(500)
    except ValueError as error:
        begun = time.monotonic()
        details = error_detail.details_of(error.__traceback__)
        took_s = time.monotonic() - begun
    assert took_s < 2.0
    assert sum(len(k) + len(v) for k, v in details.items()) <= DETAILS_BYTES_MAX
    assert any(name.endswith("/held") and name.startswith("locals/7 deep") for name in details)
