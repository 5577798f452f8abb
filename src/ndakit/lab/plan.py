"""Which machines a lab for a profile needs: segments, balancers, servers, clients, admins, routers. Pure.

The lab's hosts are derived from the model: every server of every pool, a client on every network, somebody inside each
of `access.sources`, a stranger outside of all of them, and a router wherever the profile names a gateway. What lies
behind a router (servers of other networks, admins far away) is an address on that router's loopback: for a balancer it
makes no difference, the frames come from the router's MAC. Where a subnet has no free address, somebody who is there
already plays the part, or somebody behind the gateway. Booting all this is `network`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Literal

from ndakit.lab.server_ports import ServerPort, joined, ports_of
from ndakit.lab.subnets import narrower, take, without
from ndakit.machine.boot_image import mac_of
from ndakit.model import Address, Profile, Subnet
from ndakit.model.links import ways_out
from ndakit.model.server_side import servers

Role = Literal["server", "client", "admin", "stranger", "router"]

FAR: dict[int, tuple[Subnet, ...]] = {
    4: tuple(ip_network(f"{n}.0/24") for n in ("198.18.0", "198.19.255", "192.0.2", "198.51.100", "203.0.113")),
    6: tuple(ip_network(f"{n}::/64") for n in ("2001:2:0:1", "2001:2:0:ffff", "2001:db8:ffff:ffff")),
}
"""Where a web server and a stranger far away are, per IP version: the first range that the profile leaves alone, of
those for benchmarks (RFC 2544, RFC 5180) and for documentation (RFC 5737, RFC 3849)."""
FAR_WEB, FAR_STRANGER = 0x50, 0x42


@dataclass(frozen=True)
class PlannedAddress:
    """An address with its prefix length."""

    address: Address
    prefix: int

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix}"


@dataclass(frozen=True)
class PlannedHost:
    """One host of the lab besides the balancers."""

    name: str
    role: Role
    network: str
    segment: str
    mac: str
    vlan: int | None
    addresses: tuple[PlannedAddress, ...]
    behind: tuple[Address, ...] = ()
    """Addresses on its loopback: what lies behind this router."""
    gateways: tuple[Address, ...] = ()
    routes: tuple[tuple[Address, Address], ...] = ()
    """(VIP, next hop): what the network's routers would know of VIPs that are routed."""
    beyond: tuple[Address, ...] = ()
    """Servers of other networks that are hosts of their own (tun): this router finds them on its own segment."""
    ports: tuple[ServerPort, ...] = ()


@dataclass(frozen=True)
class VantagePoint:
    """Where somebody sits: the host, and the source address to use there, per IP version."""

    host: str
    addresses: tuple[Address, ...]

    def address(self, version: int) -> Address | None:
        """The address of an IP version."""
        return next((a for a in self.addresses if a.version == version), None)


@dataclass(frozen=True)
class BalancerNic:
    """A network card of a balancer; without a segment its cable is not plugged in."""

    name: str
    mac: str
    segment: str | None
    bundle: str | None = None
    """The bond for which the switch speaks LACP on this card's port."""


@dataclass(frozen=True)
class LabPlan:
    """Everything a lab consists of, by name."""

    segments: tuple[str, ...]
    balancers: dict[str, tuple[BalancerNic, ...]]
    hosts: dict[str, PlannedHost]
    servers: dict[tuple[str, str], VantagePoint] = field(default_factory=dict)
    """(pool, server) → where it runs."""
    clients: dict[str, VantagePoint] = field(default_factory=dict)
    """network → somebody who uses services from there."""
    admins: dict[str, VantagePoint] = field(default_factory=dict)
    """source name (with the subnet, if it has several) → somebody inside it."""
    strangers: dict[str, VantagePoint] = field(default_factory=dict)
    """network → somebody there, or behind its routers, who is in none of `access.sources`; absent if nobody can be.
    Where only one family has strangers on the network itself, the other's are under `<network>, from afar`."""
    direct: tuple[str, ...] = ()
    """Cards whose cable leads to the other node and nowhere else: those of a heartbeat between two nodes."""
    inside: dict[tuple[str, int], VantagePoint] = field(default_factory=dict)
    """(network, IP version) → somebody there whose default gateway is a gateway VIP: a server if there is one."""
    outside: dict[str, VantagePoint] = field(default_factory=dict)
    """network → the far side of its gateway, where a web server runs for the servers' way out."""


