"""What a verification found, for scripts (acceptance.json) and for people (a table that survives a mail).

Builds values and text; writing the file is atomic; printing is the tasks' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ndakit.core.terminal import paint, seconds, table
from ndakit.core.workspace import write_atomic
from ndakit.verify.claims import LeftOut
from ndakit.verify.run import Verdict

FORMAT = 1


@dataclass(frozen=True)
class Acceptance:
    """One verification: of what, on what, when, and the verdicts."""

    profile: str
    customer: str | None
    release: str
    builder: str
    lab_image: bool
    images: Mapping[str, Mapping[str, Any]]
    """node → image file's name, its SHA-256 and the image's id."""
    machine: Mapping[str, str]
    """QEMU's version, accelerator and why it was chosen."""
    started_at: str
    """UTC, ISO 8601."""
    elapsed_s: float
    verdicts: tuple[Verdict, ...]
    left_out: tuple[LeftOut, ...] = ()
    """What was not tried, and why."""
    pace: Mapping[str, float | str] = field(default_factory=dict)
    """How late this machine ran the lab's machines (pace.Pace)."""

    @property
    def holds(self) -> bool:
        """True if there is something to claim and every claim holds."""
        return bool(self.verdicts) and all(v.ok for v in self.verdicts)

    @property
    def verdict(self) -> str:
        """`holds`, `fails`, or `too busy` if nothing was found wrong and this machine was too late to tell the rest."""
        if self.holds:
            return "holds"
        states = {v.state for v in self.verdicts}
        return "too busy" if "too busy" in states and "fails" not in states else "fails"

    def as_json(self) -> dict[str, Any]:
        """The record."""
        facts = asdict(self)
        verdicts = facts.pop("verdicts")
        for claim in verdicts:
            claim["verdict"] = claim.pop("state")
        warning = (
            "These are lab images: real daemons and packets on a stand-in for OpenWrt's base system. They prove the "
            "configuration, they are never to be flashed."
        )
        return {
            "format": FORMAT,
            "holds": self.holds,
            "verdict": self.verdict,
            **({"warning": warning} if self.lab_image else {}),
            **facts,
            "claims": verdicts,
        }


def write(path: Path, acceptance: Acceptance) -> None:
    """Write the record as JSON, atomically."""
    write_json(path, acceptance.as_json())


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write facts as JSON, atomically."""
    write_atomic(path, json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n")


def verdict_word(verdict: Verdict) -> str:
    """`holds`, `FAILS`, `too busy`, `not tried`, in colour on a terminal."""
    word = "FAILS" if verdict.state == "fails" else verdict.state
    colour = {"holds": "green", "fails": "red"}.get(verdict.state, "yellow")
    return paint(word.ljust(9), colour)


def claims_table(verdicts: Sequence[Verdict]) -> str:
    """Verdict, claim and figure, one line each; the details of what failed below."""
    rows = [(verdict_word(v), v.name, v.figure) for v in verdicts]
    lines = [table(rows)]
    for verdict in verdicts:
        if not verdict.ok and verdict.detail:
            lines += ["", f"{verdict.name}: {verdict.text}", f"  {verdict.detail}"]
        if verdict.tries > 1:
            lines += ["", f"{verdict.name} was tried {verdict.tries} times, for this machine was too busy:"]
            lines += [f"  {why}" for why in verdict.disturbed]
    return "\n".join(lines)


def left_out_table(found: Sequence[LeftOut]) -> str:
    """What was not tried, one line each with its reason."""
    return table([(paint("left out".ljust(9), "yellow"), one.name, one.reason) for one in found])


def summary(acceptance: Acceptance) -> str:
    """The closing line."""
    good = sum(v.ok for v in acceptance.verdicts)
    total = len(acceptance.verdicts)
    kind = "lab images, for testing only" if acceptance.lab_image else "the images to flash"
    took = seconds(acceptance.elapsed_s)
    how = acceptance.machine.get("accelerator", "?")
    if late := sum(v.state == "too busy" for v in acceptance.verdicts):
        kind = f"{late} not judged, for this machine is too busy; {kind}"
    return f"{acceptance.profile}: {good} of {total} claims hold ({kind}; {took}, {how})"
