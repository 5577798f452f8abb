"""Lint of what the kernel balances: keepalived's virtual servers, against profile, firewall, modules and kernel values.

keepalived takes every one of these without a word (docs/facts.md, IPVS and the firewall): packets
that the firewall drops before IPVS sees them, a mark that nobody sets, a scheduler whose module nobody loads, a server
that nobody checks, answers that nobody forwards.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from ndakit.core.uci import Section
from ndakit.lint.config_text import Block, TextError, keepalived
from ndakit.lint.firewall import as_network
from ndakit.lint.network_index import BySocket, Network
from ndakit.lint.subject import LintFinding, Subject
from ndakit.model import Address

KEEPALIVED, MODULES, SYSCTL = "/etc/keepalived/keepalived.conf", "/etc/modules.d/ndakit-ipvs", "/etc/sysctl.conf"
FIREWALL = "/etc/config/firewall"
_KINDS = {"nat": "NAT", "dr": "DR", "tun": "TUN"}
_VALUES = {
    "net.ipv4.vs.conntrack": ("0", "answers after a failover would be dropped"),
    "net.ipv4.vs.drop_entry": ("1", "half-open connections of a flood would take all memory"),
    "net.ipv4.vs.drop_packet": ("1", "half-open connections of a flood would take all memory"),
    "net.ipv4.vs.expire_nodest_conn": ("1", "clients of a dead server would wait for a time-out"),
}


@dataclass(frozen=True)
class _Rule:
    """A firewall rule as far as it matters here."""

    section: Section

    @functools.cached_property
    def ports(self) -> set[str]:
        return {w for v in self.section.list("dest_port") for w in v.split()}

    @functools.cached_property
    def source_ports(self) -> set[str]:
        return {w for v in self.section.list("src_port") for w in v.split()}

    @functools.cached_property
    def sources(self) -> tuple[Network, ...]:
        return tuple(n for v in self.section.list("src_ip") if (n := as_network(v)) is not None)

    @functools.cached_property
    def destinations(self) -> tuple[Network, ...]:
        return tuple(n for v in self.section.list("dest_ip") if (n := as_network(v)) is not None)

    @property
    def readable(self) -> bool:
        """True if all its addresses are some (`firewall` says so where they are not): else it is not loaded."""
        given = len(self.section.list("src_ip")) + len(self.section.list("dest_ip"))
        return len(self.sources) + len(self.destinations) == given

    @property
    def zone(self) -> str | None:
        return self.section.get("src")

    def speaks(self, protocol: str) -> bool:
        return self.section.get("proto") in (protocol, "tcpudp", "all")


def _covers(nets: tuple[Network, ...], address: Address) -> bool:
    """True if there are none, or one of them holds the address."""
    return not nets or any(address.version == n.version and address in n for n in nets)


class _Rules:
    """The firewall's rules that matter here, to be looked up by address."""

    def __init__(self, subject: Subject) -> None:
        accepting = list(_of_target(subject, "ACCEPT"))
        forwarding = list(_of_target(subject, "ACCEPT", forwarded=True))
        self.marking = list(_of_target(subject, "MARK"))
        self.accepting_to = BySocket((r, r.destinations, r.ports) for r in accepting)
        self.marking_to = BySocket((r, r.destinations, r.ports) for r in self.marking)
        self.forwarding_from = BySocket((r, r.sources, r.source_ports) for r in forwarding)


def rules(subject: Subject) -> Iterator[LintFinding]:
    """All rules about IPVS."""
    file = subject.tree.get(KEEPALIVED)
    wanted = subject.profile.ipvs_services
    if file is None:
        if wanted:
            yield subject.finding("ipvs", KEEPALIVED, 0, f"missing: nothing would balance service {wanted[0]}")
        return
    try:
        blocks = keepalived(file.text).inner("virtual_server")
    except TextError:
        return  # lint/keepalived says so
    firewall = _Rules(subject)
    yield from _virtual_servers(subject, blocks, firewall)
    yield from _services(subject, blocks, firewall)
    if blocks:
        yield from _kernel(subject, blocks)


def _virtual_servers(subject: Subject, blocks: list[Block], firewall: _Rules) -> Iterator[LintFinding]:
    module_file = subject.tree.get(MODULES)
    modules = set(module_file.text.split()) if module_file is not None else set()
    vips = {str(a) for v in subject.profile.vips.values() for a in v.address}
    seen: set[tuple[str, ...]] = set()
    for block in blocks:
        marked = block.name == "fwmark"
        key = (*block.words, block.value("protocol") or "", block.value("ip_family") or "")
        if key in seen:
            yield subject.finding("ipvs", KEEPALIVED, block.number, f"{' '.join(block.words)} is there twice")
        seen.add(key)
        if not marked and block.name not in vips:
            yield subject.finding("ipvs", KEEPALIVED, block.number, f"'{block.name}' is no VIP of the profile")
        scheduler = block.value("lb_algo") or "?"
        for module in ("ip_vs", f"ip_vs_{scheduler}"):
            if module not in modules:
                what = f"nothing loads the module {module}: there would be no such virtual server"
                yield subject.finding("ipvs-module", KEEPALIVED, block.number, what)
        if scheduler == "sh" and block.first("sh-fallback") is None:
            what = "sh without sh-fallback: clients of a drained or full server would be refused"
            yield subject.finding("ipvs", KEEPALIVED, block.number, what)
        if not block.inner("real_server"):
            yield subject.finding("ipvs", KEEPALIVED, block.number, "a virtual server without servers")
        for server in block.inner("real_server"):
            if not any(b.words[0].endswith(("_CHECK", "_GET")) for b in server.blocks):
                what = f"server {server.name} is not checked: it would stay in when it is dead"
                yield subject.finding("ipvs-check", KEEPALIVED, server.number, what)
            if marked == (len(server.words) > 2):
                what = "a server of a marked service must have no port, one of an address must have one"
                yield subject.finding("ipvs", KEEPALIVED, server.number, what)
        if marked and not any(_sets(rule, block.words[2]) for rule in firewall.marking):
            what = f"no firewall rule sets mark {block.words[2]}: no packet would reach this virtual server"
            yield subject.finding("ipvs-mark", KEEPALIVED, block.number, what)


