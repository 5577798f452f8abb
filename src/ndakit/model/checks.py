"""Rules over several objects of a profile, as findings; no I/O, nothing is raised.

Each finding says which two places disagree. Rules within one object are validators of its class; rules across
profiles are the loader's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ndakit.model.profile import Profile

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Finding:
    """What is wrong or doubtful, at which place, against which other, and what to do about it."""

    code: str
    severity: Literal["error", "warning"]
    what: str
    at: KeyPath
    fix: str
    other: KeyPath | None = None
    also: tuple[KeyPath, ...] = ()
    """Further places that were looked at to come to this finding."""

    @property
    def about(self) -> tuple[KeyPath, ...]:
        """Every place that the finding depends on."""
        return (self.at, *((self.other,) if self.other is not None else ()), *self.also)


def findings(profile: Profile) -> Iterator[Finding]:
    """Everything the cross-checks find, errors and warnings."""
    yield from ()
