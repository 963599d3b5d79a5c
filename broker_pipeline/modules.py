"""Modules: the steps that users write.

A module object belongs to a worker process and is shared by its slots. What must survive from one
package to the next belongs into a `StatefulModule`, never into attributes: the next package may be
run by another worker.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NoReturn, TypeVar, get_args, get_origin

from broker_pipeline.package import DataPackage

T = TypeVar("T")
S = TypeVar("S")

Isolation = Literal["thread", "process"]


@dataclass(frozen=True, slots=True)
class ModuleOptions:
    """How a worker runs a module.

    Args:
        timeout_s: seconds from its entry, the wait for the mutex included, after which the package
            leaves as ERROR. Whatever the late code then does to its package changes nothing.
        use_mutex: only one package at a time, in this worker process.
        isolation: "thread", or "process": a process of its own that is killed at the timeout and
            may crash without taking the worker along. It needs the worker to be started with a
            TARGET, which the process imports.
        max_batch: how many packages `execute_batch` gets at most, 1 to 1024. Above 1 a worker runs
            at least twice as many packages of the phase at the same time, whatever its `slots`
            are, so that a batch gathers while another runs: give what must not run so often a
            phase of its own.
        max_delay_ms: how long the first package of a batch that is not full waits for others, 0 to
            1000, though nothing runs. 0 is right for most: under load batches fill while others
            run, and without it nobody waits.
    """

    timeout_s: float | None = None
    use_mutex: bool = False
    isolation: Isolation = "thread"
    max_batch: int = 1
    max_delay_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for TLS, all PEM.

    Args:
        ca: whom to trust; None: those that gRPC brings along.
        cert: the caller's own certificate, for mutual TLS, with `key`; None: none is shown.
        key: the private key of `cert`.
        server_name: the name that the server's certificate must bear, where that is not the
            target's.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None


Method = Literal["stream", "run"]


@dataclass(frozen=True, slots=True)
class ExternalOptions(ModuleOptions):
    """How an `ExternalModule` is called.

    Args:
        timeout_s: as in `ModuleOptions`; the server is told what is left of it. None: a package
            waits for a server for as long as it takes.
        idempotent: a package may be run more than once. If it may not, it leaves as ERROR when its
            server fails after it may have begun. (When a bridge itself dies the broker gives its
            packages to another, as those of any worker: `Phase.max_deliver=1` forbids that.)
        method: "stream": one gRPC stream carries many packages; "run": a gRPC call for each,
            which proxies balance one by one.
        streams: how many streams to each address. A proxy gives each to a server of its choice.
        tls: None: plaintext.
        token: shown to servers as `authorization: Bearer TOKEN`.
        max_batch, max_delay_ms: not here; those of the module in the servers count.
    """

    idempotent: bool = False
    method: Method = "stream"
    streams: int = 1
    tls: Tls | None = None
    token: str | None = None


class PackageExit(BaseException):
    """Raised by `Run.exit`; not an Exception, so that `except Exception` does not swallow it."""

    def __init__(self, reason: str, state: object) -> None:
        super().__init__(reason)
        self.reason = reason
        self.state = state


KEEP_STATE: Any = object()
"""The state as the module was given it, changes in place included."""


class Run:
    """A module's own entry in the journey, handed to `execute`.

    Attributes:
        message: what the module wants to say about this package; it is kept in the journey.
        deadline: when the module is out of time, by `time.monotonic()`; None where it has no bound.
        log: a logger that knows the package.
        verdict: what `fail` or `leave` have said, to be raised when the module returns.
    """

    __slots__ = ("deadline", "log", "message", "verdict")

    def __init__(
        self, log: logging.Logger | logging.LoggerAdapter[Any], deadline: float | None = None
    ) -> None:
        self.message = ""
        self.deadline = deadline
        self.log = log
        self.verdict: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Have the package leave as ERROR when the module returns, as if it had raised `error`.

        For `execute_batch`, where raising would speak of all packages; elsewhere too. The module
        goes on. What it does to the package is not kept. Of several calls of `fail` and `leave`
        the last counts, and what the module raises counts more.
        """
        if not isinstance(error, BaseException):
            raise TypeError(f"run.fail was given {error!r}; expected an exception")
        self.verdict = error

    def leave(self, reason: str = "") -> None:
        """Have the package leave as EXIT when the module returns; otherwise as `exit`.

        For `execute_batch`, as `fail` is. The module goes on, and what it does to the package is
        kept; a `StatefulModule`'s state is what it returns.
        """
        self.verdict = PackageExit(reason, KEEP_STATE)

    def exit(self, reason: str = "", *, state: Any = KEEP_STATE) -> NoReturn:
        """End the package's journey here, on purpose: it leaves as EXIT.

        It raises. In `execute_batch` use `leave`: whatever is raised there ends the whole batch,
        and it is run again in halves until this package is alone.

        Args:
            reason: why; becomes `message`.
            state: in a `StatefulModule`, the state after this package. Left out, it is the state
                that `execute` was given, with whatever was changed in it.
        """
        raise PackageExit(reason, state)


