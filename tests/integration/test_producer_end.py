"""A fenced producer that is replaced takes the process with it, unless its answers are waited for (librdkafka 2.16)."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

pytestmark = [pytest.mark.distributed, pytest.mark.integration]

_SECONDS: Final = 8
#: A request for each is under way when the first one is refused.
_PARTITIONS: Final = 12
#: What is freed twice is noticed at once by glibc; with a cache for each thread, later and elsewhere.
_NO_CACHE: Final = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


def test_producers_that_are_fenced_under_load_end_without_damage(kafka: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}many"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, _PARTITIONS, 1)])[topic].result(30)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.fenced_in_turns",
            kafka,
            topic,
            str(_SECONDS),
        ],
        check=False,
        env=os.environ | _NO_CACHE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 5, "too few were fenced for this to say anything"
