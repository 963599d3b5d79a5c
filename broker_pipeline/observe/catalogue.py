"""Every metric there is: its name, what it is, its labels and buckets. Nothing else is exported.

Names end with their unit, and times are in seconds. No label grows with packages. None grows with
instances, but for the one of the `instance` metrics: they are off unless they are asked for, and
bounded (`--metrics-instances`).
"""

from __future__ import annotations

from broker_pipeline.journey import NS, Outcome
from broker_pipeline.observe.meter import Kind, Metric

OUTCOMES = tuple(outcome.lower() for outcome in Outcome)
"""The values of `outcome` for the pipeline, controllers and instances."""
ENDS = ("success", "exit", "error")
"""Those for phases, modules and servers; and besides:"""
GIVEN_BACK = "given_back"
"""No outcome: it left without a result, for another worker or server, or for nobody."""

TIMES = tuple(
    round(seconds * NS)
    for seconds in (
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300,
    )
)  # fmt: skip
"""From what a package costs without any work to a module that takes minutes."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Packages in a batch."""

ALL: dict[str, Metric] = {}
"""The catalogue, by name."""


def _define(kind: Kind, name: str, help: str, *labels: str, bounds: tuple[int, ...] = ()) -> Metric:
    metric = Metric(f"broker_pipeline_{name}", kind, help, labels, bounds)
    assert metric.name not in ALL
    ALL[metric.name] = metric
    return metric


