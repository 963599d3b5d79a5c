"""Deploying over a broker in memory."""

from __future__ import annotations

from typing import Any

import pytest

from broker_pipeline.broker.memory import MemoryBroker, MemoryServer
from broker_pipeline.broker.port import Change, StreamSpec
from broker_pipeline.client.deploy import (
    deploy,
    deploy_if_absent,
    deployed_plan,
    require_its_queues,
)
from broker_pipeline.core import plan as core_plan
from broker_pipeline.core.names import (
    STATE_BUCKET,
    attempts_bucket,
    attempts_key,
    object_bucket,
    plan_key,
    snapshot_key,
    stream_name,
)
from broker_pipeline.core.plan import compile_plan
from broker_pipeline.errors import NotFoundError, PlanError
from broker_pipeline.modules import ExecutionModule, StatefulModule
from broker_pipeline.pipeline import Controller, Phase, Pipeline


async def plans_in_the_log(broker: MemoryBroker) -> int:
    return len(await broker.read_range(stream_name("talk"), "bp.talk.0.ctl.plan", start_seq=1))


async def test_the_first_deploy_says_what_it_made(broker: MemoryBroker, pipeline: Any) -> None:
    """Every bucket, stream and consumer has a line, and the plan."""
    result = await deploy(broker, pipeline)
    assert "stream BP_talk_0 created" in result.changes
    assert "consumer listen=hear of stream BP_talk_0 created" in result.changes
    assert result.changes[-1] == "plan created"
    assert await deployed_plan(broker, "talk") == compile_plan(pipeline)


async def test_deploying_again_changes_nothing(broker: MemoryBroker, pipeline: Any) -> None:
    """Idempotent: no change is reported, and no second plan is in the log."""
    await deploy(broker, pipeline)
    result = await deploy(broker, pipeline)
    assert result.changes == ()
    assert "nothing changed" in str(result)
    assert await plans_in_the_log(broker) == 1


async def test_a_changed_bound_is_published_and_said(
    broker: MemoryBroker, make_pipeline: Any
) -> None:
    """A plan that can be followed becomes an event of the log."""
    await deploy(broker, make_pipeline(max_workers=4))
    result = await deploy(broker, make_pipeline(max_workers=8))
    assert any("window: 4 -> 8" in line for line in result.changes)
    assert await plans_in_the_log(broker) == 2


async def test_going_back_to_an_older_plan_is_an_event_too(
    broker: MemoryBroker, make_pipeline: Any
) -> None:
    """The broker's dedup does not swallow a plan that was deployed before."""
    for workers in (4, 8, 4):
        await deploy(broker, make_pipeline(max_workers=workers))
    assert await plans_in_the_log(broker) == 3


async def test_a_plan_that_cannot_be_followed_is_refused_and_changes_nothing(
    broker: MemoryBroker, make_pipeline: Any
) -> None:
    """BP201 says why, and the way out."""
    await deploy(broker, make_pipeline("listen"))
    with pytest.raises(PlanError, match=r"BP201 .*'listen'.*'hark'.*another name.*drain"):
        await deploy(broker, make_pipeline("hark"))
    assert await deployed_plan(broker, "talk") == compile_plan(make_pipeline("listen"))
    assert await plans_in_the_log(broker) == 1


async def test_a_log_that_was_deleted_takes_its_snapshot_and_plan_along(
    broker: MemoryBroker, make_pipeline: Any
) -> None:
    """What speaks of the old log's sequences is gone when the new log begins."""
    await deploy(broker, make_pipeline("listen"))
    await broker.kv_put(STATE_BUCKET, snapshot_key("talk", 0), b"of the old log")
    await broker.kv_put(attempts_bucket("talk"), attempts_key(0, "listen", "hear", 7), b"old")
    await broker.ensure_object_bucket(object_bucket("talk"))
    await broker.object_put(object_bucket("talk"), "0.listen.hear.i", b"old")
    await broker.delete_stream(stream_name("talk"))
    assert await deployed_plan(broker, "talk") is None
    await deploy(broker, make_pipeline("hark"))
    assert await broker.kv_keys(attempts_bucket("talk")) == []
    with pytest.raises(NotFoundError):
        await broker.object_get(object_bucket("talk"), "0.listen.hear.i")
    assert await broker.kv_get(STATE_BUCKET, snapshot_key("talk", 0)) is None
    assert await plans_in_the_log(broker) == 1


async def test_a_deploy_that_was_cut_off_before_the_plan_is_finished_by_the_next(
    broker: MemoryBroker, pipeline: Any
) -> None:
    """The log without the plan's key: the plan is published again, the log stays."""
    await deploy(broker, pipeline)
    await broker.kv_delete(STATE_BUCKET, plan_key("talk"))
    result = await deploy(broker, pipeline)
    assert result.changes == ("plan created",)
    assert await plans_in_the_log(broker) == 2


