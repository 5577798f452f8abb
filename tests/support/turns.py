"""Whose turn it is: labs that measure times run beside each other, and what fails there beside somebody else is judged
with the machine to itself.

A lab waits most of its time: for adverts, for checks, for what has to be silent. So several of them run at once, and
each is disturbed now and then. It is the rule of `verify`: what holds is believed, what fails on a machine that nobody
else used fails, and what fails while somebody else took a part of the processors is tried again, here with no other lab
at work. Nothing is ever tried again that failed on a quiet machine, and nothing that has nothing to do with time: a
test that has asked no machine of the lab (it compares the profile's claims with a list), or has tried nothing but
claims about names, addresses and settings (`Claim.timeless`), fails at once wherever it runs. An error of the lab, such
as a console that does not answer in time, is always one of time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from ndakit.core import locks
from ndakit.core.errors import NdakitError
from ndakit.lab.clients import LabLacks
from ndakit.lab.pace import Pace

TRIES = 3
"""So often a test is tried that is disturbed each time."""
QUIET_SHARE = 0.15
"""A machine is quiet if nobody else kept a machine of the lab waiting for more than this part of any second. A limit in
a test is made for such a machine; `verify` allows others more, for it has to say something on a user's machine too."""
BEFORE_S = 3.0
"""What fails at once is judged by the seconds before it as well: those are what it found."""
CALM_TIMEOUT_S = 30.0
LONGEST_S = 3600.0
"""A turn lasts as long as a test, or a lab's start: nobody waits that long for one."""


class Meter(Protocol):
    """How late this machine runs a lab's machines (pace.Meter)."""

    def since(self, moment_s: float) -> Pace:
        """How it was from a moment (monotonic clock) until now."""

    def wait_calm(self, timeout_s: float) -> bool:
        """Wait until this machine is quick enough; False if that does not come about in time."""


class Turns:
    """Turns of the processes of one test run, kept by locks in a folder that they share: any number beside each other,
    or one by itself. Who waits to be by itself comes next: nobody else begins meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._gate, self._turn = folder / "gate", folder / "turn"
        self._mine = contextlib.ExitStack()

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Others may be at work as well."""
        self._take(shared=True)
        try:
            yield
        finally:
            self._mine.close()

    @contextlib.contextmanager
    def by_itself(self) -> Iterator[None]:
        """Nobody else is at work."""
        self._take(shared=False)
        try:
            yield
        finally:
            self._mine.close()

    @contextlib.contextmanager
    def by_itself_for_once(self) -> Iterator[None]:
        """The same within `beside`, which goes on afterwards."""
        self._mine.close()
        try:
            with self.by_itself():
                yield
        finally:
            self._take(shared=True)

    def _take(self, *, shared: bool) -> None:
        with locks.hold(self._gate, wait_s=LONGEST_S):
            self._mine.enter_context(locks.hold(self._turn, shared=shared, wait_s=LONGEST_S))


class TriedLab(Protocol):
    """The lab of a test (pairs.Pair)."""

    def begin(self) -> None:
        """A test begins."""

    def again(self) -> None:
        """Bring the lab back to where a test began that failed."""

    @property
    def late_matters(self) -> bool:
        """Whether the test at work has done anything that can fail because a machine is late."""


def judge(test: Callable[[], object], meter: Meter, lab: TriedLab, turns: Turns) -> list[str]:
    """Run a test within `turns.beside`. Raises what it raised on a quiet machine, or the last time of TRIES. What made
    it be tried again, one text for each time."""
    disturbed: list[str] = []
    error, why = _tried(test, meter, lab)
    while error is not None:
        if not why:
            raise error
        disturbed.append(f"{why}: {_first_line(error)}")
        if len(disturbed) == TRIES:
            raise AssertionError("this machine is too busy to judge this: " + "; ".join(disturbed)) from error
        with turns.by_itself_for_once():
            meter.wait_calm(CALM_TIMEOUT_S)
            try:
                lab.again()
            except NdakitError as problem:
                raise problem from error
            error, why = _tried(test, meter, lab)
    return disturbed


def _tried(test: Callable[[], object], meter: Meter, lab: TriedLab) -> tuple[BaseException | None, str]:
    """What a test raised, None if nothing; and why that says nothing, "" if it does."""
    begun_s = time.monotonic()
    lab.begin()
    try:
        test()
    except (AssertionError, NdakitError, pytest.fail.Exception) as error:
        late_matters = not isinstance(error, LabLacks) if isinstance(error, NdakitError) else lab.late_matters
        return error, "" if not late_matters else noise(meter.since(min(begun_s, time.monotonic() - BEFORE_S)))
    return None, ""


def noise(pace: Pace) -> str:
    """Why a failure in this time says nothing; "" if nobody disturbed."""
    if pace.trouble or pace.lost_share < QUIET_SHARE:
        return pace.trouble
    return f"{pace.machine} waited {pace.lost_share:.0%} of a second, others took {pace.others_share:.0%}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
