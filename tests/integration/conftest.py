"""What tests with real worker processes begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.producer import JobProducer
from streams.settings import Settings
from tests.support.workers import Start, workers


@pytest.fixture(scope="session", autouse=True)
def _quick_start(quick_start: Path) -> None:
    """Also where a module has a Kafka of its own."""


@pytest.fixture
def start(provisioned: Settings, tmp_path: Path) -> Iterator[Start]:
    """A function that starts workers, which are ended after the test."""
    with workers(provisioned, tmp_path) as start:
        yield start


@pytest.fixture
def producer(provisioned: Settings) -> Iterator[JobProducer]:
    """A producer of the deployment."""
    with JobProducer(provisioned) as producer:
        yield producer
