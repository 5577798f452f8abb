"""UCI text: quoting a value, and a strict reader of whole files.

The reader follows uci's own grammar (file.c and util.c of openwrt/uci, restated in docs/facts.md, UCI) and
shares no code with the quoter, so that one can prove the other. It refuses what uci refuses and, beyond that, what uci
swallows silently but what we never want to ship: an empty value (uci drops the option), an option stated twice, a
section stated twice, text outside quotes that is more than a plain word.
What the options mean is the business of lint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_WORD = re.compile(r"[A-Za-z0-9_]+")
_TYPE = re.compile(r"[!-~]+")


class UciError(ValueError):
    """Text that is no UCI, or that we do not ship. `line` is 1-based."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.message = message


def quote(value: str) -> str:
    """The value in single quotes as uci reads it back.

    Raises ValueError for what UCI cannot hold: an empty text (which would delete the option) and control characters.
    """
    if not value:
        raise ValueError("an empty value deletes a UCI option: leave the option out instead")
    if control := re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", value):
        raise ValueError(f"control character U+{ord(control[0]):04X} in a UCI value")
    return "'" + value.replace("'", "'\\''") + "'"


@dataclass(frozen=True)
class Option:
    """One option, or one item of a list, with its line."""

    name: str
    value: str
    line: int
    is_list: bool = False


@dataclass
class Section:
    """One section: its type, its name (None if anonymous), its options in order, its line."""

    type: str
    name: str | None
    line: int
    options: list[Option] = field(default_factory=list)

    def get(self, name: str) -> str | None:
        """The value of an option (of a list: its first item), None if absent."""
        return next((o.value for o in self.options if o.name == name), None)

    def list(self, name: str) -> tuple[str, ...]:
        """All items of a list; of an option its one value."""
        return tuple(o.value for o in self.options if o.name == name)

    def line_of(self, name: str) -> int:
        """Where an option stands; the section's own line if it has none."""
        return next((o.line for o in self.options if o.name == name), self.line)


def read(text: str) -> list[Section]:
    """Read a whole file. Raises UciError for the first thing that is wrong."""
    sections: list[Section] = []
    named: dict[str, Section] = {}
    firsts: dict[str, Option] = {}
    for line, words in _statements(text):
        keyword, arguments = words[0], words[1:]
        if keyword == "config":
            if not 1 <= len(arguments) <= 2:
                raise UciError(line, "'config' takes a type and at most one name")
            section = _section(line, arguments, named)
            sections.append(section)
            firsts = {}
        elif keyword in ("option", "list"):
            if len(arguments) != 2:
                raise UciError(line, f"'{keyword}' takes a name and one value")
            if not sections:
                raise UciError(line, f"'{keyword}' before the first section")
            _add(sections[-1], Option(arguments[0], arguments[1], line, keyword == "list"), firsts)
        else:
            raise UciError(line, f"invalid command '{keyword}'")
    return sections


FAULTS_MAX = 200
"""So many lines that UCI does not take, and no more, are left out of a file that somebody else wrote."""


def read_leniently(text: str) -> tuple[list[Section], list[UciError]]:
    """Read a whole file as uci itself takes it, and what is wrong with it beside that.

    As in uci, the last of two options counts, a section that is stated twice is one, and an empty value is none; each
    is told as a fault as well. A line that uci refuses (it would refuse the whole file) is left out and told. A file
    with more than FAULTS_MAX of those has no sections.
    """
    lines = text.split("\n")
    faults: list[UciError] = []
    while True:
        try:
            statements = list(_statements("\n".join([*lines, ""])))
        except UciError as cause:
            faults.append(cause)
            if len(faults) > FAULTS_MAX:
                return [], faults
            lines[min(cause.line, len(lines)) - 1] = ""
            continue
        break
    sections: list[Section] = []
    named: dict[str, Section] = {}
    current: Section | None = None
    for line, words in statements:
        try:
            current = _statement(line, words, sections, named, current)
        except UciError as cause:
            faults.append(cause)
            if words[0] == "config":
                current = None  # what follows belongs to no section that we know
    return sections, sorted(faults, key=lambda fault: fault.line)