class _Planner:
    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.hosts: dict[str, PlannedHost] = {}
        self.wishes: dict[str, tuple[Address, ...]] = {}
        """Host → the default gateways that it would have if it had addresses of their families."""
        self.on_link = [s for net in profile.networks.values() for s in net.subnet]
        self.sources = [s for v in (4, 6) for s in profile.sources(v)]
        self.used: set[Address] = {ip_address(n) for n in profile.system.ntp if _is_address(n)}
        for node in profile.nodes.values():
            self.used |= {a for addresses in node.addresses.values() for a in addresses}
        self.used |= {a for vip in profile.vips.values() for a in vip.address}
        for net in profile.networks.values():
            self.used |= {*(net.gateway or ()), *(r.via for r in net.routes), *net.dns}
        for pool in profile.pools.values():
            self.used |= {a for s in pool.servers.values() for a in s.address}
        self.far = {version: self._far(version) for version in (4, 6)}
        self.used |= {region[number] for region in self.far.values() for number in (FAR_WEB, FAR_STRANGER)}

    def _far(self, version: int) -> Subnet:
        """A range that the profile neither has nor routes anywhere."""
        taken = [*self.on_link, *(r.to for net in self.profile.networks.values() for r in net.routes)]

        def alone(region: Subnet) -> bool:
            return not any(region.overlaps(s) for s in taken) and not any(a in region for a in self.used)

        return next((r for r in FAR[version] if alone(r)), FAR[version][0])

    def segment(self, network: str) -> str:
        """The segment of a network: that of its first card; the other ports of a bridge have no cable (no loop).
        VLANs that share a card, bond or bridge share the segment."""
        return self.profile.networks[self.profile.base_owner(network)].nics[0]

    def nics(self, node: str) -> tuple[BalancerNic, ...]:
        plugged: dict[str, str] = {}
        bundled: dict[str, str] = {}
        for name in self.profile.networks:
            net = self.profile.networks[self.profile.base_owner(name)]
            for nic in net.nics if net.bond is not None else net.nics[:1]:
                plugged[nic] = self.segment(name)
                if net.bond is not None and net.bond.mode == "802.3ad":
                    bundled[nic] = self.profile.base_device(name)
        return tuple(
            BalancerNic(n, mac_of(self.profile.name, node, n), plugged.get(n), bundled.get(n))
            for n in self.profile.cards
        )

    # -- addresses -----------------------------------------------------------------------------------------------------

    def free(self, regions: Iterable[Subnet], home: Subnet) -> Address | None:
        """A free address of some regions of a subnet, taken from now on; None if there is none."""
        return take(self.used, regions, home)

    def way_to(self, address: Address) -> str | None:
        """The router through which a balancer reaches an off-link address; None if it has no such route."""
        ways: list[tuple[int, int, str, Address]] = []
        for name, net in self.profile.networks.items():
            ways += [(-r.to.prefixlen, r.metric or 0, name, r.via) for r in net.routes if address in r.to]
            ways += [(0, 0, name, g) for g in net.gateway or () if g.version == address.version]
        best = min(ways, key=lambda way: way[:2], default=None)
        return self.router(best[2], (best[3],)) if best else None

    # -- hosts ---------------------------------------------------------------------------------------------------------

    def add(
        self, name: str, role: Role, network: str, addresses: tuple[Address, ...], gateways: tuple[Address, ...] = ()
    ) -> str:
        net = self.profile.networks[network]
        unique, number = name, 2
        while unique in self.hosts:
            unique, number = f"{name}-{number}", number + 1
        mac = mac_of(self.profile.name, "lab", unique)
        self.hosts[unique] = PlannedHost(unique, role, network, self.segment(network), mac, net.vlan, ())
        self.wishes[unique] = gateways
        self.own(unique, addresses)
        return unique

    def own(self, host: str, addresses: tuple[Address, ...]) -> None:
        """Give a host further addresses on its network, and with them the gateways and routes that they make usable."""
        first = self.hosts[host]
        net = self.profile.networks[first.network]
        there = {i.address for i in first.addresses}
        cards_own = list(first.addresses)
        for address in (a for a in addresses if a not in there):
            subnet = next((s for s in net.subnet if address in s), None)
            cards_own.append(PlannedAddress(address, subnet.prefixlen if subnet else 64))
        versions = {i.address.version for i in cards_own}
        self.hosts[host] = replace(
            first,
            addresses=tuple(cards_own),
            gateways=tuple(g for g in self.wishes[host] if g.version in versions and g not in there | {*addresses}),
            routes=tuple((vip, hop) for vip, hop in self._routed(first.network) if vip.version in versions),
        )

    def _routed(self, network: str) -> Iterator[tuple[Address, Address]]:
        """VIPs of a network that routers send to the balancer, each with the address that they send it to: a VIP of the
        same group (it moves along), or the one node's own address."""
        vips = [v for v in self.profile.vips.values() if v.network == network]
        for vip in (v for v in vips if v.routed):
            for address in vip.address:
                beside = (v.address_of(address.version) for v in vips if not v.routed and v.group == vip.group)
                hop = next((a for a in beside if a is not None), None)
                if hop is None and self.profile.standalone:
                    hop = self.profile.node_address(next(iter(self.profile.nodes)), network, address.version)
                if hop is not None:
                    yield address, hop

    def add_beyond(self, name: str, router: str, address: Address) -> str:
        """A server of another network that has to be a machine of its own: on the router's segment, but only the router
        knows; for all others it lies behind it."""
        gate = self.hosts[router]
        hops = tuple(i.address for i in gate.addresses if i.address.version == address.version)
        made = self.add(name, "server", gate.network, (), ())
        own = PlannedAddress(address, address.max_prefixlen)
        self.hosts[made] = replace(self.hosts[made], addresses=(own,), gateways=hops[:1])
        self.hosts[router] = replace(gate, beyond=(*gate.beyond, address))
        return made

    def router(self, network: str, addresses: tuple[Address, ...]) -> str:
        """The host that owns gateway addresses of a network; made when first asked for."""
        for host in self.hosts.values():
            if host.role == "router" and host.network == network and addresses[0] in _addresses(host):
                return host.name
        made = self.add(f"router-{network}", "router", network, addresses)
        subnet, six = self.profile.networks[network].subnet_of(6), [a for a in addresses if a.version == 6]
        if subnet is not None and six and all(a.is_link_local for a in six):
            # With a link-local address alone it could not answer the nodes' other ones.
            extra = self.free((subnet,), subnet)
            self.own(made, (extra,) if extra is not None else ())
        return made

    def behind(self, router: str, address: Address) -> None:
        host = self.hosts[router]
        if address not in host.behind and address not in _addresses(host):
            self.hosts[router] = replace(host, behind=(*host.behind, address))

    def listen(self, host: str, ports: tuple[ServerPort, ...]) -> None:
        """Let a host answer on further ports."""
        self.hosts[host] = replace(self.hosts[host], ports=joined((*self.hosts[host].ports, *ports)))


