"""Where the time of a test run goes: by module, how much for making (images, labs) and how much for trying."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

SHOWN = 15
LEAST_S = 2.0
TOLD_FROM_S = 30.0
"""A shorter run is not worth a table."""


class Report(Protocol):
    """What pytest tells of a part of a test."""

    @property
    def nodeid(self) -> str:
        """Its file, `::`, its name."""

    @property
    def when(self) -> str | None:
        """setup, call or teardown."""

    @property
    def duration(self) -> float:
        """Seconds."""


@dataclass
class Spent:
    """Seconds of one module: its fixtures (images built, labs booted and ended), and its tests."""

    making_s: float = 0.0
    trying_s: float = 0.0
    tests: int = 0

    @property
    def total_s(self) -> float:
        """Both."""
        return self.making_s + self.trying_s


def by_module(reports: Iterable[Report]) -> dict[str, Spent]:
    """Module → what was spent on it, the dearest first."""
    spent_by: dict[str, Spent] = {}
    for report in reports:
        spent = spent_by.setdefault(report.nodeid.partition("::")[0], Spent())
        if report.when == "call":
            spent.trying_s += report.duration
            spent.tests += 1
        else:
            spent.making_s += report.duration
    return dict(sorted(spent_by.items(), key=lambda item: -item[1].total_s))


def lines(spent_by: dict[str, Spent]) -> list[str]:
    """A table of the dearest modules, and a last line for all."""
    if not spent_by:
        return []
    rows = [(name, spent) for name, spent in spent_by.items() if spent.total_s >= LEAST_S][:SHOWN]
    everything = Spent(
        sum(s.making_s for s in spent_by.values()),
        sum(s.trying_s for s in spent_by.values()),
        sum(s.tests for s in spent_by.values()),
    )
    width = max([len(name) for name, _ in rows] + [len("all modules")])
    text = [f"{'module'.ljust(width)}  {'making s':>9} {'trying s':>9} {'tests':>6}"]
    for name, spent in [*rows, ("all modules", everything)]:
        text.append(f"{name.ljust(width)}  {spent.making_s:9.1f} {spent.trying_s:9.1f} {spent.tests:6}")
    return text