class Module(Generic[T]):
    """What all kinds of modules share. `T` is the payload type that `package.data` has in it.

    `setup` runs once in each process that runs the module, before its first package (load models
    here), `teardown` when the process ends. Both may be `async def`.

    Args:
        name: as it stands in the journey; the class's name by default.
        options: how a worker runs it; may also be set as a class attribute.
    """

    options: ModuleOptions = ModuleOptions()
    _name: str | None = None

    def __init__(self, *, name: str | None = None, options: ModuleOptions | None = None) -> None:
        self._name = name
        if options is not None:
            self.options = options

    @property
    def name(self) -> str:
        """As it stands in the journey."""
        return self._name or type(self).__name__

    @property
    def payload_type(self) -> type | None:
        """The class that `package.data` is decoded to in this module; None: by content type."""
        return _type_argument(type(self), 0)

    @property
    def children(self) -> tuple[Module[Any], ...]:
        """The modules inside this one."""
        return ()

    def setup(self) -> Awaitable[None] | None:
        """Make ready; raise to stop the worker before it takes a package."""
        return None

    def teardown(self) -> Awaitable[None] | None:
        """Let go of what `setup` took."""
        return None


class ExecutionModule(Module[T]):
    """One processing step: define `execute`, or `execute_batch`.

    With both, `execute_batch` is used where `options.max_batch` is above 1, and `execute` where it
    is 1. `execute_batch` alone then gets batches of one.
    """

    def execute(self, package: DataPackage[T], run: Run) -> Awaitable[None] | None:
        """Process one package: read and assign `package.data`, change `package.attributes`.

        Returning is SUCCESS, `run.exit(reason)` is EXIT, raising is ERROR (the payload is then
        kept as this module got it). May be `async def`.
        """
        raise TypeError(f"{type(self).__name__} does not define execute(package, run)")

    def execute_batch(
        self, packages: Sequence[DataPackage[T]], runs: Sequence[Run]
    ) -> Awaitable[None] | None:
        """Process 1 to `options.max_batch` packages at once; `runs[i]` belongs to `packages[i]`.

        They may be of several instances, and stand in the order in which they came. One batch of a
        module runs at a time in a process. May be `async def`.

        Returning is SUCCESS for all but those of which `runs[i].fail(error)` or
        `runs[i].leave(reason)` were called. Raising fails no package but the bad one: the batch is
        halved, and both halves are run again on fresh packages and runs, and so on, until what
        raises is a batch of one. So the good ones of a batch may be run several times: `fail` is
        cheaper where the module knows which one is bad. A package whose payload does not decode
        fails before it gets here.

        `timeout_s` counts for each package from its entry, the wait for the batch included. Who is
        late leaves as ERROR, and the others go on.
        """
        raise TypeError(f"{type(self).__name__} does not define execute_batch(packages, runs)")


def defines_batches(module: object) -> bool:
    """Whether a module has an `execute_batch` of its own."""
    if not isinstance(module, ExecutionModule):
        return False
    return type(module).execute_batch is not ExecutionModule.execute_batch


class StatefulModule(Module[T], Generic[T, S]):
    """A step with a state `S` (a msgspec.Struct or bytes) for each instance.

    The state after package n is a function of the packages 1..n of the instance: a fold. A worker
    that gets package n and does not hold the state after n-1 runs the module again over the inputs
    that the log still has, and throws those results away. So `execute` must depend on nothing but
    its arguments. A package that ends as ERROR leaves the state as it was before it.
    """

    def initial_state(self) -> S:
        """The state before the first package of an instance."""
        raise TypeError(f"{type(self).__name__} does not define initial_state()")

    def execute(self, package: DataPackage[T], run: Run, state: S) -> Awaitable[S] | S:
        """Process one package and return the state after it. May be `async def`."""
        raise TypeError(f"{type(self).__name__} does not define execute(package, run, state)")


