"""Lint of stunnel.conf: what stunnel takes without a word, and what then fails or does something else.

stunnel has no check of its file (stunnel(8)); each rule was tried with 5.68 (docs/stunnel.md, "What stunnel takes
silently"). What it refuses at its start is left to `real_daemons`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ndakit.lint import config_text
from ndakit.lint.config_text import HAPROXY, STUNNEL, Line, TextError
from ndakit.lint.subject import LintFinding, Subject

INIT = "/etc/init.d/stunnel"
_QUIET = ("emerg", "alert", "crit", "err", "warning", "0", "1", "2", "3", "4")
_PROXY_PROTOCOL = re.compile("proxy")
_CIPHER = re.compile(r"@SECLEVEL=[0-5]|[A-Z0-9]+(-[A-Z0-9]+)+")


@dataclass
class StunnelSection:
    """A section of stunnel.conf; the first one, without a name, is the file's head. A line is keyword and value."""

    name: str
    line: Line
    lines: list[Line] = field(default_factory=list)

    def all(self, keyword: str) -> list[Line]:
        """The lines of a keyword."""
        return [line for line in self.lines if line.words[0].lower() == keyword.lower()]

    def value(self, keyword: str) -> str:
        """The value of the last line of a keyword, which is the one that counts; empty without."""
        return next((line.words[1] for line in reversed(self.all(keyword))), "")


def sections(text: str) -> list[StunnelSection]:
    """The sections. Raises TextError for a line that is neither `[NAME]` nor `keyword = value`."""
    parsed = [StunnelSection("", Line(0, ("",)))]
    for number, raw in enumerate(text.splitlines(), 1):
        row = raw.strip()
        if not row or row[0] in ";#":
            continue
        if head := re.fullmatch(r"\[([^\]]+)\]", row):
            parsed.append(StunnelSection(head[1], Line(number, (head[1],))))
            continue
        keyword, equals, value = row.partition("=")
        if not equals:
            raise TextError(number, f"'{row}' is neither a section nor 'keyword = value'")
        parsed[-1].lines.append(Line(number, (keyword.strip(), value.strip())))
    return parsed


def rules(subject: Subject) -> Iterator[LintFinding]:
    """stunnel.conf, where stunnel runs."""
    file = subject.tree.get(STUNNEL)
    if not subject.profile.stunnel_services:
        if file is not None:
            yield subject.finding("stunnel", STUNNEL, 0, "stunnel ends TLS for no service of this profile")
        return
    for path in (STUNNEL, INIT):
        if path not in subject.tree:
            what = "missing: " + (
                "there would be no TLS" if path == STUNNEL
                else "the package's own gives stunnel up after five ends in a row, and has files for 500 clients"
            )  # fmt: skip
            yield subject.finding("stunnel", path, 0, what)
    if file is None:
        return
    try:
        head, *others = sections(file.text)
    except TextError as cause:
        yield subject.finding("stunnel", STUNNEL, cause.line, cause.message)
        return
    yield from _head(subject, head)
    taken: dict[str, int] = {}
    for section in others:
        yield from _listening(subject, section, taken)
        yield from _tls(subject, section)
        yield from _behind(subject, section)
    yield from _names(subject, others)
    yield from _wanted(subject, taken)


def _head(subject: Subject, head: StunnelSection) -> Iterator[LintFinding]:
    for keyword, account in (("setuid", "nobody"), ("setgid", "nogroup")):
        if head.value(keyword) != account:
            what = f"no {keyword} = {account}: stunnel would go on as root, or end at its start"
            yield subject.finding("stunnel-user", STUNNEL, 0, what)
    if head.value("foreground") not in ("yes", "quiet"):
        what = "no foreground: procd would take a stunnel that goes to the background for one that has ended"
        yield subject.finding("stunnel-foreground", STUNNEL, 0, what)
    if head.value("debug").rpartition(".")[2] not in _QUIET:
        what = "debug is not warning: a line for each connection would push everything else out of the log"
        yield subject.finding("stunnel-log", STUNNEL, 0, what)


