"""What a YAML syntax error means, in words for people who write profiles.

The parsers (libyaml, or PyYAML's own where libyaml is missing) word their errors differently, so the cause is read
from the text at the place of the error, not from the message.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ndakit.core.errors import Location
from ndakit.core.mistakes import ProfileMistake

_STARTERS = {
    "*": ("an unquoted *", 'quote the wildcard: "*.example.com"'),
    "@": ("a text that begins with @", 'quote it: "@…"'),
    "`": ("a text that begins with a backtick", 'quote it: "`…`", or leave the backticks out'),
    "%": ("a text that begins with %", 'quote it: "%…"'),
    "&": ("a text that begins with &", 'quote it: "&…"'),
}


def explain(error: yaml.MarkedYAMLError, text: str, file: str) -> ProfileMistake:
    """The parser's complaint as a mistake with a fix."""
    mark: Any = error.problem_mark or error.context_mark
    start: Any = error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.split("\n")
    here = lines[line] if line < len(lines) else ""
    problem, context = error.problem or "", error.context or ""

    def mistake(kind: str, what: str, fix: str, *, at_start: bool = False) -> ProfileMistake:
        place = (start.line, start.column) if at_start and start else (line, column)
        return ProfileMistake(kind, what, at=Location(file, place[0] + 1, place[1] + 1), fix=fix)

    if foreign := _foreign(
        [*lines[start.line : start.line + 1], *lines[max(0, line - 1) : line + 1]] if start else [here]
    ):
        return mistake("not-yaml", *foreign)
    if "alias" in context or "anchor" in context:
        sign = "&" if "anchor" in context else "*"
        what, fix = _STARTERS[sign]
        return mistake("not-yaml", f"{what} means something else in YAML", fix, at_start=True)
    if "cannot start any token" in problem:
        sign = here[column : column + 1]
        if sign in _STARTERS:
            what, fix = _STARTERS[sign]
            return mistake("not-yaml", f"{what} must be quoted", fix)
        return mistake("not-yaml", f"'{sign}' cannot begin a value", f'quote the text: "{sign}…"')
    if _ipv6_in_flow(here, column):
        return mistake(
            "not-yaml",
            "an IPv6 address that begins or ends with :: needs quotes inside [ ] and { }",
            'quote it: ["::1", "fd00::"]',
        )
    if "quoted scalar" in context and ("end of stream" in problem or "document indicator" in problem):
        return mistake(
            "not-yaml", "a quoted text begins here and never ends", "close it with the same quote", at_start=True
        )
    if "escape" in problem or "hex" in problem:
        return mistake(
            "not-yaml", "an unknown \\ sequence inside double quotes", "use single quotes: nothing is special in them"
        )
    if "flow sequence" in context or "flow mapping" in context:
        opening, closing = ("[", "]") if "sequence" in context else ("{", "}")
        return mistake(
            "not-yaml",
            f"the {opening} that opens here is not closed where it should be (line {line + 1})",
            f"close it with {closing}, and put a comma between two entries",
            at_start=True,
        )
    if "mapping values" in problem:
        if _deeper_than_before(lines, line):
            return mistake(
                "indentation",
                "this line is indented deeper than a line that already has a value",
                "give keys of one level the same indentation, or take the value off the line above",
            )
        return mistake(
            "not-yaml",
            "a second ': ' on one line",
            "quote a text that contains ': ', put each key on a line of its own, or use { } around them",
        )
    if "simple key" in context or "':'" in problem:
        return mistake(
            "not-yaml", "a line without 'key: value'", "write a colon and a space after the key", at_start=True
        )
    if "block mapping" in context or "block collection" in context or "block sequence" in context:
        if here[column : column + 1] == ":":
            return mistake("key", "a value without a key", "write the key before the colon")
        if here[column : column + 1] in ("]", "}"):
            return mistake("not-yaml", f"a '{here[column]}' that closes nothing", "delete it, or write the opening one")
        return mistake(
            "indentation",
            "the indentation does not fit the lines above",
            "give keys of one level the same number of spaces, and list entries '- ' all the same",
        )
    if here[column : column + 1] in ("]", "}", ","):
        return mistake("not-yaml", f"a '{here[column]}' where a value should be", "delete it, or write the opening one")
    return mistake("not-yaml", "this is not YAML", "compare the line with profiles/bakery.yaml; quote texts with signs")


_FOREIGN = (
    (r"\s*(config|option|list)\s+['\"]?\w", "this is UCI, OpenWrt's own format"),
    (r"\s*(vrrp_\w+|virtual_server|real_server|global_defs|virtual_ipaddress)\b[^:]*\{?\s*$",
     "this is keepalived's format"),
    (r"\s*(frontend|backend|listen|defaults|global|bind|server|balance|mode|timeout)(\s+[^:\s]\S*)+\s*$",
     "this is HAProxy's format"),
)  # fmt: skip


def _foreign(lines: list[str]) -> tuple[str, str] | None:
    """What is wrong and what to do where one of these lines is another program's configuration."""
    for text in lines:
        for pattern, what in _FOREIGN:
            if re.match(pattern, text):
                return what, "write keys and values as in profiles/bakery.yaml: these files are made from the profile"
    return None


def _ipv6_in_flow(here: str, column: int) -> bool:
    """True if the parser stumbled over a `::` at the beginning or the end of an unquoted address."""
    before = here[max(0, column - 45) : column]
    return here[column : column + 1] == ":" and (
        here[column : column + 2] == "::" or re.search(r"(^|[\s\[{,])[0-9a-fA-F:]*:$", before) is not None
    )


def _deeper_than_before(lines: list[str], line: int) -> bool:
    def indent(text: str) -> int:
        return len(text) - len(text.lstrip(" "))

    before = next((t for t in reversed(lines[:line]) if t.strip() and not t.lstrip().startswith("#")), "")
    here = lines[line] if line < len(lines) else ""
    return bool(before) and indent(here) > indent(before)
