"""Plain readers of haproxy.cfg and keepalived.conf: words with their lines, nothing understood.

They share no code with filters and templates. What the words mean is the business of `haproxy`,
`keepalived` and `real_daemons`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

HAPROXY, KEEPALIVED = "/etc/haproxy.cfg", "/etc/keepalived/keepalived.conf"
POUND = "/etc/pound/pound.cfg"
STUNNEL = "/etc/stunnel/stunnel.conf"
"""Where the two lie on a node."""
_HAPROXY_SECTIONS = {
    *("global", "defaults", "frontend", "backend", "listen", "peers", "userlist", "resolvers", "cache", "program"),
    *("mailers", "ring", "http-errors", "fcgi-app", "log-forward", "log-profile", "traces", "crt-store", "acme"),
}


class TextError(ValueError):
    """Text that cannot be read; `line` is 1-based."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.message = message


@dataclass(frozen=True)
class Line:
    """The words of one line."""

    number: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Proxy:
    """A section of haproxy.cfg."""

    kind: str
    name: str
    number: int
    lines: tuple[Line, ...]

    def all(self, *keyword: str) -> Iterator[Line]:
        """The lines that begin with these words."""
        return (line for line in self.lines if line.words[: len(keyword)] == keyword)

    def first(self, *keyword: str) -> Line | None:
        """The first line that begins with these words."""
        return next(self.all(*keyword), None)

    @property
    def mode(self) -> str | None:
        """The mode it states itself."""
        line = self.first("mode")
        return line.words[1] if line is not None and len(line.words) > 1 else None


def haproxy(text: str) -> list[Proxy]:
    """The sections of haproxy.cfg. Raises TextError."""
    proxies: list[tuple[str, str, int, list[Line]]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        try:
            words = tuple(shlex.split(raw.replace("\\r\\n", "\\\\r\\\\n"), comments=True, posix=True))
        except ValueError as cause:
            raise TextError(number, f"{cause}") from None
        if not words:
            continue
        if words[0] in _HAPROXY_SECTIONS:
            proxies.append((words[0], words[1] if len(words) > 1 else "", number, []))
        elif not proxies:
            raise TextError(number, f"'{words[0]}' before the first section")
        else:
            proxies[-1][3].append(Line(number, words))
    return [Proxy(kind, name, number, tuple(lines)) for kind, name, number, lines in proxies]


@dataclass
class Block:
    """A block of keepalived.conf: its head's words, its own lines, its inner blocks."""

    words: tuple[str, ...]
    number: int
    lines: list[Line] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The head's second word: the instance's, script's, group's name."""
        return self.words[1] if len(self.words) > 1 else ""

    def inner(self, keyword: str) -> list[Block]:
        """The inner blocks of one kind."""
        return [b for b in self.blocks if b.words[0] == keyword]

    def first(self, keyword: str) -> Line | None:
        """The first own line that begins with the word."""
        return next((line for line in self.lines if line.words[0] == keyword), None)

    def value(self, keyword: str) -> str | None:
        """The word after a keyword."""
        line = self.first(keyword)
        return line.words[1] if line is not None and len(line.words) > 1 else None


def keepalived(text: str) -> Block:
    """keepalived.conf as a tree (the root has no words): one item per line, `{` at a line's end, `}` alone.

    keepalived itself reads other layouts too, with surprises; ours is this one. Raises TextError.
    """
    root = Block((), 0)
    stack = [root]
    for number, raw in enumerate(text.splitlines(), 1):
        words = _keepalived_words(raw, number)
        if not words:
            continue
        if words == ["}"]:
            if len(stack) == 1:
                raise TextError(number, "a brace is closed that was not opened")
            stack.pop()
        elif words[-1] == "{":
            if len(words) == 1:
                raise TextError(number, "a block without a name")
            block = Block(tuple(words[:-1]), number)
            stack[-1].blocks.append(block)
            stack.append(block)
        elif "{" in words or "}" in words:
            raise TextError(number, "a brace in the middle of a line")
        else:
            stack[-1].lines.append(Line(number, tuple(words)))
    if len(stack) > 1:
        raise TextError(stack[-1].number, f"block '{stack[-1].words[0]}' is not closed")
    return root


def _keepalived_words(raw: str, number: int) -> list[str]:
    """Words of a line; `"…"` is one word, `#` and `!` begin a comment."""
    words: list[str] = []
    word, quoted, started = "", False, False
    for char in raw:
        if quoted:
            if char == '"':
                quoted = False
            else:
                word += char
        elif char == '"':
            quoted = started = True
        elif char in "#!":
            break
        elif char in " \t":
            if started:
                words.append(word)
            word, started = "", False
        else:
            word += char
            started = True
    if quoted:
        raise TextError(number, "a quote is not closed")
    return [*words, word] if started else words
