"""What work costs in processor time: the same on a busy machine, where the clock on the wall says nothing."""

from __future__ import annotations

import resource
from collections.abc import Callable


def own_s(work: Callable[[], object]) -> float:
    """Seconds of processor time that this process spends on `work`."""
    return _spent_s(resource.RUSAGE_SELF, work)


def children_s(work: Callable[[], object]) -> float:
    """Seconds of processor time that the programs spend which `work` starts and waits for."""
    return _spent_s(resource.RUSAGE_CHILDREN, work)


def _spent_s(whose: int, work: Callable[[], object]) -> float:
    before = resource.getrusage(whose)
    work()
    after = resource.getrusage(whose)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
