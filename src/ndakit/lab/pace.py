"""How late this machine runs the lab's own machines: whether what a claim saw says anything about the pair.

Linux tells for every thread how long it ran and how long it was ready to run and got no processor (`schedstat`,
Documentation/scheduler/sched-stats.rst), and for all processors how long they were busy, and how long a hypervisor
below kept them for others (steal, proc_stat(5)). What our machines waited for while somebody else ran is not the pair's
fault. What they take from each other is there on a quiet machine as well, and claims have to hold beside it; only where
they keep each other waiting nearly all the time is the machine too small.

No share is above 100 %, and a time shorter than a window says nothing: it is judged as a part of one. The kernel adds
what a thread waited when the thread runs again (`run_delay`): so a wait is counted for the time before that moment.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

EVERY_S = 0.25
WINDOW_S = 1.0
"""A machine that is late is late for a while: windows of this length are judged, and the worst one counts."""
LOST_SHARE = 0.5
"""Of a window: for so long a machine of the lab was ready to run, and somebody else ran."""
CROWDED_SHARE = 0.7
"""Of a whole claim: for so long a machine waited because the lab's own machines are too many for these processors."""
TAKEN_SHARE = 0.25
"""Of all processors, the whole time: so much somebody else had, or a hypervisor below."""
LATE_MS = 300.0
"""A thread that wanted to wake up woke up so much later: nothing on this machine ran in time."""
IDLE_SHARE = 0.15
"""A machine that wants less of a processor than this waits for something (an idle guest: a few percent under TCG)."""
_KEPT = 40_000
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """Counters at one moment, seconds since some beginning."""

    time_s: float
    busy_s: float
    """What all processors together worked, for anybody."""
    stolen_s: float
    ours_s: float
    """What this process and the lab's machines worked."""
    ran_s: Mapping[str, float]
    """Machine → how long its threads ran."""
    waited_s: Mapping[str, float]
    """Machine → how long it was ready to run, and did not: the one of its threads that waited longest."""


@dataclass(frozen=True)
class Step:
    """What happened between two samples, in seconds; `late_s`: by how much the second one came late."""

    begin_s: float
    end_s: float
    others_s: float
    stolen_s: float
    late_s: float
    ran_s: Mapping[str, float]
    waited_s: Mapping[str, float]

    @property
    def length_s(self) -> float:
        """How long it took."""
        return self.end_s - self.begin_s

    def lost_s(self, machine: str, processors: int) -> float:
        """For how long a machine was kept waiting by somebody who is not of the lab."""
        kept_waiting_s = min(self.waited_s.get(machine, 0.0), self.others_s)
        return min(self.length_s, kept_waiting_s + self.stolen_s / processors)


@dataclass(frozen=True)
class Pace:
    """How a stretch of time was for the lab's machines.

    `lost_share`: the part of the worst second for which `machine` was kept waiting by others. `waited_share`: the part
    of the whole for which the machine that waited longest was ready and did not run, whoever ran. `others_share` and
    `stolen_share`: parts of all processors. `late_ms`: the longest delay of a thread that wanted to wake up.
    """

    elapsed_s: float
    machine: str = ""
    lost_share: float = 0.0
    waited_share: float = 0.0
    others_share: float = 0.0
    stolen_share: float = 0.0
    late_ms: float = 0.0

    @property
    def trouble(self) -> str:
        """Why what was seen in this time cannot be held against the pair; "" if this machine was quick enough."""
        if self.lost_share >= LOST_SHARE:
            who = f"others took {self.others_share:.0%} of its processors"
            if self.stolen_share > self.others_share:
                who = f"the hypervisor below took {self.stolen_share:.0%} of its processors"
            return f"this machine was too busy: {self.machine} waited {self.lost_share:.0%} of a second, {who}"
        if self.waited_share >= CROWDED_SHARE:
            return (
                f"this machine is too small: {self.machine} was ready to run and waited {self.waited_share:.0%} of the "
                "time, for the lab's other machines"
            )
        if self.late_ms >= LATE_MS:
            return f"this machine was too busy: a thread that was to wake up did so {self.late_ms:.0f} ms late"
        return ""

    @property
    def taken(self) -> str:
        """Why a lab that did not come up in this time says nothing about the pair; "" if it does. Starting machines
        makes each wait for a moment, on a quiet machine too: here the whole time counts."""
        share = self.others_share + self.stolen_share
        if share < TAKEN_SHARE:
            return ""
        return f"this machine was too busy: others took {share:.0%} of its processors while the lab started"

    def as_json(self) -> dict[str, float | str]:
        """The figures, for the record."""
        return {
            "machine": self.machine,
            "lost_share": round(self.lost_share, 2),
            "waited_share": round(self.waited_share, 2),
            "others_share": round(self.others_share, 2),
            "stolen_share": round(self.stolen_share, 2),
            "late_ms": round(self.late_ms),
        }


