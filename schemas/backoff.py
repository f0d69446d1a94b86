"""How long a failed job waits before its next run: exponential, with full jitter.

Pure. The jitter is a hash of (job id, attempt): an outcome that is written a second time after an
ambiguous commit asks for the same delay, and so lands in the same retry topic, where it is recognised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b

from schemas.durations import seconds
from schemas.errors import SettingsError

_MS = timedelta(milliseconds=1)


@dataclass(frozen=True)
class Backoff:
    """Full jitter as in Brooker, "Exponential Backoff And Jitter" (AWS, 2015).

    Attributes:
        base: upper bound of the first wait.
        factor: growth of the bound with each attempt; at least 1.
        cap: no wait is longer, whatever the other values say.
        floor: no wait is shorter, unless the cap is; full jitter alone may draw zero.
        jitter: False waits exactly the bound (for tests and for people who need to know when).

    Raises:
        SettingsError: a duration that is none or negative, a factor that is no finite number from 1 on, or a jitter that is neither True nor False.
    """

    base: timedelta = timedelta(seconds=2)
    factor: float = 2.0
    cap: timedelta = timedelta(hours=1)
    floor: timedelta = timedelta(milliseconds=100)
    jitter: bool = True

    def __post_init__(self) -> None:
        for name, duration in (("base", self.base), ("cap", self.cap), ("floor", self.floor)):
            seconds(f"backoff {name}", duration, least=timedelta(0), most=timedelta.max)
        if type(self.factor) not in (int, float) or not 1 <= self.factor < math.inf:
            raise SettingsError(f"backoff factor is {self.factor}; it must be a number from 1 on")
        if type(self.jitter) is not bool:
            raise SettingsError(f"backoff jitter is {self.jitter!r:.80}; it takes True or False")

    def delay_ms(self, job_id: str, attempt: int) -> int:
        """Milliseconds between the end of run ``attempt`` (from 1) and the start of the next."""
        cap_ms = self.cap // _MS
        try:
            bound = min(self.base / _MS * float(self.factor) ** (attempt - 1), cap_ms)
        except OverflowError:  # attempt 1,100 of a factor of 2
            bound = cap_ms
        if self.jitter:
            digest = blake2b(f"{job_id}:{attempt}".encode(), digest_size=8).digest()
            bound *= int.from_bytes(digest, "big") / 2**64
        return min(max(round(bound), self.floor // _MS), cap_ms)


DEFAULT_BACKOFF = Backoff()
