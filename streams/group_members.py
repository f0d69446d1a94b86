"""What the group's coordinator thinks of one member: the partitions that it gave it, and those that it wants it to have.

In:  a group and a member's id. Out: ``Member``, or None where the coordinator does not know it.

Asked through aiokafka: librdkafka's ``describe_consumer_groups`` ends the whole process (an assertion, in 2.16) when the
coordinator dies while it answers, which is just when it is asked. aiokafka has no such request of its own; this is the
schema of Kafka's ConsumerGroupDescribe, version 0 (KIP-848).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from schemas.errors import KafkaUnreachable
from schemas.topics import Partition
from streams.clients import aiokafka_config
from streams.settings import Settings

_GROUP_ID_NOT_FOUND: Final = 69
_TEXT: Final = CompactString("utf-8")
_ASSIGNMENT: Final = Schema(
    (
        "topics",
        CompactArray(
            ("topic_id", Schema(("high", Int64), ("low", Int64))),
            ("name", _TEXT),
            ("partitions", CompactArray(Int32)),
            ("tags", TaggedFields),
        ),
    ),
    ("tags", TaggedFields),
)


@dataclass(frozen=True, slots=True)
class Member:
    """One member as the coordinator sees it.

    Attributes:
        epoch: of its membership.
        assigned: partitions that it was told to have, in an answer that may have been lost.
        target: partitions that it is to have in the end.
    """

    epoch: int
    assigned: frozenset[Partition]
    target: frozenset[Partition]


async def describe_member(
    settings: Settings, group: str, member_id: str, *, timeout_s: float = 5.0
) -> Member | None:
    """Ask the coordinator once, over a connection of its own. For an event loop.

    Raises:
        KafkaUnreachable: no answer, or from a broker that does not know the group's state yet.
    """
    client = AIOKafkaClient(**aiokafka_config(settings), request_timeout_ms=round(timeout_s * 1000))
    try:
        async with asyncio.timeout(timeout_s):
            await client.bootstrap()
            if client.get_random_node() is None:
                # A broker that has only just begun names no brokers, itself included.
                raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s)
            node = await client.coordinator_lookup(CoordinationType.GROUP, group)
            answer = await client.send(node, _Describe(group))
    except (KafkaError, TimeoutError, OSError) as error:
        raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s) from error
    finally:
        await client.close()
    (described,) = answer.groups
    error_code, members = described[0], described[7]
    if error_code == _GROUP_ID_NOT_FOUND:
        return None
    if error_code:
        raise KafkaUnreachable(settings.bootstrap_servers(), timeout_s) from for_code(error_code)(
            described[1]
        )
    for known_as, _, _, epoch, _, _, _, _, assignment, target, _ in members:
        if known_as == member_id:
            return Member(epoch, _partitions(assignment), _partitions(target))
    return None


def _partitions(assignment: tuple[Iterable[Any], Any]) -> frozenset[Partition]:
    return frozenset((name, number) for _, name, numbers, _ in assignment[0] for number in numbers)


class _DescribeResponse(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 69
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "groups",
            CompactArray(
                ("error_code", Int16),
                ("error_message", _TEXT),
                ("group_id", _TEXT),
                ("group_state", _TEXT),
                ("group_epoch", Int32),
                ("assignment_epoch", Int32),
                ("assignor_name", _TEXT),
                (
                    "members",
                    CompactArray(
                        ("member_id", _TEXT),
                        ("instance_id", _TEXT),
                        ("rack_id", _TEXT),
                        ("member_epoch", Int32),
                        ("client_id", _TEXT),
                        ("client_host", _TEXT),
                        ("subscribed_topic_names", CompactArray(_TEXT)),
                        ("subscribed_topic_regex", _TEXT),
                        ("assignment", _ASSIGNMENT),
                        ("target_assignment", _ASSIGNMENT),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 69
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeResponse
    SCHEMA = Schema(
        ("group_ids", CompactArray(_TEXT)),
        ("include_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Describe(Request[_DescribeRequest]):  # type: ignore[misc]
    API_KEY = 69

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_DescribeRequest]) -> _DescribeRequest:
        return request_struct_class([self._group], False, {})
