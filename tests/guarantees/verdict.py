"""What the auditor has to say: counts, cases by name, and the bars of a long storm. Pure.

Which guarantees do not hold is ``broken``; what a long storm should have shown, and did not, is ``missed``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tests.guarantees.storm import Kind

_NAMED: Final = 20

#: A storm that was to last so long is a long one, whatever came of it, and is to show all this.
LONG_MINUTES: Final = 30.0
LONG_FAULTS: Final = 200
#: Takeovers, and leaves, that must have been measured where nothing else was wrong: elsewhere no bar can be missed.
AT_PEACE: Final = 3
LONG_JOBS: Final = 100_000
#: Lives that redrives gave, and children that jobs scheduled: without any, what is promised of them would hold by itself.
LONG_REDRIVEN: Final = 100
LONG_CHILDREN: Final = 1_000
JOBS_A_MINUTE: Final = 5_000
OF_EACH_KIND: Final = 20
IN_FLIGHT: Final = 0.3
TAKEOVER_S: Final = 12.0
LEAVE_S: Final = 3.0
#: The session of the campaign's brokers, and a heartbeat or two: what a takeover in trouble may take beside its bar and the trouble.
MISSED_AFTER_S: Final = 8.0


@dataclass(slots=True)
class Finding:
    """Cases of one kind: how many, and some by name."""

    count: int = 0
    cases: list[str] = field(default_factory=list)

    def add(self, case: str) -> None:
        self.count += 1
        if len(self.cases) < _NAMED:
            self.cases.append(case)


@dataclass(slots=True)
class Verdict:
    """What the auditor has to say."""

    seed: int = 0
    minutes: float = 0.0
    accepted: int = 0
    children: int = 0
    faults: int = 0
    faults_by_kind: dict[str, int] = field(default_factory=dict)
    final: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    kills_in_flight: int = 0
    lost: Finding = field(default_factory=Finding)
    forked: Finding = field(default_factory=Finding)
    illegal: Finding = field(default_factory=Finding)
    #: Jobs that say something else after a retry, a redrive or as a dead letter than when they were scheduled.
    altered: Finding = field(default_factory=Finding)
    early: Finding = field(default_factory=Finding)
    overlaps: Finding = field(default_factory=Finding)
    order: Finding = field(default_factory=Finding)
    unexplained: Finding = field(default_factory=Finding)
    #: Workers that ended though nobody had told them to.
    ended: Finding = field(default_factory=Finding)
    #: Records that stand twice, by a torn transaction or a producer's second try: allowed, if one of them is passed over.
    copies: Finding = field(default_factory=Finding)
    #: Dead letters of jobs that killed nobody: their worker was killed or frozen, for the third time, while they ran alone.
    condemned: Finding = field(default_factory=Finding)
    reexecuted: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    fenced_remainders: int = 0
    #: Workers that stood still by themselves until their watchdogs ended them, or the storm did; their logs say where.
    stood_still: int = 0
    #: How long partitions stood still, and why: ``tests.guarantees.times``.
    takeover_s: float = 0.0
    leave_s: float = 0.0
    rebalance_s: float = 0.0
    takeover_in_trouble_s: float = 0.0
    leave_in_trouble_s: float = 0.0
    takeover_after_trouble_s: float = 0.0
    leave_after_trouble_s: float = 0.0
    standstill_s: float = 0.0
    #: How many takeovers and leaves were measured; each figure above is the longest of them.
    takeovers: int = 0
    leaves: int = 0
    takeovers_in_trouble: int = 0
    leaves_in_trouble: int = 0
    #: What the producer was told: not accepted, and perhaps accepted.
    refused: int = 0
    doubtful: int = 0
    #: Of the doubtful ones, those that stand in Kafka: they have to end as well.
    doubtful_standing: int = 0
    #: Jobs that somebody was told have a new life; calls for that, and those that failed.
    redriven: int = 0
    redrive_calls: int = 0
    redrive_calls_failed: int = 0

    @property
    def broken(self) -> dict[str, list[str]]:
        """The guarantees that do not hold, with cases."""
        findings = {
            name: getattr(self, name)
            for name in (
                "lost",
                "forked",
                "illegal",
                "altered",
                "early",
                "overlaps",
                "order",
                "unexplained",
                "ended",
            )
        }
        return {name: finding.cases for name, finding in findings.items() if finding.count}

    @property
    def missed(self) -> list[str]:
        """What a long storm should have shown, and did not: figures, which no guarantee depends on."""
        bars = {
            f"takeover took {self.takeover_s} s, and not {TAKEOVER_S:g}": self.takeover_s > TAKEOVER_S,
            f"after a leave it took {self.leave_s} s, and not {LEAVE_S:g}": self.leave_s > LEAVE_S,
        }
        for name, after_s, bar_s in (
            ("takeover", self.takeover_after_trouble_s, TAKEOVER_S + MISSED_AFTER_S),
            ("leave", self.leave_after_trouble_s, LEAVE_S + MISSED_AFTER_S),
        ):
            text = (
                f"a {name} in trouble took {after_s} s in which nothing was wrong any more, and not {bar_s:g}"
            )
            bars[text] = after_s > bar_s
        if self.minutes >= LONG_MINUTES:
            share = self.kills_in_flight / max(self.kills, 1)
            bars |= {
                f"{self.faults} faults were made, and not {LONG_FAULTS}": self.faults < LONG_FAULTS,
                f"{share:.0%} of the kills met a running job, and not {IN_FLIGHT:.0%}": share < IN_FLIGHT,
                f"{self.accepted:,} jobs were accepted, and not {LONG_JOBS:,}": self.accepted < LONG_JOBS,
                f"{self.children:,} children were scheduled, and not {LONG_CHILDREN:,}": self.children
                < LONG_CHILDREN,
                f"{self.redriven} jobs were redriven, and not {LONG_REDRIVEN}": self.redriven < LONG_REDRIVEN,
                f"{self.accepted / max(self.minutes, 0.1):,.0f} jobs a minute were accepted, and not {JOBS_A_MINUTE:,}": (
                    self.accepted < JOBS_A_MINUTE * self.minutes
                ),
            }
            bars |= {
                f"{kind.value} came up {count} times, and not {OF_EACH_KIND}": count < OF_EACH_KIND
                for kind in Kind
                for count in (self.faults_by_kind.get(kind.value, 0),)
            }
            bars |= {
                f"{count} {name} were measured where nothing else was wrong, and not {AT_PEACE}": count
                < AT_PEACE
                for name in ("takeovers", "leaves")
                for count in (getattr(self, name),)
            }
        return [text for text, is_so in bars.items() if is_so]

    def to_json(self) -> dict[str, object]:
        """The report's last line."""
        return {
            name: value.count if isinstance(value, Finding) else value
            for name in self.__slots__
            if (value := getattr(self, name)) is not None
        }
