"""Try the claims one after the other on a running lab and collect verdicts; the record of it is the acceptance sheet.

Owns selection, order, and what an error during a claim means. What is claimed is in `claims`; how it is shown is the
business of `report` and `live`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ndakit.claims import Claim
from ndakit.errors import InputError, NdakitError
from ndakit.lab_network import LabNetwork

State = Literal["holds", "fails", "not tried"]


class NoSuchClaim(InputError):
    """`--only` names nothing."""

    def __init__(self, wanted: str, known: Sequence[str]) -> None:
        super().__init__(
            f"no claim of this profile is, or begins with, '{wanted}'",
            where="--only",
            fix="use one of: " + ", ".join(known),
        )


@dataclass(frozen=True)
class Verdict:
    """What came of one claim."""

    name: str
    text: str
    state: State
    figure: str = ""
    detail: str = ""
    values: dict[str, float | int | str] = field(default_factory=dict)
    elapsed_s: float = 0.0

    @property
    def ok(self) -> bool:
        """True if it was tried and holds."""
        return self.state == "holds"


@dataclass(frozen=True)
class Trying:
    """A claim is about to be tried."""

    claim: Claim


@dataclass(frozen=True)
class Tried:
    """A claim was tried."""

    verdict: Verdict


Listener = Callable[[Trying | Tried], None]


def select(claims: Sequence[Claim], only: str | None) -> tuple[Claim, ...]:
    """The claims that `--only` names (comma-separated names or their beginnings), with those they build on.

    Raises NoSuchClaim.
    """
    if not only:
        return tuple(claims)
    wanted: set[str] = set()
    for word in (w.strip() for w in only.split(",")):
        found = {c.name for c in claims if c.name == word or c.name.startswith(word.rstrip("/") + "/")}
        if not found:
            raise NoSuchClaim(word, [c.name for c in claims])
        wanted |= found
    wanted |= {need for c in claims if c.name in wanted for need in c.needs}
    return tuple(c for c in claims if c.name in wanted)


def run(lab: LabNetwork, claims: Sequence[Claim], listener: Listener) -> tuple[Verdict, ...]:
    """Try each claim; an error of the lab or of a node makes a claim fail with the error's text and the run goes on."""
    verdicts: list[Verdict] = []
    for claim in claims:
        listener(Trying(claim))
        started_s = time.monotonic()
        failed = {v.name for v in verdicts if not v.ok} & set(claim.needs)
        if failed:
            verdict = Verdict(
                claim.name, claim.text, "not tried", "not tried", f"{', '.join(sorted(failed))} failed before"
            )
        else:
            try:
                outcome = claim.try_it(lab)
            except NdakitError as error:
                verdict = Verdict(
                    claim.name, claim.text, "fails", "no figure", f"{error.what} ({error.where}); {error.fix}"
                )
            else:
                state: State = "holds" if outcome.ok else "fails"
                detail = "" if outcome.ok else outcome.detail
                verdict = Verdict(claim.name, claim.text, state, outcome.figure, detail, outcome.values)
        verdict = Verdict(**{**verdict.__dict__, "elapsed_s": round(time.monotonic() - started_s, 2)})
        verdicts.append(verdict)
        listener(Tried(verdict))
    return tuple(verdicts)


def not_tried(claims: Sequence[Claim], why: str) -> tuple[Verdict, ...]:
    """The verdicts when the lab did not come up: every claim names the one cause."""
    return tuple(Verdict(c.name, c.text, "not tried", "not tried", why) for c in claims)
