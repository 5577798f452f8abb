"""Claims about what can be reached from where, and about the servers' way out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from ndakit.core.addresses import authority
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint
from ndakit.lab.server_ports import WATCHED_PORTS
from ndakit.model import Address, Opening, Profile
from ndakit.model.links import WayOut, ways_out
from ndakit.verify.claims.base import Outcome, reachable_addresses

Protocol = Literal["tcp", "udp"]


def watched(profile: Profile, protocol: Protocol) -> set[int]:
    """The ports tried from every network besides those that the profile opens."""
    own = {profile.ssh_port, profile.monitoring.statistics.port} if protocol == "tcp" else set()
    return {*WATCHED_PORTS[protocol], *own}


def firewall(lab: LabNetwork, network: str) -> Outcome:
    """A list of ports tried from a client and a stranger of the network, against what the model opens."""
    points = {
        f"client-{network}": lab.plan.clients.get(network),
        f"stranger-{network}": lab.plan.strangers.get(network),
    }
    wanted = [
        (who, point, target, protocol, allowed)
        for who, point in points.items()
        if point is not None
        for protocol in WATCHED_PORTS
        for target, allowed in expected_open(lab, point, network, protocol).items()
    ]
    answering = _answering(lab, points.values(), {target for _, _, target, _, _ in wanted})
    ports = {p: watched(lab.profile, p) | own_ports(lab.profile, network, p) for p in WATCHED_PORTS}
    states_of = lab.scan_all(
        [(s, t, sorted(ports[protocol] | allowed), protocol) for _, s, t, protocol, allowed in wanted]
    )
    # The first packet to somebody new may come late, or not at all: what should be open is asked twice.
    late = [sorted(p for p in one[-1] if states[p] != "open") for one, states in zip(wanted, states_of, strict=True)]
    if any(late):
        again = lab.scan_all([(s, t, p, protocol) for (_, s, t, protocol, _), p in zip(wanted, late, strict=True)])
        states_of = [states | newer for states, newer in zip(states_of, again, strict=True)]
    noted = _noted(lab, points.values())
    wrong = [
        f"{target} answered a ping of {source}, and no node has noted it: what UDP is let in cannot be told"
        for source, target in answering
        if not any((a, b) == (source, target) and p.startswith("icmp") for p, a, b, _ in noted)
    ]
    for (who, point, target, protocol, allowed), states in zip(wanted, states_of, strict=True):
        source = point.address(target.version)
        let_in = let_through(lab.profile, network, source, protocol)
        more = own_ports(lab.profile, network, protocol)
        for port, state in states.items():
            passed = (protocol, source, target, port) in noted
            if not _fits(state, passed, port in allowed, port in let_in, port in more, protocol):
                says = "open" if port in allowed else "let in" if port in let_in else "shut"
                # What TCP has noted may be from before: there the answer tells.
                is_so = "let in" if protocol == "udp" and passed and state == "filtered" else state
                name = authority(target, port) + ("" if protocol == "tcp" else "/udp")
                wrong.append(f"{who} finds {name} {is_so}, the profile says {says}")
    tried = sum(len(states) for states in states_of)
    return Outcome(not wrong and tried > 0, f"{tried} ports tried", "; ".join(wrong[:6]), {"tried": tried})


def _answering(
    lab: LabNetwork, points: Iterable[VantagePoint | None], targets: Collection[Address]
) -> list[tuple[Address, Address]]:
    """Who (source) gets an answer to a ping from where (target): so that it is known that packets let in are noted."""
    return [
        (source, target)
        for point in points
        for target in targets
        if point is not None and (source := point.address(target.version)) is not None
        if lab.hosts[point.host].ping(target, source=source).ok
    ]


def _noted(lab: LabNetwork, points: Iterable[VantagePoint | None]) -> set[tuple[str, Address, Address, int]]:
    """What the nodes' firewalls have let in from these people (NodeFacts.let_in). A UDP port that keeps silent may be
    shut, or somebody may listen there who has nothing to say; and of refusals the kernel sends only some. So it is not
    the answer that tells, but what the kernel notes of the packets that it has accepted."""
    sources = [a for point in points if point is not None for a in point.addresses]
    nodes = [node for node in lab.profile.nodes if lab.is_up(node)]
    with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
        return set().union(*pool.map(lambda node: lab.facts(node).let_in(sources), nodes))


def expected_open(
    lab: LabNetwork, point: VantagePoint, network: str, protocol: Protocol = "tcp"
) -> dict[Address, set[int]]:
    """Address → ports that somebody in a network may find open there, from the model alone."""
    profile = lab.profile
    open_at: dict[Address, set[int]] = {}
    for node in profile.nodes:
        for target in reachable_addresses(lab, node, point):
            source = point.address(target.version)
            admin = source is not None and any(source in s for s in profile.sources(target.version))
            own = {profile.ssh_port} | ({profile.monitoring.statistics.port} if profile.runs_haproxy else set())
            open_at[target] = own if admin and protocol == "tcp" else set()
    for vip in profile.vips.values():
        for address in vip.address:
            source = point.address(address.version)
            if source is None or vip.network != network:
                continue
            admin = any(source in s for s in profile.sources(address.version))
            there = open_at.get(address, set())  # a single node's VIP may be its own address
            open_at[address] = there | ({profile.ssh_port} if admin and protocol == "tcp" else set())
    for name in (n for n, s in profile.services.items() if s.transport == protocol):
        for endpoint in profile.endpoints(name):
            if endpoint.address in open_at:
                ports = _sampled(profile, name, protocol)
                source = point.address(endpoint.address.version)
                open_at[endpoint.address] |= {p for p in ports if not denied(profile, network, source, p, protocol)}
    return open_at


def _fits(state: str, passed: bool, is_open: bool, let_in: bool, stated: bool, protocol: Protocol = "tcp") -> bool:
    """True if a port is in the state that it should be in; `passed` says whether the firewall was seen to let it in.

    It may be that nobody listens where firewall.allow lets packets in: then the kernel refuses them, which is an
    answer; one of UDP it may keep to itself. Where a rule of the profile is about a TCP port, shut means silence; a UDP
    port that is shut is one whose packets were not let in.
    """
    if is_open:
        return state == "open"
    if let_in:
        return state in ("open", "closed") if protocol == "tcp" else passed
    if protocol == "udp":
        return state != "open" and not passed
    return state == "filtered" if stated else state != "open"


def own_ports(profile: Profile, network: str, protocol: Protocol = "tcp") -> set[int]:
    """Ports of the profile's own firewall rules for a network: both ends of every range."""
    rules = (*profile.firewall.allow.values(), *profile.firewall.deny.values())
    return {
        p for r in rules if r.network == network and r.protocol == protocol for span in r.port or () for p in span
    }  # fmt: skip


