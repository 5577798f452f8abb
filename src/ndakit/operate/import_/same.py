"""Which lines of a file ndakit writes by itself: those of what is rendered from the new profile, at the same place.

A place is a section: of UCI with its type and name, of haproxy.cfg with its kind and name, of keepalived.conf with the
heads of its blocks. A firewall rule is compared as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ndakit.core.uci import Section, read_leniently
from ndakit.lint.config_text import Proxy
from ndakit.operate.import_ import haproxy_text, keepalived_text
from ndakit.operate.import_.ledger import SourceFile

Place = tuple[str, ...]
ALIKE = {"rule", "nat", "route", "route6", "rule6", "include", "zone", "device", "forwarding", "redirect"}
"""Types of UCI sections of which there are many: they are compared as a whole."""
_KEEPALIVED, _HAPROXY = "/etc/keepalived/keepalived.conf", "/etc/haproxy.cfg"
WRITTEN = "ndakit writes this line itself"


def placed(file: SourceFile) -> dict[int, tuple[Place, str]]:
    """Line → its place and its words, for all lines that are no comments."""
    if file.path == _HAPROXY:
        sections, _ = haproxy_text.read(_copy(file))
        return dict(_haproxy(sections))
    if file.path == _KEEPALIVED:
        root = keepalived_text.read(_copy(file))
        return {line.number: (path, " ".join(line.words)) for path, line in keepalived_text.walk(root)}
    if file.path.startswith("/etc/config/"):
        sections_, _ = read_leniently("\n".join(file.lines))
        result: dict[int, tuple[Place, str]] = {}
        for section in sections_:
            result |= _uci(section)
        return result
    return {n: ((), " ".join(t.split())) for n, t in enumerate(file.lines, 1) if t.strip()}


def _copy(file: SourceFile) -> SourceFile:
    """The same text, with an account that nobody looks at."""
    return SourceFile(file.node, file.path, file.lines)


def _haproxy(sections: list[Proxy]) -> list[tuple[int, tuple[Place, str]]]:
    result: list[tuple[int, tuple[Place, str]]] = []
    for section in sections:
        place = (section.kind, section.name)
        result.append((section.number, (place, "")))
        result += [(line.number, (place, " ".join(line.words))) for line in section.lines]
    return result


def _uci(section: Section) -> dict[int, tuple[Place, str]]:
    whole = section_words(section)
    place: Place = (section.type, whole) if section.type in ALIKE else (section.type, section.name or "")
    result = {section.line: (place, "")}
    for option in section.options:
        result[option.line] = (place, f"{option.name} {option.value}")
    return result


def section_words(section: Section) -> str:
    """A section without its name, in one text."""
    return "\n".join(sorted(f"{o.name} {o.value}" for o in section.options))


def forgive(file: SourceFile, rendered: str, aliases: Mapping[Place, Place], renamed: Mapping[str, str]) -> None:
    """Tell the lines of a file that are in the rendered one as well, where host names become others (`renamed`)."""
    theirs = set(placed(SourceFile(file.node, file.path, rendered.split("\n"))).values())
    for line, (place, words) in placed(file).items():
        if any((aliases.get(place, place), text) in theirs for text in (words, _in_other_words(words, renamed))):
            file.forgive(line, WRITTEN)


def _in_other_words(text: str, renamed: Mapping[str, str]) -> str:
    words = "|".join(re.escape(old) for old in sorted(renamed, key=len, reverse=True) if old)
    return re.sub(rf"(?<![\w-])({words})(?![\w-])", lambda match: renamed[match[1]], text) if words else text


def follow(file: SourceFile, first: SourceFile) -> None:
    """Tell the lines of another node's file as those of the first node that stand at the same place."""
    for line, other in _places_shared(file, first).items():
        if line not in file.fates:
            for fate in first.fates.get(other, []):
                file.tell(line, fate.kind, fate.what)


def follow_reasons(file: SourceFile, first: SourceFile) -> None:
    """The reasons for what nothing says, after the first node's are all there; a line that it has not says so."""
    shared = _places_shared(file, first)
    for line, (_, words) in placed(file).items():
        if line in shared:
            file.hints.update({line: first.hints[shared[line]]} if shared[line] in first.hints else {})
        elif line not in file.hints and words:
            file.hint(line, f"{first.node} has another line here: the nodes of a profile are alike")


def _places_shared(file: SourceFile, first: SourceFile) -> dict[int, int]:
    """Line of one file → the line of the other one with the same words at the same place."""
    known: dict[tuple[Place, str], int] = {}
    for line, at in placed(first).items():
        known.setdefault(at, line)
    return {line: known[at] for line, at in placed(file).items() if at in known}
