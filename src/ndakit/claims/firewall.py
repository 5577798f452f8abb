"""Claims about what can be reached from where, and about the servers' way out."""

from __future__ import annotations

from ndakit.claims.base import Outcome, reachable_addresses
from ndakit.lab_network import LabNetwork
from ndakit.lab_plan import Seat
from ndakit.model import Address, Opening, Profile

WATCHED_PORTS = (21, 22, 23, 25, 53, 80, 111, 179, 443, 3306, 8080, 8404, 9090, 10000)
"""Ports tried from every network besides those the profile opens."""


def firewall(lab: LabNetwork, network: str) -> Outcome:
    """A list of ports tried from a client and a stranger of the network, against what the model opens."""
    seats = {f"client-{network}": lab.plan.clients.get(network), f"stranger-{network}": lab.plan.strangers.get(network)}
    wanted = [
        (who, seat, target, allowed)
        for who, seat in seats.items()
        if seat is not None
        for target, allowed in expected_open(lab, seat, network).items()
    ]
    more = own_ports(lab.profile, network)
    found = lab.scan_all(
        [(seat, target, sorted({*WATCHED_PORTS, *more, *allowed})) for _, seat, target, allowed in wanted]
    )
    wrong: list[str] = []
    for (who, seat, target, allowed), states in zip(wanted, found, strict=True):
        let_in = let_through(lab.profile, network, seat.address(target.version))
        for port, state in states.items():
            if not _fits(state, port in allowed, port in let_in, port in more):
                says = "open" if port in allowed else "let in" if port in let_in else "shut"
                wrong.append(f"{who} finds {target}:{port} {state}, the profile says {says}")
    tried = sum(len(states) for states in found)
    return Outcome(not wrong and tried > 0, f"{tried} ports tried", "; ".join(wrong[:6]), {"tried": tried})


def expected_open(lab: LabNetwork, seat: Seat, network: str) -> dict[Address, set[int]]:
    """Address → ports that somebody in a network may find open there, from the model alone."""
    profile = lab.profile
    found: dict[Address, set[int]] = {}
    for node in profile.nodes:
        for target in reachable_addresses(lab, node, seat):
            source = seat.address(target.version)
            admin = source is not None and any(source in s for s in profile.sources(target.version))
            own = {22} | ({profile.monitoring.statistics.port} if profile.services else set())
            found[target] = own if admin else set()
    for vip in profile.vips.values():
        for address in vip.address:
            source = seat.address(address.version)
            if source is None or vip.network != network:
                continue
            admin = any(source in s for s in profile.sources(address.version))
            found[address] = {22} if admin else set()
    for name in (n for n, s in profile.services.items() if s.transport == "tcp"):
        for endpoint in profile.endpoints(name):
            if endpoint.address in found:
                ports = {p for p in profile.services[name].ports if p in _sampled(profile, name)}
                source = seat.address(endpoint.address.version)
                found[endpoint.address] |= {p for p in ports if not denied(profile, network, source, p)}
    return found


def _fits(state: str, is_open: bool, let_in: bool, stated: bool) -> bool:
    """True if a port is in the state that it should be in. Nobody may listen where firewall.allow lets packets in: then
    the kernel refuses them, which is an answer. Where a rule of the profile is about a port, shut means silence."""
    if is_open:
        return state == "open"
    if let_in:
        return state in ("open", "closed")
    return state == "filtered" if stated else state != "open"


def own_ports(profile: Profile, network: str) -> set[int]:
    """TCP ports of the profile's own firewall rules for a network: both ends of every range."""
    rules = (*profile.firewall.allow.values(), *profile.firewall.deny.values())
    return {
        p for r in rules if r.network == network and r.protocol == "tcp" for span in r.port or () for p in span
    }  # fmt: skip


def let_through(profile: Profile, network: str, source: Address | None) -> set[int]:
    """Those of them that firewall.allow lets somebody reach, whether or not anybody listens there."""
    return {
        port
        for port in own_ports(profile, network)
        if any(_about(profile, r, network, source, port) for r in profile.firewall.allow.values())
        and not denied(profile, network, source, port)
    }


def denied(profile: Profile, network: str, source: Address | None, port: int) -> bool:
    """True if firewall.deny shuts a TCP port for somebody."""
    return any(_about(profile, r, network, source, port) for r in profile.firewall.deny.values())


def _about(profile: Profile, rule: Opening, network: str, source: Address | None, port: int) -> bool:
    sources = profile.opening_sources(rule)
    from_there = not sources or (source is not None and any(source in s for s in sources))
    return rule.network == network and rule.covers("tcp", port) and from_there


def _sampled(profile: Profile, name: str) -> set[int]:
    """The ports of a service that are tried: both ends of every range, and the watched ones."""
    service_ports = set(profile.services[name].ports)
    return {p for pair in profile.services[name].port for p in pair} | (service_ports & set(WATCHED_PORTS))


# -- egress ------------------------------------------------------------------------------------------------------------


def egress_way(profile: Profile, network: str) -> str | None:
    """The network through whose gateway servers of `network` get out; None without gateway VIP, server or gateway."""
    has_gateway = any(v.network == network and v.role == "gateway" and v.address_of(4) for v in profile.vips.values())
    servers = [a for pool in profile.pools.values() for s in pool.servers.values() for a in s.address if a.version == 4]
    has_server = any(profile.network_of(a) == network for a in servers)
    out = next((n for n, net in profile.networks.items() if n != network and net.gateway_of(4)), None)
    return out if has_gateway and has_server else None


def egress(lab: LabNetwork, network: str) -> Outcome:
    """A server asks a web server beyond the gateway, which says whom it saw."""
    way = egress_way(lab.profile, network)
    seats = [s for s in lab.plan.servers.values() if lab.plan.hosts[s.host].network == network and s.address(4)]
    server = next((s for s in seats if lab.plan.hosts[s.host].role == "server"), None)
    outside = lab.plan.outside[way].address(4) if way in lab.plan.outside else None
    if way is None or server is None or outside is None:
        return Outcome(False, "not tried", f"no server in {network} to try it from")
    kind = lab.profile.networks[network].egress
    if kind == "node":
        expected = {str(lab.profile.node_address(n, way, 4)) for n in lab.profile.nodes}
    else:
        expected = {str(lab.profile.vips[kind].address_of(4))}
    seen = str(lab.get(server, outside, 80).seen.get("client", ""))
    return Outcome(
        seen in expected, f"seen as {seen or 'nobody: no answer'}", f"expected {' or '.join(sorted(expected))}"
    )
