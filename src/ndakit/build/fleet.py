"""Many profiles built at once: each in a thread of its own, for nearly all the work is done by programs.

Owns that one profile's failure stops no other, that there are never more builds at a time than asked for, and that an
interruption ends all of them cleanly. Building one profile is the business of `pipeline`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from ndakit.build import pipeline
from ndakit.build.pipeline import BuildResult
from ndakit.core import process
from ndakit.core.errors import NdakitError
from ndakit.core.events import Event, Events, Warned
from ndakit.core.workspace import Workspace
from ndakit.imagebuilder.sources import Builder
from ndakit.load import load
from ndakit.load.loaded import Loaded

Choose = Callable[[Loaded, Events], Builder]
_POLL_S = 0.2


@dataclass(frozen=True)
class ProfileStarted:
    """Work on a profile began."""


@dataclass(frozen=True)
class ProfileOutcome:
    """What came of one profile: its nodes' results, or the error that ended it."""

    profile: str
    results: tuple[BuildResult, ...]
    error: NdakitError | None
    elapsed_s: float

    @property
    def exit_code(self) -> int:
        """0, or the error's."""
        return self.error.exit_code if self.error else 0


FleetEvent = ProfileStarted | Event | ProfileOutcome
FleetListener = Callable[[str, FleetEvent], None]
"""Gets a profile's name and what happened to it; called from several threads, one at a time."""


def build_all(
    workspace: Workspace, names: Sequence[str], choose: Choose, *, jobs: int, tell: FleetListener, locked: bool = False
) -> tuple[ProfileOutcome, ...]:
    """Build these profiles, `jobs` at a time; the outcomes in the order of the names.

    An error of one profile becomes its outcome. Anything else, Ctrl-C above all, ends the programs of all of them,
    waits until nothing of theirs is left, and goes on to the caller.
    """
    lock = threading.Lock()

    def told(name: str, event: FleetEvent) -> None:
        process.go_on()
        with lock:
            tell(name, event)

    def one(name: str) -> ProfileOutcome:
        started_s = time.monotonic()
        told(name, ProfileStarted())
        results: tuple[BuildResult, ...] = ()
        error: NdakitError | None = None
        try:
            results = _build(workspace, name, choose, lambda event: told(name, event), locked)
        except NdakitError as cause:
            error = cause
        outcome = ProfileOutcome(name, results, error, time.monotonic() - started_s)
        told(name, outcome)
        return outcome

    chosen = list(dict.fromkeys(names))
    with ThreadPoolExecutor(max(1, jobs), thread_name_prefix="build") as pool:
        futures = [pool.submit(one, name) for name in chosen]
        try:
            _wait(futures)
        except BaseException:
            with process.halt():
                pool.shutdown(wait=True, cancel_futures=True)
            raise
    return tuple(future.result() for future in futures)


def _wait(futures: Sequence[Future[ProfileOutcome]]) -> None:
    """Wait for all of them, or until one fails in a way that ends everything, and raise that."""
    while True:
        done, left = wait(futures, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        if not left:
            return


def _build(workspace: Workspace, name: str, choose: Choose, events: Events, locked: bool) -> tuple[BuildResult, ...]:
    loaded = load.load(workspace, name)
    for warning in loaded.warnings:
        events(Warned("", warning.text().removeprefix("warning: ")))
    return pipeline.build(workspace, loaded, (), choose(loaded, events), events, locked=locked)
