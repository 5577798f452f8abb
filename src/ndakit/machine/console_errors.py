"""What can go wrong on a guest's console, in words for people. Raised by `console`, decided upon by its callers."""

from __future__ import annotations

from pathlib import Path

from ndakit.core.deadline import DeadlineExceeded
from ndakit.core.errors import VerifyError
from ndakit.node.shell import short


def shown(tail: str) -> str:
    """The last lines of a console, as a block under an error's first line."""
    return "".join(f"\n         | {line}" for line in tail.splitlines())


class ConsoleClosed(VerifyError):
    """The machine behind the console has ended."""

    def __init__(self, name: str, why: str, log: Path, tail: str) -> None:
        super().__init__(
            f"{name} has ended{f' ({why})' if why else ''}; its console ends with:{shown(tail)}",
            where=f"console log: {log}",
            fix="read the console's log; if nobody switched the machine off, the QEMU log beside it says why it ended",
        )


class ConsoleSilent(DeadlineExceeded):
    """What was waited for did not show up on the console."""

    def __init__(self, name: str, waited_s: float, wanted: str, log: Path, tail: str, facts: str) -> None:
        seen = f"it ends with:{shown(tail)}" if tail else "it has shown nothing at all"
        super().__init__(
            f"waited {waited_s:g} s for {wanted} on the console of {name}, in vain; {seen}",
            where=f"console log: {log}{f' ({facts})' if facts else ''}",
            fix="read the log; if this machine is busy, run it again with nothing beside it",
        )


class GuestPanicked(VerifyError):
    """The guest's kernel has given up."""

    def __init__(self, name: str, message: str, log: Path) -> None:
        super().__init__(
            f"the kernel of {name} panicked: {message}",
            where=f"console log: {log}",
            fix="read the lines before the panic; 'Unable to mount root fs' means a wrong root= or a missing driver",
        )


class GuestRestarted(VerifyError):
    """The guest booted again while a command was running on its console."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(
            f"{name} restarted, and its shell is gone",
            where=f"console log: {log}",
            fix="if the restart was meant, activate the console again; if not, the log shows what led to it",
        )


class ConsoleLocked(VerifyError):
    """The console asks for a password."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(
            f"the console of {name} asks for a password",
            where=f"console log: {log}",
            fix="leave system.@system[0].ttylogin at 0 in images that are verified over their console",
        )


class ConsoleNotActive(VerifyError):
    """A command was to be run before the shell was opened."""

    def __init__(self, name: str, log: Path) -> None:
        super().__init__(
            f"the console of {name} is not activated (or its machine was started anew)",
            where=f"console log: {log}",
            fix="activate it before commands are run on it",
        )


class OutputDamaged(VerifyError):
    """The output of a command did not come through whole."""

    def __init__(self, name: str, command: str, log: Path) -> None:
        super().__init__(
            f"the output of '{short(command)}' on {name} did not come through whole in several attempts",
            where=f"console log: {log}",
            fix="look there for what else writes to the console all the time, or whether /tmp of that machine is full",
        )
