"""What the package promises: its public names, and that importing it costs little."""

import subprocess
import sys

import broker_pipeline

NAMES = {
    "BrokerPipelineError",
    "Client",
    "CombinationModule",
    "ConditionModule",
    "Controller",
    "DataPackage",
    "ExecutionModule",
    "ExternalModule",
    "ExternalOptions",
    "Instance",
    "Mode",
    "ModuleOptions",
    "Outcome",
    "Phase",
    "Pipeline",
    "Run",
    "StatefulModule",
    "Tls",
    "connect",
    "serve",
}


def test_the_public_names_are_these_and_no_others():
    """A name that is missing breaks users; one too many is a promise by accident."""
    assert set(broker_pipeline.__all__) - {"__version__"} == NAMES
    for name in NAMES:
        assert getattr(broker_pipeline, name) is not None


def test_declaring_a_pipeline_loads_no_client():
    """Module authors import the package in every process; nats-py and gRPC come when needed."""
    code = "import sys, broker_pipeline; print([m for m in ('nats', 'grpc') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
