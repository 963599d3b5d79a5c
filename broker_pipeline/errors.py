"""Every exception of the package, each with a code that never changes.

An error says what happened, what was expected and what to do; the values it speaks of are kept as
attributes. Codes: BP1xx a declaration, BP2xx a plan or a target, BP3xx the broker, BP4xx a package
or its payload, BP5xx a module or a role that runs it, BP6xx a client, BP7xx debugging.
"""

from __future__ import annotations

from typing import ClassVar


class BrokerPipelineError(Exception):
    """The root of all errors of this package.

    Attributes:
        code: the stable code, such as ``"BP101"``.
        retriable: whether the same call may succeed later without a change.
        values: what the message speaks of, by name.
    """

    code: ClassVar[str] = "BP000"
    retriable: ClassVar[bool] = False

    def __init__(self, message: str, **values: object) -> None:
        super().__init__(f"{self.code} {message}")
        self.values = values


class DeclarationError(BrokerPipelineError):
    """A pipeline was declared wrongly; `faults` lists every fault, each with its own code."""

    code = "BP100"

    def __init__(self, subject: str, faults: list[str]) -> None:
        self.faults = tuple(faults)
        lines = "\n".join(f"  {fault}" for fault in faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"{subject} cannot be built, {count}:\n{lines}", faults=self.faults)


class PlanError(BrokerPipelineError):
    """A plan does not hold what was asked of it, or cannot follow the deployed one."""

    code = "BP201"


class TargetError(BrokerPipelineError):
    """A TARGET (``package.module:attribute``) does not lead to a pipeline."""

    code = "BP202"


class UnknownPhaseError(BrokerPipelineError):
    """A phase was named that the pipeline does not have."""

    code = "BP203"


class SnapshotError(BrokerPipelineError):
    """A stored snapshot cannot be read."""

    code = "BP204"


class NewerVersionError(BrokerPipelineError):
    """What is stored was written by a newer version of this program, which this one cannot follow.

    Attributes:
        pipeline: whose it is.
        version: the version that it has.
    """

    code = "BP205"

    def __init__(self, message: str, *, pipeline: str, version: int) -> None:
        super().__init__(message, pipeline=pipeline, version=version)
        self.pipeline = pipeline
        self.version = version


class BrokerError(BrokerPipelineError):
    """The broker refused something, or answered what was not expected."""

    code = "BP301"


class BrokerUnavailableError(BrokerError):
    """No broker answers at the address."""

    code = "BP302"
    retriable = True


class BrokerTooOldError(BrokerError):
    """The broker lacks a feature that is needed (API level 4: nats-server 2.14.5 or later)."""

    code = "BP303"


class ConnectionLostError(BrokerError):
    """The connection to the broker is gone; what was not acknowledged may or may not be stored."""

    code = "BP304"
    retriable = True


class PublishTimeoutError(BrokerError):
    """No acknowledgement came in time; the message may or may not be stored."""

    code = "BP305"
    retriable = True


class PublishRefusedError(BrokerError):
    """The broker answered that it did not store the message.

    Attributes:
        err_code: JetStream's error code, such as 10077 (the stream is full).
    """

    code = "BP306"

    def __init__(self, message: str, *, err_code: int = 0, **values: object) -> None:
        super().__init__(message, err_code=err_code, **values)
        self.err_code = err_code


class LogFullError(PublishRefusedError):
    """The log takes no more for now; this message is not stored."""

    code = "BP310"
    retriable = True


class PayloadTooLargeError(BrokerError):
    """A message is larger than the broker takes."""

    code = "BP307"


class NotFoundError(BrokerError):
    """A stream, consumer or message does not exist."""

    code = "BP308"


class ServerStartError(BrokerError):
    """The embedded nats-server did not start."""

    code = "BP309"


class StorageFullError(PublishRefusedError):
    """The broker has no room: the disk, its JetStream limit or that of the account is used up."""

    code = "BP315"
    retriable = True


class NotStoringError(PublishTimeoutError):
    """The broker answers questions and stores nothing, as after a write that failed."""

    code = "BP316"


