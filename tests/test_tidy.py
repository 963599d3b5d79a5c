"""The house style, as far as a program sees it: layers, sizes, docstrings, what must not be."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GENERATED = ("broker_pipeline/_proto/",)
LAYERS = [
    {"cli"},
    {"client", "runtime", "debug", "testing"},
    {"external", "broker", "observe"},
    {"core"},
    {
        "pipeline",
        "package",
        "modules",
        "codecs",
        "journey",
        "errors",
        "_proto",
        "target",
        "target_address",
        "batch_checks",
    },
]
"""Imports run down, or stay within a layer. `__init__` and `__main__` may import everything."""
PURE_BANS = {
    "asyncio", "time", "random", "os", "uuid", "datetime", "nats", "secrets", "socket", "threading",
    "logging", "subprocess",
}  # fmt: skip
LINES_MAX, FUNCTION_LINES_MAX = 400, 70


def tracked():
    """Files that git has or would take, as paths from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


FILES = tracked()


def sources(*folders):
    """Python files below these folders, but for generated ones."""
    return [
        name
        for name in FILES
        if name.endswith(".py") and name.split("/")[0] in folders and not name.startswith(GENERATED)
    ]


def tree(name):
    """A file's syntax tree."""
    return ast.parse((ROOT / name).read_text(), name)


def imports(name):
    """The modules that a file imports, at any depth, with line numbers."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.removesuffix(".py").split("/")[: -node.level]
                base = ".".join([*package, *filter(None, [base])])
            yield base, node.lineno
            if base == "broker_pipeline":
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def functions(name):
    """Every function of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree(name)) if isinstance(node, kinds)]


def test_files_and_functions_are_short():
    """At most 400 lines a file and 70 a function: what is longer does more than one thing."""
    found = []
    for name in sources("broker_pipeline", "workers", "examples"):
        lines = len((ROOT / name).read_text().splitlines())
        if lines > LINES_MAX:
            found.append(f"{name} has {lines} lines")
        for node in functions(name):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                found.append(f"{name}:{node.lineno} {node.name} has {length} lines")
    assert found == []


def test_the_core_is_pure():
    """No clock, no chance, no I/O, no event loop below core/: time and ids arrive as values."""
    found = []
    for name in sources("broker_pipeline"):
        if not name.startswith("broker_pipeline/core/"):
            continue
        found += [
            f"{name}:{line} imports {what}"
            for what, line in imports(name)
            if what.split(".")[0] in PURE_BANS
        ]
        found += [
            f"{name}:{node.lineno} awaits"
            for node in ast.walk(tree(name))
            if isinstance(node, ast.AsyncFunctionDef | ast.Await)
        ]
        found += [
            f"{name}:{node.lineno} calls {node.func.id}"
            for node in ast.walk(tree(name))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("open", "print", "input")
        ]
    assert found == []


def test_imports_run_one_way():
    """cli -> client, runtime, debug -> external, broker, observe -> core -> what users declare."""
    depth = {part: level for level, layer in enumerate(LAYERS) for part in layer}
    found = []
    for name in sources("broker_pipeline"):
        part = name.split("/")[1].removesuffix(".py")
        if part not in depth:
            assert part in ("__init__", "__main__"), f"{name} is in no layer: add it to LAYERS"
            continue
        for what, line in imports(name):
            target = what.split(".")
            if target[0] != "broker_pipeline" or len(target) < 2:
                continue
            if target[1] in depth and depth[target[1]] < depth[part]:
                found.append(f"{name}:{line} ({part}) imports {what}")
    assert found == []


def test_nothing_unpickles():
    """No format on the wire or on disk that runs code when it is read."""
    bans = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    found = [
        f"{name}:{line} imports {what}"
        for name in sources("broker_pipeline", "workers", "examples", "benchmarks", "tests")
        for what, line in imports(name)
        if what.split(".")[0] in bans
    ]
    assert found == []


def test_tests_do_not_sleep():
    """They wait for a condition with a bound. (`asyncio.sleep(0)` gives way and is none; in the
    simulation's virtual time a sleep takes no time.)"""
    found = []
    for name in sources("tests"):
        if name.startswith("tests/fault/"):
            continue
        for node in ast.walk(tree(name)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            called = ast.unparse(node.func)
            constant = node.args[0].value if node.args and is_number(node.args[0]) else 0
            if called == "time.sleep" or (called == "asyncio.sleep" and constant > 0):
                found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert found == []


def is_number(node):
    """Whether a node is a number as it stands."""
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def test_everything_public_has_a_docstring():
    """Modules, classes, functions and methods without a leading underscore; overrides of user
    hooks included. Private modules and nested functions are excepted."""
    found = []
    for name in sources("broker_pipeline"):
        module = tree(name)
        if "/_" in name:  # private modules, and `__init__`
            continue
        if not ast.get_docstring(module):
            found.append(name)
        pending = list(module.body)
        while pending:
            node = pending.pop()
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            if not isinstance(node, kinds) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node) and not is_overload(node):
                found.append(f"{name}:{node.lineno} {node.name}")
            if isinstance(node, ast.ClassDef):
                pending += node.body
    assert found == []


def is_overload(node):
    """Whether it is a signature only, or the setter of a property that says what it is."""
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    return any(mark.endswith(("overload", ".setter", "override")) for mark in marks)


# Spelt in pieces, so that this file is not found by itself.
MACHINE = re.compile(r"(?<![\w.}])/(?:" + "wo" + "rk|ro" + r"ot)/\w")
HOSTS = re.compile("|".join(["pypi" + r"\.org", "pythonhosted" + r"\.org", "proxy\\.golang"]))


@pytest.mark.parametrize(
    ("pattern", "what"), [(MACHINE, "a path of one machine"), (HOSTS, "a registry's host")]
)
def test_no_file_names_a_machine_or_a_registry(pattern, what):
    """What is in the repository must mean the same everywhere."""
    found = []
    for name in FILES:
        try:
            text = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{name}:{number} holds {what}: {line.strip()[:80]}")
    assert found == []