def _listening(subject: Subject, section: StunnelSection, taken: dict[str, int]) -> Iterator[LintFinding]:
    accepts = section.all("accept")
    if not accepts and not section.all("sni"):
        what = f"section {section.name} has neither accept nor sni: nobody comes to it"
        yield subject.finding("stunnel-socket", STUNNEL, section.line.number, what)
    for line in accepts:
        place = line.words[1]
        address, _, port = place.rpartition(":")
        if not address:
            what = f"accept = {place} names no address: it would listen on every address of the node"
            yield subject.finding("stunnel-socket", STUNNEL, line.number, what)
        if not port.isdigit() or not 0 < int(port) <= 65535:
            yield subject.finding("stunnel-socket", STUNNEL, line.number, f"'{port}' is no port")
        if place in taken:
            what = f"{place} is line {taken[place]}'s as well: stunnel goes on without one of the two"
            yield subject.finding("stunnel-socket", STUNNEL, line.number, what)
        taken.setdefault(place, line.number)


def _tls(subject: Subject, section: StunnelSection) -> Iterator[LintFinding]:
    number = section.line.number
    if not section.value("sslVersionMin"):
        what = f"section {section.name} has no sslVersionMin: clients may use every version that OpenSSL still has"
        yield subject.finding("stunnel-tls", STUNNEL, number, what)
    wrong = [word for word in section.value("ciphers").split(":") if word and not _CIPHER.fullmatch(word)]
    if wrong:
        what = f"'{wrong[0]}' names no cipher: stunnel takes the rest without a word"
        yield subject.finding("stunnel-tls", STUNNEL, number, what)
    path = section.value("cert")
    if path not in subject.tree:
        what = f"{path or 'cert'} is not in the tree: stunnel would not start"
        yield subject.finding("stunnel-file", STUNNEL, number, what)


def _behind(subject: Subject, section: StunnelSection) -> Iterator[LintFinding]:
    """HAProxy has to listen where stunnel asks it, and to learn who the client is."""
    try:
        proxies = config_text.haproxy(subject.tree[HAPROXY].text) if HAPROXY in subject.tree else []
    except TextError:
        return  # told elsewhere
    bound = {line.words[1]: line.words for proxy in proxies for line in proxy.all("bind")}
    asked = section.value("connect")
    if asked not in bound:
        what = f"nobody listens on {asked or 'what section ' + section.name + ' connects to'}: connections end at once"
        yield subject.finding("stunnel-backend", STUNNEL, section.line.number, what)
    elif bool(_PROXY_PROTOCOL.fullmatch(section.value("protocol"))) != ("accept-proxy" in bound[asked]):
        what = (
            f"section {section.name} has protocol = proxy, or HAProxy's bind {asked} has accept-proxy, and not both: "
            "HAProxy would refuse every connection, or take stunnel for the client"
        )
        yield subject.finding("stunnel-client", STUNNEL, section.line.number, what)


def _names(subject: Subject, others: list[StunnelSection]) -> Iterator[LintFinding]:
    listening = {section.name for section in others if section.all("accept")}
    before: dict[str, list[str]] = {}
    for section in others:
        lines = section.all("sni")
        if len(lines) > 1:
            what = f"section {section.name} has {len(lines)} sni: only the last one counts"
            yield subject.finding("stunnel-sni", STUNNEL, lines[0].number, what)
        for line in lines:
            primary, _, pattern = line.words[1].partition(":")
            if primary not in listening:
                what = f"'{primary}' is no section that listens: stunnel would not start"
                yield subject.finding("stunnel-sni", STUNNEL, line.number, what)
            earlier = next((p for p in before.get(primary, []) if _takes(p, pattern)), None)
            if earlier is not None:
                what = f"no client comes here: an earlier section takes {earlier}, and its * takes dots too"
                yield subject.finding("stunnel-sni", STUNNEL, line.number, what)
            before.setdefault(primary, []).append(pattern)


def _takes(earlier: str, later: str) -> bool:
    """True if every name of the later pattern is one of the earlier's, as stunnel compares them."""
    if earlier.startswith("*"):
        return later.lower().endswith(earlier[1:].lower())
    return earlier.lower() == later.lower()


def _wanted(subject: Subject, taken: dict[str, int]) -> Iterator[LintFinding]:
    """Every address and port of the services has its section."""
    for name in subject.profile.stunnel_services:
        for endpoint in subject.profile.endpoints(name):
            ports = (port for low, high in endpoint.ports for port in range(low, high + 1))
            missing = next((port for port in ports if f"{endpoint.address}:{port}" not in taken), None)
            if missing is not None:
                what = f"nobody listens on {endpoint.address} port {missing} for service {name}"
                yield subject.finding("stunnel-socket", STUNNEL, 0, what)
