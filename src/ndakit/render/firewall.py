"""The firewall's side of a profile: zones, rules and source NAT of one node, each with its reason.

Closed unless stated: every rule here names what it opens, to whom and why. The forms are the measured ones
(docs/facts.md, Firewall): numbers only, one family per rule where source and
destination are both stated, nothing empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ndakit.core.names import zone_name
from ndakit.model import Endpoint, Opening, Profile
from ndakit.model.links import network_towards
from ndakit.model.profile import IPVS_SYNC_GROUP, IPVS_SYNC_PORT, PEERS_PORT, SYNC_PORT
from ndakit.render.nat import Exit, Nat, nats, port_text, server_sockets, ways_out
from ndakit.render.node import NodeView

MARK_MASK = 0xFF0
"""The bits of a packet's mark that tell services apart; the others belong to others."""
PROTOCOLS: Mapping[str, str] = {"gre": "47", "esp": "50", "ah": "51", "ospf": "89"}
VRRP, IGMP = "112", "2"
"""Numbers: fw3 refuses some names, and then misreads the rules after them."""


@dataclass(frozen=True)
class Zone:
    """A firewall zone: one network. By its interface fw3 and fw4 know the zone's devices only once netifd has it up;
    the device beside it counts from the firewall's start on, so that adverts come in before keepalived speaks."""

    name: str
    interface: str
    device: str


@dataclass(frozen=True)
class Rule:
    """One rule that accepts something, or with `mark` one that marks it, or with `drop` one that drops it. `source` and
    `destination` are zones; `*` is any zone. `device` narrows that to what comes in there: a rule for any zone counts
    before all rules for one."""

    name: str
    why: str
    source: str
    destination: str | None = None
    family: str | None = None
    protocol: str = "tcp"
    source_addresses: tuple[str, ...] = ()
    destination_addresses: tuple[str, ...] = ()
    source_ports: str | None = None
    ports: str | None = None
    mark: str | None = None
    drop: bool = False
    device: str | None = None
    icmp_types: tuple[str, ...] = ()
    limit: str | None = None


@dataclass(frozen=True)
class FirewallView:
    """Everything /etc/config/firewall needs."""

    zones: tuple[Zone, ...]
    rules: tuple[Rule, ...]
    nats: tuple[Nat, ...]
    unrouted: tuple[int, ...] = ()
    """The IP versions in which the firewall itself refuses adverts that came through a router."""


def firewall(node: NodeView) -> FirewallView:
    """The firewall of a node."""
    profile = node.profile
    exits = ways_out(profile, node.name)
    rules = [
        *_administration(node),
        *_neighbours(profile),
        *_denied(node),
        *_allowed(node),
        *_services(profile),
        *_replies(profile),
        *_marks(profile),
        *_ipvs_errors(profile),
        *_vrrp(node),
        *_told(node),
        *_icmp(profile),
        *_egress(exits),
    ]
    return FirewallView(
        zones=tuple(Zone(zone_name(i.network), i.section, i.device) for i in node.interfaces),
        rules=tuple(rules),
        nats=tuple(nats(profile, exits)),
        unrouted=tuple(sorted({i.version for i in node.instances}))
        if profile.vrrp.unicast and not node.release.keepalived_ttl
        else (),
    )


def _administration(node: NodeView) -> list[Rule]:
    profile = node.profile
    everyone = tuple(str(s) for group in profile.access.sources.values() for s in group)
    rules = [
        Rule(
            "ssh",
            "SSH, from access.sources only, whichever way they come",
            "*",
            source_addresses=_unique(everyone),
            ports=str(profile.ssh_port),
        )
    ]
    for version, family in ((4, "ipv4"), (6, "ipv6")):
        sources = _unique(tuple(str(s) for s in profile.sources(version)))
        own = tuple(str(a) for a in node.addresses if a.version == version)
        if sources and own and profile.runs_haproxy:
            rules.append(
                Rule(
                    f"statistics-{family}",
                    "HAProxy's statistics page on the node's own addresses, from access.sources only",
                    "*",
                    family=family,
                    source_addresses=sources,
                    destination_addresses=own,
                    ports=str(profile.monitoring.statistics.port),
                )
            )
    return rules


def _denied(node: NodeView) -> list[Rule]:
    """`firewall.deny`: after SSH, before everything else that lets somebody in."""
    rules: list[Rule] = []
    for name, opening in node.profile.firewall.deny.items():
        rules += _opening(node, name, opening, drop=True)
    return rules


def _allowed(node: NodeView) -> list[Rule]:
    """`firewall.allow`."""
    rules: list[Rule] = []
    for name, opening in node.profile.firewall.allow.items():
        rules += _opening(node, name, opening, drop=False)
    return rules


