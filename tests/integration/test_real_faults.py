"""A short run of `python -m tests.fault.real`: every kind of fault that fits, from a seed."""

from __future__ import annotations

import pytest

from tests.fault.real.report import command, summary
from tests.fault.real.running import Settings, run


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("replicas", "packages"), [(1, 3_000), (3, 2_000)], ids=["R1", "R3"])
async def test_faults_on_real_processes_change_nothing(
    replicas: int, packages: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kills, pauses, bad wires, a bad broker: one outcome each, in order, as the model says."""
    settings = Settings(
        seed=7,
        packages=packages,
        replicas=replicas,
        rate=200.0,
        fault_every_s=1.0,
        poison=0,
        stateful_workers=2,
        idle_watch_s=2.0,
    )
    result = await run(settings)
    with capsys.disabled():
        print(f"\n{summary(result)}")
    assert result.violations == [], f"repeat it with: {command(result)}"
