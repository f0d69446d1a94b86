"""Topics that cannot be used yet are named: brokers that answer are not said to be away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from schemas.errors import KafkaUnreachable, PipelineError
from schemas.topics import Topics
from streams import provision
from streams.settings import load_settings

pytestmark = pytest.mark.distributed

SPECS = Topics("p.").specs(3)[:3]


def topic(*leaders: int) -> Any:
    return SimpleNamespace(partitions={n: SimpleNamespace(leader=leader) for n, leader in enumerate(leaders)})


def test_a_topic_without_a_leader_or_that_is_not_shown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "_KAFKA_S", 0.0)
    led, leaderless, _ = (spec.name for spec in SPECS)
    known = {led: topic(1, 2), leaderless: topic(1, -1)}
    admin: Any = SimpleNamespace(list_topics=lambda timeout: SimpleNamespace(topics=known))
    with pytest.raises(PipelineError) as refused:
        provision._wait_for_leaders(load_settings(), admin, SPECS)
    assert not isinstance(refused.value, KafkaUnreachable)
    named = str(refused.value).partition("after 0 s: ")[2].partition(";")[0].split(", ")
    assert named == sorted(spec.name for spec in SPECS[1:])
