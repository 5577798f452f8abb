"""Mistakes in a profile: one error type for all of them, and how places and values are shown to people.

Owns the wording of places (`profiles/x.yaml:3:5, vips.www.address`) and the cleaning of text that comes from a file
before it is printed. What is a mistake is decided by the modules that read and check.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ndakit.core.errors import InputError, Location

KeyPath = tuple[str | int, ...]
"""Where a value is in a profile: mapping keys and list positions, from the top."""

_SHOWN_MAX = 60
_GUESSED_MAX = 64
_COMPARED_MAX, _ALIKE_MAX = 64, 24
"""Of more names than the first, only those that look alike are compared, as many as the second."""


class ProfileMistake(InputError):
    """Something in a profile that has to be changed by its author.

    `code` names the kind of mistake for scripts; `at` is where it was written, `other` the place it disagrees with.
    """

    def __init__(self, kind: str, what: str, *, at: Location, fix: str, other: Location | None = None) -> None:
        super().__init__(what, where=at, fix=fix)
        self._kind = kind
        self.other = other
        if other is not None:
            self.where = f"{at} (against {other})"

    @property
    def code(self) -> str:
        """The kind of mistake: `duplicate-key`, `vip-outside-subnet`."""
        return self._kind

    def as_json(self) -> dict[str, object]:
        """The facts for scripts, with the other place if there is one."""
        facts = super().as_json()
        if self.other is not None:
            facts["other"] = dataclasses.asdict(self.other)
        return facts


@dataclass(frozen=True)
class ProfileWarning:
    """Something that works, but that its author should know about. Never blocks."""

    code: str
    what: str
    where: Location
    fix: str
    other: Location | None = None

    def text(self) -> str:
        """The lines shown to people."""
        against = f" (against {self.other})" if self.other else ""
        return f"warning: {self.what}\n  where: {self.where}{against}\n  fix:   {self.fix}"

    def as_json(self) -> dict[str, object]:
        """The same facts for scripts."""
        facts: dict[str, object] = {"code": self.code, "what": self.what, "fix": self.fix}
        facts["where"] = dataclasses.asdict(self.where)
        facts["other"] = dataclasses.asdict(self.other) if self.other else None
        return facts


def clean(text: str) -> str:
    """`text` with every character that could act on a terminal shown as its code."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def show(text: str, limit: int = _SHOWN_MAX) -> str:
    """`text` as it may stand in a message: cleaned, and cut with `…` if it is long."""
    return clean(text if len(text) <= limit else text[: limit - 1] + "…")


def dotted(path: KeyPath) -> str:
    """The path as people write it: `pools.web.servers.web1`, `networks.lan.routes[0].via`."""
    words: list[str] = []
    for part in path:
        if isinstance(part, int):
            words.append(f"[{part}]")
        else:
            plain = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", part)
            words.append(("." if words else "") + (part if plain else f'"{show(part)}"'))
    return "".join(words)


def _pairs(name: str) -> dict[str, None]:
    """The pairs of letters that stand in a name."""
    return dict.fromkeys(map("".join, itertools.pairwise(name.lower())))


@functools.lru_cache(maxsize=8)
def _by_pair(known: tuple[str, ...]) -> dict[str, list[str]]:
    """Names by each pair of letters that stands in them."""
    names_of: dict[str, list[str]] = {}
    for name in known:
        for pair in _pairs(name):
            names_of.setdefault(pair, []).append(name)
    return names_of


@functools.lru_cache(maxsize=8)
def _folded(known: tuple[str, ...]) -> dict[str, str]:
    """Names by what they are without capitals and with one kind of dash."""
    return {name.lower().replace("_", "-"): name for name in known}


def _alike(wrong: str, known: tuple[str, ...]) -> list[str]:
    """Some of many names that look like another one: comparing every name with every other takes long.

    Those that share one of its rare pairs of letters, and of them those that share the most pairs.
    """
    there, pairs = _by_pair(known), _pairs(wrong)
    chosen: dict[str, None] = {}
    for pair in sorted((p for p in pairs if p in there), key=lambda p: len(there[p])):
        chosen.update(dict.fromkeys(there[pair][:_COMPARED_MAX]))
        if len(chosen) >= _COMPARED_MAX:
            break
    return sorted(chosen, key=lambda name: -len(_pairs(name).keys() & pairs.keys()))[:_ALIKE_MAX]


def guess(wrong: str, candidates: Iterable[str]) -> str | None:
    """The candidate that was probably meant, or None."""
    if len(wrong) > _GUESSED_MAX:
        return None
    names = tuple(candidates)
    same = _folded(names).get(wrong.lower().replace("_", "-"))
    if same is not None:
        return same
    known = list(names) if len(names) <= _COMPARED_MAX else _alike(wrong.lower(), names)
    near = difflib.get_close_matches(wrong.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    return next((k for k in known if near and k.lower() == near[0]), None)


def listing(names: Iterable[str], limit: int = 12) -> str:
    """`a, b, c`, cut with the number of the others if there are many."""
    shown = list(names)
    more = len(shown) - limit
    return ", ".join(show(n) for n in shown[:limit]) + (f" and {more} more" if more > 0 else "")
