"""What each server must have so that the balancers can use it: gateway, address, tunnel and rule.

Follows from the topologies of the services that use it. The same machine may stand in several pools: servers with a
common address are one machine. Scripts for it are made by `render.servers`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ndakit.model.base import Address
from ndakit.model.profile import Profile
from ndakit.model.reach import inner_router
from ndakit.model.traffic import Server

FIRST_TABLE = 4201
"""The first routing table for answers by port: far from those that distributions and admins use."""


ROUTER = "router/"
"""How the `names` of an inner router begin; its address follows."""


LOOPBACK = "lo"


TUNNELS = {4: ("ipip", "ndakit4"), 6: ("ip6_tunnel", "ndakit6")}
"""IP version → kernel module and device. A device of our own, for tunl0 takes packets for every local address."""


@dataclass(frozen=True)
class Gateway:
    """A default route through a gateway VIP; `own` is the server's address in that network."""

    gateway: Address
    own: Address

    @property
    def scoped(self) -> bool:
        """True if the gateway's address says nothing without the card: a link-local one of IPv6."""
        return self.gateway.version == 6 and self.gateway.is_link_local


@dataclass(frozen=True)
class Answers:
    """Answers from an address and port (or range) take a gateway of their own, by a rule and a routing table.

    `own` is the server's address in the gateway's network, `source` the one that the answers come from. `nodes` are
    the balancers' own addresses there: they check the server from these, and a check of the backup must not take the
    way through the master, whose death it would not survive.
    """

    gateway: Address
    own: Address
    source: Address
    protocol: str
    port: str
    table: int
    nodes: tuple[Address, ...] = ()


@dataclass(frozen=True)
class OwnAddress:
    """A VIP that the server takes packets for; `beside`: the server's real address."""

    address: Address
    device: str
    beside: Address


@dataclass(frozen=True)
class Tunnel:
    """The end of an IP-in-IP tunnel at one of the server's addresses."""

    kind: str
    device: str
    local: Address


@dataclass(frozen=True)
class ServerSide:
    """What one machine must have. `needs` says it in words, `names` are pool/server of every place it stands in."""

    profile: str
    name: str
    names: tuple[str, ...]
    own: tuple[Address, ...]
    needs: tuple[str, ...]
    gateways: tuple[Gateway, ...]
    answers: tuple[Answers, ...]
    addresses: tuple[OwnAddress, ...]
    tunnels: tuple[Tunnel, ...]

    @property
    def unit(self) -> str:
        """The name under which it is kept on the server."""
        return f"ndakit-{self.profile}-{self.name}"

    @property
    def router(self) -> bool:
        """True for an inner router, which has no name in the profile."""
        return self.names[0].startswith(ROUTER)

    @property
    def title(self) -> str:
        """What it is, with its name."""
        return f"router {self.own[0]}" if self.router else f"server {self.name}"

    @property
    def nothing(self) -> bool:
        """True if the server needs nothing beyond its service."""
        return not (self.gateways or self.answers or self.addresses or self.tunnels)

    @property
    def hides(self) -> bool:
        """True if IPv4 addresses must not be told by ARP."""
        return any(a.address.version == 4 for a in self.addresses)

    @property
    def ipip_device(self) -> str:
        """The IPv4 tunnel's device, empty without one."""
        return next((t.device for t in self.tunnels if t.local.version == 4), "")

    @property
    def ipip(self) -> bool:
        """True if there is an IPv4 tunnel."""
        return bool(self.ipip_device)

    def impossible(self, system: str) -> str:
        """Why an operating system cannot do it by script; empty if it can."""
        if system == "linux":
            return ""
        if self.tunnels:
            return "no IP-in-IP tunnel that any balancer may send through"
        return "no routing by port" if self.answers else ""


def servers(profile: Profile) -> tuple[ServerSide, ...]:
    """Every machine that stands in a pool, in the profile's order; then the inner routers that servers of topology nat
    and tproxy answer through."""
    machines: list[dict[tuple[str, str], Server]] = []
    first_with: dict[Address, int] = {}
    for pool, settings in profile.pools.items():
        for name, server in settings.servers.items():
            same = min((first_with[a] for a in server.address if a in first_with), default=len(machines))
            if same == len(machines):
                machines.append({})
            machines[same][pool, name] = server
            first_with |= {a: min(same, first_with.get(a, same)) for a in server.address}
    first = [next(iter(m)) for m in machines]
    short = Counter(name for _, name in first)
    sides = tuple(
        _side(profile, name if short[name] == 1 else f"{pool}-{name}", machine)
        for (pool, name), machine in zip(first, machines, strict=True)
    )
    return (*sides, *_routers(profile))


