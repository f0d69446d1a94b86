"""Reports that Kafka has taken late: it was away meanwhile, for that worker at least. Pure state.

In:  when each report was made, by its worker's clock, and when Kafka wrote it. Out: the same by Kafka's clock, and the outages.

Clocks differ, and a report is never written before it is made: so the quickest one of a process tells how far its clock is off.
"""

from __future__ import annotations

from workers.liveness.reporter import INTERVAL_S


class ReportTimes:
    """Of one look at the reports. Times are milliseconds."""

    def __init__(self) -> None:
        self._reports: list[tuple[str, int, int]] = []
        self._quickest: dict[str, int] = {}

    def note(self, incarnation: str, made_ms: int, written_ms: int) -> None:
        """One report, made by the worker's clock, written by the broker's."""
        self._reports.append((incarnation, made_ms, written_ms))
        took = written_ms - made_ms
        self._quickest[incarnation] = min(took, self._quickest.get(incarnation, took))

    def made_ms(self, incarnation: str, made_ms: int) -> int:
        """When it was made by the broker's clock, or a little later."""
        return made_ms + self._quickest[incarnation]

    def outages(self, lease_ms: int) -> tuple[tuple[int, int], ...]:
        """From when to when Kafka has taken no report for so long that who had nothing else of it may have given up.

        One made just after the last answer is late by as much; there may have been none for an interval, and a slow one before.
        """
        shortest = max(lease_ms - 1.5 * INTERVAL_S * 1000, INTERVAL_S * 1000)
        made = ((self.made_ms(incarnation, made), written) for incarnation, made, written in self._reports)
        return tuple((begin, end) for begin, end in made if end - begin >= shortest)