def plan(profile: Profile) -> LabPlan:
    """The lab for a profile; the same for the same profile."""
    p = _Planner(profile)
    balancers = {node: p.nics(node) for node in profile.nodes}
    segments = tuple(dict.fromkeys(p.segment(n) for n in profile.networks))
    lab = LabPlan(segments, balancers, p.hosts, direct=_direct(profile))
    for name, net in profile.networks.items():
        if net.gateway:
            p.router(name, net.gateway)
        for route in net.routes:
            p.router(name, (route.via,))
    _add_servers(p, lab)
    _add_outside(p, lab)
    for source, subnets in profile.access.sources.items():
        for subnet in subnets:
            if point := _admin(p, source, subnet):
                lab.admins[source if len(subnets) == 1 else f"{source} {subnet}"] = point
    for name in profile.networks:
        _add_client(p, lab, name)
    for name in profile.networks:
        _add_strangers(p, lab, name)
    for name in profile.networks:
        _add_inside(p, lab, name)
    return lab


def _direct(profile: Profile) -> tuple[str, ...]:
    shared = {nic for name, net in profile.networks.items() if name not in profile.heartbeats for nic in net.nics}
    alone = [nic for name in profile.heartbeats for nic in profile.networks[name].nics if nic not in shared]
    return tuple(dict.fromkeys(alone)) if len(profile.nodes) == 2 else ()