def pace_of(steps: list[Step], processors: int) -> Pace:
    """What the steps come to. Without any: a time of no length, and no trouble."""
    if not steps:
        return Pace(0.0)
    steps = _when_it_was(steps)
    elapsed_s = steps[-1].end_s - steps[0].begin_s
    judged_s = max(WINDOW_S, elapsed_s)
    machines = sorted({name for step in steps for name in step.waited_s})
    waited = {m: sum(s.waited_s.get(m, 0.0) for s in steps) / judged_s for m in machines}
    worst = {m: _worst_window(steps, m, processors) for m in machines}
    lost = max(worst.values(), default=0.0)
    by = worst if lost >= LOST_SHARE else waited
    return Pace(
        elapsed_s,
        machine=max(by, key=lambda m: by[m], default=""),
        lost_share=lost,
        waited_share=max(waited.values(), default=0.0),
        others_share=sum(min(s.length_s, s.others_s / processors) for s in steps) / judged_s,
        stolen_share=sum(min(s.length_s, s.stolen_s / processors) for s in steps) / judged_s,
        late_ms=max(s.late_s for s in steps) * 1000,
    )


def _when_it_was(steps: Sequence[Step]) -> list[Step]:
    """The steps, with each wait in the time in which it was: what is too long for its step belongs to those before it.
    What was before all of them is left out."""
    placed, earlier_s = [], dict.fromkeys({name for one in steps for name in one.waited_s}, 0.0)
    for one in reversed(steps):
        waited_s = {}
        for name, added_s in one.waited_s.items():
            waited_s[name] = min(one.length_s, added_s + earlier_s[name])
            earlier_s[name] += added_s - waited_s[name]
        placed.append(replace(one, waited_s=waited_s))
    return placed[::-1]


def _worst_window(steps: list[Step], machine: str, processors: int) -> float:
    """The greatest part of a window that a machine lost to others."""
    worst, first, lost_s = 0.0, 0, 0.0
    for step in steps:
        lost_s += step.lost_s(machine, processors)
        while first < len(steps) and step.end_s - steps[first].end_s >= WINDOW_S:
            lost_s -= steps[first].lost_s(machine, processors)
            first += 1
        worst = max(worst, lost_s / max(WINDOW_S, step.end_s - steps[first].begin_s))
    return worst


# -- measuring ---------------------------------------------------------------------------------------------------------


class Reader:
    """Reads the counters. Threads and processes come and go, their counters with them: only what they gain counts.

    A listing of `/proc/PID/task` is cut short if a thread ends meanwhile (Linux, fs/proc/base.c, next_tid): a thread
    that is missing once is remembered, so that what it has gained in its whole life is not taken for news. What a
    thread that was not there before can have gained is as long as the time since the last reading.
    """

    def __init__(self, processes: Callable[[], Mapping[str, int]], proc: Path = Path("/proc")) -> None:
        """`processes`: machine → its process id, as far as it runs."""
        self._processes = processes
        self._proc = proc
        self._threads: dict[tuple[int, str], tuple[float, float]] = {}
        self._missing: set[tuple[int, str]] = set()
        self._read_s = -math.inf
        self._ran: dict[str, float] = {}
        self._waited: dict[str, float] = {}
        self._own = ""

    def read(self) -> Sample:
        """The counters now; a machine without power keeps its last ones."""
        seen: dict[tuple[int, str], tuple[float, float]] = {}
        now_s = time.monotonic()
        since_s = now_s - self._read_s
        for name, pid in {self._own: os.getpid(), **self._processes()}.items():
            gains_s = [0.0]
            for thread, counters in self._of(pid).items():
                seen[pid, thread] = counters
                ran_s, waited_s = self._gained((pid, thread), counters, since_s if name else 0.0)
                self._ran[name] = self._ran.get(name, 0.0) + ran_s
                gains_s.append(waited_s)
            self._waited[name] = self._waited.get(name, 0.0) + max(gains_s)
        self._remember(seen)
        self._read_s = now_s
        busy_s, stolen_s = self._processors()
        ours_s = sum(self._ran.values())
        ran = {name: value for name, value in self._ran.items() if name != self._own}
        waited = {name: value for name, value in self._waited.items() if name != self._own}
        return Sample(now_s, busy_s, stolen_s, ours_s, ran, waited)

    def _gained(self, thread: tuple[int, str], counters: tuple[float, float], newcomer_s: float) -> tuple[float, float]:
        """How long a thread ran and waited since the last reading; one that was not there then has been there for
        `newcomer_s` at most."""
        before = self._threads.get(thread)
        if before is None:
            return min(newcomer_s, counters[0]), min(newcomer_s, counters[1])
        return max(0.0, counters[0] - before[0]), max(0.0, counters[1] - before[1])

    def _remember(self, seen: Mapping[tuple[int, str], tuple[float, float]]) -> None:
        """Keep the counters for the next reading; those of a thread that is missing for the first time as well."""
        missing = {t: c for t, c in self._threads.items() if t not in seen and t not in self._missing}
        self._threads = {**seen, **missing}
        self._missing = set(missing)

    def _of(self, pid: int) -> dict[str, tuple[float, float]]:
        """Thread → seconds that it ran and waited; a kernel without schedstat does not tell how long it waited."""
        counters_of: dict[str, tuple[float, float]] = {}
        with contextlib.suppress(OSError):
            for thread in (self._proc / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    counters_of[thread.name] = _counters(thread)
        return counters_of

    def _processors(self) -> tuple[float, float]:
        """Busy and stolen, all processors together (user, nice, system, idle, iowait, irq, softirq, steal)."""
        try:
            words = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:]
            ticks = [int(word) for word in words[:8]]
            return sum(ticks[:3] + ticks[5:7]) * _TICK_S, ticks[7] * _TICK_S
        except (OSError, ValueError, IndexError):
            return 0.0, 0.0


