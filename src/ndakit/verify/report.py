"""What a verification found, for scripts (acceptance.json) and for people (a table that survives a mail).

Builds values and text; writing the file is atomic; printing is the tasks' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ndakit.core.files import write_atomic
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
