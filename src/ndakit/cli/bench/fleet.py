"""What building many customers at once saves: ten of them one after the other, and two at a time."""

from __future__ import annotations

import os
import shutil
import statistics
import time

from ndakit.build import fleet
from ndakit.cli.bench.figures import Add, Figure
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder import sources

CUSTOMERS = 10
JOBS = 2
ROUNDS = 2
LIMIT_PERCENT = 100 / 1.6
_PROFILE = """\
# Written by ./inv bench: one of many customers with the nodes of {base}.
extends: [{base}]
name: {name}
"""


def bench(private: Workspace, base: str, add: Add, *, customers: int = CUSTOMERS, rounds: int = ROUNDS) -> None:
    """Measure with copies of a profile in a private workspace; each round builds all of them anew, both ways."""
    names = [f"{base}-{number:02}" for number in range(1, customers + 1)]
    for name in names:
        (private.profiles / f"{name}.yaml").write_text(_PROFILE.format(base=base, name=name))
    _timed(private, names[:1], 1)  # fills the package cache, and is not counted
    alone = []
    together = []
    for _ in range(rounds):
        alone.append(_timed(private, names, 1))
        together.append(_timed(private, names, JOBS))
    alone_s, together_s = statistics.median(alone), statistics.median(together)
    note = (
        f"{customers} pairs: {alone_s:.1f} s with -j 1, {together_s:.1f} s with -j {JOBS}, {os.cpu_count()} processors"
    )
    percent = 100 * together_s / alone_s
    add(Figure(f"many customers with -j {JOBS}, part of one after the other", percent, "%", LIMIT_PERCENT, note))


def _timed(private: Workspace, names: list[str], jobs: int) -> float:
    """Seconds for building these profiles from nothing."""
    for name in names:
        shutil.rmtree(private.images / name, ignore_errors=True)
    started_s = time.perf_counter()
    outcomes = fleet.build_all(
        private,
        names,
        lambda loaded, events: sources.choose("lab", None, private, loaded.profile),
        jobs=jobs,
        tell=lambda name, event: None,
    )
    took_s = time.perf_counter() - started_s
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return took_s
