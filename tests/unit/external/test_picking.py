"""Which server gets the next package: the rules one by one, and what they come to together."""

from __future__ import annotations

import itertools

import pytest

from broker_pipeline.external import picking
from broker_pipeline.external.picking import Health, Standing, pick
from tests.unit.external.standings import MS, S


def standing(
    credit: int = 8, outstanding: int = 0, run_ns: int = MS, capacity: int = 1, others: int = 0
) -> Standing:
    """A server that has said how busy it is."""
    made = Standing()
    made.credit, made.capacity, made.outstanding = credit, capacity, outstanding
    made.reported(outstanding + others, 0, run_ns)
    return made


def picked(
    *standings: Standing, now_ns: int = 0, waiting: int = 1, waited_ns: int = 0
) -> set[int | None]:
    """What is picked, over all draws."""
    found = set()
    for first, second in itertools.product(range(20), repeat=2):
        one = pick(
            standings, now_ns=now_ns, waiting=waiting, waited_ns=waited_ns,
            draws=(first / 20, second / 20),
        )  # fmt: skip
        found.add(None if one is None else standings.index(one))
    return found


def test_of_two_the_one_that_is_done_first_wins() -> None:
    """By what it has, ours and others', how long it takes for one, and how many at once."""
    assert picked(standing(outstanding=3), standing(outstanding=2)) == {1}
    assert picked(standing(others=3), standing(outstanding=2)) == {1}
    assert picked(standing(outstanding=3, capacity=4), standing(outstanding=2)) == {0}
    assert picked(standing(run_ns=5 * MS), standing(outstanding=3)) == {1}
    assert picked(standing(run_ns=5 * MS), standing(outstanding=6)) == {0}
    assert picked(standing(), standing()) == {0, 1}
    assert picked(standing(), standing(), standing()) == {0, 1, 2}
    assert picked(standing(outstanding=3), standing(), standing()) == {1, 2}


def test_nobody_gets_more_than_its_credit() -> None:
    """Also where it would be done first; nobody is picked where nobody has room."""
    assert picked(standing(credit=2, outstanding=2), standing(outstanding=5), waiting=9) == {1}
    assert picked(standing(credit=2, outstanding=2)) == {None}
    assert picked(standing(credit=0), standing(credit=0)) == {None}
    assert picked() == {None}


def test_it_is_better_to_wait_for_a_fast_server_than_to_go_to_a_slow_one() -> None:
    """Unless so many wait that the slow one would be done before the last of them."""
    fast = [standing(credit=2, outstanding=2, capacity=2) for _ in range(3)]
    slow = standing(credit=2, run_ns=5 * MS, capacity=2)
    assert picked(*fast, slow, waiting=1) == {None}
    assert picked(*fast, slow, waiting=20) == {None}
    assert picked(*fast, slow, waiting=24) == {3}
    slow.outstanding = 1
    assert picked(*fast, slow, waiting=24) == {3}


def test_nobody_waits_longer_than_the_slow_server_would_have_taken() -> None:
    """The fast ones may hang."""
    hung = standing(credit=1, outstanding=1)
    slow = standing(run_ns=100 * MS)
    assert picked(hung, slow, waited_ns=99 * MS) == {None}
    assert picked(hung, slow, waited_ns=100 * MS) == {1}


def test_an_unknown_server_gets_a_few_packages() -> None:
    """It is taken for a fast one until it has answered, and not for more than a few."""
    new = Standing()
    new.credit = 100
    known = standing(outstanding=1)
    for _ in range(picking.NEW_CREDIT):
        assert 1 in picked(known, new)
        known.outstanding += 1
        new.sent()
    assert picked(known, new) == {0}
    new.ended()
    new.answered(0, 8 * MS, ahead=3)
    assert new.pace_ns == 2 * MS and new.room(0) == 97


def test_a_server_without_reports_is_measured() -> None:
    """By how long its answers take, for what was ahead of them; it may change."""
    one = Standing()
    one.credit = 10
    one.answered(0, 10 * MS, ahead=0)
    assert one.expected_ns(1) == 10 * MS
    for _ in range(60):
        one.answered(0, 40 * MS, ahead=1)
    assert one.pace_ns == pytest.approx(20 * MS, rel=0.01)


@pytest.mark.parametrize("capacity", [0, 1])
def test_a_server_that_was_slow_once_is_tried_again(capacity: int) -> None:
    """What is known of an idle server fades, whoever measured it; a genuinely slow one says so
    anew with its next answer."""
    slow, fast = standing(run_ns=500 * MS, capacity=capacity), standing(capacity=capacity)
    for each, latency_ns in ((slow, 500 * MS), (fast, MS)):
        each.sent()
        each.answered(0, latency_ns, 0)
        each.ended()
    assert picked(slow, fast) == {1}
    for _ in range(20 * 30):  # 30 seconds of being looked at
        slow.rested()
        slow.reported(0, 0, 500 * MS)  # heartbeats say again what they said
    assert 0 in picked(slow, fast)
    slow.reported(0, 0, 490 * MS)
    slow.sent()
    for _ in range(30):
        slow.answered(0, 500 * MS, 0)
    slow.ended()
    assert picked(slow, fast) == {1}


