"""What a client's librdkafka says is heard, whatever the program does with its logging."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from streams.client_log import ClientLog

pytestmark = pytest.mark.worker_coordination


PROGRAM = """
import logging, logging.config, time
from confluent_kafka import Producer
from streams.client_log import ConnectionWatch
watch = ConnectionWatch()
{silence}
# Nobody listens on this port.
producer = Producer({{"bootstrap.servers": "127.0.0.1:1", "logger": watch.logger}})
deadline = time.monotonic() + 20
while not watch.lost and time.monotonic() < deadline:
    producer.poll(0.05)
print(watch.lost)
"""


@pytest.mark.parametrize(
    "silence",
    [
        "logging.disable(logging.CRITICAL)",
        'logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL"}})',
        "logging.setLogRecordFactory(lambda *_, **__: 1 / 0)",
    ],
    ids=["disable", "dictConfig", "broken factory"],
)
def test_a_lost_connection_is_heard_of_though_the_program_is_silent(silence: str) -> None:
    program = [sys.executable, "-c", PROGRAM.format(silence=silence)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_what_the_program_does_not_want_to_see_is_heard_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[str] = []
    onward = logging.getLogger("onward")
    caplog.set_level(logging.WARNING, "onward")
    log = ClientLog(heard.append, onward)
    log.log(logging.INFO, "%s [%s] %s", "FAIL", "w1", "gone")
    log.warning("a broker is away")
    logging.disable(logging.CRITICAL)
    try:
        log.error("and another one, 100%")
    finally:
        logging.disable(logging.NOTSET)
    assert heard == ["FAIL [w1] gone", "a broker is away", "and another one, 100%"]
    assert [record.getMessage() for record in caplog.records] == ["a broker is away"]
