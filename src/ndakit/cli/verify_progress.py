"""Show a verification while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ndakit.core.terminal import paint, say, seconds, table
from ndakit.verify.claims import Claim, LeftOut
from ndakit.verify.report import Acceptance
from ndakit.verify.run import ClaimDone, ClaimStarted, Verdict

if TYPE_CHECKING:
    from rich.table import Table

TOLD_LINES = 8


@dataclass(frozen=True)
class Show:
    """Where a run reports to: `tell` takes a line about what happens, `claim` what is tried and what came of it."""

    tell: Callable[[str], None]
    claim: Callable[[ClaimStarted | ClaimDone], None]


@contextmanager
def show(title: str, claims: Sequence[Claim]) -> Iterator[Show]:
    """The display that fits standard output."""
    if sys.stdout.isatty():
        with _live(title, claims) as show_claim:
            yield show_claim
    else:
        yield _plain()


def _plain() -> Show:
    def claim(event: ClaimStarted | ClaimDone) -> None:
        if isinstance(event, ClaimStarted):
            say(f"... {event.claim.text}")
        else:
            verdict = event.verdict
            say(f"{verdict_word(verdict)} {verdict.name}: {verdict.figure} ({seconds(verdict.elapsed_s)})")
            if verdict.detail:
                say(f"          {verdict.detail}")

    return Show(tell=lambda text: say(f"    {text}"), claim=claim)


@contextmanager
def _live(title: str, claims: Sequence[Claim]) -> Iterator[Show]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    told: deque[str] = deque(maxlen=TOLD_LINES)
    verdicts: dict[str, Verdict] = {}
    current = ""

    def picture() -> Group:
        return Group(_table(title, claims, verdicts, current), Text("\n".join(told), style="dim"))

    with Live(console=Console(), get_renderable=picture, refresh_per_second=8, transient=True) as live:

        def tell(text: str) -> None:
            told.append(text)
            live.refresh()

        def claim(event: ClaimStarted | ClaimDone) -> None:
            nonlocal current
            if isinstance(event, ClaimStarted):
                current = event.claim.name
                told.append(event.claim.text)
            else:
                current = ""
                verdicts[event.verdict.name] = event.verdict
            live.refresh()

        yield Show(tell=tell, claim=claim)


def _table(title: str, claims: Sequence[Claim], verdicts: dict[str, Verdict], current: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    styles = {"holds": "green", "fails": "bold red", "too busy": "yellow", "not tried": "yellow"}
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, expand=True)
    grid.add_column("claim", no_wrap=True)
    grid.add_column("verdict", no_wrap=True, width=9)
    grid.add_column("figure", overflow="fold", ratio=1)
    for claim in claims:
        verdict = verdicts.get(claim.name)
        if verdict is not None:
            grid.add_row(claim.name, Text(verdict.state, style=styles[verdict.state]), verdict.figure)
        elif claim.name == current:
            grid.add_row(Text(claim.name, style="bold"), Text("...", style="bold"), "")
        else:
            grid.add_row(Text(claim.name, style="dim"), "", "")
    return grid


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


def left_out_table(omissions: Sequence[LeftOut]) -> str:
    """What was not tried, one line each with its reason."""
    return table([(paint("left out".ljust(9), "yellow"), one.name, one.reason) for one in omissions])


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