def watched(profile: Profile, side: ServerSide) -> bool:
    """True for what no service uses, such as the provider's router that a pool of `vrrp.demote_on` pings."""
    return not side.router and not any(profile.services_of(n.partition("/")[0]) for n in side.names)


class _Needs:
    """Collects what one machine must have, each thing once, with the words for it."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.words: dict[str, None] = {}
        self.gateways: dict[int, Gateway] = {}
        self.answers: dict[tuple[Address, str, str], Answers] = {}
        self.addresses: dict[Address, OwnAddress] = {}
        self.tunnels: dict[Address, Tunnel] = {}
        self.foreign_gateways: set[int] = set()
        """IP versions for which the server's own default gateway is not our business."""

    def through_us(self, service: str, own: Address) -> None:
        """Answers of a service go back through the gateway VIP of the server's network, as everything else does."""
        gateway = gateway_of(self.profile, own, service)
        if gateway is not None:
            self.gateways[own.version] = Gateway(gateway[1], own)
            self._say(
                f"IPv{own.version} default gateway {gateway[1]} ({gateway[0]}): answers of {self._named(service)} go "
                "back through the balancers"
            )

    def answers_through_us(self, service: str, own: Address, port: tuple[int, int]) -> None:
        """The same for these answers only; the default gateway stays what it is."""
        self.foreign_gateways.add(own.version)
        router = inner_router(self.profile, own) if self.profile.network_of(own) is None else None
        if router is not None:
            self._say(
                f"nothing of its own for {self._named(service)}: its answers, {self._port(service, port)} from {own}, "
                f"reach the router {router[1]}, and that one sends them to the balancers (its folder says how)"
            )
            return
        gateway = gateway_of(self.profile, own, service)
        if gateway is not None:
            self._answers(service, gateway[1], own, own, port, nodes_beside(self.profile, own))

    def answers_past_us(self, service: str, own: Address, vip: Address, port: tuple[int, int]) -> None:
        """Answers that the server gives as the VIP take the network's router, for we drop what comes from a VIP."""
        network = self.profile.network_of(own)
        gateway = self.profile.networks[network].gateway_of(own.version) if network is not None else None
        if gateway is not None:
            self._answers(service, gateway, own, vip, port)

    def _answers(
        self,
        service: str,
        gateway: Address,
        own: Address,
        source: Address,
        port: tuple[int, int],
        nodes: tuple[Address, ...] = (),
    ) -> None:
        kind, low, high = self.profile.services[service].transport, *port
        ports = str(low) if low == high else f"{low}-{high}"
        tables = list(dict.fromkeys([*(a.gateway for a in self.answers.values()), gateway]))
        table = FIRST_TABLE + tables.index(gateway)
        self.answers[source, kind, ports] = Answers(gateway, own, source, kind, ports, table, nodes)
        self._say(f"answers from {source}, {kind} port {ports}, through {gateway}: {self._named(service)}")

    def through_router(self, service: str, own: Address, port: tuple[int, int], network: str, router: Address) -> None:
        """What an inner router does with the answers of a server behind it: they go to the gateway VIP."""
        gateway = gateway_of(self.profile, router, service, network)
        if gateway is not None:
            self._answers(service, gateway[1], router, own, port, nodes_beside(self.profile, router, network))

    def _port(self, service: str, port: tuple[int, int]) -> str:
        low, high = port
        return f"{self.profile.services[service].transport} port {low if low == high else f'{low}-{high}'}"

    def _named(self, service: str) -> str:
        return f"{service} ({self.profile.services[service].topology})"

    def direct(self, service: str, vip: Address, own: Address) -> None:
        """The server answers clients itself, as the VIP."""
        self.addresses[vip] = OwnAddress(vip, LOOPBACK, own)
        self._say(
            f"{vip} on {LOOPBACK}, told to nobody (ARP, neighbour discovery): {service} (dr) sends packets for it here"
        )

    def tunnelled(self, service: str, vip: Address, own: Address) -> None:
        """The same, with packets that come through a tunnel."""
        kind, device = TUNNELS[own.version]
        self.tunnels[own] = Tunnel(kind, device, own)
        self.addresses[vip] = OwnAddress(vip, device, own)
        self._say(f"{vip} on the tunnel {device}, which ends at {own}: {service} (tun) sends packets for it here")

    def way_out(self, own: Address) -> None:
        """A gateway VIP is the default gateway of every server in its network that answers nobody directly."""
        gateway = gateway_of(self.profile, own)
        past_us = any(a.beside == own for a in self.addresses.values()) and not self.answers
        if gateway is None or past_us or own.version in self.gateways or own.version in self.foreign_gateways:
            return
        self.gateways[own.version] = Gateway(gateway[1], own)
        self._say(f"IPv{own.version} default gateway {gateway[1]} ({gateway[0]}): the servers' gateway in this network")

    def _say(self, words: str) -> None:
        self.words[words] = None


