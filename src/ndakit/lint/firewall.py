"""Lint of /etc/config/firewall: what fw3 and fw4 would drop silently, open too far, or close on the administrator.

Source: docs/facts.md, Firewall. A fw4 warning is an error here: it drops the option that
it does not understand and keeps the rule, and one ruleset that nft refuses leaves a booting box open.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ndakit.core.names import ZONE_NAME_MAX
from ndakit.core.uci import Section
from ndakit.lint import config_text
from ndakit.lint.network_index import BySocket, Networks
from ndakit.lint.subject import LintFinding, Subject
from ndakit.model.spans import Spans

FIREWALL = "/etc/config/firewall"
ROUTED = "/usr/libexec/ndakit/routed-adverts"
UNROUTED = {4: "-m ttl ! --ttl-eq 255", 6: "-m hl ! --hl-eq 255"}
_POLICIES = ("ACCEPT", "REJECT", "DROP")
_OFF = ("drop_invalid", "flow_offloading")
_PROTOCOLS = ("tcp", "udp", "tcpudp", "icmp", "all")
_ICMP = re.compile(r"\d{1,3}(/\d{1,3})?")
_ICMP_NAMES = {
    "echo-request", "echo-reply", "destination-unreachable", "time-exceeded", "parameter-problem", "packet-too-big",
    "bad-header", "unknown-header-type", "router-solicitation", "router-advertisement", "neighbour-solicitation",
    "neighbour-advertisement",
}  # fmt: skip
_WHOLE = ("2", "47", "50", "51", "89")
"""IGMP, GRE, ESP, AH, OSPF: there is nothing in them to restrict by but the source, and everybody may be meant."""
_EVERYBODY = ("0.0.0.0/0", "::/0")
"""Addresses that restrict nothing."""
_MULTI_PROTOCOL = {"tcp": {6}, "udp": {17}, "tcpudp": {6, 17}, "icmp": {1}, "all": set(range(256))}


@dataclass(frozen=True)
class _Accept:
    """An ACCEPT rule for packets to the node itself, understood."""

    zone: str
    protocols: frozenset[int]
    sources: tuple[IPv4Network | IPv6Network, ...]
    destinations: tuple[IPv4Network | IPv6Network, ...]
    ports: tuple[tuple[int, int], ...]
    version: int | None
    section: Section

    @functools.cached_property
    def _source_nets(self) -> Networks:
        return Networks(self.sources)

    def lets_in(
        self,
        zone: str,
        source: IPv4Network | IPv6Network | None,
        to: IPv4Address | IPv6Address | None,
        port: int | None,
    ) -> bool:
        """Whether it accepts everything from `source` (None: from anywhere at all) in a zone to an address and port."""
        version = source.version if source is not None else to.version if to is not None else None
        return (
            self.zone in ("*", zone)
            and (self.version is None or version is None or self.version == version)
            and (not self.sources or (source is not None and self._source_nets.hold(source)))
            and (not self.destinations or (to is not None and any(to in d for d in self.destinations)))
            and (not self.ports or (port is not None and any(low <= port <= high for low, high in self.ports)))
        )


def rules(subject: Subject) -> Iterator[LintFinding]:
    """All rules about the firewall."""
    if "firewall" not in subject.configs:
        return
    yield from defaults(subject)
    yield from zones(subject)
    yield from each_rule(subject)
    yield from nats(subject)
    yield from includes(subject)
    accepts = _accepts(subject)
    yield from ssh(subject, accepts)
    yield from listeners(subject, accepts)
    yield from adverts(subject, accepts)


def defaults(subject: Subject) -> Iterator[LintFinding]:
    """Closed by default; nothing that limits or drops balanced traffic."""
    sections = subject.sections("firewall", "defaults")
    if len(sections) != 1:
        yield subject.finding("fw-defaults", FIREWALL, 0, f"{len(sections)} sections of type defaults instead of one")
    for section in sections:
        for name in ("input", "forward"):
            if section.get(name) not in ("DROP", "REJECT"):
                what = f"{name} is not closed by default"
                yield subject.finding("fw-open", FIREWALL, section.line_of(name), what)
        if section.get("output") != "ACCEPT":
            what = "output is not ACCEPT: health checks, names and time would stop"
            yield subject.finding("fw-output", FIREWALL, section.line_of("output"), what)
        synflood = "synflood_protect" if subject.profile.release.fw4 else "syn_flood"
        for name in (*_OFF, synflood):
            if section.get(name) != "0":
                what = {
                    "drop_invalid": "drop_invalid must be '0': on, it kills balanced connections",
                    "flow_offloading": "flow_offloading must be '0': without its module no rule is loaded at all",
                }.get(name, f"{name} must be '0': on, all services together take 25 new connections per second")
                yield subject.finding("fw-balancer", FIREWALL, section.line_of(name), what)


def zones(subject: Subject) -> Iterator[LintFinding]:
    """Every network in exactly one zone, none open, none masquerading."""
    interfaces = {s.name for s in subject.sections("network", "interface")} - {"loopback", None}
    covered: dict[str, int] = {}
    for section in subject.sections("firewall", "zone"):
        name = section.get("name")
        if name is None or len(name) > ZONE_NAME_MAX or not re.fullmatch(r"[A-Za-z0-9_]+", name):
            what = f"zone name '{name}' is not made of 1 to {ZONE_NAME_MAX} letters, digits and _"
            yield subject.finding("fw-zone-name", FIREWALL, section.line_of("name"), what)
        if section.get("masq") not in (None, "0"):
            what = (
                "masq: connections would wear the node's own address and die at a failover, and NAT replies be dropped"
            )
            yield subject.finding("fw-masq", FIREWALL, section.line_of("masq"), what)
        for policy in ("input", "output", "forward"):
            value = section.get(policy)
            if value not in _POLICIES or (policy in ("input", "forward") and value == "ACCEPT"):
                what = f"zone '{name}': {policy} is {value or 'not stated'}"
                yield subject.finding("fw-open", FIREWALL, section.line_of(policy), what)
        for option in section.options:
            if option.name == "network":
                if option.value not in interfaces:
                    what = f"zone '{name}' names the interface '{option.value}', which is not there: a hollow zone"
                    yield subject.finding("fw-zone-network", FIREWALL, option.line, what)
                missing = {i.device for i in subject.view.interfaces if i.section == option.value}
                for device in sorted(missing - {*section.list("device")}):
                    what = (
                        f"zone '{name}' does not name the device {device}: until '{option.value}' is up, nothing comes "
                        "in, other nodes' adverts neither"
                    )
                    yield subject.finding("fw-zone-device", FIREWALL, option.line, what)
                if option.value in covered:
                    what = f"interface '{option.value}' is in another zone as well (line {covered[option.value]})"
                    yield subject.finding("fw-zone-network", FIREWALL, option.line, what)
                covered.setdefault(option.value, option.line)
    for interface in sorted(i for i in interfaces if i is not None and i not in covered):
        what = f"interface '{interface}' is in no zone: no rule for a zone would count there"
        yield subject.finding("fw-zone-network", FIREWALL, 0, what)


def each_rule(subject: Subject) -> Iterator[LintFinding]:
    """Names, zones, protocols, ports, addresses, ICMP types of every rule; and that it restricts something."""
    known = {s.get("name") for s in subject.sections("firewall", "zone")}
    named: dict[str, int] = {}
    for section in (*subject.sections("firewall", "rule"), *subject.sections("firewall", "nat")):
        name = section.get("name")
        if name is None or not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name):
            what = f"rule name {name!r:.60}: other characters or more than 100 can break the whole ruleset"
            yield subject.finding("fw-rule-name", FIREWALL, section.line_of("name"), what)
        elif name in named:
            what = f"two rules with the name '{name}' (line {named[name]})"
            yield subject.finding("fw-rule-name", FIREWALL, section.line_of("name"), what)
        named.setdefault(name or "", section.line)
        for option in ("src", "dest"):
            value = section.get(option)
            if value is not None and value != "*" and value not in known:
                what = f"unknown zone '{value}': the rule would be skipped"
                yield subject.finding("fw-zone", FIREWALL, section.line_of(option), what)
        if section.get("src") is None:
            what = "without src it is a rule for what the node itself sends"
            yield subject.finding("fw-zone", FIREWALL, section.line, what)
        yield from _values(subject, section)
    for section in subject.sections("firewall", "rule"):
        yield from _restricts(subject, section)


def _values(subject: Subject, section: Section) -> Iterator[LintFinding]:
    protocol = section.get("proto")
    if protocol is None or not (protocol in _PROTOCOLS or (protocol.isdigit() and int(protocol) < 256)):
        what = f"proto '{protocol}': not stated means tcp and udp, an unknown name breaks the ruleset; use a number"
        yield subject.finding("fw-proto", FIREWALL, section.line_of("proto"), what)
    family = section.get("family")
    if family not in (None, "ipv4", "ipv6"):
        what = f"family '{family}' is neither ipv4 nor ipv6: the rule would be skipped"
        yield subject.finding("fw-family", FIREWALL, section.line_of("family"), what)
    versions: dict[str, set[int]] = {}
    for option in section.options:
        if option.name in ("src_port", "dest_port"):
            for word in option.value.split():
                if as_ports(word) is None:
                    what = f"'{word}' is no port number from 1 to 65535: the rule would be skipped or lose its port"
                    yield subject.finding("fw-port", FIREWALL, option.line, what)
            if protocol not in ("tcp", "udp", "tcpudp"):
                what = f"a port with proto '{protocol}'"
                yield subject.finding("fw-port", FIREWALL, option.line, what)
        elif option.name in ("src_ip", "dest_ip", "snat_ip"):
            net = as_network(option.value)
            if net is None:
                what = f"'{option.value}' is no address or subnet: the rule would be skipped"
                yield subject.finding("fw-address", FIREWALL, option.line, what)
            else:
                versions.setdefault(option.name, set()).add(net.version)
                if family is not None and family != f"ipv{net.version}":
                    what = f"{option.value} does not belong to family {family}"
                    yield subject.finding("fw-family", FIREWALL, option.line, what)
        elif option.name == "icmp_type":
            if protocol != "icmp":
                what = f"icmp_type with proto '{protocol}' is ignored: the rule would open all of it"
                yield subject.finding("fw-icmp", FIREWALL, option.line, what)
            if option.value not in _ICMP_NAMES and not _ICMP.fullmatch(option.value):
                yield subject.finding("fw-icmp", FIREWALL, option.line, f"unknown ICMP type '{option.value}'")
        elif option.name == "limit" and not re.fullmatch(r"[1-9]\d*/(second|minute|hour)", option.value):
            what = f"limit '{option.value}' is not written as 1000/second"
            yield subject.finding("fw-limit", FIREWALL, option.line, what)
    both = [versions[name] for name in ("src_ip", "dest_ip", "snat_ip") if name in versions]
    if len(both) > 1 and not set.intersection(*both):
        what = "source and destination have no address family in common: the rule would be skipped"
        yield subject.finding("fw-family", FIREWALL, section.line, what)


def _restricts(subject: Subject, section: Section) -> Iterator[LintFinding]:
    """An ACCEPT rule that lost its port or addresses opens everything."""
    if section.get("target") != "ACCEPT":
        if section.get("target") is None:
            yield subject.finding("fw-target", FIREWALL, section.line, "a rule without target")
        return
    protocol = section.get("proto") or "tcpudp"
    needed: tuple[str, ...]
    if section.get("dest") is not None:
        needed = ("src_ip", "dest_ip", "dest_port")
    elif protocol in ("tcp", "udp", "tcpudp"):
        needed = ("dest_port",)
    elif protocol == "icmp":
        needed = ("icmp_type",)
    elif protocol in _WHOLE:
        return
    else:
        needed = ("src_ip",)
    if not any(value not in _EVERYBODY for option in needed for value in section.list(option)):
        what = f"the rule accepts everything of proto '{protocol}': none of {', '.join(needed)} is stated"
        yield subject.finding("fw-wide", FIREWALL, section.line, what)


def nats(subject: Subject) -> Iterator[LintFinding]:
    """Source NAT says for whom and to what."""
    for section in subject.sections("firewall", "nat"):
        for option in ("family", "src", "src_ip", "target"):
            if section.get(option) is None:
                what = f"source NAT without {option} would change other traffic as well"
                yield subject.finding("fw-nat", FIREWALL, section.line, what)
        target = section.get("target")
        if target not in ("SNAT", "ACCEPT") or (target == "SNAT") != (section.get("snat_ip") is not None):
            what = f"target {target} and snat_ip {section.get('snat_ip')} do not go together"
            yield subject.finding("fw-nat", FIREWALL, section.line_of("target"), what)
        if not subject.profile.release.fw4 and section.get("family") == "ipv6":
            what = "fw3 has no source NAT for IPv6"
            yield subject.finding("fw-nat", FIREWALL, section.line_of("family"), what)


def includes(subject: Subject) -> Iterator[LintFinding]:
    """A missing include only warns; /etc/firewall.user is ignored by fw4 without fw4_compatible."""
    for section in subject.sections("firewall", "include"):
        path = section.get("path")
        if path is None or path not in subject.tree:
            what = f"the included file {path} is not in the tree: it would be left out silently"
            yield subject.finding("fw-include", FIREWALL, section.line_of("path"), what)
        if subject.profile.release.fw4 and path == "/etc/firewall.user" and section.get("fw4_compatible") != "1":
            what = "fw4 ignores /etc/firewall.user without fw4_compatible '1'"
            yield subject.finding("fw-include", FIREWALL, section.line, what)


def ssh(subject: Subject, accepts: list[_Accept]) -> Iterator[LintFinding]:
    """Everybody in access.sources gets in, on whichever network they arrive, and nobody else does."""
    stated = [s for group in subject.profile.access.sources.values() for s in group]
    allowed = {v: Spans.of(stated, v) for v in (4, 6)}
    port = subject.profile.ssh_port
    zone_names = [name for s in subject.sections("firewall", "zone") if (name := s.get("name"))]
    tcp = [a for a in accepts if 6 in a.protocols]
    wide = [a for a in tcp if not a.destinations]
    everywhere = {v: _let_in([a for a in wide if a.zone == "*"], v, port) for v in (4, 6)}
    inside = {
        (zone, v): everywhere[v] | _let_in([a for a in wide if a.zone == zone], v, port)
        for zone in zone_names
        for v in (4, 6)
    }
    for source in stated:
        whole = Spans.of([source], source.version)
        closed = [zone for zone in zone_names if not whole <= inside[zone, source.version].within(source)]
        if closed:
            what = f"SSH from {source} (access.sources) is not accepted in zone {', '.join(closed)}: a lock-out"
            yield subject.finding("fw-ssh-closed", FIREWALL, 0, what)
    for accept in tcp:
        if accept.ports and not any(low <= port <= high for low, high in accept.ports):
            continue
        if accept.destinations and not any(a in d for a in subject.view.addresses for d in accept.destinations):
            continue
        if not accept.sources or not all(Spans.of(accept.sources, v) <= allowed[v] for v in (4, 6)):
            what = "SSH is open to others than access.sources"
            yield subject.finding("fw-ssh-open", FIREWALL, accept.section.line, what)


def _let_in(accepts: list[_Accept], version: int, port: int) -> Spans:
    """Whose packets to a port of the node some rules accept, for an IP version."""
    everybody = as_network("0.0.0.0/0" if version == 4 else "::/0")
    fitting = [a for a in accepts if a.version in (None, version)]
    fitting = [a for a in fitting if not a.ports or any(low <= port <= high for low, high in a.ports)]
    return Spans.of((s for a in fitting for s in (a.sources or (everybody,)) if s is not None), version)


def listeners(subject: Subject, accepts: list[_Accept]) -> Iterator[LintFinding]:
    """What HAProxy listens on can be reached from somewhere."""
    file = subject.tree.get("/etc/haproxy.cfg")
    if file is None:
        return
    try:
        proxies = config_text.haproxy(file.text)
    except config_text.TextError:
        return
    to = BySocket((a, a.destinations, _single_ports(a)) for a in accepts)
    for proxy in proxies:
        for line in proxy.all("bind"):
            host, _, ports = line.words[1].rpartition(":") if len(line.words) > 1 else ("", "", "")
            try:
                address = ip_address(host.strip("[]"))
                low, _, high = ports.partition("-")
                wanted = (int(low), int(high or low))
            except ValueError:
                continue
            if address.is_loopback:
                continue
            for port in wanted:
                if not any(_opens(a, address, port) for a in to.about(address, str(port))):
                    what = f"no rule lets anybody reach {line.words[1]}"
                    yield subject.finding("fw-listener", "/etc/haproxy.cfg", line.number, what)
                    break


def adverts(subject: Subject, accepts: list[_Accept]) -> Iterator[LintFinding]:
    """Without its peers' adverts a node believes it is alone, and both become master."""
    zone_of = {i.device: zone for i in subject.view.interfaces for zone in _zones_of(subject, i.section)}
    vrrp = [a for a in accepts if 112 in a.protocols]
    for instance in subject.view.instances:
        zone = zone_of.get(instance.device, "")
        group = ip_address("224.0.0.18" if instance.version == 4 else "ff02::12")
        to = instance.own if subject.profile.vrrp.unicast else group
        for peer in instance.peers:
            linklocal = ip_network("fe80::/10")
            source = linklocal if not subject.profile.vrrp.unicast and instance.version == 6 else ip_network(peer)
            if not any(a.lets_in(zone, source, to, None) for a in vrrp):
                what = f"VRRP adverts of {peer} are not accepted in zone '{zone}': both nodes would become master"
                yield subject.finding("fw-vrrp", FIREWALL, 0, what)
    if subject.profile.vrrp.unicast and not subject.profile.release.keepalived_ttl:
        yield from _routed(subject)


