"""TARGET: what it may name, and how it fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from broker_pipeline.errors import TargetError
from broker_pipeline.target import load_module, load_target

GOOD = """
from broker_pipeline import *

class Nothing(ExecutionModule):
    def execute(self, package, run): ...

def make():
    return Pipeline("talk", [Controller("a", [Phase("b", [Nothing()])])])

def fails():
    raise ValueError("no such model")

pipeline = make()
number = 7
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the working directory; its name is each test's own."""
    name = f"target_of_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return name


@pytest.mark.parametrize("attribute", ["pipeline", "make"])
def test_a_pipeline_and_a_function_that_returns_one_are_targets(here: str, attribute: str) -> None:
    """The working directory is looked in, though sys.path did not have it."""
    assert load_target(f"{here}:{attribute}").name == "talk"


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("other", "no attribute 'other'; .*has: 'pipeline'"),
        ("number", "is a 'int'; expected a Pipeline"),
        ("fails", r"ValueError: no such model \(.*line 11\)"),
        ("Nothing", "is a 'Nothing'"),
    ],
)
def test_what_leads_to_no_pipeline_says_why(here: str, attribute: str, said: str) -> None:
    """And names the pipelines that are there."""
    with pytest.raises(TargetError, match=said) as caught:
        load_target(f"{here}:{attribute}")
    assert caught.value.code == "BP202"


@pytest.mark.parametrize("attribute", ["Nothing", "nothing", "make_nothing"])
def test_a_class_an_object_and_a_function_are_modules(here: str, attribute: str) -> None:
    """For a module server; a class is called without arguments."""
    more = "\nnothing = Nothing()\n\ndef make_nothing():\n    return nothing\n"
    Path(f"{here}.py").write_text(GOOD + more)
    assert load_module(f"{here}:{attribute}").name == "Nothing"


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("other", "no attribute 'other'; .*has: 'Nothing'$"),
        ("pipeline", "is a 'Pipeline'; expected a class of modules"),
        ("fails", "ValueError: no such model"),
    ],
)
def test_what_leads_to_no_module_says_why(here: str, attribute: str, said: str) -> None:
    """And names the modules that are there: its own, not those that it has imported."""
    with pytest.raises(TargetError, match=said):
        load_module(f"{here}:{attribute}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("from broker_pipeline import *\nPipeline('a b', [])", "BP101 .*\n.*BP104"),
    ],
)
def test_a_module_that_does_not_import_says_why(here: str, source: str, said: str) -> None:
    """Whatever its code raises."""
    Path(f"{here}.py").write_text(source)
    with pytest.raises(TargetError, match=f"its import failed with (.|\n)*{said}"):
        load_target(f"{here}:pipeline")


@pytest.mark.parametrize("text", ["x", "x:", ":x", ""])
def test_an_incomplete_target_is_refused(text: str) -> None:
    """With an example of a complete one."""
    with pytest.raises(TargetError, match=r"package\.module:attribute"):
        load_target(text)


def test_a_missing_module_is_told_from_one_that_misses_something(here: str) -> None:
    """The name that is wrong is TARGET's own."""
    with pytest.raises(TargetError, match="there is no module 'not_a_package'"):
        load_target("not_a_package.module:pipeline")
