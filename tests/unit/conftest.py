"""What unit tests share: a place without settings, and Hypothesis without a time limit (machines are busy with other things)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings file, no data, and no imports of another test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUSTFS_WORKERS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    structlog.reset_defaults()
