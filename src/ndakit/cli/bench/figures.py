"""A measured value with its limit, and how a time is taken.

Owns what every bench shares. Which figures there are, and what they are measured on, is theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured value and its limit (None: measured for comparison only)."""

    name: str
    value: float
    unit: str
    limit: float | None
    note: str = ""

    @property
    def ok(self) -> bool:
        """True if it keeps its limit."""
        return self.limit is None or self.value <= self.limit


Add = Callable[[Figure], None]
"""What a bench does with each figure as it comes."""


def timed(action: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each of some rounds."""
    seconds = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started_s)
    return seconds
