"""Try the claims one after the other on a running lab and collect verdicts; the record of it is the acceptance sheet.

Owns selection, order, what an error during a claim means, and when a failure is not the pair's: a claim that failed
while this machine kept the lab's machines waiting is tried again, and judged by nothing else. That is only for what
lateness can change: not for names, addresses and settings (`Claim.timeless`), and not for what the lab lacks. What is
claimed is in `claims`; how it is shown is the business of `report` and of `cli.verify_progress`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from ndakit.core.errors import InputError, NdakitError, VerifyError
from ndakit.lab.clients import LabLacks
from ndakit.lab.network import LabNetwork
from ndakit.lab.pace import Pace
from ndakit.verify.claims import Claim

State = Literal["holds", "fails", "too busy", "not tried"]
TRIES = 3
"""So often a claim is tried on a machine that is too busy."""
AGAIN_S = 240.0
"""For so long, all claims of a run together, trying again may take; a machine that stays busy would make it endless."""
BEFORE_S = 3.0
AT_ONCE = 12
"""So many claims that only look are tried at the same time: most of them wait for ports that keep silent, or for one of
several consoles. With six claims about each node, those about two nodes are tried together."""
CALM_TIMEOUT_S = 20.0
"""How long a quieter moment is waited for before a claim is tried again."""


class NoSuchClaim(InputError):
    """`--only` names nothing."""

    def __init__(self, wanted: str, known: Sequence[str]) -> None:
        super().__init__(
            f"no claim of this profile is, or begins with, '{wanted}'",
            where="--only",
            fix="use one of: " + ", ".join(known),
        )


class MachineTooBusy(VerifyError):
    """This machine ran the lab's machines too late to tell anything about the pair."""

    def __init__(self, profile: str, what: str, why: str) -> None:
        super().__init__(
            f"this machine is too busy to judge {profile}: {what}",
            where=why,
            fix="end what runs beside it, or wait for its end, and verify again; the pair may be right",
        )


class PaceMeter(Protocol):
    """How late this machine runs the lab's machines (pace.Meter)."""

    def since(self, moment_s: float) -> Pace:
        """How it was from a moment (monotonic clock) until now."""

    def wait_calm(self, timeout_s: float) -> bool:
        """Wait until this machine is quick enough; False if that does not come about in time."""


@dataclass(frozen=True)
class Verdict:
    """What came of one claim. `too busy`: it failed, and this machine was too busy each time for that to count."""

    name: str
    text: str
    state: State
    figure: str = ""
    detail: str = ""
    values: dict[str, float | int | str] = field(default_factory=dict)
    elapsed_s: float = 0.0
    tries: int = 1
    disturbed: tuple[str, ...] = ()
    """Why the tries that failed were not counted, one text for each."""

    @property
    def ok(self) -> bool:
        """True if it was tried and holds."""
        return self.state == "holds"


@dataclass(frozen=True)
class ClaimStarted:
    """A claim is about to be tried."""

    claim: Claim


@dataclass(frozen=True)
class ClaimDone:
    """A claim was tried."""

    verdict: Verdict


Listener = Callable[[ClaimStarted | ClaimDone], None]


def select(claims: Sequence[Claim], only: str | None) -> tuple[Claim, ...]:
    """The claims that `--only` names (comma-separated names or their beginnings), with those they build on.

    Raises NoSuchClaim.
    """
    if not only:
        return tuple(claims)
    wanted: set[str] = set()
    for word in (w.strip() for w in only.split(",")):
        named = {c.name for c in claims if c.name == word or c.name.startswith(word.rstrip("/") + "/")}
        if not named:
            raise NoSuchClaim(word, [c.name for c in claims])
        wanted |= named
    wanted |= {need for c in claims if c.name in wanted for need in c.needs}
    return tuple(c for c in claims if c.name in wanted)


def run(
    lab: LabNetwork, claims: Sequence[Claim], listener: Listener, meter: PaceMeter | None = None
) -> tuple[Verdict, ...]:
    """Try each claim; an error of the lab or of a node makes a claim fail with the error's text and the run goes on.

    With a `meter`, a claim that fails while this machine is too busy is tried again, up to TRIES times in all; if it
    never could be judged, its verdict is `too busy`. A claim that fails on a quiet machine is never tried again.
    """
    verdicts: list[Verdict] = []
    again = _Again(meter)
    for beside, group in itertools.groupby(claims, lambda claim: claim.beside):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            together = list(group)
            begun = [pool.submit(_once, lab, claim) if beside else None for claim in together]
            for claim, future in zip(together, begun, strict=True):
                listener(ClaimStarted(claim))
                failed = {v.name for v in verdicts if not v.ok} & set(claim.needs)
                if failed:
                    why = f"{', '.join(sorted(failed))} did not hold before"
                    verdict = Verdict(claim.name, claim.text, "not tried", "not tried", why)
                else:
                    verdict = again.run(lab, claim, None if future is None else future.result())
                verdicts.append(verdict)
                listener(ClaimDone(verdict))
    return tuple(verdicts)


