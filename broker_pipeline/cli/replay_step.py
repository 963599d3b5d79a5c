"""`replay step`: one package in one phase again, here, in a debugger where asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker_pipeline.cli.options import DEFAULT_URL, Target, Url, note, say
from broker_pipeline.cli.selecting import Epoch, Last, NthError, OfInstance, PackageId, Sequence

if TYPE_CHECKING:
    from broker_pipeline.debug.inspection.wanted import Wanted
    from broker_pipeline.debug.steps.step_report import Report
    from broker_pipeline.debug.steps.step_source import Given
    from broker_pipeline.modules import Module
    from broker_pipeline.pipeline import Pipeline

SAME, DIFFERENT, COULD_NOT, INTERRUPTED = 0, 1, 2, 130

PhaseName = Annotated[
    str | None,
    typer.Option(
        "--phase",
        metavar="CONTROLLER.PHASE",
        help="Which phase.",
        show_default="the last that it went into",
    ),
]
Pdb = Annotated[bool, typer.Option("--pdb", help="Stop on the first line of the module's code.")]
PostMortem = Annotated[bool, typer.Option("--post-mortem", help="Stop where module code raises.")]
ModuleName = Annotated[
    str | None,
    typer.Option(
        "--module",
        metavar="NAME",
        help="With --pdb: the module to stop in.",
        show_default="the first",
    ),
]
InitialState = Annotated[
    bool, typer.Option("--initial-state", help="Begin with the modules' initial states.")
]
External = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODULE",
        help="What runs here in the place of an ExternalModule's servers, as "
        "name=package.module:Class; may be given several times.",
        show_default=False,
    ),
]
ExternalLive = Annotated[
    bool, typer.Option("--external-live", help="Call the module servers that run.")
]
Timeout = Annotated[
    bool, typer.Option("--timeout", help="Let the modules' own timeout_s end them.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object; what modules print goes beside it.")
]


def step(
    target: Target,
    package_id: PackageId = None,
    instance: OfInstance = None,
    sequence: Sequence = None,
    epoch: Epoch = None,
    error: NthError = None,
    last: Last = False,
    phase: PhaseName = None,
    pdb: Pdb = False,
    post_mortem: PostMortem = False,
    module: ModuleName = None,
    initial_state: InitialState = False,
    external: External = None,
    external_live: ExternalLive = False,
    timeout: Timeout = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run one package in one phase again, here: on the input that it had and with the states that
    it found, by the code as it is now. Says what came of it, beside what was recorded.

    Reads the log and the stored states and changes nothing. States that were
    not stored are computed again from the recorded inputs, by today's code.

    Modules run in the main thread, `async` ones in a loop there, and no timeout
    ends them. In pdb n goes to the next line, s into a call, c on; q and Ctrl-C
    leave. Where a module calls breakpoint() it stops too.

    Exit code: 0, it came out as it was recorded; 1, differently; 2, that cannot
    be told, as when you leave the debugger before the end.

    Example: broker-pipeline replay step examples.shout:pipeline shout/0/852 --pdb
    """
    from broker_pipeline.debug.inspection.wanted import Wanted
    from broker_pipeline.debug.steps.step import How, run_step
    from broker_pipeline.debug.steps.step_report import report
    from broker_pipeline.target import load_target

    _check(pdb, post_mortem, module, timeout, external, external_live)
    wanted = Wanted(package_id, instance, sequence, epoch, error, last)
    with contextlib.ExitStack() as stack:
        if as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        pipeline = load_target(target)
        how = How(
            stop_at_start=pdb, stop_at_error=post_mortem, module=module,
            external=_stand_ins(external), servers=url if external_live else None,
            timeouts=timeout, note=note,
        )  # fmt: skip
        given = _look_up(url, pipeline, wanted, phase, initial_state)
        try:
            stepped = run_step(given, how)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    if stepped.left:
        note("left: there is nothing to compare")
        raise typer.Exit(COULD_NOT)
    found = report(given, stepped)
    _tell(found, as_json)
    if post_mortem and not stepped.raised:
        note("no module code raised anything, so there was nothing to stop at")
    if found.differences is None:
        raise typer.Exit(COULD_NOT)
    raise typer.Exit(SAME if found.same else DIFFERENT)


def _tell(found: Report, as_json: bool) -> None:
    from rich.text import Text

    from broker_pipeline.cli.screen import print_lines

    if as_json:
        say(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        print_lines(Text(line) for line in found.lines())


def _check(
    pdb: bool,
    post_mortem: bool,
    module: str | None,
    timeout: bool,
    external: list[str] | None,
    external_live: bool,
) -> None:
    """Refuse what would be ignored. Raises typer.BadParameter."""
    if module is not None and not pdb:
        raise typer.BadParameter("--module says where --pdb stops: give --pdb too")
    if timeout and (pdb or post_mortem):
        raise typer.BadParameter(
            "--timeout would end the module while you look at it: leave it out"
        )
    if external and external_live:
        raise typer.BadParameter("--external and --external-live contradict each other: give one")


def _stand_ins(external: list[str] | None) -> dict[str, Module[Any]]:
    """The modules that stand in, by the name of the external one. Raises TargetError."""
    from broker_pipeline.target import load_module

    found: dict[str, Module[Any]] = {}
    for each in external or ():
        name, equals, target = each.partition("=")
        if not (name and equals and target) or name in found:
            raise typer.BadParameter(
                f"--external {each!r}: expected NAME=package.module:Class, each name once"
            )
        found[name] = load_module(target)
    return found


def _look_up(
    url: str, pipeline: Pipeline, wanted: Wanted, phase: str | None, initial_state: bool
) -> Given:
    """Read what the package had. Ends the program where Ctrl-C comes first."""
    from broker_pipeline.cli.until import or_stop
    from broker_pipeline.client.client import connect
    from broker_pipeline.debug.steps.step_source import look_up
    from broker_pipeline.runtime.lifecycle import run_until_signal

    async def look() -> Given:
        async with connect(url, name="broker-pipeline replay step") as client:
            return await look_up(
                client.broker, pipeline, wanted, phase, initial_state=initial_state
            )

    async def run(stop: asyncio.Event) -> Given | None:
        return await or_stop(stop, look())

    given = run_until_signal(run)
    if given is None:
        raise typer.Exit(INTERRUPTED)
    return given
