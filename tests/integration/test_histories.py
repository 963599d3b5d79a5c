"""What the log has of a package, on a real server with real roles."""

from __future__ import annotations

import asyncio

import pytest

from broker_pipeline import Outcome
from broker_pipeline.broker.api import Answer
from broker_pipeline.broker.jetstream import JetStreamBroker
from broker_pipeline.client.client import Client
from broker_pipeline.core.names import escape_instance, ingress_subject, stream_name
from broker_pipeline.debug.inspection.finding import Finder
from broker_pipeline.errors import PlanError, UnknownPackageError
from tests.integration.histories import Stay, close, running, send

STREAM = stream_name("tour")


class Names(Answer, kw_only=True):
    """What the broker says of the consumers of a stream."""

    consumers: list[str] | None = None


async def until_only_the_leader_reads(client: Client) -> None:
    """Wait until the log has one ephemeral consumer: those that end do so in their own time."""
    assert isinstance(client.broker, JetStreamBroker)
    async with asyncio.timeout(20):
        while True:
            answer = await client.broker._api.request(f"CONSUMER.NAMES.{STREAM}", {}, Names)
            if sum("=" not in name for name in answer.consumers or []) == 1:
                return


async def test_the_whole_way_of_a_package_is_found() -> None:
    """By its id: its arrival, what each phase got, its completions, and how it left."""
    async with running() as client:
        ids = await send(client, "room", b"one", b"two")
        finder = Finder(client.broker, "tour")
        history = await finder.history(finder.by_id(ids[1]))
        assert history.package_id == ids[1]
        assert history.instance == "room"
        assert history.arrival is not None and history.arrival.data == b"two"
        assert history.arrived is not None and history.arrived.data == b"two"
        inputs = [(each.controller, each.phase, each.envelope.data) for each in history.inputs]
        assert inputs == [
            ("count", "number", b"two"),
            ("shout", "upper", b"2 two"),
            ("shout", "stay", b"2 TWO"),
        ]
        assert [each.controller for each in history.completions] == ["count", "shout"]
        assert history.outcome is not None and history.outcome.data == b"2 TWO"
        assert history.latest == history.outcome
        assert history.notes == ()
        assert history.input_of("shout", "stay").envelope.data == b"2 TWO"
        with pytest.raises(UnknownPackageError, match=r"'shout\.other'.*'count\.number'"):
            history.input_of("shout", "other")


async def test_a_package_that_ended_early_has_the_inputs_it_came_to() -> None:
    """And what it was when it ended there."""
    async with running() as client:
        ids = await send(client, "room", b"fail now", b"exit now")
        finder = Finder(client.broker, "tour")
        for number, name in ((ids[0], "ERROR"), (ids[1], "EXIT")):
            ended = await finder.history(finder.by_id(number))
            assert [each.phase for each in ended.inputs] == ["number", "upper"]
            assert [each.controller for each in ended.completions] == ["count", "shout"]
            assert ended.package().outcome == name
        assert await finder.nth(Outcome.ERROR, 1) == finder.by_id(ids[0])
        assert await finder.nth(Outcome.EXIT, -1, "room") == finder.by_id(ids[1])


async def test_a_package_that_is_inside_says_where_it_stands() -> None:
    """In a phase, waiting for its turn, and before it was admitted."""
    async with running() as client:
        ids = await send(client, "room", b"stay", b"go", wait=0)
        finder = Finder(client.broker, "tour")
        async with asyncio.timeout(20):
            while True:
                first = await finder.history(finder.by_id(ids[0]))
                second = await finder.history(finder.by_id(ids[1]))
                if len(first.inputs) == 3 and len(second.completions) == 2:
                    break
        where, since = first.standing()
        assert where.startswith("is in the queue of shout.stay")
        assert since == first.inputs[-1].message.time
        assert "shout" in second.standing()[0] and "its turn" in second.standing()[0]
        assert (first.left, first.outcome) == (None, None)
        assert first.latest.data == b"1 STAY"
        Stay.gate.set()


async def test_packages_are_found_by_their_place() -> None:
    """In the newest life of the instance that has such a one, or in the one that is named; also
    of names that are no UTF-8, and of those that are inside still."""
    name = "r\udcfföm"
    token = escape_instance(name)
    async with running() as client:
        old = await send(client, name, b"one", b"two")
        await close(client, name)
        new = await send(client, name, b"three")
        finder = Finder(client.broker, "tour")
        first = await finder.history(await finder.by_sequence(token, 1))
        assert first.package_id == new[0]
        assert first.instance == name
        assert await finder.by_sequence(token, 2) == finder.by_id(old[1])
        epoch = (await finder.history(finder.by_id(old[0]))).latest.epoch
        assert await finder.by_sequence(token, 1, epoch) == finder.by_id(old[0])
        with pytest.raises(UnknownPackageError, match="no package 3 of instance"):
            await finder.by_sequence(token, 3)
        with pytest.raises(UnknownPackageError, match="in its life 99"):
            await finder.by_sequence(token, 1, 99)
        inside = await send(client, name, b"stay", wait=0)
        async with asyncio.timeout(20):
            while len((await finder.history(finder.by_id(inside[0]))).inputs) < 3:
                pass
        assert await finder.by_sequence(token, 2) == finder.by_id(inside[0])
        Stay.gate.set()


