"""What long-running work tells its caller while it runs: small typed facts, never text for a terminal.

Owns the event types of fetching and building. Who shows them, and how, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Planned:
    """What is going to happen to one node's image, and why."""

    node: str
    up_to_date: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class StepStarted:
    """A step began: `step` is a short stable word (render, imagebuilder, image, …), `what` completes it for people."""

    step: str
    node: str
    what: str


@dataclass(frozen=True)
class StepDone:
    """A step ended well, after `elapsed_s` seconds; `note` says what came of it."""

    step: str
    node: str
    elapsed_s: float
    note: str = ""


@dataclass(frozen=True)
class OutputLine:
    """A line that an outside program said; `source` names the program."""

    text: str
    source: str


@dataclass(frozen=True)
class Progress:
    """How far a download is: bytes that are there and, if known, bytes that there will be."""

    what: str
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True)
class Waiting:
    """Another run is at work; `what` says who."""

    what: str


@dataclass(frozen=True)
class Warned:
    """Something that does not stop the work but should be known."""

    node: str
    text: str


Event = Planned | StepStarted | StepDone | Progress | OutputLine | Waiting | Warned
Events = Callable[[Event], None]


def ignore(_: Event) -> None:
    """For callers who want no events."""
