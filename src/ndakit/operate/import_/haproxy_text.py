"""haproxy.cfg as sections with the defaults that count for each, and the values that several of them state alike."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ndakit.lint.config_text import Line, Proxy, TextError, haproxy
from ndakit.operate.import_.ledger import SourceFile

PATH = "/etc/haproxy.cfg"
FAULTS_MAX = 200
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_ODD_ENDS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029\r]")


@dataclass
class ProxyPart:
    """A section that serves or is served, with what its defaults add."""

    proxy: Proxy
    defaults: Proxy | None
    file: SourceFile
    used: set[int] = field(default_factory=set)

    @property
    def name(self) -> str:
        """Its name."""
        return self.proxy.name

    def find(self, *keyword: str) -> Line | None:
        """The last line that begins with these words: its own, else its defaults' (the last one counts)."""
        for source in (self.proxy, self.defaults):
            lines = list(source.all(*keyword)) if source is not None else []
            if lines:
                return lines[-1]
        return None

    def own(self, *keyword: str) -> list[Line]:
        """Its own lines that begin with these words."""
        return list(self.proxy.all(*keyword))

    def head(self, key: str) -> None:
        """Its first line was used for a key."""
        self.file.key(self.proxy.number, key)

    def key(self, line: Line, key: str) -> None:
        """One of its lines was used for a key."""
        self.file.key(line.number, key)

    def seconds(self, key: str, *keyword: str, low: float = 0.1, high: float = 86400.0) -> float | None:
        """A time-out in seconds (HAProxy's own unit is the millisecond), told as used for a key."""
        line = self.find(*keyword)
        if line is None or len(line.words) <= len(keyword):
            return None
        value = seconds(line.words[len(keyword)])
        if value is None or not low <= value <= high:
            self.file.unsaid(line.number, f"{key} takes {low:.10g} to {high:.10g} seconds")
            return None
        self.key(line, key)
        return value

    @property
    def mode(self) -> str:
        """`http` or `tcp` (HAProxy's default), or what else is written."""
        line = self.find("mode")
        return line.words[1] if line is not None and len(line.words) > 1 else "tcp"


def seconds(text: str) -> float | None:
    """`5s`, `50000` (milliseconds), `1m`; None if it is no time."""
    parts = re.fullmatch(r"([0-9]{1,12})(us|ms|s|m|h|d)?", text)
    return None if parts is None else int(parts[1]) * _UNITS[parts[2] or "ms"]


def plain(value: float) -> int | float:
    """Without the point where none is needed."""
    return int(value) if value == int(value) else round(value, 3)


def read(file: SourceFile) -> tuple[list[Proxy], list[ProxyPart]]:
    """All sections, and those of them that are frontends, backends or both. Lines that cannot be read are told."""
    lines = [_ODD_ENDS.sub(" ", line) for line in file.lines]
    faults = 0
    while True:
        try:
            sections = haproxy("\n".join(lines))
            break
        except TextError as cause:
            file.unsaid(cause.line, f"HAProxy does not read it: {cause.message.lower()}")
            lines[min(cause.line, len(lines)) - 1] = ""
            faults += 1
            if faults > FAULTS_MAX:
                sections = []
                break
    parts: list[ProxyPart] = []
    defaults: Proxy | None = None
    named: dict[str, Proxy] = {}
    for section in sections:
        if section.kind == "defaults":
            defaults = section
            if section.name:
                named[section.name] = section
        elif section.kind in ("frontend", "backend", "listen"):
            parts.append(ProxyPart(section, _from(file, section, named) or defaults, file))
    return sections, parts


def _from(file: SourceFile, section: Proxy, named: dict[str, Proxy]) -> Proxy | None:
    """The defaults that a section names itself: `frontend www from web`."""
    words = file.lines[section.number - 1].split()
    return named.get(words[words.index("from") + 1]) if "from" in words[:-1] else None
