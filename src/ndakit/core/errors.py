"""The errors that people see: what happened, where, and an action that mends it.

Owns the base types, their exit codes and their three-line text. The concrete errors live beside the code that raises
them. Library code raises; only the tasks print.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, order=True)
class Location:
    """A place in a text file: 1-based line and column (0 = the file as a whole) and the dotted key there, if any."""

    file: str
    line: int = 0
    column: int = 0
    key: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}, {self.key}" if self.key else place


class NdakitError(Exception):
    """A failure that a user can act on.

    `what` names the failure with its facts, `where` the place (file:line:column and key, or command and log),
    `fix` an action that works. The type's `code` (never the wording) is what callers and scripts decide by.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, what: str, *, where: str | Location, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.location = where if isinstance(where, Location) else None
        self.where = str(where)
        self.fix = fix

    @property
    def code(self) -> str:
        """The stable name for scripts: `PoolEmpty` → `pool-empty`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(self).__name__).lower()

    def text(self) -> str:
        """The three lines shown to people."""
        return f"error: {self.what}\n  where: {self.where}\n  fix:   {self.fix}"

    def as_json(self) -> dict[str, object]:
        """The same facts for scripts."""
        facts: dict[str, object] = {"code": self.code, "what": self.what, "where": self.where, "fix": self.fix}
        if self.location is not None:
            facts |= {
                "file": self.location.file,
                "line": self.location.line,
                "column": self.location.column,
                "key": self.location.key,
            }
        return facts

    def __str__(self) -> str:
        return self.text()


class InputError(NdakitError):
    """What the user wrote cannot be used (exit code 2)."""

    exit_code = 2


class MachineError(NdakitError):
    """This machine lacks something: a tool, space, a network, a permission (exit code 3)."""

    exit_code = 3


class BuildError(NdakitError):
    """Rendering or building an image failed (exit code 4)."""

    exit_code = 4


class VerifyError(NdakitError):
    """A built system did not boot or did not do what the model says (exit code 5)."""

    exit_code = 5


class MachineRefuses(MachineError):
    """The operating system refused something that is everyday work, at a place with no better words for it."""


_WAYS_OUT = {
    errno.ENOSPC: "free some space there, then run it again",
    errno.EDQUOT: "free some of your quota there, then run it again",
    errno.EACCES: "make it readable and writable for you, or run this as its owner",
    errno.EPERM: "make it readable and writable for you, or run this as its owner",
    errno.EROFS: "work in a folder that is not mounted read-only",
    errno.ENAMETOOLONG: "use a shorter name, or a folder with a shorter path",
    errno.ELOOP: "remove the link that leads to itself",
    errno.EMFILE: "let this shell open more files: ulimit -n 4096",
    errno.EBUSY: "it is in use, or a mount point: unmount it, or work in another folder",
    errno.EXDEV: "unmount what is mounted there, or work in another folder",
    errno.EIO: "look at the disk: dmesg tells what it said",
}


def refused(cause: OSError) -> MachineRefuses:
    """An error of the operating system (errno(3)) in three lines."""
    names = " → ".join(repr(str(name)) for name in (cause.filename, cause.filename2) if name is not None)
    fix = _WAYS_OUT.get(cause.errno or 0, "look at what is there (ls -ld), move it away or make it what it should be")
    return MachineRefuses(f"the system says: {cause.strerror or cause}", where=names or "this machine", fix=fix)


class ErrorGroup(NdakitError):
    """Several errors found in one go; shown one after the other, in the order of their places."""

    def __init__(self, errors: Sequence[NdakitError]) -> None:
        if not errors:
            raise ValueError("an ErrorGroup needs at least one error")
        self.errors = tuple(sorted(errors, key=lambda e: (e.location or Location(e.where), e.what)))
        first = self.errors[0]
        super().__init__(first.what, where=first.location or first.where, fix=first.fix)

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # the class attribute of the base is this group's first error's
        return self.errors[0].exit_code

    def text(self) -> str:
        """All texts, a blank line between two."""
        return "\n\n".join(e.text() for e in self.errors)
