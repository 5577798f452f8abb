"""Lint of topology tproxy: servers' answers that are addressed to clients come back to HAProxy, or nobody gets any.

Three files have to agree: the firewall marks those answers, the network's rule sends what has the mark to a table, and
the table takes everything in. Each part missing is silent: connections time out (docs/facts.md, Transparent proxy).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ndakit.core.uci import Section
from ndakit.lint.config_text import HAPROXY, Proxy, TextError, haproxy
from ndakit.lint.subject import LintFinding, Subject

NETWORK = "/etc/config/network"
NFT, USER = "/etc/nftables.d/20-tproxy.nft", "/etc/firewall.user"
_NFT_CHAIN = re.compile(r"type filter hook prerouting priority mangle - 1;")
_NFT_RULE = re.compile(
    r"^\s*meta l4proto tcp socket transparent 1 meta mark set meta mark \| (0x[0-9a-f]+) .*accept\b", re.M
)
_EVERYTHING = {4: ("0.0.0.0/0",), 6: ("::/0",)}


def rules(subject: Subject) -> Iterator[LintFinding]:
    """All rules about it."""
    text = subject.tree[HAPROXY].text if HAPROXY in subject.tree else ""
    try:
        proxies = haproxy(text)
    except TextError:
        return  # haproxy.py says so
    yield from sources(subject, proxies)
    divert = subject.view.divert
    if divert is None:
        return
    marks = dict(_marks(subject))
    path = NFT if subject.profile.release.fw4 else USER
    for version in divert.versions:
        if version not in marks:
            what = f"nothing marks IPv{version} answers for HAProxy (DIVERT): servers' answers never reach it"
            yield subject.finding("divert", path if path in subject.tree else NETWORK, 0, what)
            continue
        yield from way_in(subject, version, marks[version])


def sources(subject: Subject, proxies: list[Proxy]) -> Iterator[LintFinding]:
    """Which backends connect from clients' addresses: all those of tproxy's services, and no others."""
    wanted = {name for name, service in subject.profile.services.items() if service.transparent}
    backends = {p.name: p for p in proxies if p.kind == "backend"}
    for frontend in (p for p in proxies if p.kind == "frontend" and p.name.startswith("service:")):
        transparent = frontend.name.removeprefix("service:") in wanted
        used = [line.words[1] for k in ("use_backend", "default_backend") for line in frontend.all(k)]
        for name in dict.fromkeys(used):
            backend = backends.get(name)
            if backend is not None and backend.first("server") is None:
                continue  # says what `sorry` says, and connects to nobody
            line = backend.first("source") if backend is not None else None
            if backend is not None and transparent != (line is not None and line.words[2:4] == ("usesrc", "clientip")):
                what = f"backend {name} of {frontend.name} connects from the client's address, and that is not tproxy"
                if transparent:
                    what = f"backend {name} of {frontend.name} (tproxy) does not connect from the client's address"
                yield subject.finding(
                    "divert-source", HAPROXY, line.number if line is not None else backend.number, what
                )


def way_in(subject: Subject, version: int, mark: int) -> Iterator[LintFinding]:
    """A rule for the mark, and a table in which everything is local."""
    suffix = "" if version == 4 else "6"
    rules = [s for s in subject.sections("network", f"rule{suffix}") if _mark(s) == mark]
    if not rules:
        what = f"no rule{suffix} for packets with the mark {mark:#x}: IPv{version} answers for HAProxy are not taken in"
        yield subject.finding("divert", NETWORK, 0, what)
        return
    table = rules[0].get("lookup")
    for section in subject.sections("network", f"route{suffix}"):
        everything = section.get("target") in _EVERYTHING[version] or (
            section.get("target") == section.get("netmask") == "0.0.0.0"
        )
        if section.get("type") == "local" and section.get("table") == table and everything:
            return
    what = (
        f"table {table} has no local route{suffix} for every address: IPv{version} answers for HAProxy are not taken in"
    )
    yield subject.finding("divert", NETWORK, rules[0].line, what)


def _mark(section: Section) -> int | None:
    value, _, mask = (section.get("mark") or "").partition("/")
    try:
        return int(value, 16) if mask in ("", value) else None
    except ValueError:
        return None


def _marks(subject: Subject) -> Iterator[tuple[int, int]]:
    """IP version → the mark that answers for HAProxy get."""
    if subject.profile.release.fw4:
        text = subject.tree[NFT].text if NFT in subject.tree else ""
        mark = _NFT_RULE.search(text)
        if mark and _NFT_CHAIN.search(text):
            yield from ((version, int(mark[1], 16)) for version in (4, 6))
        return
    if USER not in subject.tree or not any(s.get("path") == USER for s in subject.sections("firewall", "include")):
        return
    lines = [line.strip() for line in subject.tree[USER].text.splitlines() if not line.lstrip().startswith("#")]
    jumps = any(
        "-p tcp -m socket --transparent -j ndakit_divert" in line and " -I PREROUTING " in line for line in lines
    )
    marked = next(
        (m for line in lines if (m := re.search(r"-A ndakit_divert -j MARK --set-xmark (0x[0-9a-f]+)/\1$", line))), None
    )
    for version, program in ((4, "iptables"), (6, "ip6tables")):
        if jumps and marked is not None and f"divert {program}" in lines:
            yield version, int(marked[1], 16)