def _opening(node: NodeView, name: str, opening: Opening, *, drop: bool) -> list[Rule]:
    sources = node.profile.opening_sources(opening)
    kind = "deny" if drop else "allow"
    ports = None if opening.port is None else " ".join(str(a) if a == b else f"{a}-{b}" for a, b in opening.port)
    pings = opening.protocol == "icmp"
    families = [f"ipv{v}" for v in node.profile.networks[opening.network].families] if pings else [None]
    if pings and sources:
        families = [f for f in families if f in {f"ipv{s.version}" for s in sources}]
    return [
        Rule(
            f"{kind}-{name}" if len(families) == 1 else f"{kind}-{name}-{family}",
            f"firewall.{kind}.{name} of the profile"
            + (", before all that lets somebody in but what access.sources may" if drop else ""),
            "*" if drop else zone_name(opening.network),
            family=family,
            protocol=PROTOCOLS.get(opening.protocol, opening.protocol),
            source_addresses=tuple(str(s) for s in sources if family is None or f"ipv{s.version}" == family),
            ports=ports,
            icmp_types=("echo-request",) if pings else (),
            drop=drop,
            device=node.profile.l2_device(opening.network) if drop else None,
        )
        for family in families
    ]


def _told(node: NodeView) -> list[Rule]:
    """What the other nodes tell of connections."""
    profile = node.profile
    if profile.sync_link is None:
        return []
    network, version = profile.sync_link
    peers = tuple(
        str(a) for peer in profile.peers(node.name) if (a := profile.node_address(peer, network, version)) is not None
    )
    rules: list[Rule] = []
    if profile.tracks_connections:
        why = "the other nodes tell of the connections that pass through them (conntrackd)"
        rules.append(Rule("sync-tracked", why, zone_name(network), protocol="udp", source_addresses=peers,
                          ports=str(SYNC_PORT)))  # fmt: skip
    own = profile.node_address(node.name, network, version)
    if profile.shares_tables and own is not None:
        why = "the other nodes' HAProxies tell which server a client keeps"
        rules.append(Rule("sync-tables", why, zone_name(network), source_addresses=peers,
                          destination_addresses=(str(own),), ports=str(PEERS_PORT)))  # fmt: skip
    if profile.syncs_ipvs:
        why = "the other nodes tell of the connections that their kernel balances (IPVS)"
        rules.append(Rule("sync-ipvs", why, zone_name(network), protocol="udp", source_addresses=peers,
                          destination_addresses=(IPVS_SYNC_GROUP,), ports=str(IPVS_SYNC_PORT)))  # fmt: skip
    return rules


def _services(profile: Profile) -> list[Rule]:
    rules: list[Rule] = []
    for name, service in profile.services.items():
        by_zone: dict[str, list[str]] = {}
        for endpoint in profile.endpoints(name):
            by_zone.setdefault(_reachable_from(profile, endpoint), []).append(str(endpoint.address))
        for zone, addresses in by_zone.items():
            open_to = "from everywhere" if zone == "*" else "from its own network"
            rules.append(
                Rule(
                    f"service-{name}" if len(by_zone) == 1 else f"service-{name}-{'any' if zone == '*' else zone}",
                    f"service {name} on its VIP, {open_to}",
                    zone,
                    protocol=service.transport,
                    destination_addresses=tuple(addresses),
                    ports=port_text(service),
                )
            )
    return rules


def _replies(profile: Profile) -> list[Rule]:
    """What servers of topology nat answer: IPVS changes its source only after the firewall has seen it, and conntrack
    knows nothing of its connections (docs/facts.md, IPVS and the firewall)."""
    rules: list[Rule] = []
    for name, service in profile.services.items():
        if service.topology != "nat":
            continue
        sources: dict[tuple[str, str], list[str]] = {}
        for address, ports in server_sockets(profile, name):
            network = network_towards(profile, address)
            if network is not None:
                sources.setdefault((zone_name(network), ports), []).append(str(address))
        zones = {_reachable_from(profile, e) for e in profile.endpoints(name)}
        to = "*" if "*" in zones or len(zones) > 1 else next(iter(zones))
        for number, ((zone, ports), addresses) in enumerate(sources.items()):
            rules.append(
                Rule(
                    f"replies-{name}" if number == 0 else f"replies-{name}-{number + 1}",
                    f"answers of the servers of {name}, which leave with the VIP as their source",
                    zone,
                    destination=to,
                    protocol=service.transport,
                    source_addresses=_unique(tuple(addresses)),
                    source_ports=ports,
                )
            )
    return rules


def _marks(profile: Profile) -> list[Rule]:
    """Packets to services with several ports get a mark, by which IPVS knows them. fw3 and fw4 mark early enough,
    before routing, only where a zone is named as the source and any as the destination."""
    rules: list[Rule] = []
    for name, mark in profile.marks.items():
        service = profile.services[name]
        endpoints = profile.endpoints(name)
        open_to = {_reachable_from(profile, e) for e in endpoints}
        zones = [zone_name(n) for n in profile.networks if "*" in open_to or zone_name(n) in open_to]
        rules += [
            Rule(
                f"mark-{name}-{zone}",
                f"service {name} has several ports: for IPVS they are one, known by this mark",
                zone,
                destination="*",
                protocol=service.transport,
                destination_addresses=tuple(str(e.address) for e in endpoints),
                ports=port_text(service),
                mark=f"{mark:#x}/{MARK_MASK:#x}",
            )
            for zone in zones
        ]
    return rules


