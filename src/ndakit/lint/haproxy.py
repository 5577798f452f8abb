"""Lint of haproxy.cfg: what HAProxy accepts and does not do.

Source: docs/facts.md, HAProxy and keepalived; what HAProxy refuses itself is left to `real_daemons`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address

from ndakit.core.names import frontend_name
from ndakit.lint import persistence
from ndakit.lint.config_text import HAPROXY, Line, Proxy, TextError, haproxy
from ndakit.lint.subject import LintFinding, Subject
from ndakit.model import package_plan

HAPROXY_INIT = "/etc/init.d/haproxy"
_FILE_KEYWORDS = {"errorfile": 2, "crt": 1, "crt-list": 1, "ca-file": 1, "crl-file": 1, "lua-load": 1}
_WORDS_MAX = 64
"""HAProxy's MAX_LINE_ARGS, of every version from 1.8 to 3.2: it refuses a longer line (include/haproxy/defaults.h)."""
_ASKS_PASSED_TLS = re.compile(r"\breq[._]ssl_(sni|alpn|ver|hello_type)\b")
_BROUGHT = {"/etc/ssl/certs/ca-certificates.crt": "ca-bundle"}
"""Files that HAProxy may read and that a package brings."""


def rules(subject: Subject) -> Iterator[LintFinding]:
    """haproxy.cfg."""
    file = subject.tree.get(HAPROXY)
    if not subject.profile.runs_haproxy:
        if file is not None:
            yield subject.finding("haproxy", HAPROXY, 0, "this node has nothing for HAProxy to do")
        return
    if HAPROXY_INIT not in subject.tree and not subject.profile.release.haproxy_under_procd:
        what = "missing: the package's own starts HAProxy behind procd's back, and nobody starts it again"
        yield subject.finding("respawn", HAPROXY_INIT, 0, what)
    if file is None:
        yield subject.finding("haproxy", HAPROXY, 0, "missing: HAProxy would start with the package's example")
        return
    try:
        proxies = haproxy(file.text)
    except TextError as cause:
        yield subject.finding("haproxy", HAPROXY, cause.line, cause.message)
        return
    yield from _names(subject, proxies)
    yield from _reserve(subject, proxies)
    yield from _privileges(subject, proxies)
    backends = {p.name for p in proxies if p.kind in ("backend", "listen")}
    servers = {f"{p.name}/{line.words[1]}" for p in proxies for line in p.all("server") if len(line.words) > 1}
    bound: dict[str, int] = {}
    for proxy in proxies:
        yield from _peers(subject, proxies, proxy)
        for line in proxy.lines:
            if len(line.words) > _WORDS_MAX:
                what = f"{len(line.words)} words in a line: HAProxy takes {_WORDS_MAX}, and would not start"
                yield subject.finding("haproxy-words", HAPROXY, line.number, what)
            yield from _files(subject, line)
            yield from _references(subject, line, backends, servers)
        if proxy.kind in ("frontend", "backend", "listen"):
            yield from _proxy(subject, proxy)
            yield from _passed_names(subject, proxy)
            yield from _binds(subject, proxy, bound)
            yield from persistence.rules(subject, proxies, proxy)


def _privileges(subject: Subject, proxies: list[Proxy]) -> Iterator[LintFinding]:
    """What needs root's rights in an HAProxy that gives them up, and `haproxy -c` does not see it: up to 2.8 it refuses
    to start; from 2.9 on, where `setcap` keeps single rights, it starts and each such connection fails (seen with 2.6
    and 3.0)."""
    settings = [line.words for p in proxies if p.kind == "global" for line in p.lines]
    user = next((w[1] for w in settings if w[0] in ("user", "uid") and len(w) > 1), "0")
    can = subject.profile.release.haproxy_keeps_rights
    kept = {right for w in settings if w[0] == "setcap" for word in w[1:] for right in word.split(",") if can}
    if user in ("root", "0"):
        return
    for line in (line for p in proxies if p.kind != "global" for line in p.lines):
        asked = {"usesrc", "set-mark"} & set(line.words)
        if "source" in line.words and "interface" in line.words:
            asked.add("source … interface")
        # capabilities(7): either of the two for a foreign source and a device, the wider one for a mark.
        enough = {"cap_net_admin"} | ({"cap_net_raw"} if "set-mark" not in asked else set())
        if asked and not kept & enough:
            fails = "it starts, and each of these connections fails" if can else "it does not start"
            what = f"{min(asked)} needs root's rights, and HAProxy gives them up (user {user}): {fails}"
            yield subject.finding("haproxy-privileges", HAPROXY, line.number, what)


