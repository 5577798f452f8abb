"""Source NAT of one node: the servers' ways out and what they wear there, and what must not wear it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from ndakit.core.names import zone_name
from ndakit.model import Address, Profile, Service, Subnet, transparent
from ndakit.model.links import exits, network_towards


@dataclass(frozen=True)
class Nat:
    """Source NAT of what leaves through a zone; `to` None = leave it as it is."""

    name: str
    why: str
    zone: str
    family: str
    source: str
    to: str | None
    protocol: str = "all"
    source_ports: str | None = None
    destination: str | None = None
    destination_ports: str | None = None


@dataclass(frozen=True)
class Exit:
    """One way out for the servers of a network: family, the zone it leaves through, the address it wears."""

    network: str
    through: str
    subnet: Subnet
    address: Address


def ways_out(profile: Profile, node: str) -> tuple[Exit, ...]:
    """The servers' ways out: for each network with egress, each family, each network it may leave through."""
    translated: list[Exit] = []
    for name, net in profile.networks.items():
        for subnet in net.subnet:
            version, vip = subnet.version, profile.vips.get(net.egress)
            for exit_network in exits(profile, name, version):
                address = (
                    vip.address_of(version) if vip is not None else profile.node_address(node, exit_network, version)
                )
                if address is not None:
                    translated.append(Exit(name, exit_network, subnet, address))
    return tuple(translated)


def nats(profile: Profile, ways: tuple[Exit, ...]) -> list[Nat]:
    """Source NAT in the order in which it is tried: the exceptions first."""
    nats: list[Nat] = [*_unbalanced(profile, ways), *_seen(profile, ways)]
    for way in ways:
        zone, family = zone_name(way.through), f"ipv{way.subnet.version}"
        if way.through == way.network:
            # One network in and out: what a node says for itself there must keep its address, or its own checks,
            # time and name look-ups would come back to whoever holds the VIP.
            nats += [
                Nat(
                    f"own-{zone}-{node}-{family}", "a node's own packets stay as they are", zone, family, str(own), None
                )
                for node in profile.nodes
                if (own := profile.node_address(node, way.network, way.subnet.version)) is not None
            ]
        nats.append(
            Nat(
                f"egress-{zone_name(way.network)}-{zone}-{family}",
                "what servers send out wears this address, which moves to the new master",
                zone,
                family,
                str(ip_network(way.subnet)),
                str(way.address),
            )
        )
    return nats


def _unbalanced(profile: Profile, ways: tuple[Exit, ...]) -> Iterator[Nat]:
    """Answers of nat servers that IPVS does not know, or not any more: while a node gives its VIPs away they still
    arrive there. With the VIP as their source, but their own port, they would make clients reset a port that nobody
    asked; translated back, that reset would end the connection at the server, although the next node carries it on.

    TCP only: UDP has no resets, and a name or time server asks others from the very port that it answers on."""
    for name in (n for n, s in profile.services.items() if s.topology == "nat" and s.transport == "tcp"):
        sockets = dict.fromkeys(server_sockets(profile, name))
        sources = [
            (way, address, port)
            for way in ways
            for address, ports in sockets
            for port in ports.split()  # fw4 takes one, or a range
            if address in way.subnet
        ]
        for number, (way, address, port) in enumerate(sources, 1):
            yield Nat(
                f"answers-{name}-{number}",
                f"answers of {name} that IPVS has not made the VIP's own are nobody's way out",
                zone_name(way.through),
                f"ipv{address.version}",
                str(address),
                None,
                "tcp",
                port,
            )


def _seen(profile: Profile, ways: tuple[Exit, ...]) -> Iterator[Nat]:
    """tproxy: what HAProxy says to servers from clients' addresses keeps those, also where the clients' own way out
    leads through the servers' network. Not for clients beside servers whose answers would then not come back."""
    for name in transparent.services(profile):
        sockets = [
            (way, address, port)
            for way in ways
            for pool in transparent.pools(profile, name)
            if way.through != way.network or profile.pools[pool].reply_route == "policy"
            for server in profile.pools[pool].servers.values()
            if (address := server.address_of(way.subnet.version)) is not None
            and network_towards(profile, address) == way.through
            # fw4 takes one, or a range
            for port in str(profile.server_port(pool, server) or port_text(profile.services[name])).split()
        ]
        for number, (way, address, port) in enumerate(sockets, 1):
            yield Nat(
                f"clients-{name}-{number}",
                f"servers of {name} see the clients' own addresses (tproxy)",
                zone_name(way.through),
                f"ipv{address.version}",
                str(ip_network(way.subnet)),
                None,
                "tcp",
                destination=str(address),
                destination_ports=port,
            )


def server_sockets(profile: Profile, name: str) -> list[tuple[Address, str]]:
    """Address and port (or ports) of every server that can answer for a service that the kernel balances."""
    service = profile.services[name]
    versions = dict.fromkeys(e.address.version for e in profile.endpoints(name))
    pools = [profile.pools[service.main_pool]]
    if pools[0].sorry is not None and pools[0].sorry.pool is not None:
        pools.append(profile.pools[pools[0].sorry.pool])
    several = service.several
    return [
        (address, port_text(service) if several else str(server.port or pool.port or service.first_port))
        for pool in pools
        for server in pool.servers.values()
        for version in versions
        if (address := server.address_of(version)) is not None
    ]


def port_text(service: Service) -> str:
    """A service's ports as the firewall writes them."""
    return " ".join(str(low) if low == high else f"{low}-{high}" for low, high in service.port)
