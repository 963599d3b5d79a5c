"""TARGET, `package.module:attribute`, to the pipeline or the module that it names."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from broker_pipeline.errors import BrokerPipelineError, TargetError
from broker_pipeline.modules import Module
from broker_pipeline.pipeline import Pipeline


def load_target(text: str) -> Pipeline:
    """Import the pipeline that TARGET names; modules are also looked for in the working directory.

    Args:
        text: `package.module:attribute`; the attribute is a Pipeline, or is called without
            arguments and returns one.

    Raises:
        TargetError: it does not import, or leads to something else.
    """
    module, found = _look_up(text, Pipeline, "examples.shout:pipeline")
    if not isinstance(found, Pipeline):
        raise TargetError(
            f"TARGET {text!r} is a {type(found).__name__!r}; expected a Pipeline, or a function "
            f"that returns one; {_found_in(module, Pipeline)}",
            target=text,
        )
    return found


def load_module(text: str) -> Module[Any]:
    """Import the module that TARGET names, for a module server.

    Args:
        text: `package.module:attribute`; the attribute is a Module, or is called without arguments
            and returns one, as a class of modules does.

    Raises:
        TargetError: it does not import, or leads to something else.
    """
    where, found = _look_up(text, Module, "examples.shout:Upper")
    if not isinstance(found, Module):
        raise TargetError(
            f"TARGET {text!r} is a {type(found).__name__!r}; expected a class of modules, a Module "
            f"or a function that returns one; {_found_in(where, Module)}",
            target=text,
        )
    return found


def _look_up(text: str, kind: type, example: str) -> tuple[ModuleType, object]:
    """What TARGET names, and where; called, if it is something else that can be called."""
    name, colon, path = text.partition(":")
    if not (name and colon and path):
        raise TargetError(
            f"TARGET {text!r} is not complete; expected package.module:attribute, such as "
            f"{example!r}",
            target=text,
        )
    module = _import(text, name)
    found: object = module
    for part in path.split("."):
        if not hasattr(found, part):
            raise TargetError(
                f"TARGET {text!r}: module {name!r} has no attribute {path!r}; "
                f"{_found_in(module, kind)}",
                target=text,
            )
        found = getattr(found, part)
    if callable(found) and not isinstance(found, kind):
        found = _call(text, found)
    return module, found


def _import(text: str, name: str) -> ModuleType:
    here = os.getcwd()
    # An entry point's sys.path begins with the directory of the script, not with the user's.
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(
                f"TARGET {text!r}: there is no module {error.name!r}; expected one in {here!r}, "
                "the working directory, or an installed one; correct the name or the directory",
                target=text,
            ) from error
        raise _failed(text, "its import", error) from error
    except (Exception, SystemExit) as error:  # it is the user's code: anything may come
        raise _failed(text, "its import", error) from error


def _call(text: str, function: object) -> object:
    assert callable(function)
    try:
        return function()
    except (Exception, SystemExit) as error:  # it is the user's code: anything may come
        raise _failed(text, "the call without arguments", error) from error


def _failed(text: str, what: str, error: BaseException) -> TargetError:
    is_ours = isinstance(error, BrokerPipelineError)
    said = str(error) if is_ours else f"{type(error).__name__}: {error}{_place(error)}"
    return TargetError(f"TARGET {text!r}: {what} failed with {said}", target=text)


def _place(error: BaseException) -> str:
    """Where the user's code failed: the innermost line of the traceback."""
    trace = error.__traceback__
    if isinstance(error, SyntaxError) or trace is None:  # it says so itself
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"


def _found_in(module: ModuleType, kind: type) -> str:
    """What a Python module has of a kind; of module classes, those that are its own."""
    names = [
        name
        for name, value in vars(module).items()
        if isinstance(value, kind)
        or (
            isinstance(value, type)
            and issubclass(value, kind)
            and value.__module__ == module.__name__
        )
    ]
    if not names:
        return f"module {module.__name__!r} has no {kind.__name__.lower()}"
    return f"module {module.__name__!r} has: {', '.join(repr(name) for name in names)}"