def _routed(subject: Subject) -> Iterator[LintFinding]:
    """Where keepalived cannot tell adverts that came through a router, a script at each start and reload drops them."""
    included = [s for s in subject.sections("firewall", "include") if s.get("path") == ROUTED]
    file = subject.tree.get(ROUTED)
    if subject.view.instances and not any(s.get("reload") == "1" for s in included):
        what = f"{ROUTED} is not run at each start and reload: anybody's adverts with a peer's address are believed"
        yield subject.finding("fw-vrrp-ttl", FIREWALL, included[0].line if included else 0, what)
    for version in sorted({i.version for i in subject.view.instances}):
        words = UNROUTED[version]
        if file is None or f"-A input_rule -p 112 {words} -j DROP" not in file.text:
            what = f"IPv{version} adverts that came through a router are not dropped ({words})"
            yield subject.finding("fw-vrrp-ttl", ROUTED if file else FIREWALL, 0, what)


def _zones_of(subject: Subject, interface: str) -> list[str]:
    zones = subject.sections("firewall", "zone")
    return [name for zone in zones if interface in zone.list("network") and (name := zone.get("name"))]


def _single_ports(accept: _Accept) -> tuple[str, ...]:
    """A rule's ports as words if it names no range, else none."""
    return tuple(str(low) for low, _ in accept.ports) if all(a == b for a, b in accept.ports) else ()