class ConditionModule(Module[T]):
    """Runs one of two modules, by an answer.

    Args:
        true: the module for the answer yes; None: nothing to do.
        false: the module for the answer no; None: nothing to do.
        condition: the question; or subclass and define `condition(package)`. Either may be
            `async def`.
    """

    def __init__(
        self,
        true: Module[Any] | None = None,
        false: Module[Any] | None = None,
        *,
        condition: Callable[[DataPackage[T]], Awaitable[bool] | bool] | None = None,
        name: str | None = None,
        options: ModuleOptions | None = None,
    ) -> None:
        super().__init__(name=name, options=options)
        self.true = true
        self.false = false
        self._condition = condition

    def condition(self, package: DataPackage[T]) -> Awaitable[bool] | bool:
        """Which of the two."""
        if self._condition is None:
            raise TypeError(
                f"{type(self).__name__} has no condition: pass one or define the method"
            )
        return self._condition(package)

    @property
    def children(self) -> tuple[Module[Any], ...]:
        """The branches that there are."""
        return tuple(module for module in (self.true, self.false) if module is not None)


class CombinationModule(Module[T]):
    """Runs modules in order, up to the first that is not SUCCESS."""

    def __init__(
        self,
        modules: Sequence[Module[Any]],
        *,
        name: str | None = None,
        options: ModuleOptions | None = None,
    ) -> None:
        super().__init__(name=name, options=options)
        self.modules = tuple(modules)

    @property
    def children(self) -> tuple[Module[Any], ...]:
        """The modules in order."""
        return self.modules


class ExternalModule(Module[Any]):
    """A module that runs in module servers, behind gRPC (proto/.../module_service.proto).

    A phase that holds nothing else is run by `broker-pipeline bridge`; inside other modules the
    worker calls the servers itself.

    Args:
        name: as it stands in the journey.
        target: where the servers are: `host:port`; `dns:///name:port`, all addresses of the name;
            `registry:///name`, those that announce themselves in the broker; or a proxy's address.
        options: how they are called.
        replicas: with FIRST_WINS: a package runs on so many servers at once, and the first result
            wins; an ERROR only where there is nothing better.
        stateful: whether it is a `StatefulModule` there; the state travels along and is kept here.
    """

    options: ExternalOptions = ExternalOptions()

    def __init__(
        self,
        name: str,
        *,
        target: str,
        options: ExternalOptions | None = None,
        replicas: int = 1,
        stateful: bool = False,
    ) -> None:
        super().__init__(name=name, options=options)
        self.target = target
        self.replicas = replicas
        self.stateful = stateful


def walk(modules: Sequence[Module[Any]], path: str = "") -> Iterator[tuple[str, Module[Any]]]:
    """Every module at any depth with its path: positions joined by '.', such as '0.1'."""
    for position, module in enumerate(modules):
        here = f"{path}{position}"
        yield here, module
        if isinstance(module, Module):  # strangers are found by the pipeline's checks
            yield from walk(module.children, f"{here}.")


def _type_argument(cls: type, position: int) -> type | None:
    """The class that stands for a type variable in the bases of `cls`, if it is a plain class."""
    for base in cls.__mro__:
        for generic in getattr(base, "__orig_bases__", ()):
            origin = get_origin(generic)
            if isinstance(origin, type) and issubclass(origin, Module):
                arguments = get_args(generic)
                if len(arguments) > position and isinstance(arguments[position], type):
                    argument = arguments[position]
                    return argument if get_origin(argument) is None else None
    return None


def is_stateful(module: object) -> bool:
    """Whether a module has a state that workers keep for it."""
    if isinstance(module, ExternalModule):
        return bool(module.stateful)
    return isinstance(module, StatefulModule)


def state_type(module: Module[Any]) -> type | None:
    """The class of a stateful module's state, from its type arguments; None if it does not say.

    That of a module elsewhere is bytes, which only its servers understand.
    """
    return bytes if isinstance(module, ExternalModule) else _type_argument(type(module), 1)
