"""Which machines a lab for a profile needs: segments, balancers, servers, clients, admins, routers. Pure.

The lab's hosts are derived from the model: every server of every pool, a client on every network, somebody inside each
of `access.sources`, a stranger outside of all of them, and a router wherever the profile names a gateway. What lies
behind a router (servers of other networks, admins far away) is an address on that router's loopback: for a balancer it
makes no difference, the frames come from the router's MAC. Booting all this is lab_network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal

from ndakit.model import Address, Profile, Subnet

Role = Literal["server", "client", "admin", "stranger", "router"]

OUTSIDE: dict[int, tuple[Address, Address]] = {
    4: (ip_address("198.18.0.80"), ip_address("198.18.0.66")),
    6: (ip_address("2001:2:0:1::80"), ip_address("2001:2:0:1::66")),
}
"""A web server and a stranger far away, per IP version, in the benchmarking ranges (RFC 2544, RFC 5180)."""


@dataclass(frozen=True)
class Interface:
    """An address with its prefix length."""

    address: Address
    prefix: int

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"


@dataclass(frozen=True)
class Port:
    """A port that a lab server answers on, and how: an HTTP answer, or a line of text and an echo."""

    number: int
    kind: Literal["http", "tcp"]


@dataclass(frozen=True)
class PlannedHost:
    """One host of the lab besides the balancers."""

    name: str
    role: Role
    network: str
    segment: str
    mac: str
    vlan: int | None
    addresses: tuple[Interface, ...]
    behind: tuple[Address, ...] = ()
    """Addresses on its loopback: what lies behind this router."""
    gateways: tuple[Address, ...] = ()
    ports: tuple[Port, ...] = ()


@dataclass(frozen=True)
class Seat:
    """Where somebody sits: the host, and the source address to use there, per IP version."""

    host: str
    addresses: tuple[Address, ...]

    def address(self, version: int) -> Address | None:
        """The address of an IP version."""
        return next((a for a in self.addresses if a.version == version), None)


@dataclass(frozen=True)
class BootImage:
    """A balancer's disk as it was built."""

    path: Path
    firmware: Literal["efi", "bios"]


@dataclass(frozen=True)
class BalancerNic:
    """A network card of a balancer; without a segment its cable is not plugged in."""

    name: str
    mac: str
    segment: str | None


@dataclass(frozen=True)
class LabPlan:
    """Everything a lab consists of, by name."""

    segments: tuple[str, ...]
    balancers: dict[str, tuple[BalancerNic, ...]]
    hosts: dict[str, PlannedHost]
    servers: dict[tuple[str, str], Seat] = field(default_factory=dict)
    """(pool, server) → where it runs."""
    clients: dict[str, Seat] = field(default_factory=dict)
    """network → somebody who uses services from there."""
    admins: dict[str, Seat] = field(default_factory=dict)
    """source name → somebody inside it."""
    strangers: dict[str, Seat] = field(default_factory=dict)
    """network → somebody there, or behind its gateway, who is in none of `access.sources`; absent if nobody can be."""
    outside: dict[str, Seat] = field(default_factory=dict)
    """network → the far side of its gateway, where a web server runs for the servers' way out."""


def mac_of(*words: str) -> str:
    """A locally administered MAC address from names alone, so that every run has the same."""
    digest = hashlib.sha256("/".join(words).encode()).hexdigest()
    return ":".join(["52", "54", *(digest[i : i + 2] for i in range(0, 8, 2))])