class _Again:
    """Tries a claim as often as this machine's pace asks for, and as long as there is time for it."""

    def __init__(self, meter: PaceMeter | None) -> None:
        self._meter = meter
        self._left_s = AGAIN_S

    def run(self, lab: LabNetwork, claim: Claim, tried: _Try | None = None) -> Verdict:
        """The verdict on one claim; `tried`: its first try, if that has been made already."""
        started_s = time.monotonic() if tried is None else tried.begun_s
        verdict = self._judged(lab, claim, tried)
        ended_s = tried.ended_s if tried is not None and verdict.tries == 1 else time.monotonic()
        return replace(verdict, elapsed_s=round(ended_s - started_s, 2))

    def _judged(self, lab: LabNetwork, claim: Claim, tried: _Try | None) -> Verdict:
        disturbed: list[str] = []
        while True:
            first = tried or _once(lab, claim)
            verdict, begun_s, tried = first.verdict, first.begun_s, None
            trouble = self._trouble(begun_s) if first.late_matters else ""
            if not trouble:
                return replace(verdict, tries=len(disturbed) + 1, disturbed=tuple(disturbed))
            seen = verdict.detail or verdict.figure
            disturbed.append(f"{trouble}; {seen}")
            times = "once" if len(disturbed) == 1 else f"{len(disturbed)} times"
            busy = replace(
                verdict, state="too busy", tries=len(disturbed), disturbed=tuple(disturbed),
                detail=f"{trouble}. Tried {times}, the last time: {seen}",
            )  # fmt: skip
            lab.tell(f"{trouble}: {claim.name} does not count")
            last = len(disturbed) == TRIES or self._left_s <= 0
            problem, late = self._put_back(lab, claim, last=last)
            if problem:
                state: State = "too busy" if late else "fails"
                return replace(
                    busy, state=state, detail=f"{busy.detail}; then the lab could not be put back: {problem}"
                )
            if last:
                return busy
            self._left_s -= time.monotonic() - begun_s

    def _put_back(self, lab: LabNetwork, claim: Claim, *, last: bool) -> tuple[str, bool]:
        """Bring the lab back to where the claim began, or, after its last try, to where the next ones can; what went
        wrong with that, and whether this machine was too busy for it."""
        assert self._meter is not None, "without one there is no trouble"
        if not last:
            self._meter.wait_calm(CALM_TIMEOUT_S)
        begun_s = time.monotonic()
        try:
            if last:
                lab.put_back()
            else:
                claim.again(lab)
        except NdakitError as error:
            return error.what, bool(self._trouble(begun_s))
        return "", False

    def _trouble(self, since_s: float) -> str:
        """Why what failed since then does not count. What failed at once is judged by the seconds before it, for those
        are what it found."""
        if self._meter is None:
            return ""
        return self._meter.since(min(since_s, time.monotonic() - BEFORE_S)).trouble


@dataclass(frozen=True)
class _Try:
    """What one try came to, when it began and ended (monotonic clock), and whether it may have failed because this
    machine was late."""

    verdict: Verdict
    late_matters: bool
    begun_s: float
    ended_s: float


def _once(lab: LabNetwork, claim: Claim) -> _Try:
    """Try a claim once."""
    begun_s = time.monotonic()
    late_matters = not claim.timeless
    try:
        outcome = claim.run(lab)
    except NdakitError as error:
        detail = f"{error.what} ({error.where}); {error.fix}"
        verdict = Verdict(claim.name, claim.text, "fails", "no figure", detail)
        late_matters = not isinstance(error, LabLacks)  # an answer that came too late is an error here, not an outcome
    else:
        state: State = "holds" if outcome.ok else "fails"
        detail = "" if outcome.ok else outcome.detail
        verdict = Verdict(claim.name, claim.text, state, outcome.figure, detail, outcome.values)
    return _Try(verdict, late_matters and not verdict.ok, begun_s, time.monotonic())


def undecided(profile: str, verdicts: Sequence[Verdict]) -> MachineTooBusy | None:
    """The error that says that this machine was too busy: if it is what keeps a run from a verdict about the pair."""
    late = [v for v in verdicts if v.state == "too busy"]
    if not late or any(v.state == "fails" for v in verdicts):
        return None
    return MachineTooBusy(profile, f"{len(late)} of {len(verdicts)} claims could not be judged", late[0].detail)


def not_tried(claims: Sequence[Claim], why: str, state: State = "not tried") -> tuple[Verdict, ...]:
    """The verdicts when the lab did not come up: every claim names the one cause."""
    return tuple(Verdict(c.name, c.text, state, "not tried", why) for c in claims)