def _names(subject: Subject, proxies: list[Proxy]) -> Iterator[LintFinding]:
    seen: dict[str, Proxy] = {}
    for proxy in proxies:
        if proxy.kind in ("frontend", "backend", "listen") and proxy.name in seen:
            what = (
                f"{proxy.kind} {proxy.name} has the name of the {seen[proxy.name].kind} in line "
                f"{seen[proxy.name].number}: HAProxy 3.2 warns, 3.3 does not start"
            )
            yield subject.finding("haproxy-name", HAPROXY, proxy.number, what)
        seen.setdefault(proxy.name, proxy)


def _reserve(subject: Subject, proxies: list[Proxy]) -> Iterator[LintFinding]:
    """HAProxy's own pages answer only while its own limit is not reached: it is above what the services may take."""
    limits = {p.name: _number(p.first("maxconn")) for p in proxies}
    own = next((_number(p.first("maxconn")) for p in proxies if p.kind == "global"), None)
    taken, places = 0, 0
    for proxy in proxies:
        if proxy.kind not in ("frontend", "listen"):
            continue
        limit = limits[proxy.name]
        if limit is None:
            what = f"{proxy.kind} {proxy.name} has no maxconn: HAProxy gives it all there are"
            yield subject.finding("haproxy-reserve", HAPROXY, proxy.number, what)
            return
        places += limit if proxy.name.startswith("_") else 0
        taken += 0 if proxy.name.startswith("_") else limit
    text = subject.tree[HAPROXY].text
    if together := re.search(r"^\ttcp-request connection reject if \{ sc2_conn_cur\(\S+\) gt (\d+) \}$", text, re.M):
        taken = min(taken, int(together[1]))
    if own is None or own < taken + places:
        what = (
            f"the global maxconn ({own}) is below {taken + places}, what services and HAProxy's own pages take "
            "together: a flood would silence the statistics and keepalived's question about pools"
        )
        yield subject.finding("haproxy-reserve", HAPROXY, 0, what)


def _number(line: Line | None) -> int | None:
    return int(line.words[1]) if line is not None and len(line.words) > 1 and line.words[1].isdigit() else None


def _peers(subject: Subject, proxies: list[Proxy], proxy: Proxy) -> Iterator[LintFinding]:
    if proxy.kind != "peers":
        return
    stated = (line.words[1] for p in proxies if p.kind == "global" for line in p.all("localpeer"))
    own = next(stated, subject.view.hostname)
    if own not in {line.words[1] for line in proxy.all("peer")}:
        what = f"this node, {own}, is not among the peers: HAProxy drops the whole section and only warns"
        yield subject.finding("haproxy-peers", HAPROXY, proxy.number, what)


def _files(subject: Subject, line: Line) -> Iterator[LintFinding]:
    for position, word in enumerate(line.words):
        if word not in _FILE_KEYWORDS:
            continue
        at = position + _FILE_KEYWORDS[word]
        path = line.words[at] if at < len(line.words) else ""
        yield from _file(subject, line, path or word)
        if word == "crt-list" and path in subject.tree:
            # A certificate, perhaps with words for it in brackets, and names (configuration manual, 5.1, "crt-list").
            listed = (row.split() for row in subject.tree[path].text.splitlines())
            paths = [words[0] for words in listed if words and not words[0].startswith("#")]
            for certificate in paths:
                yield from _file(subject, line, certificate)
            if not paths:
                what = f"{path} lists no certificate: HAProxy would not start"
                yield subject.finding("haproxy-file", HAPROXY, line.number, what)


def _file(subject: Subject, line: Line, path: str) -> Iterator[LintFinding]:
    if _BROUGHT.get(path) in package_plan.plan(subject.profile, subject.node).add:
        return
    if path not in subject.tree and not any(p.startswith(f"{path.rstrip('/')}/") for p in subject.tree):
        what = f"{path} is not in the tree: HAProxy would not start"
        yield subject.finding("haproxy-file", HAPROXY, line.number, what)


