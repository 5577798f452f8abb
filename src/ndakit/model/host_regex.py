"""Regular expressions for host names: the part of the language that Python and PCRE read alike, and that is quick.

HAProxy asks PCRE (version 1 up to OpenWrt 22.03, 2 from 23.05 on) about names that strangers send, and ndakit asks
Python's `re` about names of the profile. So an expression has only what both read in the same way, and nothing for
which they would try all ways to split a name ("catastrophic backtracking"). A host name holds letters, digits, `-` and
`.`, so that this part of the language is enough.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Final

REPEAT_MAX = 63
"""The longest label of a name (RFC 1035, 2.3.4)."""
OPTIONAL_MAX = 6
"""Each `?` can double the ways through an expression."""
_MEETING_MAX = 2
"""So many repeats may compete for the same characters: `.*shop.*`."""

_DIGITS: Final = frozenset(string.digits)
_WORD: Final = frozenset(string.ascii_lowercase + string.digits + "_")
_ANY: Final = _WORD | frozenset("-.:!")
"""Letters in lower case only, for upper and lower case are the same; `!` stands for all that no host name has and that
a stranger can send."""
_RANGES: Final = (string.digits, string.ascii_lowercase, string.ascii_uppercase)

Chars = frozenset[str]
Chains = frozenset[tuple[Chars, int]]
"""Repeats that compete for the same characters: those characters, and how many repeats there are."""


class HostRegexFault(Exception):
    """What an expression has that it may not have: `what`, and what to write instead."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


@dataclass(frozen=True)
class _Piece:
    """A part of an expression: which characters it can read, and what is inside that costs time."""

    chars: Chars
    repeats: bool = False
    branches: bool = False


def check(expression: str) -> None:
    """Raises HostRegexFault for what is not in the common part of the language, or could take for ever."""
    reader = _Reader(expression)
    reader.alternatives(frozenset())
    if reader.rest:
        raise HostRegexFault("a ) without its (", r"delete it, or open the group before it")


