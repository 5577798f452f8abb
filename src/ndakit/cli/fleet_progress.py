"""Show the building of many profiles: a live table on a terminal, plain lines elsewhere, a summary at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ndakit.build.fleet import FleetEvent, FleetListener, ProfileOutcome, ProfileStarted
from ndakit.cli.build_progress import Steps
from ndakit.core import events, terminal

if TYPE_CHECKING:
    from rich.table import Table


@contextmanager
def many(names: Sequence[str], *, as_json: bool) -> Iterator[FleetListener]:
    """The display for many profiles that fits standard output; with `as_json` that belongs to the result."""
    if sys.stdout.isatty() and not as_json:
        with _live(names) as tell:
            yield tell
    else:
        yield _plain(terminal.note if as_json else terminal.say)


def _plain(to: Callable[[str], None]) -> FleetListener:
    def tell(name: str, event: FleetEvent) -> None:
        if isinstance(event, ProfileOutcome):
            to(f"{name}: {result_words(event)} ({terminal.seconds(event.elapsed_s)})")
        elif not isinstance(event, ProfileStarted):
            Steps(to, name)(event)

    return tell


def result_words(outcome: ProfileOutcome) -> str:
    """What came of a profile, in a few words."""
    if outcome.error is not None:
        return f"failed: {outcome.error.what.splitlines()[0]}"
    built = [result.node for result in outcome.results if result.built]
    return f"built {', '.join(built)}" if built else "up to date"


@dataclass
class _Row:
    """A profile's line in the table."""

    state: str = "waiting"
    style: str = "dim"
    what: str = ""
    since_s: float | None = None
    took_s: float | None = None

    def elapsed(self) -> str:
        if self.took_s is not None:
            return terminal.seconds(self.took_s)
        return terminal.seconds(time.monotonic() - self.since_s) if self.since_s is not None else ""


@contextmanager
def _live(names: Sequence[str]) -> Iterator[FleetListener]:
    from rich.console import Console
    from rich.live import Live

    rows = {name: _Row() for name in names}
    with Live(console=Console(), get_renderable=lambda: _table(rows), refresh_per_second=8, transient=True):
        yield lambda name, event: _note(rows[name], name, event)


def _note(row: _Row, name: str, event: FleetEvent) -> None:
    match event:
        case ProfileStarted():
            row.state, row.style, row.since_s = "building", "bold", time.monotonic()
        case ProfileOutcome(_, _, error, elapsed_s):
            row.took_s, row.what = elapsed_s, result_words(event)
            row.state, row.style = ("failed", "bold red") if error else ("done", "green")
        case events.StepStarted(_, node, what):
            row.what = f"{node}: {what}"
        case events.Waiting(what):
            row.what = what
        case events.Progress(what, done_bytes, total_bytes):
            row.what = f"{what}: {done_bytes / 2**20:.0f}" + (
                f" of {total_bytes / 2**20:.0f} MiB" if total_bytes else " MiB"
            )
        case events.Warned(node, text):
            terminal.note(f"warning: {name}{f'/{node}' if node else ''}: {text}")
        case _:
            pass


def _table(rows: dict[str, _Row]) -> Table:
    from rich.table import Table
    from rich.text import Text

    counted = sum(row.took_s is not None for row in rows.values())
    grid = Table(
        title=f"{counted} of {len(rows)} profiles", title_justify="left", box=None, pad_edge=False, expand=True
    )
    grid.add_column("profile", no_wrap=True)
    grid.add_column("state", no_wrap=True, width=8)
    grid.add_column("time", no_wrap=True, width=8, justify="right")
    grid.add_column("what", no_wrap=True, overflow="ellipsis", ratio=1)
    for name, row in rows.items():
        grid.add_row(name, Text(row.state, style=row.style), row.elapsed(), row.what)
    return grid


def summary(outcomes: Sequence[ProfileOutcome], elapsed_s: float) -> str:
    """A line per profile that survives a mail, and the closing line."""
    rows = [(o.profile, terminal.seconds(o.elapsed_s), result_words(o)) for o in outcomes]
    failed = sum(o.error is not None for o in outcomes)
    fresh = sum(o.error is None and not any(r.built for r in o.results) for o in outcomes)
    built = len(outcomes) - failed - fresh
    total = f"{len(outcomes)} profiles in {terminal.seconds(elapsed_s)}"
    return f"{terminal.table(rows)}\n\n{total}: {built} built, {fresh} up to date, {failed} failed"