def _references(subject: Subject, line: Line, backends: set[str], servers: set[str]) -> Iterator[LintFinding]:
    if line.words[0] in ("use_backend", "default_backend") and line.words[1] not in backends:
        yield subject.finding("haproxy-backend", HAPROXY, line.number, f"no backend '{line.words[1]}'")
    if line.words[0] == "server" and "track" in line.words:
        tracked = line.words[line.words.index("track") + 1]
        if tracked not in servers:
            yield subject.finding("haproxy-track", HAPROXY, line.number, f"no server '{tracked}' to follow")
    for word in line.words:
        if (asked := re.match(r"(?:nbsrv|queue)\((.*)\)$", word)) and asked[1] not in backends:
            yield subject.finding("haproxy-backend", HAPROXY, line.number, f"no backend '{asked[1]}'")


def _proxy(subject: Subject, proxy: Proxy) -> Iterator[LintFinding]:
    if proxy.mode not in ("http", "tcp"):
        what = f"{proxy.kind} {proxy.name} does not state its mode"
        yield subject.finding("haproxy-mode", HAPROXY, proxy.number, what)
    if proxy.mode == "tcp":
        for line in proxy.lines:
            if line.words[0] == "cookie" or line.words[:2] in (("option", "httplog"), ("balance", "uri")):
                what = f"'{' '.join(line.words[:2])}' does nothing in mode tcp, and HAProxy only warns"
                yield subject.finding("haproxy-mode", HAPROXY, line.number, what)
    for line in proxy.all("server"):
        if "check" not in line.words and "track" not in line.words:
            what = (
                f"server {line.words[1]} is neither checked nor follows one that is: it would stay in when it is dead"
            )
            yield subject.finding("haproxy-check", HAPROXY, line.number, what)


def _passed_names(subject: Subject, proxy: Proxy) -> Iterator[LintFinding]:
    """Names of TLS that passes through: they are seen only where HAProxy waits for them, and where it does not end that
    TLS itself (configuration manual, 7.3.5, "req.ssl_sni")."""
    asking = next((line for line in proxy.lines if any(_ASKS_PASSED_TLS.search(word) for word in line.words)), None)
    if proxy.kind == "backend" or asking is None:
        return
    ends = next((line for line in proxy.all("bind") if "ssl" in line.words), None)
    waits = proxy.first("tcp-request", "inspect-delay") is not None and any(
        any("ssl_hello_type" in word for word in line.words) for line in proxy.all("tcp-request", "content")
    )
    if ends is not None or proxy.mode == "http":
        where = f"line {ends.number} ends it" if ends is not None else "http is read here"
        what = f"'{asking.words[0]}' asks for a name of TLS that passes through, and {where}: there is never one"
        yield subject.finding("haproxy-sni", HAPROXY, asking.number, what)
    elif not waits:
        what = "nothing waits for a client's TLS hello (inspect-delay, and a content rule with req.ssl_hello_type): "
        yield subject.finding("haproxy-sni", HAPROXY, asking.number, what + "no name would ever be seen")


def _binds(subject: Subject, proxy: Proxy, bound: dict[str, int]) -> Iterator[LintFinding]:
    own = set(subject.view.addresses)
    vips = {a for v in subject.profile.vips.values() for a in v.address}
    for line in proxy.all("bind"):
        socket = line.words[1]
        try:
            address = ip_address(socket.rpartition(":")[0].strip("[]"))
        except ValueError:
            what = f"'{socket}' names no address: it would listen on all of them"
            yield subject.finding("haproxy-bind", HAPROXY, line.number, what)
            continue
        # Ours, for programs of the node: keepalived, and who ends TLS in front of HAProxy.
        behind = {frontend_name(name) for name in subject.profile.inner_ports}
        if address.is_loopback and (proxy.name.startswith("_") or proxy.name in behind):
            continue
        if "accept-proxy" in line.words:
            what = f"whoever comes to {socket} is believed to be the client that it names (accept-proxy)"
            yield subject.finding("haproxy-proxy-protocol", HAPROXY, line.number, what)
        if address not in own | vips:
            what = f"{address} is neither a VIP nor an address of this node"
            yield subject.finding("haproxy-bind", HAPROXY, line.number, what)
        if socket in bound:
            what = f"{socket} is bound in line {bound[socket]} as well: HAProxy takes both and shares at random"
            yield subject.finding("haproxy-bind", HAPROXY, line.number, what)
        bound.setdefault(socket, line.number)
        if proxy.first("stats", "enable") is not None and address not in own:
            what = f"the statistics page on {address}, which is not the node's own"
            yield subject.finding("haproxy-statistics", HAPROXY, line.number, what)
