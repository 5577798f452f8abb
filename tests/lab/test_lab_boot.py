"""Waiting for a node that boots: by what its boot says, however slow it is, typing nothing into the middle of it."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from console_guest import ASK, Guest
from ndakit.core.deadline import Deadline
from ndakit.lab.boot import Booting, enter, wait_complete
from ndakit.lab.clients import LabNotReady

# A boot that takes its time: it offers its console in the middle, as procd does, and its last script ends long after
# that. What is typed meanwhile is kept with the moment of it. `$HOME/log` is what logread shows.
SLOW = f"""
echo booting
printf %b {ASK!r}
read -r _
[ -e "$HOME/booted" ] || echo disturbed >>"$HOME/typed"
export PS1='root@OpenWrt:\\w# '
exec sh -i
"""


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A guest whose `logread` shows what is in a file."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/logread"
    tool.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/asked\ncat {tmp_path}/log\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "log").write_text("daemon.info procd: - init -\n")
    made = Guest(SLOW, tmp_path, path=f"{tmp_path}/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    try:
        yield made
    finally:
        made.close()


def machine(guest: Guest) -> Booting:
    return cast(Booting, SimpleNamespace(console=guest.console, alive=True))


def after(moment_s: float) -> Callable[[], bool]:
    return lambda: time.monotonic() >= moment_s


def completes(folder: Path) -> None:
    with (folder / "log").open("a") as log:
        log.write("daemon.info procd: - init complete -\n")


@pytest.mark.long
def test_nobody_types_into_a_boot_that_is_at_work_however_long_it_takes(guest: Guest, tmp_path: Path) -> None:
    done_s = time.monotonic() + 12.0  # longer than a silent console is left alone by `activate`

    def idle() -> bool:
        if time.monotonic() < done_s:
            return False
        (tmp_path / "booted").touch()
        completes(tmp_path)
        return True

    enter(machine(guest), Deadline(120, "the boot"), answers=lambda: False, idle=idle)
    assert time.monotonic() >= done_s
    assert not (tmp_path / "typed").exists()
    assert guest.console.run("echo in").stdout == "in\n"


def test_a_node_that_answers_is_entered_at_once(guest: Guest, tmp_path: Path) -> None:
    completes(tmp_path)
    enter(machine(guest), Deadline(120, "the boot"), answers=lambda: True, idle=lambda: False)
    assert guest.console.active


def test_a_boot_that_only_pauses_is_waited_for_in_the_guest(guest: Guest, tmp_path: Path) -> None:
    """A script that waits for something looks idle; the boot has not said that it is complete."""
    script = tmp_path / "etc/rc.d/S50slow"
    script.parent.mkdir(parents=True)
    script.write_text("sleep 4\n")
    guest.console.activate(Deadline(60, "the shell"))
    guest.console.run(f"sh {script} >/dev/null 2>&1 &")
    started_s = time.monotonic()
    wait_complete(guest.console, Deadline(120, "the boot"))
    assert time.monotonic() - started_s > 4.0


def test_a_boot_that_never_ends_names_the_script_that_still_runs(guest: Guest, tmp_path: Path) -> None:
    script = tmp_path / "etc/rc.d/S50stuck"
    script.parent.mkdir(parents=True)
    script.write_text("sleep 600 & wait\n")
    guest.console.activate(Deadline(60, "the shell"))
    guest.console.run(f"sh {script} >/dev/null 2>&1 &")
    with pytest.raises(LabNotReady, match=r"guest has not booted within 3 s: .*etc/rc\.d/S50stuck still runs"):
        wait_complete(guest.console, Deadline(3, "the boot"))


@pytest.mark.long
def test_a_log_that_has_lost_the_line_is_no_boot_that_never_ends(guest: Guest, tmp_path: Path) -> None:
    guest.console.activate(Deadline(60, "the shell"))
    wait_complete(guest.console, Deadline(120, "the boot"))
    assert (tmp_path / "asked").read_text().count("asked") >= 3
