"""The marker of a group that was set up: one that cannot be read is a refusal by name, never a new start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from schemas.errors import GroupNotInitialised
from streams import group_setup
from streams.group_setup import Marker, marker_key
from streams.scan import ScanResult
from streams.settings import load_settings

pytestmark = pytest.mark.worker_coordination

SETTINGS = load_settings(kafka_bootstrap_servers="127.0.0.1:1", topic_prefix="t.")
KEY = marker_key(SETTINGS.topics.group)


def read(monkeypatch: pytest.MonkeyPatch, *records: tuple[bytes, bytes | None]) -> Marker | None:
    def scan(_settings: Any, _topics: Any, each: Any, **_: Any) -> ScanResult:
        for key, value in records:
            each(SimpleNamespace(key=lambda k=key: k, value=lambda v=value: v))
        return ScanResult(complete=True)

    monkeypatch.setattr(group_setup, "scan", scan)
    return group_setup._read_marker(SETTINGS)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"5", b"{}", b"\xff", b"[" * 100_000, b"9" * 5_000])
def test_a_marker_of_nonsense_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: bytes) -> None:
    with pytest.raises(
        GroupNotInitialised, match=r"marker on t\.jobs\.commands cannot be read.*key group/t\.workers"
    ):
        read(monkeypatch, (KEY, value))


def test_what_others_write_beside_it_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = (KEY, b'{"created_at": "now", "cluster_id": "c"}')
    garbage = [(b"group/other", b"["), (b"", None), (KEY[:-1], b"{"), (b"\xff", b"\xff")]
    assert read(monkeypatch, *garbage, ours, *garbage) == Marker("now", "c")
    assert read(monkeypatch, *garbage) is None
