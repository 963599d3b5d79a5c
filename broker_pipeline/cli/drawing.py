"""A plan as text, as a Mermaid flowchart, and as JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import msgspec

from broker_pipeline.core.names import Subjects, ingress_subject, stream_name
from broker_pipeline.core.plan import ControllerPlan, ModulePlan, Plan, topology
from broker_pipeline.journey import NS

INDENT = "  "


def as_text(plan: Plan) -> str:
    """The plan for a terminal, and who reads what."""
    lines = [
        f"pipeline {plan.pipeline}",
        f"  in   {ingress_subject(plan.pipeline, '<instance>')}",
    ]
    for controller in plan.controllers:
        lines.append(f"  controller {controller.name}: {_rules(controller)}")
        for phase in controller.phases:
            lines.append(
                f"    phase {phase.name}: ack_wait {phase.ack_wait_s:g} s, "
                f"max_deliver {phase.max_deliver}"
            )
            lines += _module_lines(phase.modules, 3)
    lines.append(f"  out  {Subjects(plan.pipeline).out}<outcome>.<instance>")
    lines.append(f"log {stream_name(plan.pipeline)}")
    rows = [(reader, consumer, filter) for reader, consumer, filter in topology(plan)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines += [f"  {a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows]
    return "\n".join(lines)


def as_mermaid(plan: Plan) -> str:
    """The plan as a flowchart that Markdown viewers draw."""
    lines = ["flowchart LR", f'  in(["{_quoted(ingress_subject(plan.pipeline, "*"))}"])']
    before = "in"
    for number, controller in enumerate(plan.controllers):
        title = f"{controller.name}: {_rules(controller)}"
        lines.append(f'  subgraph c{number}["{_quoted(title)}"]')
        names = []
        for place, phase in enumerate(controller.phases):
            names.append(f"c{number}p{place}")
            modules = "<br/>".join(_quoted(_titled(module)) for module in phase.modules)
            lines.append(f'    {names[-1]}["<b>{_quoted(phase.name)}</b><br/>{modules}"]')
        lines.append("  end")
        for name in names:
            lines.append(f"  {before} --> {name}")
            before = name
    lines.append(f'  out(["{_quoted(Subjects(plan.pipeline).out)}*"])')
    lines.append(f"  {before} --> out")
    return "\n".join(lines)


def as_json(plan: Plan) -> str:
    """The plan and its readers for programs."""
    readers = [
        {"reader": reader, "consumer": consumer, "filter": filter}
        for reader, consumer, filter in topology(plan)
    ]
    stream = stream_name(plan.pipeline)
    return json.dumps(
        {"plan": msgspec.to_builtins(plan), "stream": stream, "readers": readers}, indent=2
    )


def _rules(controller: ControllerPlan) -> str:
    parts = [controller.mode.value]
    if controller.window is not None:
        parts.append(f"max_workers {controller.window}")
    if controller.queue_size is not None:
        parts.append(f"queue_size {controller.queue_size}")
    if controller.max_age_ns is not None:
        parts.append(f"max_age {controller.max_age_ns / NS:g} s")
    return ", ".join(parts)


def _module_lines(modules: Sequence[ModulePlan], depth: int) -> Iterator[str]:
    for module in modules:
        kind = "" if module.kind == "execution" else f" ({_kind(module)})"
        yield f"{INDENT * depth}{module.name}{kind}"
        yield from _module_lines(module.modules, depth + 1)


def _kind(module: ModulePlan) -> str:
    if module.kind != "external":
        return module.kind
    return f"external, {'stateful, ' if module.stateful else ''}{module.target}"


def _titled(module: ModulePlan) -> str:
    """A module in a flowchart: one that runs elsewhere says where."""
    return f"{module.name}: {module.target}" if module.kind == "external" else module.name


def _quoted(text: str) -> str:
    """Text inside a Mermaid label."""
    for char, code in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(char, code)
    return text