def _counter(name: str, help: str, *labels: str) -> Metric:
    return _define(Kind.COUNTER, f"{name}_total", help, *labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return _define(Kind.GAUGE, name, help, *labels)


def _times(name: str, help: str, *labels: str) -> Metric:
    return _define(Kind.HISTOGRAM, f"{name}_seconds", help, *labels, bounds=TIMES)


# -- what the leader counts: the same whoever leads, for it follows from the log ------------------
_SHARD = ("pipeline", "shard")
_CONTROLLER = (*_SHARD, "controller")

PACKAGES_IN = _counter("packages_in", "Packages that were taken in.", *_SHARD)
PACKAGES_OUT = _counter("packages_out", "Packages that left, by outcome.", *_SHARD, "outcome")
PACKAGES_INSIDE = _gauge("packages_inside", "Packages that are in the pipeline now.", *_SHARD)
PACKAGE_TIME = _times(
    "package_time", "From a package's arrival to its leaving, by outcome.", *_SHARD, "outcome"
)
CONTROLLER_IN = _counter(
    "controller_packages_in", "Packages that a controller admitted.", *_CONTROLLER
)
CONTROLLER_OUT = _counter(
    "controller_packages_out", "Packages that left it, by outcome.", *_CONTROLLER, "outcome"
)
CONTROLLER_PROCESSING = _gauge(
    "controller_processing", "Packages of it that are with the workers now.", *_CONTROLLER
)
CONTROLLER_WAITING_IN = _gauge(
    "controller_waiting_in", "Packages that wait for a free place in it now.", *_CONTROLLER
)
CONTROLLER_WAITING_OUT = _gauge(
    "controller_waiting_out", "Packages that are done and wait for their turn now.", *_CONTROLLER
)
CONTROLLER_TIME = _times(
    "controller_time", "From admission to leaving, by outcome.", *_CONTROLLER, "outcome"
)
CONTROLLER_WAITED_IN = _times(
    "controller_waiting_in", "From admission to the start of the first module.", *_CONTROLLER
)
CONTROLLER_WAITED_OUT = _times(
    "controller_waiting_out", "From the end of the last phase to leaving.", *_CONTROLLER
)
CONTROLLER_OLDEST = _gauge(
    "controller_oldest_timestamp_seconds",
    "When the oldest package inside arrived at the pipeline, Unix time; absent where none is.",
    *_CONTROLLER,
)
INSTANCE_OUT = _counter(
    "instance_packages_out",
    "Packages that left since this process leads, by instance; the rest is '(other)'.",
    *_SHARD,
    "instance",
    "outcome",
)
INSTANCE_INSIDE = _gauge(
    "instance_packages_inside", "Packages that are inside now, by instance.", *_SHARD, "instance"
)
INSTANCES = _gauge("instances", "Instances that have begun and not ended.", *_SHARD)
PRODUCER_GAPS = _gauge(
    "producer_gaps",
    "Producers of which packages are held, for one before them is missing.",
    *_SHARD,
)

# -- the controller role --------------------------------------------------------------------------
LEADER = _gauge("leader", "1 where this process leads the shard, 0 where it stands by.", *_SHARD)
LEADER_STATE = _gauge(
    "leader_state",
    "1 for what this process does: standing_by, recovering, catching_up, leading.",
    *_SHARD,
    "state",
)
LEADER_TERMS = _counter("leader_terms", "How often this process began to lead.", *_SHARD)
LEADER_LAG = _gauge("leader_lag_messages", "Messages of the log that are not applied yet.", *_SHARD)
LEADER_LAG_TIME = _gauge(
    "leader_lag_seconds", "How long ago the first of those was stored; 0 where none is.", *_SHARD
)
LEADER_PUBLISH = _times(
    "leader_publish",
    "Until the broker had confirmed all that was published, before a snapshot.",
    *_SHARD,
)
SNAPSHOT_AGE = _gauge(
    "snapshot_age_seconds",
    "How long the newest snapshot has not said all; 0 where it does.",
    *_SHARD,
)
SNAPSHOT_BYTES = _gauge("snapshot_bytes", "What the newest snapshot has added.", *_SHARD)
SNAPSHOT_TIME = _times("snapshot", "How long it took to store a snapshot.", *_SHARD)
LOG_FIRST = _gauge(
    "log_first_sequence", "Up to here the log is purged: its first message.", *_SHARD
)
LOG_LAST = _gauge("log_last_sequence", "The last message of the log.", *_SHARD)
LOG_MESSAGES = _gauge("log_messages", "Messages in the log.", *_SHARD)
LOG_BYTES = _gauge("log_bytes", "The size of the log.", *_SHARD)
LOG_LIMIT = _gauge(
    "log_limit_bytes", "Above it nothing new is taken (log_bytes_max); absent: no bound.", *_SHARD
)
LOG_OPEN = _gauge("log_open", "1 where producers are let in, 0 where they are refused.", *_SHARD)

_QUEUE = (*_CONTROLLER, "phase")
QUEUE_PENDING = _gauge(
    "queue_pending", "Packages in a phase's queue that no worker has been given.", *_QUEUE
)
QUEUE_DELIVERED = _gauge(
    "queue_delivered", "Packages of it that are with workers: not acknowledged yet.", *_QUEUE
)
QUEUE_REDELIVERED = _gauge(
    "queue_redelivered", "Those of them that were delivered more than once.", *_QUEUE
)
QUEUE_OLDEST = _gauge(
    "queue_oldest_timestamp_seconds",
    "When the oldest package that is not acknowledged was queued, Unix time; absent: none is.",
    *_QUEUE,
)

# -- workers and bridges --------------------------------------------------------------------------
_PHASE = ("pipeline", "controller", "phase")
_MODULE = (*_PHASE, "module")

PHASE_IN = _counter("phase_packages_in", "Packages that were given to a phase's modules.", *_PHASE)
PHASE_OUT = _counter(
    "phase_packages_out", "Packages that came back from them, by outcome.", *_PHASE, "outcome"
)
PHASE_PROCESSING = _gauge("phase_processing", "Packages that run or wait for a slot now.", *_PHASE)
PHASE_TIME = _times(
    "phase_time", "From the start of the first module to the end of the last, by outcome.",
    *_PHASE, "outcome",
)  # fmt: skip
MODULE_IN = _counter(
    "module_packages_in",
    "Packages that entered a module; modules inside others as 'a/b'.",
    *_MODULE,
)
MODULE_OUT = _counter(
    "module_packages_out", "Packages that left it, by outcome.", *_MODULE, "outcome"
)
MODULE_PROCESSING = _gauge(
    "module_processing", "Packages that are in it now, and wait for nothing.", *_MODULE
)
MODULE_WAITING = _gauge(
    "module_waiting_in", "Packages that wait for its mutex or batch now.", *_MODULE
)
MODULE_TIME = _times("module_time", "From entry to end, by outcome.", *_MODULE, "outcome")
MODULE_WAITED = _times(
    "module_waiting_in", "How long of that it waited for a mutex, batch or server.", *_MODULE
)
MODULE_TIMEOUTS = _counter("module_timeouts", "Packages that a timeout_s ended.", *_MODULE)
BATCH_SIZE = _define(
    Kind.HISTOGRAM, "batch_packages", "Packages of a batch.", *_MODULE, bounds=SIZES
)

PHASE_HERE = _gauge(
    "phase_here", "Packages that the broker gave this process and that are not done with.", *_PHASE
)
PHASE_HELD = _gauge(
    "phase_held_results", "Results that are held, for the broker has no room for them.", *_PHASE
)
PHASE_REDELIVERED = _counter(
    "phase_redelivered", "Packages that came and had been delivered before.", *_PHASE
)
PHASE_PASSED_OVER = _counter(
    "phase_passed_over", "Packages that were not run, for they were too old.", *_PHASE
)
PHASE_PUBLISH = _times("phase_publish", "Until the broker had confirmed a result.", *_PHASE)
PHASE_ACK = _times("phase_ack", "From a package's delivery to its acknowledgement.", *_PHASE)
PHASE_SLOTS = _gauge("phase_slots", "Packages that run at the same time.", *_PHASE)
PHASE_LOST_SLOTS = _gauge(
    "phase_lost_slots", "Slots that are lost in modules which do not come back.", *_PHASE
)
STATES_HELD = _gauge("states_held", "Instances whose states this worker has in memory.", *_PHASE)
STATES_RERUN = _counter(
    "states_rerun", "Recorded inputs that were run again for the state after them.", *_PHASE
)
STATES_STORED = _counter("states_stored", "States that were stored.", *_PHASE)

_RELAY = (*_MODULE, "target")
RELAY_SERVERS = _gauge(
    "relay_servers",
    "Module servers, by state: good, full, away, ejected, probing.",
    *_RELAY,
    "state",
)
RELAY_CALLS = _gauge("relay_calls", "Packages that are on their way to servers or back.", *_RELAY)
RELAY_SENT = _gauge("relay_sent", "Those of them that servers have.", *_RELAY)
RELAY_CREDIT = _gauge("relay_credit", "Packages that servers take at once.", *_RELAY)
RELAY_TIME = _times(
    "relay_time", "From a call to its end, by outcome: failed where no answer came.",
    *_RELAY, "outcome",
)  # fmt: skip
RELAY_REPEATS = _counter(
    "relay_repeats", "Packages given to another server after one failed.", *_RELAY
)
RELAY_EJECTIONS = _counter("relay_ejections", "How often a server was ejected.", *_RELAY)

# -- module servers -------------------------------------------------------------------------------
_SERVER = ("module",)
SERVER_IN = _counter("server_calls_in", "Packages that callers sent.", *_SERVER)
SERVER_OUT = _counter(
    "server_calls_out", "Packages that were answered or given up, by outcome.", *_SERVER, "outcome"
)
SERVER_INSIDE = _gauge("server_calls_inside", "Packages that are not answered yet.", *_SERVER)
SERVER_TIME = _times("server_call", "From a call to its answer, by outcome.", *_SERVER, "outcome")
SERVER_WINDOW = _gauge("server_window", "Packages that it wants at once, of all callers.", *_SERVER)
SERVER_SLOTS = _gauge("server_slots", "Packages that run at the same time.", *_SERVER)
SERVER_LOST_SLOTS = _gauge(
    "server_lost_slots", "Slots that are lost in modules which do not come back.", *_SERVER
)

# -- every role -----------------------------------------------------------------------------------
BUILD_INFO = _gauge("build_info", "1; what runs here.", "role", "version", "python")
