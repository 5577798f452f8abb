"""Lint of haproxy.cfg: ways to keep a client's server that HAProxy takes, and that keep nobody.

Source: docs/facts.md, HAProxy and keepalived.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ndakit.lint.config_text import HAPROXY, Line, Proxy
from ndakit.lint.subject import LintFinding, Subject

_OF_HTTP = re.compile(r"\b(?:re[qs]\.(?:cook|f?hdr)|url_param)\b")
_OF_CONTENT = re.compile(r"\b(?:payload(?:_lv)?|req\.(?:ssl|rdp)_\w+|res\.ssl_\w+)\b")
_HEADER = re.compile(r"\breq\.f?hdr\(([^,)]+)")


def rules(subject: Subject, proxies: list[Proxy], proxy: Proxy) -> Iterator[LintFinding]:
    """A section with servers whose clients are to be kept."""
    sticks = [*proxy.all("stick")]
    yield from _cookie(subject, proxy)
    yield from _refuses(subject, proxy)
    for line in sticks:
        text = " ".join(line.words)
        if proxy.mode == "tcp" and _OF_HTTP.search(text):
            what = f"'{text}' finds nothing in mode tcp, and HAProxy only warns"
            yield subject.finding("haproxy-mode", HAPROXY, line.number, what)
        way = "tcp-response" if line.words[1:2] == ("store-response",) else "tcp-request"
        if proxy.mode == "tcp" and _OF_CONTENT.search(text) and proxy.first(way, "inspect-delay") is None:
            what = f"'{text}' looks before anything was said: {proxy.name} has no {way} inspect-delay"
            yield subject.finding("haproxy-stick-wait", HAPROXY, line.number, what)
        if (header := _HEADER.search(text)) is not None:
            yield from _header(subject, proxies, proxy, line, header[1])


def _cookie(subject: Subject, proxy: Proxy) -> Iterator[LintFinding]:
    """Each server needs a value of the cookie, and the cookie a name."""
    stated = proxy.first("cookie")
    for line in proxy.all("server"):
        if stated is not None and "cookie" not in line.words:
            what = f"server {line.words[1]} has no value of the cookie {stated.words[1]}: its clients are not kept"
            yield subject.finding("haproxy-cookie", HAPROXY, line.number, what)
        if stated is None and "cookie" in line.words:
            what = f"server {line.words[1]} has a cookie, and {proxy.name} has none: its clients are not kept"
            yield subject.finding("haproxy-cookie", HAPROXY, line.number, what)


def _refuses(subject: Subject, proxy: Proxy) -> Iterator[LintFinding]:
    """Who is turned away once a server is known to be down must not be sent elsewhere before."""
    asks = next((line for line in proxy.lines if any(w.startswith("srv_is_up(") for w in line.words)), None)
    if asks is not None and proxy.first("no", "option", "redispatch") is None:
        what = (
            f"{proxy.name} turns clients of a dead server away, and until its checks notice it sends them to another "
            "one: 'no option redispatch' is missing"
        )
        yield subject.finding("haproxy-redispatch", HAPROXY, asks.number, what)


def _header(subject: Subject, proxies: list[Proxy], proxy: Proxy, line: Line, name: str) -> Iterator[LintFinding]:
    """A header that the frontend deletes, because clients could claim something by it, is not there any more."""
    for front in proxies:
        leads = (one.words[1] for one in front.lines if one.words[0] in ("use_backend", "default_backend"))
        if front.kind != "frontend" or proxy.name not in leads:
            continue
        there = False
        for rule in front.all("http-request"):
            if rule.words[1:2] == ("set-header",) and rule.words[2].lower() == name.lower():
                there = True
            if rule.words[1:2] == ("del-header",) and not there and _deletes(rule, name):
                sets = any(o.words[2].lower() == name.lower() for o in front.all("http-request", "set-header"))
                if not sets:
                    what = (
                        f"{front.name} deletes {name} of every request, because a client could claim something by it: "
                        "nobody would be kept; choose another header"
                    )
                    yield subject.finding("haproxy-stick-header", HAPROXY, line.number, what)
                break


def _deletes(rule: Line, name: str) -> bool:
    if "-m" in rule.words:
        return re.search(rule.words[2], name, re.IGNORECASE) is not None
    return rule.words[2].lower() == name.lower() and "if" not in rule.words and "unless" not in rule.words
