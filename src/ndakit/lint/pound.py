"""Lint of pound.cfg: what `pound -c` takes without a word, and what then fails or does something else.

Each rule was tried with Pound 4.16 and 4.19 (docs/pound.md, "What Pound takes silently"). What `pound -c` refuses is
left to `real_daemons`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ndakit.lint import config_text
from ndakit.lint.config_text import HAPROXY, POUND, Line, TextError
from ndakit.lint.subject import LintFinding, Subject

SYSTEM_USERS = ("pound", "nobody", "root")
"""Accounts that are there: that of the package, and base-files'."""
_SECTIONS = (
    "listenhttp", "listenhttps", "service", "backend", "emergency", "rewrite", "match", "combineheaders", "acl",
)  # fmt: skip
_LAST_PORT = 65535
ALIVE_MAX_S = 2


@dataclass
class PoundSection:
    """A section of pound.cfg, its directives (keywords in lower case), and the sections inside."""

    kind: str
    line: Line
    lines: list[Line] = field(default_factory=list)
    inner: list[PoundSection] = field(default_factory=list)

    def first(self, keyword: str) -> Line | None:
        """The first directive of a name."""
        return next((line for line in self.lines if line.words[0].lower() == keyword), None)

    def value(self, keyword: str) -> str:
        """The first word after it; empty without."""
        line = self.first(keyword)
        return line.words[1] if line is not None and len(line.words) > 1 else ""


def sections(text: str) -> PoundSection:
    """The whole file as a section. Raises TextError for sections that do not close."""
    stack = [PoundSection("", Line(0, ("",)))]
    for number, raw in enumerate(text.splitlines(), 1):
        words = tuple(
            re.sub(r"\\(.)", r"\1", quoted) if plain == "" else plain
            for quoted, plain in re.findall(r'"((?:[^"\\]|\\.)*)"|([^\s"#]+)', _uncommented(raw))
        )
        if not words:
            continue
        keyword, line = words[0].lower(), Line(number, words)
        if keyword == "end":
            if len(stack) == 1:
                raise TextError(number, "an End too many")
            stack.pop()
            continue
        alone = keyword != "acl" or len(words) == 1 or (len(words) == 2 and len(stack) == 1)
        if keyword in _SECTIONS and alone:
            inside = PoundSection(keyword, line)
            stack[-1].inner.append(inside)
            stack.append(inside)
        else:
            stack[-1].lines.append(line)
    if len(stack) > 1:
        raise TextError(stack[-1].line.number, f"{stack[-1].line.words[0]} has no End")
    return stack[0]


def _uncommented(line: str) -> str:
    """A line without its comment; # inside of double quotes is text."""
    code = re.match(r'(?:[^"#]|"(?:[^"\\]|\\.)*")*', line)
    return code[0] if code else line


def rules(subject: Subject) -> Iterator[LintFinding]:
    """pound.cfg, where Pound runs."""
    file = subject.tree.get(POUND)
    if not subject.profile.pound_services:
        if file is not None:
            yield subject.finding("pound", POUND, 0, "Pound ends TLS for no service of this profile")
        return
    if file is None:
        yield subject.finding("pound", POUND, 0, "missing: there would be no https")
        return
    try:
        root = sections(file.text)
    except TextError as cause:
        yield subject.finding("pound", POUND, cause.line, cause.message)
        return
    alive = root.value("alive")
    if not alive.isdigit() or int(alive) > ALIVE_MAX_S:
        what = f"a HAProxy that was away for a moment is asked again after {alive or 30} s only: status 503 until then"
        yield subject.finding("pound-alive", POUND, 0, what)
    listeners = [s for s in root.inner if s.kind in ("listenhttp", "listenhttps")]
    yield from _accounts(subject, root)
    yield from _client_address(subject, root, listeners)
    taken: dict[tuple[str, str], int] = {}
    for listener in listeners:
        yield from _socket(subject, listener, taken)
        yield from _listener(subject, listener)
        yield from _services(subject, listener)
        yield from _headers(subject, listener)
    yield from _wanted(subject, listeners)


def _accounts(subject: Subject, root: PoundSection) -> Iterator[LintFinding]:
    for keyword in ("user", "group"):
        line = root.first(keyword)
        if line is None:
            what = f"no {keyword.capitalize()}: Pound would go on as root"
            yield subject.finding("pound-user", POUND, 0, what)
        elif root.value(keyword) not in SYSTEM_USERS:
            what = f"no {keyword} '{root.value(keyword)}' is on the node: Pound would end at its start"
            yield subject.finding("pound-user", POUND, line.number, what)


def _client_address(subject: Subject, root: PoundSection, listeners: list[PoundSection]) -> Iterator[LintFinding]:
    """HAProxy believes the last word of X-Forwarded-For, which has to be Pound's."""
    joined = {
        name.lower()
        for section in root.inner if section.kind == "combineheaders"
        for line in section.lines for name in line.words
    }  # fmt: skip
    if "x-forwarded-for" not in joined:
        what = "CombineHeaders lacks X-Forwarded-For: a second line of a client's would be believed"
        yield subject.finding("pound-client", POUND, 0, what)
    for section in (root, *listeners):
        line = section.first("headeroption")
        if line is not None and {"none", "no-forwarded"} & set(line.words[1:]):
            what = "without the forwarded headers HAProxy does not learn who the client is, and refuses everybody"
            yield subject.finding("pound-client", POUND, line.number, what)


