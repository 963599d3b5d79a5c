"""What a declaration may say about batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from broker_pipeline.modules import (
    ExecutionModule,
    ExternalModule,
    Module,
    ModuleOptions,
    defines_batches,
    walk,
)

BATCH_MAX = 1024
"""Packages in a batch: twice as many are on their way in each worker."""
BATCH_DELAY_MS_MAX = 1000.0
"""A drain waits for a batch that gathers; what needs longer batches is no live stream."""


def batch_faults(where: str, module: Module[Any]) -> Iterable[str]:
    """What is wrong with the batches that a module asks for."""
    options = module.options
    size, delay_ms = options.max_batch, options.max_delay_ms
    if not isinstance(size, int) or not 1 <= size <= BATCH_MAX:
        yield f"BP108 max_batch of {where} is {size!r}; expected 1 to {BATCH_MAX} packages"
        return
    if not isinstance(delay_ms, int | float) or not 0 <= delay_ms <= BATCH_DELAY_MS_MAX:
        yield (
            f"BP108 max_delay_ms of {where} is {delay_ms!r}; expected milliseconds, 0 to "
            f"{BATCH_DELAY_MS_MAX:g}"
        )
    elif delay_ms and size == 1:
        yield (
            f"BP108 {where} has max_delay_ms={delay_ms!r} and max_batch=1: nothing would be "
            f"waited for; give max_batch too, or leave max_delay_ms out"
        )
    if size == 1:
        return
    if isinstance(module, ExternalModule):
        yield (
            f"BP108 {where} has max_batch={size}, and runs in module servers, which gather its "
            f"batches; set it there, on the module that they serve"
        )
    elif not isinstance(module, ExecutionModule):
        yield (
            f"BP108 {where} has max_batch={size} and is no ExecutionModule, which alone can get "
            f"several packages at once; leave max_batch out"
        )
    elif not defines_batches(module):
        yield (
            f"BP108 {where} has max_batch={size} and no execute_batch; define "
            f"execute_batch(packages, runs), or leave max_batch out"
        )
    if options.use_mutex:
        yield (
            f"BP108 {where} has max_batch={size} and use_mutex: one batch runs at a time in a "
            f"process anyway; leave use_mutex out"
        )
    if options.isolation == "process":
        yield (
            f"BP108 {where} has max_batch={size} and isolation='process', which takes one package "
            f"at a time; leave one of the two out"
        )


def neighbour_faults(where: str, declared: Sequence[Module[Any]]) -> Iterable[str]:
    """What a phase holds that cannot be beside batches."""
    modules = [
        module
        for _, module in walk(declared)
        if isinstance(module, Module) and isinstance(module.options, ModuleOptions)
    ]
    batching = [module for module in modules if module.options.max_batch != 1]
    isolated = [module for module in modules if module.options.isolation == "process"]
    if batching and isolated and batching != isolated:
        yield (
            f"BP108 {where} holds {batching[0].name!r}, which gets batches, and "
            f"{isolated[0].name!r}, which has a process for each of the many packages that a batch "
            f"gathers from; give each a phase of its own"
        )
