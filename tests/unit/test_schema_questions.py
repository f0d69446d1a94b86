"""Readers ask for schemas that they do not know: as often as an answer may have changed, and no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from schemas.codec import SINGLE_OBJECT, Codec, SchemaStore
from schemas.errors import UnknownSchema
from schemas.jobtype import job_type
from schemas.wire import WireSchema
from streams.reader import Schemas
from streams.schemas_topic import SchemaTopicReader, add_record
from streams.settings import load_settings
from tests.support.deployments import Sample
from tests.support.events import job_value

pytestmark = pytest.mark.job_processing

BODY = job_value(Sample())[10:]


class Topic:
    """Counts the questions; knows what was put into it."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.asked: list[bytes] = []
        self.holds: dict[bytes, Any] = {}

    def learn(self, key: bytes, _timeout_s: float) -> bool:
        self.asked.append(key)
        for known, schema in self.holds.items():
            self._codec.store.add(known, schema)
        return key in self.holds


def made_up(number: int) -> bytes:
    return SINGLE_OBJECT + number.to_bytes(8, "big") + BODY


def numbered(number: int) -> bytes:
    return b"\0" + number.to_bytes(4, "big") + BODY


def asks_for(schemas: Schemas, *values: bytes) -> None:
    for value in values:
        with pytest.raises(UnknownSchema):
            schemas.decode_job(value)


@pytest.fixture
def topic() -> Topic:
    return Topic(Codec())


def test_one_look_answers_for_all_made_up_fingerprints_of_a_reading(topic: Topic) -> None:
    """Ten thousand of them took ten seconds, and `dlq list` and `jobs list` gave up."""
    schemas = Schemas(topic._codec, topic)  # type: ignore[arg-type]
    asks_for(schemas.of_one_reading(), *map(made_up, range(1_000)))
    assert len(topic.asked) == 1
    asks_for(schemas.of_one_reading(), made_up(0), made_up(1_000), made_up(1_001))
    assert topic.asked[1:] == [made_up(1_000)[2:10]], "the next reading looks for itself"


def test_the_look_that_finds_one_schema_says_nothing_of_others_yet(topic: Topic) -> None:
    """It may have ended where that schema stood."""
    value = job_value(Sample(), source="written elsewhere")
    wire = job_type(Sample).wire
    other = {
        **wire.schema,
        "fields": [*wire.schema["fields"], {"name": "more", "type": "string", "default": ""}],
    }
    key = WireSchema(other).fingerprint
    topic.holds[key] = other
    schemas = Schemas(topic._codec, topic).of_one_reading()  # type: ignore[arg-type]
    assert schemas.decode_job(SINGLE_OBJECT + key + value[10:] + b"\0")["source"] == "written elsewhere"
    asks_for(schemas, made_up(1))
    assert len(topic.asked) == 2


def test_a_registry_is_asked_for_each_number_once(topic: Topic) -> None:
    schemas = Schemas(topic._codec, topic)  # type: ignore[arg-type]
    asks_for(schemas.of_one_reading(), numbered(1), made_up(1), numbered(2), numbered(1))
    assert topic.asked == [numbered(1)[:5], made_up(1)[2:10], numbered(2)[:5]]


# What stands on the topic


@pytest.mark.parametrize("key", [b"", b"00", b"0000000001", b"00" * 9, b"zz" * 8, b"\xff" * 16, None])
def test_what_is_not_under_its_fingerprint_is_left_out(key: bytes | None) -> None:
    """Under five bytes anybody could say what a number of the registry means."""
    store = SchemaStore()
    wire = job_type(Sample).wire
    assert add_record(store, key, wire.json.encode())
    assert store._by_key == {}
    assert add_record(store, wire.fingerprint.hex().encode(), wire.json.encode()) is None
    assert list(store._by_key) == [wire.fingerprint]


def test_of_many_schemas_that_cannot_be_used_a_few_are_named_and_all_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each command reads all of them, and thousands of lines hid its answer."""
    garbage: Any = [
        SimpleNamespace(error=lambda: None, key=lambda: b"k", value=lambda: b"{", offset=lambda n=number: n)
        for number in range(1_000)
    ]
    consumer = SimpleNamespace(
        get_watermark_offsets=lambda *_, **__: (0, 1_000),
        assign=lambda _: None,
        poll=lambda _: garbage.pop(0),
        close=lambda: None,
    )
    monkeypatch.setattr("streams.schemas_topic.Consumer", lambda _: consumer)
    reader = SchemaTopicReader(load_settings(kafka_bootstrap_servers="127.0.0.1:1"), SchemaStore())
    with capture_logs() as said:
        assert reader.catch_up(10)
    assert [line["event"] for line in said] == ["schema not usable"] * 5 + ["more schemas not usable"]
    assert said[-1]["count"] == 995