def _counters(thread: Path) -> tuple[float, float]:
    try:
        ran_ns, waited_ns, *_ = (thread / "schedstat").read_text().split()
        return int(ran_ns) / 1e9, int(waited_ns) / 1e9
    except FileNotFoundError:
        words = (thread / "stat").read_text().rpartition(")")[2].split()  # behind the name: state is field 3
        return (int(words[11]) + int(words[12])) * _TICK_S, 0.0


def step(before: Sample, after: Sample, late_s: float = 0.0) -> Step:
    """What happened between two samples."""
    return Step(
        before.time_s,
        after.time_s,
        others_s=max(0.0, (after.busy_s - before.busy_s) - (after.ours_s - before.ours_s)),
        stolen_s=after.stolen_s - before.stolen_s,
        late_s=late_s,
        ran_s={name: ran - before.ran_s.get(name, 0.0) for name, ran in after.ran_s.items()},
        waited_s={name: waited - before.waited_s.get(name, 0.0) for name, waited in after.waited_s.items()},
    )


class Meter:
    """Measures all the time, in a thread of its own; a context manager that ends it."""

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        """`processes`: machine → its process id, as far as it runs; asked again at each sample."""
        self._reader = Reader(processes)
        self._processors = os.cpu_count() or 1
        self._lock = threading.Lock()
        self._steps: deque[Step] = deque(maxlen=_KEPT)
        self._last = self._reader.read()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        due_s = time.monotonic() + EVERY_S
        while not self._ended.wait(max(0.0, due_s - time.monotonic())):
            self._take(max(0.0, time.monotonic() - due_s))
            due_s = time.monotonic() + EVERY_S

    def _take(self, late_s: float) -> None:
        with self._lock:
            now = self._reader.read()
            if now.time_s > self._last.time_s:
                self._steps.append(step(self._last, now, late_s))
                self._last = now

    def since(self, moment_s: float) -> Pace:
        """How it was from a moment (monotonic clock) until now."""
        self._take(0.0)
        with self._lock:
            return pace_of([s for s in self._steps if s.end_s > moment_s], self._processors)

    def idle(self, machine: str, for_s: float) -> bool:
        """True if a machine has run for `for_s` and hardly had anything to do in that time."""
        now_s = time.monotonic()
        with self._lock:
            steps = [s for s in self._steps if s.end_s > now_s - for_s]
        if not steps or now_s - steps[0].begin_s < for_s or any(machine not in s.ran_s for s in steps):
            return False
        wanted_s = sum(s.ran_s[machine] + s.waited_s[machine] for s in steps)
        return wanted_s < IDLE_SHARE * (steps[-1].end_s - steps[0].begin_s)

    def wait_calm(self, timeout_s: float, calm_s: float = 2.0) -> bool:
        """Wait until this machine has been quick enough for `calm_s`; False if it never was."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            time.sleep(calm_s)
            if not self.since(time.monotonic() - calm_s).trouble:
                return True
        return False
