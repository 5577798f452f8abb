"""The account of every line of the files that are read: for which key it was used, or why no key can say it.

A line starts as untold. A reader tells what it used it for (`key`), that ndakit does the same without being told
(`same`), or that no key can say it (`unsaid`). What nobody told stays untold, and is reported as such: nothing can be
dropped in silence, whatever a reader forgets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ndakit.core.mistakes import clean

FateKind = Literal["key", "same", "unsaid"]
LineKind = Literal["key", "same", "unsaid", "comment"]

NOT_READ = "nothing in a profile is about this line"
LINE_MAX = 120
_SECRET = re.compile(
    r"pass(word|wd|phrase)?|auth|secret|psk|token|credential|community|private|cookie|login|key|"
    r"crypt|md5|\buser\b|://[^/\s]*@",
    re.I,
)


@dataclass(frozen=True)
class Fate:
    """What became of a line, or of a part of it: the key, or the words why there is none."""

    kind: FateKind
    what: str


@dataclass
class SourceFile:
    """One file of a node: its path there, and what became of its lines (1-based)."""

    node: str
    path: str
    lines: list[str]
    comments: str = "#"
    """The characters that begin a comment."""
    secret: bool = False
    """Its lines are never shown."""
    fates: dict[int, list[Fate]] = field(default_factory=dict)
    hints: dict[int, str] = field(default_factory=dict)

    def tell(self, line: int, kind: FateKind, what: str) -> None:
        """Write down what became of a line; lines that are not there are no matter."""
        fate = Fate(kind, what)
        if 1 <= line <= len(self.lines) and fate not in self.fates.setdefault(line, []):
            self.fates[line].append(fate)

    def key(self, line: int, key: str) -> None:
        """The line is said by a key of the profile."""
        self.tell(line, "key", key)

    def same(self, line: int, why: str) -> None:
        """ndakit does the same without being told."""
        self.tell(line, "same", why)

    def unsaid(self, line: int, why: str) -> None:
        """No key says the line, or a part of it."""
        self.tell(line, "unsaid", why)

    def hint(self, line: int, why: str) -> None:
        """Why no key says the line, should it turn out that nothing else does."""
        self.hints.setdefault(line, why)

    def forgive(self, line: int, why: str) -> None:
        """ndakit writes exactly this line: whatever was missing of it is there after all."""
        self.fates[line] = [f for f in self.fates.get(line, []) if f.kind == "key"]
        if not self.fates[line]:
            self.same(line, why)

    def is_comment(self, line: int) -> bool:
        """True for a comment, and for a line with nothing, or nothing but braces (which belong to their block)."""
        text = self.lines[line - 1].strip()
        return not text.strip("{}") or text[0] in self.comments

    def account(self) -> Iterator[tuple[int, LineKind, str]]:
        """Each line's number with what became of it; a line has several of them if only a part of it is said."""
        for number in range(1, len(self.lines) + 1):
            fates = self.fates.get(number, [])
            for fate in fates:
                yield number, fate.kind, fate.what
            if not fates:
                if self.is_comment(number):
                    yield number, "comment", ""
                else:
                    yield number, "unsaid", self.hints.get(number, NOT_READ)

    def shown(self, line: int) -> str:
        """A line for people: on one line, short, and without what could be a secret."""
        text = clean(" ".join(self.lines[line - 1].split()))
        if self.secret:
            return "(not shown)"
        if _SECRET.search(text):
            shown = 2 if text.startswith(("option ", "list ")) else 1
            words = re.split(r"[=:]", " ".join(text.split(" ")[:shown]))
            return f"{words[0]} (the rest is not shown)"
        return text if len(text) <= LINE_MAX else f"{text[: LINE_MAX - 1]}…"


@dataclass(frozen=True)
class Unsaid:
    """Lines of a file, one after the other, that no key says, for one reason."""

    node: str
    path: str
    first: int
    last: int
    why: str
    text: str
    """The first line; never one with a secret in it."""

    @property
    def place(self) -> str:
        """`lb1:/etc/haproxy.cfg:12-15`."""
        lines = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.node}:{self.path}:{lines}"


@dataclass
class Ledger:
    """All files of all nodes."""

    files: list[SourceFile] = field(default_factory=list)

    def open(self, node: str, path: str, text: str, *, comments: str = "#", secret: bool = False) -> SourceFile:
        """A file whose lines are accounted for from now on."""
        lines = text.split("\n")
        if lines and not lines[-1]:
            lines.pop()
        file = SourceFile(node, path, lines, comments, secret)
        self.files.append(file)
        return file

    def file(self, node: str, path: str) -> SourceFile | None:
        """A file that was opened."""
        return next((f for f in self.files if (f.node, f.path) == (node, path)), None)

    def unsaid(self) -> list[Unsaid]:
        """What cannot be said, with lines that follow each other and have one reason put together."""
        result: list[Unsaid] = []
        for file in self.files:
            for number, kind, why in file.account():
                if kind != "unsaid":
                    continue
                last = result[-1] if result else None
                follows = last is not None and (last.node, last.path, last.why) == (file.node, file.path, why)
                if last is not None and follows and _only_blank(file, last.last + 1, number - 1):
                    result[-1] = Unsaid(last.node, last.path, last.first, number, why, last.text)
                else:
                    result.append(Unsaid(file.node, file.path, number, number, why, file.shown(number)))
        return result

    def counts(self) -> dict[LineKind, int]:
        """How many lines became what; a line that is said in part counts as unsaid."""
        counts: dict[LineKind, int] = {"key": 0, "same": 0, "unsaid": 0, "comment": 0}
        for file in self.files:
            kinds: dict[int, set[LineKind]] = {}
            for number, kind, _ in file.account():
                kinds.setdefault(number, set()).add(kind)
            for of_line in kinds.values():
                counts[next(k for k in ("unsaid", "key", "same", "comment") if k in of_line)] += 1
        return counts


def _only_blank(file: SourceFile, first: int, last: int) -> bool:
    return all(file.is_comment(n) and n not in file.fates for n in range(first, last + 1))
