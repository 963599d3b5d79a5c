"""Keys, buckets and streams: no two pipelines, shards or instances share one."""

from broker_pipeline.core import names
from broker_pipeline.core.release import RULES


def test_what_belongs_to_two_shards_never_shares_an_address():
    """Each address tells pipelines, and shards where it depends on them, apart."""
    for address in (names.lease_key, names.snapshot_key, names.snapshot_stream, names.stream_name):
        assert len({address(p, s) for p in ("a", "b") for s in (0, 1)}) == 4
    assert len({names.snapshot_subject(p, s) for p in ("a", "b") for s in (0, 1)}) == 4
    assert len({names.plan_key("a"), names.lease_key("a", 0), names.snapshot_key("a", 0)}) == 3
    assert names.module_bucket("a") != names.module_bucket("b")
    assert names.module_key(0, "c", "p", "x") != names.module_key(0, "c", "p", "y")


def test_every_mode_has_a_rule_that_holds_nothing_at_first():
    """Whatever the mode, nothing waits for its turn before anything came."""
    assert [rule().holding for rule in RULES.values()] == [0, 0, 0, 0]
