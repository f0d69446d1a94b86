"""The report thread: says once a second how the worker is, and learns the broker's time from the answer.

In:  a function that makes the report. Out: a record on ``workers.reports``, samples for the clock, signs of life.

It has a thread and a producer of its own, so that neither a busy event loop nor a commit that waits
makes a living worker look dead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from workers.liveness.clock import WARN_OFFSET_MS, BrokerClock
from workers.liveness.lease import Lease

log = structlog.get_logger("rustfs_workers.reporter")

INTERVAL_S = 1.0
#: A producer that keeps its order has five requests on the way at the most, and a change of state must not wait for theirs.
_MOST_UNANSWERED = 3


class Reporter:
    """Sends reports until it is stopped."""

    def __init__(
        self,
        *,
        producer: Producer,
        topic: str,
        key: str,
        make: Callable[[str], bytes],
        clock: BrokerClock,
        lease: Lease,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._key = key
        self._make = make
        self._clock = clock
        self._lease = lease
        self._on_failure = on_failure
        self._stop = threading.Event()
        #: The next report is not to wait for its time.
        self._wanted = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)

    def first(self, timeout_s: float) -> bool:
        """Send one report and wait for its answer: nothing that waits for a time starts before this. Blocks."""
        answered = threading.Event()
        self._send("starting", answered.set)
        deadline = time.monotonic() + timeout_s
        while not answered.is_set() and time.monotonic() < deadline:
            self._producer.poll(0.05)
        return answered.is_set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def now(self) -> None:
        """One that says something new: it is sent at once. Any thread."""
        self._wanted.set()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Send a last report, and end."""
        self._stop.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while True:
                is_new = self._wanted.is_set()
                if is_new:
                    self._wanted.clear()
                if self._stop.is_set():
                    break
                if is_new or len(self._producer) < _MOST_UNANSWERED:
                    self._send("running")
                if time.monotonic() >= due:
                    due = max(due + INTERVAL_S, time.monotonic())
                # Served until the next report is due, so an answer is timed when it comes.
                while (left := due - time.monotonic()) > 0 and not self._wanted.is_set():
                    if len(self._producer):
                        self._producer.poll(min(left, 0.2))
                    else:
                        self._wanted.wait(left)
            self._send("stopped")
            self._producer.flush(2.0)
        except BaseException as error:  # noqa: BLE001 - handed to whoever supervises the worker
            self._on_failure(error)

    def _send(self, state: str, done: Callable[[], None] = lambda: None) -> None:
        sent_ns, asked_s = self._clock.steady_ns(), self._lease.now_s

        def answered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                log.warning("report not delivered", error=str(error))
                return
            self._lease.answered(asked_s)
            self._sample(message, sent_ns)
            done()

        try:
            self._producer.produce(self._topic, self._make(state), self._key, on_delivery=answered)
        except (BufferError, KafkaException) as error:
            log.warning("report not sent", error=str(error))

    def _sample(self, message: Message, sent_ns: int) -> None:
        kind, broker_ms = message.timestamp()
        if kind != 2 or broker_ms <= 0:  # noqa: PLR2004 - 2: LogAppendTime, the broker's own clock
            return
        self._clock.sample(broker_ms, sent_ns)
        if abs(self._clock.offset_ms) > WARN_OFFSET_MS and not self._warned:
            self._warned = True
            log.warning("clocks differ", broker_minus_local_ms=self._clock.offset_ms)
