"""Heartbeats in another member's name (KIP-848): Kafka raises its epoch, and the member itself does not hear of it.

Sent with aiokafka, which has no such request of its own; this is Kafka's ConsumerGroupHeartbeat, version 0.
"""

from __future__ import annotations

from typing import Any

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields

from streams.clients import aiokafka_config
from streams.settings import Settings

#: For a broker: it assigns while it answers. Otherwise the next heartbeat gets the epoch, and that may be the member's own.
ASSIGNS_AT_ONCE = {
    "group.consumer.assignment.interval.ms": "0",
    "group.consumer.assignor.offload.enable": "false",
}

_TEXT = CompactString("utf-8")


async def raise_epoch_twice(settings: Settings, group: str, member_id: str, epoch: int, topic: str) -> int:
    """Subscribe the member to one topic more, and to ``topic`` alone again. The epoch that it has then.

    A member that is behind by one is forgiven if it names its partitions, as it does right after it got them.
    """
    client = AIOKafkaClient(**aiokafka_config(settings))
    try:
        await client.bootstrap()
        node = await client.coordinator_lookup(CoordinationType.GROUP, group)
        for topics in ([topic, f"{topic}.that.does.not.exist"], [topic]):
            answer = await client.send(node, _Heartbeat(group, member_id, epoch, topics))
            assert answer.error_code == 0, answer.error_message
            assert answer.member_epoch == epoch + 1
            epoch = answer.member_epoch
    finally:
        await client.close()
    return epoch


class _HeartbeatResponse(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 68
    API_VERSION = 0
    #: What follows is not read.
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("error_message", _TEXT),
        ("member_id", _TEXT),
        ("member_epoch", Int32),
    )


class _HeartbeatRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 68
    API_VERSION = 0
    RESPONSE_TYPE = _HeartbeatResponse
    SCHEMA = Schema(
        ("group_id", _TEXT),
        ("member_id", _TEXT),
        ("member_epoch", Int32),
        ("instance_id", _TEXT),
        ("rack_id", _TEXT),
        ("rebalance_timeout_ms", Int32),
        ("subscribed_topic_names", CompactArray(_TEXT)),
        ("server_assignor", _TEXT),
        (
            "topic_partitions",
            CompactArray(
                ("topic_id", Schema(("high", Int64), ("low", Int64))),
                ("partitions", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Heartbeat(Request[_HeartbeatRequest]):  # type: ignore[misc]
    API_KEY = 68

    def __init__(self, group: str, member_id: str, epoch: int, topics: list[str]) -> None:
        unchanged = None
        self._fields: tuple[Any, ...] = (
            group, member_id, epoch, unchanged, unchanged, -1, topics, unchanged, unchanged, {},
        )  # fmt: skip

    def build(self, request_struct_class: type[_HeartbeatRequest]) -> _HeartbeatRequest:
        return request_struct_class(*self._fields)