def _opens(accept: _Accept, address: IPv4Address | IPv6Address, port: int) -> bool:
    return (
        6 in accept.protocols
        and (accept.version in (None, address.version))
        and (not accept.sources or any(s.version == address.version for s in accept.sources))
        and (not accept.destinations or any(address in d for d in accept.destinations))
        and (not accept.ports or any(low <= port <= high for low, high in accept.ports))
    )


def _accepts(subject: Subject) -> list[_Accept]:
    accepts: list[_Accept] = []
    for section in subject.sections("firewall", "rule"):
        if section.get("target") != "ACCEPT" or section.get("dest") is not None or section.get("src") is None:
            continue
        protocol, family = section.get("proto") or "tcpudp", section.get("family")
        numbers = _MULTI_PROTOCOL.get(protocol) or ({int(protocol)} if protocol.isdigit() else set())
        accepts.append(
            _Accept(
                zone=section.get("src") or "",
                protocols=frozenset(numbers),
                sources=tuple(n for v in section.list("src_ip") if (n := as_network(v)) is not None),
                destinations=tuple(n for v in section.list("dest_ip") if (n := as_network(v)) is not None),
                ports=tuple(p for v in section.list("dest_port") for w in v.split() if (p := as_ports(w)) is not None),
                version=int(family[-1]) if family in ("ipv4", "ipv6") else None,
                section=section,
            )
        )
    return accepts


def as_ports(word: str) -> tuple[int, int] | None:
    """The ports of `80` or `80-90`, first and last; None if they are none."""
    ports = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", word)
    if not ports:
        return None
    low, high = int(ports[1]), int(ports[2] or ports[1])
    return (low, high) if 1 <= low <= high <= 65535 else None


def as_network(text: str) -> IPv4Network | IPv6Network | None:
    """The subnet of an address or subnet; None if it is neither."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None
