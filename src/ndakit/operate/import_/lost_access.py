"""What kept somebody out of the old balancer, and no key of the profile says: a person decides each of it.

A profile opens a service to everybody who reaches its VIP's network (`render/firewall.py`). Wherever the old box let
in fewer, by a firewall rule or by a line of HAProxy, the profile would be wider without a word.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ndakit.core.mistakes import clean
from ndakit.core.uci import Section
from ndakit.model import Address
from ndakit.operate.import_ import haproxy_text, pound, stunnel, uci_files
from ndakit.operate.import_.draft import Draft, NetworkDraft, subnet
from ndakit.operate.import_.firewall import PATH, PROTOCOLS, enabled, narrowing, spans, words, zones
from ndakit.operate.import_.ledger import Ledger, SourceFile
from ndakit.operate.import_.uci_files import UciFile

_DROPS = ("DROP", "REJECT")
_TERMINATORS = (pound.PATH, stunnel.PATH)
_KEEPS_OUT_BEFORE_TLS = re.compile(
    r"\s*(ClientCert|VerifyList|CheckURL|Deny|ACL|verify\w*|requireCert|CAfile|CApath|CRLfile|libwrap|check\w+)\b", re.I
)
"""Lines of Pound and stunnel by which some clients are turned away (pound(8), stunnel(8))."""
_SCRIPTS = re.compile(r"/etc/firewall\.user|/etc/nftables\.d/.*")
_KEEPS_OUT = re.compile(
    r"http-request (deny|tarpit|auth|reject|silent-drop|lua\.)|http-response (deny|lua\.)|"
    r"tcp-request (connection|content|session) (reject|silent-drop|lua\.)|"
    r"stats http-request|block |reqi?(deny|tarpit|allow|pass)|rspi?deny|filter (spoe|lua)|rate-limit |"
    r"bind .*\binterface "
)
"""Lines of haproxy.cfg that turn somebody away (configuration manual, 4.2 and 4.3)."""
_ABOUT_CLIENTS = re.compile(
    r"(src|hdr_ip|req\.hdr_ip|http_auth|http_auth_group|ssl_c_|ssl_fc_has_crt|sc[012]?_)\b|ssl_c_"
)


def tell(draft: Draft, ledger: Ledger) -> None:
    """Ask a person about everything that is lost and kept somebody out. Call it when every line has its fate."""
    for file in ledger.files:
        if file.path == PATH:
            _firewall(draft, uci_files.opened(SourceFile(file.node, file.path, file.lines)), file)
        elif file.path == haproxy_text.PATH:
            _haproxy(draft, file)
        elif file.path in _TERMINATORS:
            _terminator(draft, file)
        elif _SCRIPTS.fullmatch(file.path):
            _script(draft, file)


def _unsaid(file: SourceFile) -> Iterator[int]:
    return (number for number, kind, _ in file.account() if kind == "unsaid")


def _script(draft: Draft, file: SourceFile) -> None:
    for number in _unsaid(file):
        if re.search(r"\b(drop|reject)\b", file.lines[number - 1], re.I):
            draft.decide(f"{file.node}:{file.path}:{number} keeps somebody out, and no key says it: who may come in?")


def _terminator(draft: Draft, file: SourceFile) -> None:
    for number in sorted(set(_unsaid(file))):
        if _KEEPS_OUT_BEFORE_TLS.match(file.lines[number - 1]):
            draft.decide(
                f"who may use what is behind {file.node}:{file.path}:{number} ({file.shown(number)})? It turns some "
                "clients away, no key says it, and this profile lets them in"
            )


def _haproxy(draft: Draft, file: SourceFile) -> None:
    """Lines that turn clients away, and lines that send some of them elsewhere by who they are."""
    _, parts = haproxy_text.read(SourceFile(file.node, file.path, file.lines))
    about_clients = {
        (p.name, line.words[1])
        for p in parts
        for line in p.own("acl")
        if len(line.words) > 2 and _ABOUT_CLIENTS.match(line.words[2])
    }
    lines = {line.number: (p.proxy.kind, p.name, line.words) for p in parts for line in p.proxy.lines}
    for number in sorted(set(_unsaid(file))):
        kind, name, said = lines.get(number, ("", "", tuple(file.lines[number - 1].split())))
        text = " ".join(said)
        by_client = said[:1] in (("use_backend",), ("redirect",)) and (
            any((name, word.lstrip("!")) in about_clients for word in said) or _inline(said)
        )
        if by_client or _KEEPS_OUT.match(text):
            where = f" of {kind} {name}" if name else ""
            draft.decide(
                f"who may use what is behind haproxy.cfg's line {number}{where} ({file.shown(number)})? It turns some "
                "clients away, no key says it, and this profile lets them in"
            )


def _inline(said: tuple[str, ...]) -> bool:
    return any(one == "{" and _ABOUT_CLIENTS.match(two.lstrip("!")) for one, two in itertools.pairwise(said))


@dataclass(frozen=True)
class _Opened:
    """Something that the profile opens: one address, one span of ports."""

    key: str
    network: NetworkDraft
    address: Address
    protocol: str
    ports: tuple[int, int]
    everywhere: bool = False
    """From all networks, and not from its own only."""


@dataclass
class _Walk:
    """What the rules of one zone do with packets to what is opened, in their order."""

    fewer: list[Section] = field(default_factory=list)
    """Rules that let in some."""
    lost: list[Section] = field(default_factory=list)
    """Rules that keep out some, and no key says them."""
    closed: bool = True


def _opened(draft: Draft) -> Iterator[_Opened]:
    for name, service in draft.services.items():
        for ip in service.get("vip", []):
            vip = draft.vip_with(ip)
            net = draft.networks.get(vip.network) if vip is not None else None
            for span in spans([str(p) for p in service.get("port", [])]) if net is not None else ():
                assert net is not None
                protocol = "udp" if service.get("protocol") == "udp" else "tcp"
                yield _Opened(f"services.{name}", net, ip, protocol, span, everywhere=bool(net.gateways))


def _allowed(draft: Draft) -> Iterator[_Opened]:
    """`firewall.allow`, and pings, which every node answers."""
    for node in draft.node_names:
        for net in draft.networks.values():
            for ip in net.addresses.get(node, []):
                yield _Opened("pings", net, ip, "icmp", (0, 65535))
                for name, rule in draft.allow.items():
                    if rule["network"] == net.name:
                        for span in spans([str(p) for p in rule.get("port", [])]) or [(0, 65535)]:
                            yield _Opened(f"firewall.allow.{name}", net, ip, rule["protocol"], span)


def _firewall(draft: Draft, uci: UciFile, file: SourceFile) -> None:
    theirs = zones(draft, uci)
    told: set[tuple[str, int]] = set()
    for one in (*_opened(draft), *_allowed(draft)):
        homes = [net for net in draft.networks.values() if not net.heartbeat] if one.everywhere else [one.network]
        for net in homes:
            names = [name for name, nets in theirs.items() if net in nets]
            walk = _walk(uci, file, one, net, names)
            for rule in walk.lost:
                if (one.key, rule.line) not in told:
                    told.add((one.key, rule.line))
                    draft.decide(
                        f"{one.key}: who may come in? {_named(file, rule)} keeps somebody out there, no key says it, "
                        "and this profile lets them in"
                    )
            if walk.closed and one.key.startswith("services.") and (one.key, 0) not in told:
                told.add((one.key, 0))
                reason = (
                    f"{_named(file, walk.fewer[0])} let in fewer"
                    if walk.fewer
                    else f"no rule of {file.node}:{file.path} opened it"
                )
                draft.decide(
                    f"{one.key}: who may use it? From network {net.name} {reason} (port {one.ports[0]}), and this "
                    "profile opens it to everybody there: firewall.deny keeps subnets out"
                )
    egress = [n.name for n in draft.networks.values() if n.egress != "none"]
    for section in uci.of("rule"):
        if (section.get("target") in _DROPS and section.get("dest") and enabled(section) and egress
                and not _carried(file, section)):  # fmt: skip
            draft.decide(
                f"networks.{egress[0]}.egress: who may go out? {_named(file, section)} keeps somebody in, no key says "
                "it, and this profile lets all servers of the network out"
            )


def _named(file: SourceFile, section: Section) -> str:
    name = clean((section.get("name") or "")[:40])
    return f"rule {name!r} of {file.node}:{file.path}:{section.line}"


def _carried(file: SourceFile, section: Section) -> bool:
    """True if a key says the rule, or ndakit writes it itself."""
    fates = file.fates.get(section.line, [])
    return bool(fates) and all(f.kind != "unsaid" for f in fates)


def _walk(uci: UciFile, file: SourceFile, one: _Opened, net: NetworkDraft, names: list[str]) -> _Walk:
    walk = _Walk()
    for section in uci.of("rule"):
        target = section.get("target") or ""
        if target not in ("ACCEPT", *_DROPS) or not _meets(section, one, names):
            continue
        all_of_it = not narrowing(section) and _covers(section, one)
        if target == "ACCEPT":
            if all_of_it:
                walk.closed = False
                return walk
            walk.fewer.append(section)
        elif _carried(file, section):
            walk.closed = False  # firewall.deny says it: the profile keeps out who was kept out here
            if all_of_it:
                walk.closed = bool(walk.fewer)
                return walk
        elif all_of_it:
            if one.protocol == "icmp":
                walk.lost.append(section)
            return walk
        else:
            walk.lost.append(section)
    inputs = [s for s in uci.of("zone") if (s.get("name") or "") in names]
    usual = next((s.get("input") for s in uci.of("defaults")), None) or "REJECT"
    policies = {
        "REJECT" if any(s.get(o) for o in ("subnet", "family", "extra", "extra_src")) else (s.get("input") or usual)
        for s in inputs
    } or {usual}
    walk.closed = policies != {"ACCEPT"}
    return walk


def _meets(section: Section, one: _Opened, names: list[str]) -> bool:
    """True if a rule can be about packets that come from a zone to what is opened."""
    source = section.get("src")
    if not source or section.get("dest") or not enabled(section) or not (source == "*" or source in names):
        return False
    protocols = [PROTOCOLS.get(w, w) for w in words(section, "proto")] or ["tcp", "udp"]
    family = {"ipv4": 4, "ipv6": 6}.get(section.get("family") or "", one.address.version)
    if (one.protocol not in protocols and "all" not in protocols) or family != one.address.version:
        return False
    if one.protocol == "icmp":
        kinds = [w for value in section.list("icmp_type") for w in value.split()]
        return not kinds or any(k.startswith(("echo-request", "8", "128")) for k in kinds)
    ports = words(section, "dest_port")
    own = spans(ports)
    if len(own) == len(ports) and ports and not any(a <= one.ports[1] and one.ports[0] <= b for a, b in own):
        return False
    to = words(section, "dest_ip")
    subnets = [subnet(w) for w in to]
    return not to or None in subnets or any(s is not None and one.address in s for s in subnets)


def _covers(section: Section, one: _Opened) -> bool:
    """True if a rule is about all that is opened."""
    ports, to = words(section, "dest_port"), words(section, "dest_ip")
    all_ports = not ports or any(a <= one.ports[0] and one.ports[1] <= b for a, b in spans(ports))
    return all_ports and (not to or any((s := subnet(w)) is not None and one.address in s for w in to))