def _services(subject: Subject, blocks: list[Block], known: _Rules) -> Iterator[LintFinding]:
    """Every service of the profile has its virtual server, an open port, and (nat) a way for the answers."""
    profile = subject.profile
    by_words: dict[tuple[str, ...], list[Block]] = {}
    for block in blocks:
        by_words.setdefault(tuple(block.words[1:3]), []).append(block)
    for name in profile.ipvs_services:
        service = profile.services[name]
        single = not service.several
        for endpoint in profile.endpoints(name):
            words = [str(endpoint.address), str(service.first_port)] if single else ["fwmark", str(profile.marks[name])]
            matching = [
                b for b in by_words.get(tuple(words), ())
                if (single or (b.value("ip_family") == "inet6") == (endpoint.address.version == 6))
                and (not single or b.value("protocol") == service.transport.upper())
            ]  # fmt: skip
            if not matching:
                what = f"no virtual server for service {name} on {endpoint.address}"
                yield subject.finding("ipvs", KEEPALIVED, 0, what)
                continue
            if matching[0].value("lb_kind") != _KINDS[service.topology]:
                what = f"service {name} is {service.topology}, and this is {matching[0].value('lb_kind')}"
                yield subject.finding("ipvs", KEEPALIVED, matching[0].number, what)
            yield from _opened(subject, name, endpoint.address, known)
            if service.topology == "nat":
                yield from _answered(subject, name, matching[0], known)


def _spans(subject: Subject, name: str) -> set[str]:
    return {str(low) if low == high else f"{low}-{high}" for low, high in subject.profile.services[name].port}


def _opened(subject: Subject, name: str, address: Address, known: _Rules) -> Iterator[LintFinding]:
    """IPVS sees only what the firewall accepts for this node, and knows marked packets by their mark only."""
    profile, service, spans = subject.profile, subject.profile.services[name], _spans(subject, name)

    def fits(rule: _Rule) -> bool:
        return rule.speaks(service.transport) and _covers(rule.destinations, address) and rule.ports >= spans

    accepting = [rule.zone for rule in known.accepting_to.about(address, min(spans)) if fits(rule)]
    if not accepting:
        what = f"no rule accepts what service {name} gets on {address}: IPVS would not see it"
        yield subject.finding("ipvs-closed", FIREWALL, 0, what)
    if name not in profile.marks:
        return
    all_zones = {zone for s in subject.sections("firewall", "zone") if (zone := s.get("name"))}
    mark = str(profile.marks[name])
    marking = {rule.zone for rule in known.marking_to.about(address, min(spans)) if fits(rule) and _sets(rule, mark)}
    for zone in sorted(zone for zone in all_zones if zone in accepting or "*" in accepting):
        if zone not in marking:
            what = f"no rule marks what service {name} gets on {address} from zone {zone}: IPVS would not know it"
            yield subject.finding("ipvs-mark", FIREWALL, 0, what)


def _answered(subject: Subject, name: str, block: Block, known: _Rules) -> Iterator[LintFinding]:
    service = subject.profile.services[name]
    sockets = [server.words[1:3] for server in block.inner("real_server")]
    sockets += [line.words[1:3] for line in block.lines if line.words[0] == "sorry_server"]
    for words in sockets:
        address = ip_address(words[0])
        spans = {words[1]} if len(words) > 1 else _spans(subject, name)
        fitting = (
            rule for rule in known.forwarding_from.about(address, min(spans))
            if rule.speaks(service.transport)
            and _covers(rule.sources, address)
            and not rule.section.list("dest_port")
            and rule.source_ports >= spans
        )  # fmt: skip
        if next(fitting, None) is None:
            what = f"no rule forwards what server {address} answers for service {name} (nat)"
            yield subject.finding("ipvs-answers", FIREWALL, 0, what)


def _kernel(subject: Subject, blocks: list[Block]) -> Iterator[LintFinding]:
    file = subject.tree.get(SYSCTL)
    lines = file.text.splitlines() if file is not None else []
    values = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    wanted = dict(_VALUES)
    if any(b.value("lb_kind") == "NAT" for b in blocks):
        wanted["net.ipv4.ip_forward"] = ("1", "answers of nat servers would not be forwarded")
    for key, (value, why) in wanted.items():
        if values.get(key) != value:
            yield subject.finding("ipvs-sysctl", SYSCTL, 0, f"{key}={value} is missing: {why}")


def _of_target(subject: Subject, target: str, *, forwarded: bool = False) -> Iterator[_Rule]:
    """The rules of a target: for packets to this node, or (MARK: always, ACCEPT: `forwarded`) passing through."""
    for section in subject.sections("firewall", "rule"):
        through = section.get("dest") is not None
        if section.get("target") == target and through == (forwarded or target == "MARK"):
            rule = _Rule(section)
            if rule.readable:
                yield rule


def _sets(rule: _Rule, mark: str) -> bool:
    value = (rule.section.get("set_xmark") or "").partition("/")[0]
    try:
        return int(value, 16) == int(mark)
    except ValueError:
        return False
