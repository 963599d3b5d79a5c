"""A healthy pipeline to plant trouble in."""

from __future__ import annotations

import msgspec
import pytest

from broker_pipeline.broker.monitoring import ServerSettings
from broker_pipeline.core.names import (
    SERVER_BUCKET,
)
from broker_pipeline.external.registry import Announcement
from tests.unit.debug.ward import Ward

SETTINGS = ServerSettings("one", 5.0, 2, 0.0, 0, 0, None, "")


async def announced(ward: Ward) -> None:
    """A server of the module that the pipeline needs."""
    await ward.broker.ensure_bucket(SERVER_BUCKET, ttl_s=5)
    value = msgspec.json.encode(Announcement(name="asr", address="a:1"))
    await ward.broker.kv_put(SERVER_BUCKET, "asr.1", value)


@pytest.fixture
async def ward() -> Ward:
    """Healthy."""
    ward = await Ward.healthy()
    await announced(ward)
    return ward