def _ipvs_errors(profile: Profile) -> list[Rule]:
    """ICMP errors about what IPVS balances: without them a client behind a narrow link gets no large answers."""
    rules: list[Rule] = []
    for version, types in ((4, ("destination-unreachable",)), (6, ("destination-unreachable", "packet-too-big"))):
        vips = [
            str(e.address)
            for name in profile.ipvs_services
            for e in profile.endpoints(name)
            if e.address.version == version
        ]
        if vips:
            rules.append(
                Rule(
                    f"errors-ipv{version}",
                    "too large packets, as routers report them: the firewall knows none of IPVS's connections",
                    "*",
                    family=f"ipv{version}",
                    protocol="icmp",
                    destination_addresses=_unique(tuple(vips)),
                    icmp_types=types,
                    limit="1000/second",
                )
            )
    return rules


def _reachable_from(profile: Profile, endpoint: Endpoint) -> str:
    """Who may reach a VIP: with a default gateway its network is the outside, and everybody may, the servers' network
    included; without one it is an inner network, and only its own hosts (and those routed to it) may. Each family may
    have its own outside; one without any gateway shares the other's."""
    net, version = profile.networks[endpoint.network], endpoint.address.version
    other = any(n.gateway_of(version) is not None for n in profile.networks.values())
    outside = net.gateway_of(version) is not None or (net.gateway is not None and not other)
    return "*" if outside else zone_name(endpoint.network)


def _vrrp(node: NodeView) -> list[Rule]:
    """Adverts. Whoever knows a peer's address can write it into an advert, from anywhere; what he cannot do is get one
    through a router with a TTL of 255 (RFC 5082). What goes to the group passes no router; of unicast adverts
    keepalived looks at the TTL from 2.1.0 on (`unicast_peer` in keepalived.conf), for older ones an included script."""
    rules: list[Rule] = []
    for name in dict.fromkeys(i.network for i in node.instances):
        zone = zone_name(name)
        for version in sorted({i.version for i in node.instances if i.network == name}):
            peers = {str(p) for i in node.instances if i.network == name and i.version == version for p in i.peers}
            family = f"ipv{version}"
            if node.profile.vrrp.unicast:
                rules.append(
                    Rule(
                        f"vrrp-{zone}-{family}",
                        "VRRP adverts of the other nodes, or both become master",
                        zone,
                        family=family,
                        protocol=VRRP,
                        source_addresses=tuple(sorted(peers)),
                    )
                )
            else:
                rules.append(
                    Rule(
                        f"vrrp-{zone}-{family}",
                        "VRRP adverts of the other nodes to the VRRP group, or both become master",
                        zone,
                        family=family,
                        protocol=VRRP,
                        source_addresses=tuple(sorted(peers)) if version == 4 else ("fe80::/10",),
                        destination_addresses=("224.0.0.18",) if version == 4 else ("ff02::12",),
                    )
                )
    return rules


def _has_ipv6(profile: Profile) -> bool:
    return any(6 in net.families for net in profile.networks.values())


def _neighbours(profile: Profile) -> list[Rule]:
    """What IPv4 does below the firewall, by ARP. So `firewall.deny` cannot stop it either: it is about who gets in,
    and a router or server whose advertisements are dropped cannot be reached any more."""
    if not _has_ipv6(profile):
        return []
    return [
        Rule(
            "neighbours",
            "IPv6's ARP: without it no IPv6 address answers; not limited, a flood of pings must not stop it",
            "*",
            family="ipv6",
            protocol="icmp",
            icmp_types=("neighbour-solicitation", "neighbour-advertisement"),
        ),
        Rule(
            "multicast-listeners",
            "switches ask who listens to multicast; unanswered, some stop passing neighbour solicitations",
            "*",
            family="ipv6",
            protocol="icmp",
            source_addresses=("fe80::/10",),
            icmp_types=("130/0", "131/0", "132/0", "143/0"),
        ),
    ]


def _icmp(profile: Profile) -> list[Rule]:
    rules = [
        Rule(
            f"ping-{family}",
            "ping; errors about our own connections pass as related",
            "*",
            family=family,
            protocol="icmp",
            icmp_types=("echo-request",),
            limit="1000/second",
        )
        for family in ("ipv4", "ipv6")
        if family == "ipv4" or _has_ipv6(profile)
    ]
    if profile.instances and (not profile.vrrp.unicast or (profile.tracks_connections and len(profile.nodes) > 2)):
        why = "switches ask who listens to the nodes' multicast groups"
        rules.append(Rule("igmp", why, "*", family="ipv4", protocol=IGMP))
    return rules


def _egress(exits: tuple[Exit, ...]) -> list[Rule]:
    subnets_of: dict[tuple[str, str], list[str]] = {}
    for way in exits:
        subnets_of.setdefault((zone_name(way.network), zone_name(way.through)), []).append(str(way.subnet))
    return [
        Rule(
            f"egress-{source}-{through}",
            "the servers' way out; answers come back as established",
            source,
            destination=through,
            protocol="all",
            source_addresses=tuple(subnets),
        )
        for (source, through), subnets in subnets_of.items()
    ]


def _unique(items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))