class _Reader:
    """Reads an expression from left to right, and follows which repeats compete."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.optional = text, 0, 0

    @property
    def rest(self) -> str:
        return self.text[self.at :]

    def alternatives(self, chains: Chains) -> tuple[_Piece, Chains]:
        """`a|b|c`, up to the end or a `)`."""
        pieces: list[_Piece] = []
        ends: Chains = frozenset()
        while True:
            piece, after = self._sequence(chains)
            pieces.append(piece)
            ends |= after
            if not self.rest.startswith("|"):
                break
            self.at += 1
        chars = frozenset[str]().union(*(piece.chars for piece in pieces))
        branches = len(pieces) > 1 or any(piece.branches for piece in pieces)
        return _Piece(chars, any(piece.repeats for piece in pieces), branches), ends

    def _sequence(self, chains: Chains) -> tuple[_Piece, Chains]:
        start, chars, repeats, branches = self.at, frozenset[str](), False, False
        while self.rest and self.rest[0] not in "|)":
            if self.rest[0] in "^$":
                self.at += 1
                if self.rest[:1] in ("?", "*", "+", "{"):
                    raise HostRegexFault(f"a repeat of {self.text[self.at - 1]}", "delete the repeat")
                continue
            begun, before = self.at, chains
            piece, inside = self._one(chains)
            part = self.text[begun : self.at]
            least, most = self._repeat()
            if most != 1 and (piece.repeats or piece.branches):
                raise HostRegexFault(
                    f"a repeat of {part}, which has {'a repeat' if piece.repeats else 'alternatives'} inside: some "
                    "names could keep it busy for ever",
                    "repeat one class only: [a-z0-9.-]* instead of ([a-z0-9-]+\\.)*, [ab]+ instead of (a|b)+",
                )  # fmt: skip
            if most == 1:
                chains = inside if least else inside | before
                if not least:
                    self.optional += 1
            elif least != most:
                chains = _competing(before, piece.chars, least)
            else:
                chains = _past(before, piece.chars)
            chars |= piece.chars
            repeats, branches = repeats or most != 1 or not least or piece.repeats, branches or piece.branches
            if self.optional > OPTIONAL_MAX:
                raise HostRegexFault(
                    f"more than {OPTIONAL_MAX} times ?", "write several expressions, as a list, or a class with *"
                )
        if self.at == start and self.text:
            raise HostRegexFault("an empty alternative or group", "write what is to be there; (…)? can be left out")
        return _Piece(chars, repeats, branches), chains

    def _one(self, chains: Chains) -> tuple[_Piece, Chains]:
        """A character, a class or a group; and the chains behind it."""
        first = self.rest[0]
        if first == "(":
            return self._group(chains)
        if first == "[":
            chars = self._class()
        elif first == "\\":
            chars = self._escape()
        elif first == ".":
            self.at += 1
            chars = _ANY
        elif first in string.ascii_letters + string.digits + "_-:":
            self.at += 1
            chars = frozenset(first.lower())
        elif first in "?*+{":
            raise HostRegexFault(f"a repeat ({first}) of nothing", "write before it what repeats: .* is any text")
        else:
            raise HostRegexFault(
                f"the character {first}", "write letters, digits, - and \\. for the characters of a host name"
            )
        return _Piece(chars), _past(chains, chars)

    def _group(self, chains: Chains) -> tuple[_Piece, Chains]:
        if self.rest.startswith("(?") and not self.rest.startswith("(?:"):
            raise HostRegexFault(
                f"{self.rest[:3]}, which not every regular expression library reads alike",
                "write groups as (…) or (?:…); look-arounds, conditions, names and options are not taken",
            )  # fmt: skip
        if self.rest.startswith("(*"):
            raise HostRegexFault("a verb of PCRE, (*…)", "write groups as (…)")
        self.at += 3 if self.rest.startswith("(?:") else 1
        if not self.rest:
            raise HostRegexFault("a ( without its )", "close the group with )")
        piece, after = self.alternatives(chains)
        if not self.rest.startswith(")"):
            raise HostRegexFault("a ( without its )", "close the group with )")
        self.at += 1
        return piece, after

    def _escape(self) -> Chars:
        letter = self.rest[1:2]
        known = {"d": _DIGITS, "w": _WORD, ".": frozenset("."), "-": frozenset("-")}
        if letter not in known:
            raise HostRegexFault(
                f"\\{letter}" if letter else "a \\ at the end",
                "write \\. for a dot, and \\d, \\w or a class such as [a-z0-9-]; others are not read alike everywhere",
            )  # fmt: skip
        self.at += 2
        return known[letter]

    def _class(self) -> Chars:
        fix = "write a class such as [a-z0-9-]: letters, digits, ranges, . and, at its end, -"
        begun = self.at
        self.at += 1
        negated = self.rest.startswith("^")
        self.at += negated
        chars: set[str] = set()
        first = True
        while not self.rest.startswith("]"):
            if not self.rest:
                raise HostRegexFault("a [ without its ]", fix)
            one, end = self.rest[0], self.rest[2:3]
            if one == "\\":
                chars |= self._escape()
                if self.rest.startswith("-") and not self.rest.startswith("-]"):
                    raise HostRegexFault(f"a range behind a \\ in {self.text[begun : self.at + 1]}", fix)
            elif one == "-" and not first and not self.rest.startswith("-]"):
                raise HostRegexFault(f"a - in the middle of {self.text[begun : self.at + 1]}", fix)
            elif one not in string.ascii_letters + string.digits + "_-.:" or self.rest[:2] in ("[:", "[.", "[="):
                raise HostRegexFault(f"{self.rest[:2] if one == '[' else one} in a class", fix)
            elif one != "-" and self.rest[1:2] == "-" and end != "]":
                kind = next((kind for kind in _RANGES if one in kind and end and end in kind), None)
                if kind is None or kind.index(one) > kind.index(end):
                    raise HostRegexFault(f"the range {one}-{end}", fix)
                chars |= {c.lower() for c in kind[kind.index(one) : kind.index(end) + 1]}
                self.at += 3
            else:
                chars.add(one.lower())
                self.at += 1
            first = False
        if not chars:
            raise HostRegexFault("an empty class", fix)
        self.at += 1
        return _ANY - chars if negated else frozenset(chars)

    def _repeat(self) -> tuple[int, int | None]:
        """How often the piece before is to be there, at least and at most (None: without an end)."""
        sign = self.rest[:1]
        plain: dict[str, tuple[int, int | None]] = {"?": (0, 1), "*": (0, None), "+": (1, None)}
        if sign in plain:
            self.at += 1
            bounds = plain[sign]
        elif sign == "{":
            bounds = self._counted()
        else:
            return 1, 1
        if self.rest[:1] in ("?", "*", "+", "{"):
            raise HostRegexFault("two repeats in a row", "keep one of them: whether a name fits does not change")
        return bounds

    def _counted(self) -> tuple[int, int | None]:
        inside, closed, _ = self.rest[1:].partition("}")
        low, comma, high = inside.partition(",")
        if not closed or not _number(low) or not (_number(high) or not high):
            raise HostRegexFault("a { that begins no count", "write {3}, {1,3} or {1,}")
        least = int(low)
        most = least if not comma else int(high) if high else None
        if max(least, most or 0) > REPEAT_MAX or (most is not None and (least > most or most == 0)):
            raise HostRegexFault(
                f"the count {{{inside}}}", f"write {{MIN,MAX}}, at most {REPEAT_MAX}: no part of a name is longer"
            )
        self.at += len(inside) + 2
        return least, most


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _past(chains: Chains, chars: Chars) -> Chains:
    """The chains that can go on behind a piece that has to be there."""
    return frozenset((common, count) for common, count in chains if common & chars)


def _competing(chains: Chains, chars: Chars, least: int) -> Chains:
    """The chains behind a repeat. Raises HostRegexFault if too many repeats compete for one character."""
    longer = frozenset((common & chars, count + 1) for common, count in chains if common & chars)
    if any(count > _MEETING_MAX for _, count in longer):
        raise HostRegexFault(
            f"more than {_MEETING_MAX} repeats for the same characters, with nothing certain in between: some names "
            "could keep it busy for ever",
            "put between them what neither of them reads ([a-z]+\\.[a-z]+\\.), or leave one out",
        )  # fmt: skip
    return (_past(chains, chars) if least else chains) | longer | {(chars, 1)}