async def test_packages_are_found_by_how_they_left() -> None:
    """1 is the oldest, -1 the newest; with an outcome and of an instance, where that is asked."""
    async with running() as client:
        ids = await send(client, "a", b"one", b"two")
        ids += await send(client, "b", b"three")
        finder = Finder(client.broker, "tour")
        numbers = [finder.by_id(each) for each in ids]
        assert [await finder.nth(None, n) for n in (1, 2, 3, -1, -3)] == [
            numbers[0], numbers[1], numbers[2], numbers[2], numbers[0]
        ]  # fmt: skip
        assert await finder.nth(Outcome.SUCCESS, 1, "b") == numbers[2]
        with pytest.raises(UnknownPackageError, match="0 packages that left as ERROR"):
            await finder.nth(Outcome.ERROR, 1)
        with pytest.raises(UnknownPackageError, match="at least 4"):
            await finder.nth(None, -4)
        with pytest.raises(ValueError, match="counts from 1"):
            await finder.nth(None, 0)


async def test_what_was_purged_is_said() -> None:
    """What is gone and what would have kept it; of what is gone whole, that nothing is left."""
    async with running() as client:
        ids = await send(client, "room", b"one", b"two")
        finder = Finder(client.broker, "tour")
        whole = await finder.history(finder.by_id(ids[0]))
        await client.broker.purge(STREAM, below=whole.inputs[1].message.stream_seq)
        history = await finder.history(finder.by_id(ids[0]))
        assert history.arrival is None
        assert [each.phase for each in history.inputs] == ["upper", "stay"]
        assert history.instance == "room"
        assert history.outcome == whole.outcome
        assert (
            "its arrival was purged" in history.notes[0] and "replay_window_s" in history.notes[0]
        )
        assert history.notes[1].startswith("the inputs of count.number were purged")
        state = await client.broker.stream_state(STREAM)
        await client.broker.purge(STREAM, below=state.last_seq + 1)
        with pytest.raises(UnknownPackageError, match=r"nothing is left.*replay_window_s"):
            await finder.history(finder.by_id(ids[0]))
        with pytest.raises(UnknownPackageError, match="no package 1"):
            await finder.by_sequence("room", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("other/0/7", "of pipeline 'other'"),
        ("tour/1/7", "of shard 1"),
        ("tour/0/0", "no package's id"),
        ("tour/0", "no package's id"),
        ("tour/0/٣", "no package's id"),
        ("", "no package's id"),
        ("tour/0/1", r"holds 'bp\.tour\.0\.ctl\.plan'"),
        ("tour/0/999999", "the log ends at"),
    ],
)
async def test_what_is_no_package_is_refused(text: str, said: str) -> None:
    """With what was found there, and what is expected."""
    async with running() as client:
        finder = Finder(client.broker, "tour")
        with pytest.raises(UnknownPackageError, match=said):
            await finder.history(finder.by_id(text))


async def test_a_pipeline_that_is_not_deployed_is_told() -> None:
    """By every way of looking."""
    async with running() as client:
        with pytest.raises(PlanError, match="not deployed"):
            await Finder(client.broker, "nothing").history(1)


async def test_strangers_in_the_log_change_nothing() -> None:
    """Messages without ids, and others about the same package, that nobody of ours wrote."""
    async with running() as client:
        ids = await send(client, "room", b"one")
        finder = Finder(client.broker, "tour")
        before = await finder.history(finder.by_id(ids[0]))
        for subject in ("ctl.done.count.room", "work.count.number.0.room", "out.error.room"):
            await client.broker.publish(f"bp.tour.0.{subject}", b"\xff junk")
            await client.broker.publish(
                f"bp.tour.0.{subject}", b"\xff junk", headers={"X": "1"}, msg_id=f"~w.{before.id}.x"
            )
        after = await finder.history(finder.by_id(ids[0]))
        assert after.inputs == before.inputs
        assert after.outcome == before.outcome


async def test_looking_leaves_nothing_behind() -> None:
    """No consumer, whatever was asked."""
    async with running() as client:
        ids = await send(client, "room", b"one", b"two")
        finder = Finder(client.broker, "tour")
        await finder.history(finder.by_id(ids[0]))
        await finder.by_sequence("room", 2)
        await finder.nth(Outcome.SUCCESS, 1)
        await until_only_the_leader_reads(client)


async def test_a_raw_producer_s_spelling_is_no_obstacle() -> None:
    """`room=31` names the instance `room1` for whoever writes it so."""
    async with running() as client:
        subject = ingress_subject("tour", "room=31")
        ack = await client.broker.publish(subject, b"one")
        finder = Finder(client.broker, "tour")
        async with asyncio.timeout(20):
            while (await finder.history(ack.stream_seq)).outcome is None:
                pass
        history = await finder.history(ack.stream_seq)
        assert (history.token, history.instance) == ("room1", "room1")
        assert len(history.inputs) == 3