def let_through(profile: Profile, network: str, source: Address | None, protocol: Protocol = "tcp") -> set[int]:
    """The ports (of those, and of the watched ones) that firewall.allow lets somebody reach, whether or not anybody
    listens there."""
    return {
        port
        for port in own_ports(profile, network, protocol) | watched(profile, protocol)
        if any(_about(profile, r, network, source, port, protocol) for r in profile.firewall.allow.values())
        and not denied(profile, network, source, port, protocol)
    }


def denied(profile: Profile, network: str, source: Address | None, port: int, protocol: Protocol = "tcp") -> bool:
    """True if firewall.deny shuts a port for somebody."""
    return any(_about(profile, r, network, source, port, protocol) for r in profile.firewall.deny.values())


def _about(
    profile: Profile, rule: Opening, network: str, source: Address | None, port: int, protocol: Protocol
) -> bool:
    sources = profile.opening_sources(rule)
    from_there = not sources or (source is not None and any(source in s for s in sources))
    return rule.network == network and rule.covers(protocol, port) and from_there


def _sampled(profile: Profile, name: str, protocol: Protocol) -> set[int]:
    """The ports of a service that are tried: both ends of every range, and the watched ones."""
    service = profile.services[name]
    return {p for pair in service.port for p in pair} | {p for p in watched(profile, protocol) if service.has_port(p)}


# -- egress ------------------------------------------------------------------------------------------------------------


def egress_ways(profile: Profile, network: str) -> tuple[WayOut, ...]:
    """The ways out of a network that can be tried: through a gateway VIP, to a default gateway."""
    return tuple(way for way in ways_out(profile) if way.network == network)


def no_way(profile: Profile, network: str) -> str:
    """Why there is no way out of a network with an egress to try."""
    if not any(v.network == network and v.role == "gateway" for v in profile.vips.values()):
        return "no VIP of role gateway is there, so nobody's way leads through the pair"
    outside = [n for n, net in profile.networks.items() if n != network and net.gateway]
    if not outside:
        return "no other network has a default gateway, so there is no outside"
    return f"gateway VIP, egress and the gateway of {outside[0]} have no IP version in common"


def egress(lab: LabNetwork, network: str) -> Outcome:
    """Somebody inside asks a web server beyond the gateway, which says whom it saw; in each IP version."""
    wrong, figures = [], []
    for way in egress_ways(lab.profile, network):
        expected = worn(lab.profile, way)
        answer = lab.ask_out(way)
        seen = str(answer.seen.get("client", "")) or f"nobody: {answer.error or 'no answer'}"
        figures.append(f"seen as {seen}")
        if seen not in expected:
            wrong.append(f"IPv{way.version}: seen as {seen}, expected {' or '.join(sorted(expected))}")
    return Outcome(bool(figures) and not wrong, ", ".join(figures), "; ".join(wrong))


def worn(profile: Profile, way: WayOut) -> set[str]:
    """The addresses that what leaves by a way out may wear."""
    kind = profile.networks[way.network].egress
    if kind == "node":
        return {str(profile.node_address(n, way.through, way.version)) for n in profile.nodes}
    return {str(profile.vips[kind].address_of(way.version))}
