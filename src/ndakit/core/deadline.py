"""A point in time by which something has to have happened, and the words for when it has not."""

from __future__ import annotations

import time
from collections.abc import Callable

from ndakit.core.errors import VerifyError


class DeadlineExceeded(VerifyError):
    """What was waited for did not happen in time."""


class Deadline:
    """Counts down from `timeout_s` seconds on the monotonic clock; `what` completes "waited 30 s for …"."""

    def __init__(self, timeout_s: float, what: str, *, where: str = "", fix: str = "") -> None:
        self.timeout_s = timeout_s
        self.what = what
        self.where = where
        self.fix = fix
        self._end_s = time.monotonic() + timeout_s

    @property
    def remaining_s(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._end_s - time.monotonic())

    @property
    def expired(self) -> bool:
        """True once nothing is left."""
        return self.remaining_s <= 0.0

    def check(self, where: str = "") -> None:
        """Raise DeadlineExceeded once the time is over."""
        if self.expired:
            raise DeadlineExceeded(
                f"waited {self.timeout_s:g} s for {self.what}, in vain",
                where=where or self.where or "this run",
                fix=self.fix or "read the log named here; if this machine is busy, run it again with nothing beside it",
            )

    def wait_until(self, condition: Callable[[], bool], *, every_s: float = 0.05, where: str = "") -> None:
        """Call `condition` until it is true; raise DeadlineExceeded when the time is over first."""
        while not condition():
            self.check(where)
            time.sleep(min(every_s, max(self.remaining_s, 0.001)))
