"""The programs that this machine must have: the rows of programs.txt, which ./inv installs from.

Owns reading that list. What is done about a missing one is left to ./inv and to `imagebuilder.prerequisites`; starting
programs is `process`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

LIST = Path(__file__).with_name("programs.txt")


@dataclass(frozen=True)
class Needed:
    """One row: any one of `names` (a program's name, or a file's absolute path with patterns) is enough."""

    names: tuple[str, ...]
    package: str
    """Debian's package that has it."""
    who: frozenset[str]
    """Who needs it: driver (OpenWrt's ImageBuilder), ndakit, lab, tests."""
    use: str
    """What it is for; completes "X (…)"."""


@cache
def needed() -> tuple[Needed, ...]:
    """Every row, in the order of the file. Raises ValueError for a row that has not four columns."""
    rows = []
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            names, package, who, use = (column.strip() for column in line.split("|"))
            rows.append(Needed(tuple(names.split()), package, frozenset(who.split()), use))
    return tuple(rows)