def _add_servers(p: _Planner, lab: LabPlan) -> None:
    homes = {a: h.name for h in p.hosts.values() for a in _addresses(h) if not a.is_link_local}
    for pool_name, pool in p.profile.pools.items():
        for name, server in pool.servers.items():
            first = server.address[0]
            network = p.profile.network_of(first)
            host, tunnelled = homes.get(first), _tunnelled(p.profile, pool_name)
            if host is None:
                host = p.way_to(first) if network is None else None
                if network is not None:
                    # What it needs to be a server of this profile comes by its script (servers), as in earnest.
                    host = p.add(name, "server", network, (first,), tuple(p.profile.networks[network].gateway or ()))
                elif host is not None and tunnelled:
                    host = p.add_beyond(name, host, first)
                if host is None:
                    continue
            for address in server.address:
                if homes.get(address, host) != host:
                    continue
                if address == first and network is None and tunnelled:
                    pass
                elif network is None and p.way_to(address) == host:
                    p.behind(host, address)
                elif network is not None and p.profile.network_of(address) == network:
                    p.own(host, (address,))
                else:
                    continue
                homes[address] = host
            p.listen(host, ports_of(p.profile, pool_name, name))
            lab.servers[(pool_name, name)] = VantagePoint(
                host, tuple(a for a in server.address if homes.get(a) == host)
            )
    for key, point in lab.servers.items():
        if p.hosts[point.host].role == "server":  # the same in every pool, also where one does not name all addresses
            lab.servers[key] = VantagePoint(point.host, _addresses(p.hosts[point.host]))


def _tunnelled(profile: Profile, pool: str) -> bool:
    """True if packets for a pool's servers come through tunnels, so that each must be a machine of its own."""
    return any(profile.services[s].topology == "tun" for s in profile.services_of(pool))


def _add_outside(p: _Planner, lab: LabPlan) -> None:
    for name, net in p.profile.networks.items():
        if net.gateway:
            router = p.router(name, net.gateway)
            for gateway in net.gateway:
                for number in (FAR_WEB, FAR_STRANGER):
                    p.behind(router, p.far[gateway.version][number])
            lab.outside[name] = VantagePoint(router, tuple(p.far[g.version][FAR_WEB] for g in net.gateway))


def _admin(p: _Planner, source: str, subnet: Subnet) -> VantagePoint | None:
    """Somebody inside a source: on a network that overlaps it, behind the router that leads there, or (where nothing is
    free) somebody who is there for another reason."""
    for name, net in p.profile.networks.items():
        for own in (s for s in net.subnet if s.version == subnet.version and s.overlaps(subnet)):
            if (near := p.free((narrower(own, subnet),), own)) is not None:
                host = p.add(f"admin-{source}", "admin", name, (near,), tuple(net.gateway or ()))
                return VantagePoint(host, (near,))
    if subnet.is_link_local:
        return None  # nobody with such an address is behind a router
    routed = [r.to for net in p.profile.networks.values() for r in net.routes if r.to.version == subnet.version]
    regions = [(narrower(to, subnet), p.on_link) for to in routed if to.overlaps(subnet)]
    for region, gone in (*regions, (subnet, [*p.on_link, *routed])):
        if (far := p.free(without(region, gone), region)) is not None and (router := p.way_to(far)) is not None:
            p.behind(router, far)
            return VantagePoint(router, (far,))
    there = ((h, a) for h in p.hosts.values() for a in (*_addresses(h), *h.behind) if a in subnet)
    return next((VantagePoint(host.name, (address,)) for host, address in there), None)


