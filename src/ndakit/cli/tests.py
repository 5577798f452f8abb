"""./inv test: pytest in phases, and what each of them took."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ndakit.core import terminal
from ndakit.core.workspace import Workspace

if TYPE_CHECKING:
    pass


NO_TESTS = 5  # pytest: nothing was collected, as when --only names tests of one kind


LABS = 4
"""Labs at once in the tests at most: each takes up to 2 GiB."""


def run_tests(*, quick: bool, only: str | None) -> int:
    """pytest over the clone, in this terminal; its exit code (5 for tests that failed)."""
    import pytest

    os.chdir(Workspace.at(Path(__file__).resolve().parents[3]).root)
    chosen = ["-k", only] if only else []
    # Tests without machines wait two thirds of their time, mostly for a program. Labs in which times are measured wait
    # most of the time, so that they run beside each other; beside those that keep every processor busy they would not
    # get far.
    processors = os.cpu_count() or 1
    marks = "not vm and not images" if quick else "not vm"
    phases = {"without machines": ["-m", marks, "-n", str(min(3 * processors, processors + 8)), "--dist", "worksteal"]}
    if not quick:
        labs = str(min(processors, LABS))
        phases["machines, at work"] = ["-m", "vm and not timed and not alone", "-n", labs, "--dist", "loadscope"]
        phases["machines, timed"] = ["-m", "timed or alone", "-n", labs, "--dist", "loadscope"]
    slowest = ["--durations=12", "--durations-min=5"]
    codes: list[int] = []
    spent: list[tuple[str, float, float]] = []
    for name, words in phases.items():
        started_s, before_s = time.monotonic(), _processor_s()
        codes.append(int(pytest.main([*words, *slowest, *chosen])))
        spent.append((name, time.monotonic() - started_s, _processor_s() - before_s))
    terminal.say()
    terminal.say(phase_table(spent, processors))
    wanted = [c for c in codes if c != NO_TESTS] if only else codes
    return 0 if wanted and not any(wanted) else 5


def _processor_s() -> float:
    """Seconds of processor time of this process and of all its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def phase_table(spent: Sequence[tuple[str, float, float]], processors: int) -> str:
    """What each phase of a test run took: (name, wall seconds, processor seconds). A phase that uses little of the
    processors waits for something."""
    everything = ("all", sum(wall_s for _, wall_s, _ in spent), sum(used_s for _, _, used_s in spent))
    width = max(len(name) for name, _, _ in spent)
    lines = [f"{'phase'.ljust(width)}  wall s  processor s  used"]
    for name, wall_s, used_s in (*spent, everything):
        share = used_s / (wall_s * processors or 1.0)
        lines.append(f"{name.ljust(width)}  {wall_s:6.1f}  {used_s:11.1f}  {share:.0%}".replace("%", " %"))
    return "\n".join(lines)