class ServerEndedError(BrokerError):
    """The embedded nats-server ended while it was needed."""

    code = "BP317"


class ObjectDamagedError(BrokerError):
    """A stored object is not what its description says: chunks are missing or changed."""

    code = "BP318"


class MonitoringError(BrokerError):
    """The monitoring port of nats-server does not answer as it should."""

    code = "BP319"


class MalformedPackageError(BrokerPipelineError):
    """Bytes that claim to be a DataPackage are not one."""

    code = "BP401"


class PayloadError(BrokerPipelineError):
    """A payload cannot be encoded, or does not decode to the type that was asked for."""

    code = "BP402"


class PayloadGoneError(BrokerPipelineError):
    """A payload that is kept beside the log is not there any more, or is damaged."""

    code = "BP403"


class ModuleTimeoutError(BrokerPipelineError):
    """A module did not finish within its `timeout_s`."""

    code = "BP501"


class PoisonPackageError(BrokerPipelineError):
    """A package was delivered many times without a result: it may be killing its worker."""

    code = "BP502"


class ModuleProcessError(BrokerPipelineError):
    """The process that a module is isolated in died or could not be started."""

    code = "BP503"


class SetupError(BrokerPipelineError):
    """A module's `setup` failed; the worker takes no package."""

    code = "BP504"


class StateError(BrokerPipelineError):
    """The state of a stateful module cannot be loaded, stored or caught up with."""

    code = "BP505"


class LeadershipLostError(BrokerPipelineError):
    """Another process leads the shard now, or the lease could not be renewed in time."""

    code = "BP506"
    retriable = True


class ChildFailedError(BrokerPipelineError):
    """A role that `up` starts as a process cannot begin."""

    code = "BP507"


class ModuleServerError(BrokerPipelineError):
    """A module server failed, or answered what was not expected, and may have run the package.

    Attributes:
        server: which one, as far as it is known.
    """

    code = "BP510"

    def __init__(self, message: str, *, server: str, **values: object) -> None:
        super().__init__(message, server=server, **values)
        self.server = server


class ModuleUnreachableError(BrokerPipelineError):
    """No module server could be given the package in time; none has begun it."""

    code = "BP511"
    retriable = True


class ModuleMismatchError(BrokerPipelineError):
    """A module server serves something else than the pipeline declares, or refuses the caller."""

    code = "BP512"


class ServeError(BrokerPipelineError):
    """A module server cannot start, or cannot be what it was asked to be."""

    code = "BP513"


class CredentialsError(BrokerPipelineError):
    """A certificate, key or token for gRPC cannot be used."""

    code = "BP514"


class ExtraMissingError(BrokerPipelineError):
    """Something was asked for that needs an extra of this package, which is not installed."""

    code = "BP516"


class SettingError(BrokerPipelineError):
    """A setting of a role, an option or an environment variable, is none that it can have."""

    code = "BP517"


class MetricsError(BrokerPipelineError):
    """Metrics cannot be served as it was asked for."""

    code = "BP518"


class ClientError(BrokerPipelineError):
    """A client was used in a way that cannot work."""

    code = "BP601"


class HistoryPurgedError(ClientError):
    """What was to be read is no longer in the log: it was purged."""

    code = "BP603"


class AudioFileError(BrokerPipelineError):
    """A file cannot be read as audio."""

    code = "BP602"


class RecordingError(BrokerPipelineError):
    """A file is no recording, is damaged, or cannot be written."""

    code = "BP701"


class SelectionError(BrokerPipelineError):
    """What was selected of a log cannot be: a time, a range or an outcome that is none."""

    code = "BP702"


class UnknownPackageError(BrokerPipelineError):
    """The log, or the recording, has no such package, or has it no longer."""

    code = "BP703"


class ReplayError(BrokerPipelineError):
    """A replay cannot begin, or cannot come to its end."""

    code = "BP710"


class StepError(BrokerPipelineError):
    """A package cannot be run in a phase again: the log does not have it there."""

    code = "BP720"


class StepStateError(BrokerPipelineError):
    """The states that a package found in a phase cannot be had, or cannot be computed again."""

    code = "BP721"