def _socket(subject: Subject, listener: PoundSection, taken: dict[tuple[str, str], int]) -> Iterator[LintFinding]:
    place = (listener.value("address"), listener.value("port"))
    if place in taken:
        what = f"{place[0]} port {place[1]} is line {taken[place]}'s as well: Pound would end at its start"
        yield subject.finding("pound-socket", POUND, listener.line.number, what)
    taken.setdefault(place, listener.line.number)
    if not place[1].isdigit() or not 0 < int(place[1]) <= _LAST_PORT:
        yield subject.finding("pound-socket", POUND, listener.line.number, f"'{place[1]}' is no port")
    if not place[0]:
        what = "no Address: it would listen on every address of the node"
        yield subject.finding("pound-socket", POUND, listener.line.number, what)


def _listener(subject: Subject, listener: PoundSection) -> Iterator[LintFinding]:
    if listener.kind == "listenhttps" and listener.first("disable") is None:
        what = "no Disable: clients may use every TLS version that OpenSSL still has"
        yield subject.finding("pound-tls", POUND, listener.line.number, what)
    ciphers = listener.first("ciphers")
    known = re.compile(r"@SECLEVEL=[0-5]|[A-Z0-9]+(-[A-Z0-9]+)+")
    if ciphers is not None:
        wrong = [word for word in listener.value("ciphers").split(":") if not known.fullmatch(word)]
        if wrong:
            what = f"'{wrong[0]}' names no cipher: Pound takes the rest, or OpenSSL's own list, without a word"
            yield subject.finding("pound-tls", POUND, ciphers.number, what)
    if listener.first("xhttp") is None:
        what = "no xHTTP: every method but GET, HEAD and POST would be refused"
        yield subject.finding("pound-methods", POUND, listener.line.number, what)


def _services(subject: Subject, listener: PoundSection) -> Iterator[LintFinding]:
    services = [s for s in listener.inner if s.kind == "service"]
    if not services:
        what = "no Service: every request gets status 503"
        yield subject.finding("pound-service", POUND, listener.line.number, what)
    open_to_all: PoundSection | None = None
    for service in services:
        if open_to_all is not None:
            what = f"no request comes here: the Service of line {open_to_all.line.number} takes all"
            yield subject.finding("pound-service", POUND, service.line.number, what)
        backends = [b for b in service.inner if b.kind == "backend"]
        if not backends:
            yield subject.finding("pound-service", POUND, service.line.number, "no Backend: requests get status 503")
        matching = {"host", "path", "url", "header", "query", "queryparam", "acl", "stringmatch", "not", "basicauth"}
        if not any(line.words[0].lower() in matching for line in service.lines) and not any(
            s.kind in ("match", "acl") for s in service.inner
        ):
            open_to_all = open_to_all or service
        for backend in backends:
            yield from _backend(subject, backend)


def _backend(subject: Subject, backend: PoundSection) -> Iterator[LintFinding]:
    """HAProxy has to listen where Pound asks it."""
    try:
        proxies = config_text.haproxy(subject.tree[HAPROXY].text) if HAPROXY in subject.tree else []
    except TextError:
        return  # told elsewhere
    bound = {line.words[1] for proxy in proxies for line in proxy.lines if line.words[0] == "bind"}
    asked = f"{backend.value('address')}:{backend.value('port')}"
    if asked not in bound:
        what = f"nobody listens on {asked}: requests get status 503"
        yield subject.finding("pound-backend", POUND, backend.line.number, what)


def _headers(subject: Subject, section: PoundSection) -> Iterator[LintFinding]:
    for line in section.lines:
        if line.words[0].lower() not in ("setheader", "addheader", "headeradd"):
            continue
        text = line.words[-1]
        if not re.match(r"[A-Za-z0-9-]+:", text):
            yield subject.finding("pound-header", POUND, line.number, f"'{text}' is no header: Pound leaves it out")
        elif re.search(r"[$%]", text):
            what = f"'{text}' has a $ or %, which Pound replaces by parts of the request"
            yield subject.finding("pound-header", POUND, line.number, what)
    for inside in section.inner:
        yield from _headers(subject, inside)


def _wanted(subject: Subject, listeners: list[PoundSection]) -> Iterator[LintFinding]:
    """Every address and port of the services has its listener."""
    there = {(s.value("address"), s.value("port")) for s in listeners if s.kind == "listenhttps"}
    for name in subject.profile.pound_services:
        for endpoint in subject.profile.endpoints(name):
            missing = [
                port for low, high in endpoint.ports for port in range(low, high + 1)
                if (str(endpoint.address), str(port)) not in there
            ]  # fmt: skip
            if missing:
                what = f"nobody listens on {endpoint.address} port {missing[0]} for service {name}"
                yield subject.finding("pound-socket", POUND, 0, what)