class _Planner:
    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.hosts: dict[str, PlannedHost] = {}
        self.used: set[Address] = set()
        for node in profile.nodes.values():
            self.used |= {a for addresses in node.addresses.values() for a in addresses}
        self.used |= {a for vip in profile.vips.values() for a in vip.address}
        for net in profile.networks.values():
            self.used |= {*(net.gateway or ()), *(r.via for r in net.routes)}
        for pool in profile.pools.values():
            self.used |= {a for s in pool.servers.values() for a in s.address}

    def segment(self, network: str) -> str:
        """The segment of a network: that of its first card; the other ports of a bridge have no cable (no loop).
        VLANs that share a card, bond or bridge share the segment."""
        return self.profile.networks[self.profile.base_owner(network)].nics[0]

    def nics(self, node: str) -> tuple[BalancerNic, ...]:
        plugged: dict[str, str] = {}
        for name in self.profile.networks:
            net = self.profile.networks[self.profile.base_owner(name)]
            for nic in net.nics if net.bond is not None else net.nics[:1]:
                plugged[nic] = self.segment(name)
        wanted = self.profile.nics
        if all(n.startswith("eth") and n[3:].isdigit() for n in wanted):
            # The kernel numbers cards without gaps, so a profile that names only eth1 needs an eth0 before it.
            wanted = tuple(f"eth{i}" for i in range(1 + max(int(n[3:]) for n in wanted)))
        return tuple(BalancerNic(n, mac_of(self.profile.name, node, n), plugged.get(n)) for n in wanted)

    def free(self, region: Subnet, accept: Callable[[Address], bool]) -> Address | None:
        """A free address of a region, from its end; None if there is none among the last few thousand."""
        size = region.num_addresses
        for offset in range(2, min(size, 4096)):
            found = region[-offset]
            if found not in self.used and accept(found):
                self.used.add(found)
                return found
        return None

    def add(
        self, name: str, role: Role, network: str, addresses: tuple[Address, ...], gateways: tuple[Address, ...] = ()
    ) -> str:
        net = self.profile.networks[network]
        with_prefix = tuple(
            Interface(a, s.prefixlen) for a in addresses for s in net.subnet if s.version == a.version and a in s
        ) + tuple(Interface(a, 64) for a in addresses if a.is_link_local)
        unique, number = name, 2
        while unique in self.hosts:
            unique, number = f"{name}-{number}", number + 1
        mac = mac_of(self.profile.name, "lab", unique)
        self.hosts[unique] = PlannedHost(
            unique, role, network, self.segment(network), mac, net.vlan, with_prefix, gateways=gateways
        )
        return unique

    def router(self, network: str, address: Address) -> str:
        """The host that owns a gateway address; made when first asked for. Both families' gateways are one router."""
        for host in self.hosts.values():
            if host.role == "router" and any(i.address == address for i in host.addresses):
                return host.name
        return self.add(f"router-{network}", "router", network, (address,))

    def behind(self, router: str, address: Address) -> None:
        host = self.hosts[router]
        if address not in host.behind:
            self.hosts[router] = replace(host, behind=(*host.behind, address))

    def way_to(self, address: Address) -> tuple[str, str] | None:
        """(network, router) through which a balancer reaches an off-link address; None if it has no such route."""
        best: tuple[int, str, Address] | None = None
        for name, net in self.profile.networks.items():
            for route in net.routes:
                if address in route.to and (best is None or route.to.prefixlen > best[0]):
                    best = (route.to.prefixlen, name, route.via)
            gateway = net.gateway_of(address.version)
            if gateway is not None and best is None:
                best = (0, name, gateway)
        return (best[1], self.router(best[1], best[2])) if best else None

    def server_gateways(self, network: str) -> tuple[Address, ...]:
        """The default gateways of the servers in a network: the gateway VIPs, else the network's own gateway."""
        found: list[Address] = []
        for version in (4, 6):
            vips = [v for v in self.profile.vips.values() if v.network == network and v.role == "gateway"]
            address = next((a for v in vips if (a := v.address_of(version))), None)
            address = address or self.profile.networks[network].gateway_of(version)
            if address is not None:
                found.append(address)
        return tuple(found)

    def ports_of(self, pool: str, server: str) -> tuple[Port, ...]:
        profile = self.profile
        protocols = {profile.services[s].protocol for s in profile.services_of(pool)}
        kind: Literal["http", "tcp"] = (
            "http" if "http" in protocols or profile.pools[pool].check.type == "http" else "tcp"
        )
        number = profile.server_port(pool, profile.pools[pool].servers[server])
        numbers = [number] if number else [p for s in profile.services_of(pool) for p in profile.services[s].ports]
        check = profile.pools[pool].check
        found = {n: Port(n, kind) for n in numbers}
        if check.port is not None:
            found.setdefault(check.port, Port(check.port, check.type))
        return tuple(found.values())