def _add_client(p: _Planner, lab: LabPlan, name: str) -> None:
    net = p.profile.networks[name]
    gateways = tuple(net.gateway or ())
    own = tuple(a for s in net.subnet if (a := p.free((s,), s)) is not None)
    if len(own) < len(gateways):  # a full subnet: its clients come from outside
        p.used -= {*own}
        far = tuple(p.far[g.version][FAR_STRANGER] for g in gateways)
        lab.clients[name] = VantagePoint(p.router(name, gateways), far)
    elif own:
        lab.clients[name] = VantagePoint(p.add(f"client-{name}", "client", name, own, gateways), own)
    else:
        there = next((h for h in p.hosts.values() if h.network == name), None)
        if there is not None:
            lab.clients[name] = VantagePoint(there.name, _addresses(there))


def _add_strangers(p: _Planner, lab: LabPlan, name: str) -> None:
    net = p.profile.networks[name]
    near = tuple(a for s in net.subnet if (a := p.free(without(s, p.sources), s)) is not None)
    if near:
        lab.strangers[name] = VantagePoint(
            p.add(f"stranger-{name}", "stranger", name, near, tuple(net.gateway or ())), near
        )
    versions = {a.version for a in near}
    afar: dict[str, tuple[Address, ...]] = {}
    for version in (v for v in net.families if v not in versions):
        for router, address in _afar(p, name, version):
            afar[router] = (*afar.get(router, ()), address)
            break
    for router, addresses in afar.items():
        key = f"{name}, from afar" if name in lab.strangers else name
        lab.strangers.setdefault(key, VantagePoint(router, addresses))


def _add_inside(p: _Planner, lab: LabPlan, name: str) -> None:
    """Those who get out through a gateway VIP: servers that have it, and for the other families somebody else."""
    net, ways = p.profile.networks[name], [way for way in ways_out(p.profile) if way.network == name]
    for side in servers(p.profile) if ways else ():
        point = next((s for n in side.names if (s := lab.servers.get(_split(n))) is not None), None)
        for given in side.gateways:
            if point is not None and p.hosts[point.host].role == "server" and any(given.own in s for s in net.subnet):
                lab.inside.setdefault((name, given.own.version), point)
    lacking = [way for way in ways if (name, way.version) not in lab.inside]
    gateways = [p.profile.vips[way.gateway].address_of(way.version) for way in lacking]
    homes = [net.subnet_of(way.version) for way in lacking]
    own = tuple(a for s in homes if s is not None and (a := p.free((s,), s)) is not None)
    if own:
        host = p.add(f"inside-{name}", "server", name, own, tuple(g for g in gateways if g is not None))
        lab.inside.update({(name, a.version): VantagePoint(host, own) for a in own})


def _split(name: str) -> tuple[str, str]:
    pool, _, server = name.partition("/")
    return pool, server


def _afar(p: _Planner, name: str, version: int) -> Iterator[tuple[str, Address]]:
    """Addresses of strangers behind a network's routers, each with the router: beyond the gateway, else on a route."""
    net = p.profile.networks[name]
    far = p.far[version][FAR_STRANGER]
    if net.gateway and net.gateway_of(version) is not None and not any(far in s for s in p.sources):
        yield p.router(name, net.gateway), far
    for route in net.routes:
        if route.to.version == version:
            address = p.free(without(route.to, [*p.sources, *p.on_link]), route.to)
            router = p.router(name, (route.via,))
            if address is not None and p.way_to(address) == router:
                p.behind(router, address)
                yield router, address


def _addresses(host: PlannedHost) -> tuple[Address, ...]:
    return tuple(i.address for i in host.addresses)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
