"""When a node has booted, by what its boot says, and not by a time: a real base takes several times as long as the
lab's, and a busy machine longer still.

A booting guest has one processor, and a shell on its console wants some of it. So nobody types there before the node
answers or has nothing to do; and then one small command waits there until procd says that the boot is complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ndakit.core.deadline import Deadline
from ndakit.lab.clients import LabNotReady
from ndakit.machine.console import Console
from ndakit.node.errors import CommandTimeout

LOOK_S = 0.2
LOOK_TIMEOUT_S = 1.0
"""What a node that boots does not answer in this time is asked again: its firewall drops what comes too early, and who
asked so would ask again only seconds later."""
IDLE_S = 3.0
"""A node that has had nothing to do for so long has booted, or waits for something: the console will tell."""
COMPLETE = "procd: - init complete -"
"""procd says it to the log, not to the console, when the last script of /etc/rc.d has ended (procd, state.c)."""

# A log that has no such line any more, or none at all: no script of the boot runs, at three looks. The brackets keep a
# process from finding itself.
_WAIT = f"""n=0
until [ $n -ge 3 ]; do
    if logread 2>/dev/null | grep -q '{COMPLETE}'; then n=3
    elif grep -qs '/etc/rc[.]d/S' /proc/[0-9]*/cmdline; then n=0
    else n=$((n + 1)); fi
    [ $n -ge 3 ] || sleep 1
done"""
_RUNNING = "for f in $(grep -ls '/etc/rc[.]d/S' /proc/[0-9]*/cmdline); do tr '\\0' ' ' <$f; echo; done"


class Booting(Protocol):
    """A machine that boots."""

    console: Console

    @property
    def alive(self) -> bool:
        """True while it runs."""


def enter(machine: Booting, deadline: Deadline, *, answers: Callable[[], bool], idle: Callable[[], bool]) -> None:
    """Open a shell on a booting node's console as soon as that disturbs nobody, and wait for the boot's end.

    `answers`: whether the node does its work already. `idle`: whether it has nothing to do. Raises what
    Console.activate raises, and LabNotReady if the boot does not end in time.
    """
    while machine.alive and not deadline.expired and not answers() and not idle():
        time.sleep(LOOK_S)
    machine.console.activate(deadline)
    wait_complete(machine.console, deadline)


def wait_complete(console: Console, deadline: Deadline) -> None:
    """Wait in the guest until its boot is complete. Raises LabNotReady with the scripts that still run if it is not."""
    try:
        console.run(_WAIT, max(1.0, deadline.remaining_s))
    except CommandTimeout as cause:
        scripts = "; ".join(line.strip() for line in console.run(_RUNNING).stdout.splitlines() if line.strip())
        raise LabNotReady(
            f"{console.name} has not booted within {deadline.timeout_s:.0f} s: {scripts or 'nothing'} still runs",
            str(console.log),
        ) from cause
