"""Time zones as OpenWrt wants them: the POSIX rule behind an IANA name.

The rule is the last line of the zone's TZif file (RFC 9636, 3.3), taken from the pinned `tzdata` package and never from
the machine that builds, so that the same profile gives the same bytes everywhere.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources

from ndakit.core.errors import InputError


class UnknownTimezone(InputError):
    """A name that is not in the IANA time zone database."""

    def __init__(self, name: str, *, where: str) -> None:
        close = difflib.get_close_matches(name, sorted(_names()), n=1, cutoff=0.6)
        super().__init__(
            f"'{name}' is not a time zone",
            where=where,
            fix=f"write {close[0]}" if close else "write an IANA name such as Europe/Berlin, or UTC",
        )


@functools.cache
def posix(name: str, *, where: str = "system.timezone") -> str:
    """The POSIX TZ rule of an IANA zone: `Europe/Berlin` → `CET-1CEST,M3.5.0,M10.5.0/3`. Raises UnknownTimezone."""
    if name not in _names():
        raise UnknownTimezone(name, where=where)
    data = importlib.resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()
    rule = data.rstrip(b"\n").rpartition(b"\n")[2].decode("ascii")
    if not rule or not data.endswith(b"\n"):
        raise UnknownTimezone(name, where=where)
    return rule


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(importlib.resources.files("tzdata").joinpath("zones").read_text("ascii").split())