def _statement(
    line: int, words: list[str], sections: list[Section], named: dict[str, Section], current: Section | None
) -> Section | None:
    """One statement of a file that is read leniently; the section that the next ones belong to."""
    keyword, arguments = words[0], words[1:]
    if keyword == "config":
        if not 1 <= len(arguments) <= 2:
            raise UciError(line, "'config' takes a type and at most one name")
        twice = named.get(arguments[1]) if len(arguments) == 2 else None
        if twice is not None:
            return twice
        section = _section(line, arguments, named)
        sections.append(section)
        return section
    if keyword not in ("option", "list"):
        raise UciError(line, f"invalid command '{keyword}'")
    if len(arguments) != 2:
        raise UciError(line, f"'{keyword}' takes a name and one value")
    if current is None:
        raise UciError(line, f"'{keyword}' without a section")
    option = Option(arguments[0], arguments[1], line, keyword == "list")
    before = [o for o in current.options if o.name == option.name]
    if before and not (option.is_list and all(o.is_list for o in before)):
        current.options = [o for o in current.options if o.name != option.name]
        if option.value and _WORD.fullmatch(option.name):
            current.options.append(option)
        raise UciError(before[-1].line, f"option '{option.name}' is stated again in line {line}, and that one counts")
    _add(current, option, {})
    return current


def _section(line: int, arguments: list[str], named: dict[str, Section]) -> Section:
    kind, name = arguments[0], arguments[1] if len(arguments) == 2 else None
    if not _TYPE.fullmatch(kind):
        raise UciError(line, f"section type '{kind}' has a character that UCI does not take")
    section = Section(kind, name, line)
    if name is not None:
        if not _WORD.fullmatch(name):
            raise UciError(line, f"section name '{name}' has a character that UCI does not take (letters, digits, _)")
        if name in named:
            raise UciError(line, f"section '{name}' is stated twice (first in line {named[name].line})")
        named[name] = section
    return section


def _add(section: Section, option: Option, firsts: dict[str, Option]) -> None:
    """Add an option; `firsts` are the first ones of each name in this section."""
    if not _WORD.fullmatch(option.name):
        raise UciError(
            option.line, f"option name '{option.name}' has a character that UCI does not take (letters, digits, _)"
        )
    if not option.value:
        raise UciError(option.line, f"option '{option.name}' is empty, which UCI takes for absent")
    first = firsts.setdefault(option.name, option)
    if first is not option and not (first.is_list and option.is_list):
        raise UciError(option.line, f"option '{option.name}' is stated twice (first in line {first.line})")
    section.options.append(option)


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Split into statements of words, each with the line it begins on; comments and blank lines fall away."""
    position, line, end = 0, 1, len(text)
    words: list[str] = []
    started = 1
    while position < end:
        char = text[position]
        if char == "\n" or char == ";":
            if words:
                yield started, words
                words = []
            line += char == "\n"
            position += 1
        elif char in " \t":
            position += 1
        elif char == "#":
            position = text.find("\n", position)
            position = end if position < 0 else position
        else:
            if not words:
                started = line
            word, position, line = _word(text, position, line)
            words.append(word)
    if words:
        raise UciError(started, "the last line does not end with a newline")


def _word(text: str, position: int, line: int) -> tuple[str, int, int]:
    """One word from `position`: quoted and unquoted pieces glued together, up to a blank, `;`, newline."""
    pieces: list[str] = []
    end = len(text)
    while position < end and (char := text[position]) not in " \t\n;":
        if char == "'":
            close = text.find("'", position + 1)
            if close < 0:
                raise UciError(line, "unterminated '")
            pieces.append(text[position + 1 : close])
            line += text.count("\n", position, close)
            position = close + 1
        elif char == '"':
            piece, position, line = _double(text, position + 1, line)
            pieces.append(piece)
        elif char == "\\":
            if position + 1 >= end or text[position + 1] == "\n":
                raise UciError(line, "a backslash at the end of a line")
            pieces.append(text[position + 1])
            position += 2
        elif char == "#":
            raise UciError(line, "'#' inside a word that is not quoted: UCI cuts the word there")
        elif "!" <= char <= "~":
            pieces.append(char)
            position += 1
        else:
            raise UciError(line, f"character U+{ord(char):04X} outside quotes")
    word = "".join(pieces)
    for char in word:
        if (ord(char) < 32 and char not in "\t\n\r") or ord(char) == 127:
            raise UciError(line, f"control character U+{ord(char):04X}")
    return word, position, line


def _double(text: str, position: int, line: int) -> tuple[str, int, int]:
    piece: list[str] = []
    started = line
    while position < len(text):
        char = text[position]
        if char == '"':
            return "".join(piece), position + 1, line
        if char == "\\":
            position += 1
            char = text[position : position + 1]
        line += char == "\n"
        piece.append(char)
        position += 1
    raise UciError(started, 'unterminated "')
