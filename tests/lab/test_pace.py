"""How late a machine runs the lab's machines: read from the kernel's counters, and what of it counts against nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ndakit.lab.pace import Meter, Pace, Reader, Step, pace_of

BURN = "while True: pass"


def steps(count: int, *, waited: float, others: float, stolen: float = 0.0, begin: int = 0) -> list[Step]:
    """So many steps of a quarter of a second, in each of which lb1 waited, and others ran, for parts of it."""
    return [
        Step(n / 4, (n + 1) / 4, others / 4, stolen / 4, 0.0, {"lb1": 0.02}, {"lb1": waited / 4})
        for n in range(begin, begin + count)
    ]


def test_what_others_took_while_a_machine_waited_is_lost() -> None:
    pace = pace_of(steps(8, waited=0.8, others=1.5), processors=2)
    assert pace.lost_share == pytest.approx(0.8)
    assert pace.others_share == pytest.approx(0.75)
    assert pace.trouble == "this machine was too busy: lb1 waited 80% of a second, others took 75% of its processors"


def test_what_the_labs_machines_take_from_each_other_is_not_lost() -> None:
    pace = pace_of(steps(8, waited=0.6, others=0.02), processors=2)
    assert pace.waited_share == pytest.approx(0.6)
    assert pace.lost_share < 0.03
    assert pace.trouble == ""


def test_a_machine_on_which_the_lab_keeps_itself_waiting_is_too_small() -> None:
    assert "too small: lb1" in pace_of(steps(8, waited=0.8, others=0.0), processors=1).trouble


def test_one_bad_second_in_a_long_quiet_time_counts() -> None:
    pace = pace_of([*steps(100, waited=0.0, others=0.0), *steps(4, waited=0.9, others=1.0, begin=100)], processors=2)
    assert pace.lost_share == pytest.approx(0.9)
    assert pace.trouble


def test_a_burst_of_a_moment_does_not() -> None:
    pace = pace_of([*steps(20, waited=0, others=0), *steps(1, waited=1, others=1, begin=20)], processors=2)
    assert pace.lost_share == pytest.approx(0.25)
    assert pace.trouble == ""


def test_what_a_hypervisor_below_took_counts_for_every_machine() -> None:
    pace = pace_of(steps(8, waited=0.0, others=0.0, stolen=1.2), processors=2)
    assert pace.lost_share == pytest.approx(0.6)
    assert "the hypervisor below took 60% of its processors" in pace.trouble


def test_a_thread_that_wakes_up_late_is_trouble() -> None:
    late = Step(0, 1, 0, 0, 0.4, {}, {})
    assert "did so 400 ms late" in pace_of([late], processors=2).trouble


def test_a_time_without_a_measurement_is_no_trouble() -> None:
    assert pace_of([], processors=2) == Pace(0.0)
    assert not Pace(0.0).trouble


def test_a_lab_that_did_not_start_is_judged_by_the_whole_time() -> None:
    moment = pace_of([*steps(76, waited=0.5, others=0.05), *steps(4, waited=1, others=1, begin=76)], processors=2)
    assert moment.trouble
    assert not moment.taken
    assert "others took 60% of its processors" in pace_of(steps(80, waited=0.5, others=1.2), processors=2).taken


# What cannot be: more than all of the time, or a verdict about a machine from a moment.


def step_of(length_s: float, *, waited_s: float, others_s: float = 0.0, begin_s: float = 0.0) -> Step:
    return Step(begin_s, begin_s + length_s, others_s, 0.0, 0.0, {"lb1": 0.0}, {"lb1": waited_s})


@pytest.mark.parametrize("length_s", [0.003, 0.05, 0.2])
def test_a_moment_says_nothing_whatever_the_counters_gained_in_it(length_s: float) -> None:
    moment = pace_of([step_of(length_s, waited_s=38.0, others_s=38.0)], processors=2)
    assert moment.trouble == moment.taken == ""
    assert max(moment.waited_share, moment.lost_share, moment.others_share) <= 1.0


@pytest.mark.parametrize("stolen", [0.0, 2.0])
def test_no_share_is_above_all_of_the_time(stolen: float) -> None:
    pace = pace_of(steps(8, waited=12.65, others=9.0, stolen=stolen), processors=2)
    shares = (pace.waited_share, pace.lost_share, pace.others_share, pace.stolen_share)
    assert max(shares) == pytest.approx(1.0)


def test_a_wait_that_ends_is_counted_for_the_time_in_which_it_was() -> None:
    """The kernel adds it when the thread runs again: here after a second and a half."""
    quiet, waiting = steps(8, waited=0.0, others=0.0), steps(6, waited=0.0, others=2.0, begin=8)
    pace = pace_of([*quiet, *waiting, step_of(0.25, waited_s=1.5, begin_s=3.5)], processors=2)
    assert pace.lost_share == pytest.approx(1.0)
    assert pace.waited_share == pytest.approx(1.5 / 3.75)
    longer_ago = pace_of([step_of(0.25, waited_s=38.0), *steps(20, waited=0.0, others=0.0, begin=1)], processors=2)
    assert longer_ago.waited_share < 0.05, "what was before all of it does not count"


# -- the counters ------------------------------------------------------------------------------------------------------


def imitation(proc: Path, pid: int, threads: dict[str, str], stat: str) -> None:
    for thread, line in threads.items():
        folder = proc / str(pid) / "task" / thread
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(line)
    (proc / "stat").write_text(stat)


def test_threads_and_processes_that_come_and_go_are_counted_by_what_they_gain(tmp_path: Path) -> None:
    imitation(tmp_path, 70, {"70": "1000000000 0 1", "71": "2000000000 500000000 1"}, "cpu 100 0 0 0 0 0 0 0\n")
    pids = {"lb1": 70}
    reader = Reader(lambda: pids, tmp_path)
    assert reader.read().ran_s == {"lb1": 3.0}
    (tmp_path / "70/task/71/schedstat").unlink()
    (tmp_path / "70/task/71").rmdir()
    imitation(tmp_path, 70, {"70": "1500000000 250000000 1"}, "cpu 400 0 0 900 0 0 0 50\n")
    second = reader.read()
    assert second.ran_s == {"lb1": 3.5}
    assert second.waited_s == {"lb1": 0.75}
    assert (second.busy_s, second.stolen_s) == (4.0, 0.5)
    pids.clear()
    assert reader.read().ran_s == {"lb1": 3.5}


def test_a_thread_that_a_listing_leaves_out_has_not_gained_its_whole_life_when_it_is_there_again(
    tmp_path: Path,
) -> None:
    lived, more = "60000000000 38000000000 1", "60100000000 38050000000 1"
    imitation(tmp_path, 70, {"70": "0 0 1", "71": lived}, "cpu 0 0 0 0 0 0 0 0\n")
    reader = Reader(lambda: {"lb1": 70}, tmp_path)
    first = reader.read()
    (tmp_path / "70/task/71/schedstat").rename(tmp_path / "away")
    assert reader.read().waited_s == first.waited_s
    imitation(tmp_path, 70, {"71": more}, "cpu 0 0 0 0 0 0 0 0\n")
    third = reader.read()
    assert third.waited_s["lb1"] - first.waited_s["lb1"] == pytest.approx(0.05)
    assert third.ran_s["lb1"] - first.ran_s["lb1"] == pytest.approx(0.1)


def test_a_thread_that_is_new_cannot_have_waited_longer_than_it_was_not_seen(tmp_path: Path) -> None:
    imitation(tmp_path, 70, {"70": "0 0 1"}, "cpu 0 0 0 0 0 0 0 0\n")
    reader = Reader(lambda: {"lb1": 70}, tmp_path)
    begun_s = time.monotonic()
    first = reader.read()
    imitation(tmp_path, 70, {"71": "60000000000 38000000000 1"}, "cpu 0 0 0 0 0 0 0 0\n")
    second = reader.read()
    assert 0 < second.waited_s["lb1"] - first.waited_s["lb1"] <= time.monotonic() - begun_s


def test_a_kernel_without_these_counters_tells_how_long_a_thread_ran(tmp_path: Path) -> None:
    folder = tmp_path / "70/task/70"
    folder.mkdir(parents=True)
    (folder / "stat").write_text("70 (a name) R) R 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 99\n")
    assert Reader(lambda: {"lb1": 70}, tmp_path).read().ran_s == {"lb1": 2.0}


@contextmanager
def burning(count: int) -> Iterator[list[int]]:
    """So many programs that want a whole processor each; their process ids."""
    running = [subprocess.Popen([sys.executable, "-S", "-c", BURN]) for _ in range(count)]
    try:
        yield [one.pid for one in running]
    finally:
        for one in running:
            one.kill()
            one.wait()


def test_programs_beside_a_machine_make_it_late_and_it_is_seen() -> None:
    with burning(1) as (machine,), Meter(lambda: {"lb1": machine}) as meter, burning(4 * (os.cpu_count() or 1)):
        time.sleep(1.0)
        since_s = time.monotonic()
        time.sleep(2.5)
        busy = meter.since(since_s)
    assert "this machine was too busy: lb1" in busy.trouble
    assert busy.others_share > 0.5


def test_a_machine_that_sleeps_is_idle_and_one_that_works_is_not() -> None:
    with (
        subprocess.Popen(["sleep", "60"]) as sleeper,
        burning(1) as (worker,),
        Meter(lambda: {"lb1": sleeper.pid, "lb2": worker}) as meter,
    ):
        assert not meter.idle("lb1", 1.0)  # not measured for so long yet
        time.sleep(1.6)
        assert meter.idle("lb1", 1.0)
        assert not meter.idle("lb2", 1.0)
        assert not meter.idle("lb3", 1.0)
        sleeper.kill()