def test_a_server_that_fails_forgets_how_slow_it_was() -> None:
    """It answered late because it was dying; when it is back it is as good as a new one."""
    dying, well = Standing(), Standing()
    for each, latency_ns in ((dying, 500 * MS), (well, MS)):
        each.credit = 8
        each.sent()
        each.answered(0, latency_ns, 0)
        each.ended()
    dying.eject(0, 0.5)
    assert 0 in picked(dying, well, now_ns=S)


def test_a_server_that_fails_is_ejected_for_longer_each_time() -> None:
    """Twice as long up to a bound, with a bounded jitter; a success forgets it all."""
    one, now = standing(), 5 * S
    backoffs = []
    for _ in range(10):
        one.eject(now, 0.5)
        backoffs.append((one.until_ns - now) // MS)
        assert one.room(one.until_ns - 1) == 0
        now = one.until_ns
        assert one.room(now) == 1 and one.health is Health.PROBING
    assert backoffs == [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000]
    for draw, share in ((0.0, 0.75), (0.999999, 1.25)):
        one.eject(now, draw)
        assert (one.until_ns - now) / (5 * S) == pytest.approx(share, abs=1e-5)
    one.answered(0, MS, ahead=0)
    assert one.health is Health.GOOD and one.room(now) == 8 and one.ejections == 0


def test_single_calls_that_fail_eject_only_in_a_row() -> None:
    """An answer in between starts the count again; while probing one is enough."""
    one = standing()
    for _ in range(5):
        assert not one.failed(0, 0.5)
        assert not one.failed(0, 0.5)
        one.answered(0, MS, ahead=0)
    assert [one.failed(0, 0.5) for _ in range(3)] == [False, False, True]
    assert one.room(one.until_ns) == 1
    assert one.failed(one.until_ns, 0.5)


def test_who_fails_fast_is_not_taken_for_fast() -> None:
    """An ERROR is no measure of a server's speed, and one that answers nothing else counts as busy
    with what it failed: it gets packages when others have as many. A success ends that."""
    bad, good = Standing(), standing(run_ns=10 * MS)
    bad.credit = 8
    bad.answered(0, 1, ahead=0, error=True)
    assert bad.pace_ns == 0 and picked(bad, good) == {1}
    for _ in range(50):
        bad.answered(0, 1, ahead=0, error=True)
    assert bad.health is Health.GOOD and picked(bad, good) == {1}
    bad.reported(0, 0, 1)
    bad.capacity = 1
    assert picked(bad, good) == {1}
    good.outstanding = picking.NEW_CREDIT + 1
    assert picked(bad, good) == {0}
    good.outstanding = 0
    bad.answered(0, 1, ahead=0)
    assert picked(bad, good) == {0}


def test_what_fails_together_ejects_once() -> None:
    """Packages that were with a server as it was ejected make its backoff no longer."""
    one = standing()
    assert [one.failed(0, 0.5) for _ in range(8)].count(True) == one.ejections == 1


def test_a_package_that_is_not_answered_speaks_against_a_silent_server_only() -> None:
    """Not against one that answers others or was found out already, nor where the package had less
    time there than one takes, or than it had spent elsewhere."""
    one = standing(run_ns=10 * MS)
    assert one.is_silent(came_ns=S, sent_ns=S, now_ns=S + 10 * MS)
    assert not one.is_silent(came_ns=S, sent_ns=S, now_ns=S + 9 * MS)
    assert not one.is_silent(came_ns=S, sent_ns=2 * S, now_ns=3 * S - 1)
    one.answered(S, S + MS, ahead=0)
    assert not one.is_silent(came_ns=S, sent_ns=S, now_ns=2 * S)
    assert one.is_silent(came_ns=2 * S, sent_ns=2 * S, now_ns=3 * S)
    one.eject(2 * S, 0.5)
    assert not one.is_silent(came_ns=2 * S, sent_ns=2 * S, now_ns=3 * S)
    assert one.room(3 * S) == 1
    assert one.is_silent(came_ns=2 * S, sent_ns=3 * S, now_ns=3 * S + 10 * MS)


def test_a_probed_server_gets_one_package_until_it_has_answered() -> None:
    """Then it gets its share again."""
    one = standing()
    one.eject(0, 0.5)
    assert one.room(S) == 1
    one.sent()
    assert one.room(S) == 0
    one.ended()
    assert one.room(S) == 1
    one.answered(0, MS, ahead=0)
    assert one.room(S) == 8


def test_where_all_are_ejected_the_soonest_is_tried() -> None:
    """Before its backoff is over, but not at once, and one package at a time."""
    one, two, full = standing(), standing(), standing(credit=1, outstanding=1)
    for _ in range(6):
        one.eject(0, 0.5)
        two.eject(0, 0.5)
    two.eject(0, 0.5)
    assert picked(one, two, now_ns=picking.BACKOFF_MIN_NS - 1) == {None}
    assert picked(one, two, full, now_ns=S) == {None}
    assert picked(one, two, now_ns=S) == {0}
    one.sent()
    assert picked(one, two, now_ns=S) <= {1, None}


def test_those_to_avoid_get_nothing() -> None:
    """Not even where they are the only ones."""
    one, two = standing(), standing()
    assert pick([one, two], now_ns=0, waiting=1, waited_ns=0, draws=(0, 0), avoid=[one]) is two
    assert pick([one], now_ns=0, waiting=1, waited_ns=0, draws=(0, 0), avoid=[one]) is None