async def test_a_controller_leaves_another_plan_in_force_and_says_so(
    broker: MemoryBroker, make_pipeline: Any
) -> None:
    """It deploys only where nothing is; otherwise it names the command."""
    assert "nothing of it was there" in await deploy_if_absent(broker, make_pipeline(), "a:b")
    assert await deploy_if_absent(broker, make_pipeline(), "a:b") == ""
    line = await deploy_if_absent(broker, make_pipeline(max_workers=9), "a:b")
    assert "broker-pipeline deploy a:b" in line and "\n" not in line
    assert await deployed_plan(broker, "talk") == compile_plan(make_pipeline())


async def test_a_worker_of_other_queues_than_those_deployed_is_refused(
    broker: MemoryBroker, make_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would pull from and publish to where nobody is; the same worker is welcome elsewhere."""

    class Count(StatefulModule[bytes, bytes]):
        """Has a state."""

    class Step(ExecutionModule[bytes]):
        """Has none."""

    def pipeline(module: Any) -> Pipeline:
        return Pipeline("talk", [Controller("listen", [Phase("hear", [module])])])

    await require_its_queues(broker, pipeline(Count()))  # nothing is deployed: another's error
    result = await deploy(broker, pipeline(Count()))
    assert "consumers listen=hear=0 to 31 of stream BP_talk_0 created" in result.changes
    await require_its_queues(broker, pipeline(Count()))
    with pytest.raises(PlanError, match=r"'listen.hear' had 32 lanes.* would have no lanes"):
        await require_its_queues(broker, pipeline(Step()))
    monkeypatch.setattr(core_plan, "LANES", 8)
    with pytest.raises(PlanError, match=r"had 32 lanes.* would have 8 lanes"):
        await require_its_queues(broker, pipeline(Count()))
    with pytest.raises(PlanError, match=r"BP201 .*'listen.hear' had 32 lanes"):
        await deploy(broker, pipeline(Count()))


async def test_what_was_never_deployed_has_no_plan(broker: MemoryBroker) -> None:
    """No bucket and no stream: None, and no error."""
    assert await deployed_plan(broker, "talk") is None
    with pytest.raises(NotFoundError):
        await broker.stream_state(stream_name("talk"))


class Replicas(MemoryBroker):
    """Notes on how many servers each thing is to be kept."""

    def __init__(self) -> None:
        super().__init__(MemoryServer(), reconnect=False)
        self.asked: dict[str, int | None] = {}

    async def ensure_stream(self, spec: StreamSpec) -> Change:
        """As ever."""
        self.asked[spec.name] = spec.replicas
        return await super().ensure_stream(spec)

    async def ensure_bucket(
        self, name: str, *, ttl_s: float | None = None, replicas: int | None = None
    ) -> Change:
        """As ever."""
        self.asked[name] = replicas
        return await super().ensure_bucket(name, ttl_s=ttl_s, replicas=replicas)

    async def ensure_object_bucket(
        self, name: str, *, ttl_s: float | None = None, replicas: int | None = None
    ) -> Change:
        """As ever; payloads must not vanish while their packages are inside."""
        assert ttl_s is None
        self.asked[name] = replicas
        return await super().ensure_object_bucket(name, ttl_s=ttl_s, replicas=replicas)


async def test_everything_is_kept_on_as_many_servers_as_was_asked_for(pipeline: Any) -> None:
    """One stream with fewer replicas than the others would be the one that is lost."""
    broker = Replicas()
    await deploy(broker, pipeline, replicas=3)
    assert broker.asked == dict.fromkeys(
        [
            "bp_state",
            "bp_leases",
            "bp_modules_talk",
            "bp_attempts_talk",
            "bp_payloads_talk",
            "BPS_talk_0",
            "BP_talk_0",
        ],
        3,
    )


async def test_without_a_word_about_replicas_everything_stays_as_it_is(pipeline: Any) -> None:
    """A second deploy, without the option, must not take the replicas away."""
    broker = Replicas()
    await deploy(broker, pipeline)
    assert set(broker.asked.values()) == {None}


async def test_one_pipeline_on_one_server_does_not_lower_what_all_share(pipeline: Any) -> None:
    """Plans and leases of pipelines that are kept three times stay three."""
    broker = Replicas()
    await deploy(broker, pipeline, replicas=1)
    assert broker.asked["bp_state"] is None
    assert broker.asked["bp_leases"] is None
    assert broker.asked["BP_talk_0"] == 1