def plan(profile: Profile) -> LabPlan:
    """The lab for a profile; the same for the same profile."""
    p = _Planner(profile)
    balancers = {node: p.nics(node) for node in profile.nodes}
    lab = LabPlan(tuple(dict.fromkeys(p.segment(n) for n in profile.networks)), balancers, p.hosts)
    for name, net in profile.networks.items():
        for gateway in net.gateway or ():
            p.router(name, gateway)
        for route in net.routes:
            p.router(name, route.via)
    _add_servers(p, lab)
    _add_people(p, lab)
    return lab


def _add_servers(p: _Planner, lab: LabPlan) -> None:
    by_addresses: dict[tuple[Address, ...], str] = {}
    for pool_name, pool in p.profile.pools.items():
        for name, server in pool.servers.items():
            ports = p.ports_of(pool_name, name)
            network = p.profile.network_of(server.address[0])
            host = by_addresses.get(server.address)
            if host is None and network is not None:
                host = p.add(name, "server", network, server.address, p.server_gateways(network))
            elif host is None:
                for address in server.address:
                    if way := p.way_to(address):
                        host = way[1]
                        p.behind(host, address)
            if host is None:
                continue
            by_addresses[server.address] = host
            merged = {q.number: q for q in (*p.hosts[host].ports, *ports)}
            p.hosts[host] = replace(p.hosts[host], ports=tuple(merged.values()))
            lab.servers[(pool_name, name)] = Seat(host, server.address)


def _add_people(p: _Planner, lab: LabPlan) -> None:
    everywhere = [s for v in (4, 6) for s in p.profile.sources(v)]

    def is_admin(address: Address) -> bool:
        return any(address in s for s in everywhere)

    for name, net in p.profile.networks.items():
        gateways = tuple(net.gateway or ())
        own = tuple(a for s in net.subnet if (a := p.free(s, lambda _: True)) is not None)
        if own:
            lab.clients[name] = Seat(p.add(f"client-{name}", "client", name, own, gateways), own)
        for gateway in gateways:
            far = OUTSIDE[gateway.version]
            router = p.router(name, gateway)
            for address in far:
                p.behind(router, address)
            before = lab.outside[name].addresses if name in lab.outside else ()
            lab.outside[name] = Seat(router, (*before, far[0]))
        if not own and gateways:  # a full subnet: its clients come from outside
            lab.clients[name] = Seat(lab.outside[name].host, tuple(OUTSIDE[g.version][1] for g in gateways))
        strangers = [a for s in net.subnet if (a := p.free(s, lambda a: not is_admin(a))) is not None]
        if strangers:
            host = p.add(f"stranger-{name}", "stranger", name, tuple(strangers), gateways)
            lab.strangers[name] = Seat(host, tuple(strangers))
        elif gateways and not all(is_admin(OUTSIDE[g.version][1]) for g in gateways):
            outsiders = tuple(OUTSIDE[g.version][1] for g in gateways if not is_admin(OUTSIDE[g.version][1]))
            lab.strangers[name] = Seat(p.router(name, gateways[0]), outsiders)
    for source, subnets in p.profile.access.sources.items():
        for subnet in subnets:
            if seat := _admin_seat(p, source, subnet):
                lab.admins[source] = seat
                break


def _admin_seat(p: _Planner, source: str, subnet: Subnet) -> Seat | None:
    """Somebody inside a source: on a network that overlaps it, else behind the router that leads there."""
    for name, net in p.profile.networks.items():
        for own in net.subnet:
            if own.version == subnet.version and own.overlaps(subnet):
                region = subnet if subnet.prefixlen > own.prefixlen else own
                if (found := p.free(region, lambda _: True)) is not None:
                    host = p.add(f"admin-{source}", "admin", name, (found,), tuple(net.gateway or ()))
                    return Seat(host, (found,))
    address = next(_hosts(subnet))
    if way := p.way_to(address):
        p.behind(way[1], address)
        return Seat(way[1], (address,))
    return None


def _hosts(subnet: Subnet) -> Iterator[Address]:
    """The subnet's host addresses; of a default route some documentation address."""
    if subnet.prefixlen == 0:
        yield (ip_network("198.51.100.0/24") if subnet.version == 4 else ip_network("2001:db8:ffff::/64"))[10]
    yield from subnet.hosts()
