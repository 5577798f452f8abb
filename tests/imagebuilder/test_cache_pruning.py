"""What the user's cache gives up when it grows, while other runs use it and give up the same."""

from __future__ import annotations

import fcntl
import gzip
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from ndakit.core import locks
from ndakit.machine import disks

_HOUR_S = 3600.0


def _aged(path: Path, age_s: float) -> Path:
    path.write_text(path.name)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_what_was_used_last_is_kept_and_what_is_young_and_what_is_gone_is_passed_over(tmp_path: Path) -> None:
    ages_s = {"newest": 0.0, "young": 60.0, "old": 2 * _HOUR_S, "oldest": 3 * _HOUR_S}
    entries = [_aged(tmp_path / name, age_s) for name, age_s in ages_s.items()]
    stale = locks.stale([*entries, tmp_path / "gone"], keep=1, idle_s=_HOUR_S)
    assert [path.name for path in stale] == ["old", "oldest"]
    assert locks.stale(entries, keep=4, idle_s=0) == []


def test_an_entry_and_its_lock_are_given_up_together(tmp_path: Path) -> None:
    entry, lock = _aged(tmp_path / "entry", 2 * _HOUR_S), tmp_path / "lock"
    locks.give_up(entry, lock, entry.unlink, idle_s=_HOUR_S)
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_somebody_holds_is_not_given_up(tmp_path: Path) -> None:
    entry, lock = _aged(tmp_path / "entry", 2 * _HOUR_S), tmp_path / "lock"
    with locks.hold(lock):
        locks.give_up(entry, lock, entry.unlink, idle_s=_HOUR_S)
    assert entry.exists()


def test_an_entry_that_was_used_since_it_was_chosen_is_not_given_up(tmp_path: Path) -> None:
    entry, lock = _aged(tmp_path / "entry", 2 * _HOUR_S), tmp_path / "lock"
    assert locks.stale([entry], keep=0, idle_s=_HOUR_S) == [entry]
    entry.touch()
    locks.give_up(entry, lock, entry.unlink, idle_s=_HOUR_S)
    assert entry.exists()


def test_who_waited_for_a_lock_that_was_removed_meanwhile_excludes_who_comes_later(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    waiting, held, done = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        with locks.hold(lock, wait_s=20, on_wait=lambda _: waiting.set()):
            held.set()
            done.wait(20)

    waiter = threading.Thread(target=wait)
    with locks.hold(lock):
        waiter.start()
        assert waiting.wait(20)
        lock.unlink()
    assert held.wait(20)
    with lock.open() as later, pytest.raises(BlockingIOError):
        fcntl.flock(later, fcntl.LOCK_EX | fcntl.LOCK_NB)
    done.set()
    waiter.join()


def _unpack_all(images: list[Path], cache: Path) -> None:
    disks._KEPT, disks._YOUNG_S = 1, -_HOUR_S  # whatever was not used last goes, however young
    for image in images:
        disks.unpack(image, cache=cache)


def test_runs_that_unpack_and_give_up_images_side_by_side_do_not_trip_over_each_other(tmp_path: Path) -> None:
    images = []
    for number in range(12):
        image = tmp_path / f"{number}.img.gz"
        image.write_bytes(gzip.compress(bytes([number]) * 100))
        images.append(image)
    spawn = multiprocessing.get_context("spawn")
    runs = [spawn.Process(target=_unpack_all, args=(images[n:] * 20, tmp_path / "cache")) for n in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0, 0]
