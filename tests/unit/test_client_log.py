"""What a client's librdkafka says is heard, whatever the program does with its logging."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from streams.client_log import ClientLog, ConnectionWatch
from tests.support.waiting import eventually

pytestmark = pytest.mark.worker_coordination


def disable() -> None:
    logging.disable(logging.CRITICAL)


def turn_off_what_is_not_named() -> None:
    logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL"}})


@pytest.fixture
def _logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root.manager, "disable", root.manager.disable)
    monkeypatch.setattr(root, "level", root.level)
    for logger in root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "disabled", logger.disabled)


@pytest.mark.usefixtures("_logging_as_it_was")
@pytest.mark.parametrize("silence", [disable, turn_off_what_is_not_named])
def test_a_lost_connection_is_heard_of_though_the_program_is_silent(silence: Callable[[], None]) -> None:
    watch = ConnectionWatch()
    silence()
    # Nobody listens on this port.
    producer = Producer({"bootstrap.servers": "127.0.0.1:1", "logger": watch.logger})

    def heard() -> bool:
        producer.poll(0.05)
        return watch.lost

    eventually(heard, 10, "librdkafka's line about the connection")


@pytest.mark.usefixtures("_logging_as_it_was")
def test_what_the_program_does_not_want_to_see_is_heard_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[str] = []
    onward = logging.getLogger("onward")
    caplog.set_level(logging.WARNING, "onward")
    log = ClientLog(heard.append, onward)
    log.log(logging.INFO, "%s [%s] %s", "FAIL", "w1", "gone")
    log.warning("a broker is away")
    disable()
    log.error("and another one")
    assert heard == ["FAIL [w1] gone", "a broker is away", "and another one"]
    assert [record.getMessage() for record in caplog.records] == ["a broker is away"]
