"""The question what the group's coordinator thinks of a member, where a broker gives half an answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from schemas.errors import KafkaUnreachable
from streams import group_members
from streams.group_members import describe_member
from streams.settings import Settings

pytestmark = pytest.mark.worker_coordination


class JustBegun:
    """A client of a broker that does not know of any broker yet, itself included."""

    closed = 0

    def __init__(self, **_: Any) -> None:
        pass

    async def bootstrap(self) -> None:
        """It has answered."""

    def get_random_node(self) -> None:
        """There is none."""

    async def coordinator_lookup(self, *_: Any) -> int:
        raise AssertionError("Did we not perform bootstrap?")

    async def close(self) -> None:
        JustBegun.closed += 1


def test_a_broker_that_names_no_brokers_is_none_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_members, "AIOKafkaClient", JustBegun)
    with pytest.raises(KafkaUnreachable):
        asyncio.run(describe_member(Settings(kafka_bootstrap_servers="127.0.0.1:1"), "workers", "m"))
    assert JustBegun.closed == 1
