"""What a cross-check says: a value, never an exception."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ndakit.core.mistakes import KeyPath, guess, listing

_ENTRIES: Mapping[str, str] = {
    "vips": "{network: NETWORK, address: ADDRESS}",
    "pools": "{servers: {SERVER: ADDRESS}}",
    "nodes": "{addresses: {NETWORK: ADDRESS}}",
    "networks": "{nics: [CARD], subnet: SUBNET}",
}
"""What an entry of a table must have; in capitals what only its author knows."""


@dataclass(frozen=True)
class Finding:
    """What is wrong or doubtful, at which place, against which other, and what to do about it."""

    code: str
    severity: Literal["error", "warning"]
    what: str
    at: KeyPath
    fix: str
    other: KeyPath | None = None
    also: tuple[KeyPath, ...] = ()
    """Further places that were looked at to come to this finding."""
    unless: str | None = None
    """A file of the node that settles it: a workspace that ships this file itself is not told."""

    @property
    def about(self) -> tuple[KeyPath, ...]:
        """Every place that the finding depends on."""
        return (self.at, *((self.other,) if self.other is not None else ()), *self.also)


def error(
    code: str,
    what: str,
    at: KeyPath,
    fix: str,
    *,
    other: KeyPath | None = None,
    also: tuple[KeyPath, ...] = (),
    unless: str | None = None,
) -> Finding:
    """Something that cannot work."""
    return Finding(code, "error", what, at, fix, other, also, unless)


def warning(
    code: str,
    what: str,
    at: KeyPath,
    fix: str,
    *,
    other: KeyPath | None = None,
    also: tuple[KeyPath, ...] = (),
    unless: str | None = None,
) -> Finding:
    """Something that works, but probably not as meant."""
    return Finding(code, "warning", what, at, fix, other, also, unless)


def unknown(
    kind: str, name: str, known: Iterable[str], at: KeyPath, table: str, *, words: tuple[str, ...] = ()
) -> Finding:
    """A reference to something of `table` that is not there; `words` are what else could stand in its place."""
    names = list(known)
    near = guess(name, [*names, *words])
    entry = f"{name}: {_ENTRIES[table]}"
    add = f"{table} here: {listing(names)}; or add to {table}: {entry}" if names else f"write {table}: {{{entry}}}"
    add += f"; or write {' or '.join(words)}" if words else ""
    fix = (f"did you mean '{near}'? " if near else "") + add
    what = f"there is no {'VIP' if kind == 'vip' else kind} '{name}'"
    return error(f"unknown-{kind}", what, at, fix, also=((table, name),))