def gateway_of(
    profile: Profile, server: Address, service: str | None = None, network: str | None = None
) -> tuple[str, Address] | None:
    """What servers have as their gateway in the network of a server's address, as words and address; None if there is
    nothing. That is a gateway VIP; where there are several, that of the service's group, which moves along with the
    service's own VIP. For a service on a node that stands alone its own address will do. `network`: of which it is
    known (a link-local address tells none)."""
    network = network or profile.network_of(server)
    groups = {profile.vips[v].group for v in profile.services[service].vip} if service is not None else set()
    gateways = [
        (vip.group not in groups, number, f"VIP {name}", address)
        for number, (name, vip) in enumerate(profile.vips.items())
        if vip.role == "gateway" and vip.network == network and (address := vip.address_of(server.version)) is not None
    ]
    if not gateways and service is not None and profile.standalone and network is not None:
        node = next(iter(profile.nodes))
        own = profile.node_address(node, network, server.version)
        return (f"node {node}", own) if own is not None else None
    return min(gateways)[2:] if gateways else None


def nodes_beside(profile: Profile, server: Address, network: str | None = None) -> tuple[Address, ...]:
    """The balancers' own addresses in the network of a server's address, in its family."""
    network = network or profile.network_of(server)
    return tuple(
        address
        for node in profile.nodes.values()
        for address in node.addresses.get(network or "", ())
        if address.version == server.version
    )


def _side(profile: Profile, name: str, machine: Mapping[tuple[str, str], Server]) -> ServerSide:
    needs = _Needs(profile)
    own = tuple(dict.fromkeys(a for s in machine.values() for a in s.address))
    for (pool, _), server in machine.items():
        policy = profile.pools[pool].reply_route == "policy"
        for service in profile.services_of(pool):
            for endpoint in profile.endpoints(service):
                own_address = server.address_of(endpoint.address.version)
                if own_address is not None:
                    _duty(needs, service, endpoint.address, own_address, _ports(profile, pool, server, service), policy)
    for address in own:
        needs.way_out(address)
    return ServerSide(
        profile=profile.name,
        name=name,
        names=tuple(f"{p}/{s}" for p, s in machine),
        own=own,
        needs=tuple(needs.words) or ("nothing but its service: the balancers connect to it as any client does",),
        gateways=tuple(needs.gateways.values()),
        answers=tuple(needs.answers.values()),
        addresses=tuple(needs.addresses.values()),
        tunnels=tuple(needs.tunnels.values()),
    )


def _routers(profile: Profile) -> Iterator[ServerSide]:
    """The inner routers behind which servers of topology nat and tproxy are, with what each does with their answers."""
    needs_of: dict[Address, _Needs] = {}
    for pool, its in profile.pools.items():
        for service in profile.services_of(pool):
            if not profile.services[service].returning or its.reply_route != "policy":
                continue
            for server in its.servers.values():
                for version in dict.fromkeys(e.address.version for e in profile.endpoints(service)):
                    own = server.address_of(version)
                    way = inner_router(profile, own) if own is not None and profile.network_of(own) is None else None
                    if own is None or way is None:
                        continue
                    needs = needs_of.setdefault(way[1], _Needs(profile))
                    for port in _ports(profile, pool, server, service):
                        needs.through_router(service, own, port, *way)
    for router, needs in needs_of.items():
        if needs.answers:
            yield ServerSide(
                profile=profile.name,
                name="router-" + re.sub("[.:]+", "-", str(router)),
                names=(f"{ROUTER}{router}",),
                own=(router,),
                needs=(*needs.words, "no strict reverse path filter (rp_filter 1) towards the balancers"),
                gateways=(),
                answers=tuple(needs.answers.values()),
                addresses=(),
                tunnels=(),
            )


def _duty(
    needs: _Needs, service: str, vip: Address, own: Address, ports: Sequence[tuple[int, int]], policy: bool
) -> None:
    """What one address of a service asks of one address of a server."""
    topology, returning = needs.profile.services[service].topology, needs.profile.services[service].returning
    if returning and policy:
        for port in ports:
            needs.answers_through_us(service, own, port)
    elif returning:
        needs.through_us(service, own)
    elif topology == "dr":
        needs.direct(service, vip, own)
    elif topology == "tun":
        needs.tunnelled(service, vip, own)
    if topology in ("dr", "tun") and policy:
        for port in ports:
            needs.answers_past_us(service, own, vip, port)


def _ports(profile: Profile, pool: str, server: Server, service: str) -> tuple[tuple[int, int], ...]:
    """Where a server answers for a service: its own port, else its pool's, else the service's."""
    port = server.port or profile.pools[pool].port
    return ((port, port),) if port else profile.services[service].port
