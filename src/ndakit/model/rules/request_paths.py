"""Cross-checks: how requests come to servers that see the clients' addresses (nat, tproxy, dr, tun).

None of these topologies changes the family; only nat and tproxy change a port. dr: servers share a network with the
balancer. tun: servers are anywhere. The way of their answers is in `reply_paths`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.model import transparent
from ndakit.model.base import Address
from ndakit.model.profile import Profile
from ndakit.model.reach import Reach
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.traffic import Service

Use = tuple[str, Service, str, str, Address]
"""Service, pool, server, and the address at which the service reaches it."""


def seeing_services(profile: Profile) -> Iterator[tuple[str, Service]]:
    """Services whose servers see the clients' addresses, and whose pool, VIPs and networks are all there."""
    for name, service in profile.services.items():
        vips = [profile.vips.get(v) for v in service.vip]
        whole = all(v is not None and v.network in profile.networks for v in vips)
        if service.shows_client and service.pool in profile.pools and whole:
            yield name, service


def _pools(profile: Profile, name: str, service: Service) -> list[str]:
    """The pool of a service, and its sorry pool; HAProxy goes on to that one's sorry pool."""
    if service.transparent:
        return list(transparent.pools(profile, name))
    sorry = profile.pools[service.main_pool].sorry
    other = sorry.pool if sorry is not None else None
    return [service.main_pool, *([other] if other in profile.pools and other is not None else [])]


def _versions(profile: Profile, name: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(e.address.version for e in profile.endpoints(name)))


def uses(profile: Profile) -> Iterator[Use]:
    """Every server that sees the clients of a service: topology nat, tproxy, dr, tun."""
    for name, service in seeing_services(profile):
        for pool in _pools(profile, name, service):
            for server, facts in profile.pools[pool].servers.items():
                addresses = [facts.address_of(v) for v in _versions(profile, name)]
                if service.topology == "tun":
                    addresses = [a or facts.address[0] for a in addresses]
                for address in dict.fromkeys(a for a in addresses if a is not None):
                    yield name, service, pool, server, address


def place(profile: Profile, pool: str, server: str, address: Address) -> KeyPath:
    number = profile.pools[pool].servers[server].address.index(address)
    return ("pools", pool, "servers", server, "address", number)


def topology_of(service: str) -> KeyPath:
    return ("services", service, "topology")


def families(profile: Profile) -> Iterator[Finding]:
    """Servers without an address of the VIP's family: only a proxy and a tunnel change it."""
    for name, service in seeing_services(profile):
        if service.topology == "tun":
            continue
        for version in _versions(profile, name):
            for pool in _pools(profile, name, service):
                without = [s for s, f in profile.pools[pool].servers.items() if f.address_of(version) is None]
                if without:
                    other = 4 if version == 6 else 6
                    yield error(
                        "server-without-family",
                        f"service {name} has an IPv{version} VIP, and server {without[0]} of pool {pool} no "
                        f"IPv{version} "
                        f"address: topology {service.topology} cannot change the family",
                        ("pools", pool, "servers", without[0], "address"),
                        f"add the address, or write families: [ipv{other}] in the service"
                        + (", or topology: proxy" if service.proxiable else ""),
                        other=("services", name, "vip"), also=(topology_of(name), ("vips", service.vip[0], "address")),
                    )  # fmt: skip
                    break


def ports(profile: Profile) -> Iterator[Finding]:
    """Ports that are to change where nothing changes them."""
    for name, service in seeing_services(profile):
        several = service.several
        if service.transparent or (service.topology == "nat" and not several):
            continue
        why = f"topology {service.topology} leaves the port as it is"
        if service.topology == "nat":
            why = "IPVS leaves the ports of a service with several as they are"
        for pool in _pools(profile, name, service):
            settings = profile.pools[pool]
            places: list[tuple[KeyPath, int | None]] = [(("pools", pool, "port"), settings.port)]
            places += [(("pools", pool, "servers", s, "port"), f.port) for s, f in settings.servers.items()]
            for at, port in places:
                if port is not None and (several or port != service.first_port):
                    yield error(
                        "port-changes",
                        f"service {name} has port{'s' if several else ''} {_spans(service)}, and the servers here "
                        f"{port}: "
                        f"{why}",
                        at, "delete it" + (", or write topology: proxy" if service.proxiable else "")
                        + ("" if several else f", or {service.first_port}"),
                        other=("services", name, "port"), also=(topology_of(name),),
                    )  # fmt: skip
                    break


def _spans(service: Service) -> str:
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in service.port)


def reachable(profile: Profile) -> Iterator[Finding]:
    """Servers that the topology cannot reach."""
    reach = Reach(profile)
    told: set[tuple[str, Address]] = set()
    for name, service, pool, server, address in uses(profile):
        at = place(profile, pool, server, address)
        if (pool, address) in told:
            continue
        if service.topology == "dr" and profile.network_of(address) is None:
            told.add((pool, address))
            yield error(
                "dr-not-on-link",
                f"service {name} is dr, and server {server} at {address} is in no network of the balancer",
                at, f"write topology: tun{' or proxy' if service.proxiable else ''}, or correct the address",
                other=topology_of(name), also=(("networks",),),
            )  # fmt: skip
        elif at[-1] != 0 and not reach.way(address):
            told.add((pool, address))
            yield error(
                "server-unreachable",
                f"no network leads to server {server} at {address}: it is in no subnet, "
                f"and there is neither a route nor an IPv{address.version} gateway",
                at, "correct the address, or add the network, a route or a gateway", also=(("networks",),),
            )  # fmt: skip


def own_address(profile: Profile) -> Iterator[Finding]:
    """dr, tun on the only node's own address: the servers would have it as well, and could not speak to the node."""
    nodes = {a: n for n, its in profile.nodes.items() for own in its.addresses.values() for a in own}
    for name, service in seeing_services(profile):
        if service.returning:
            continue
        for endpoint in profile.endpoints(name):
            node = nodes.get(endpoint.address)
            if node is not None:
                yield error(
                    "vip-is-node",
                    f"service {name} is {service.topology}, so its servers have the address {endpoint.address} of VIP "
                    f"{endpoint.vip} too, and that is node {node}'s own: they would drop whatever the node sends",
                    topology_of(name),
                    f"write topology: {'proxy, or ' if service.proxiable else ''}nat for clients of other networks, or "
                    "give the VIP another address",
                    other=("vips", endpoint.vip, "address"), also=(("nodes", node),),
                )  # fmt: skip
                break


def gateway_itself(profile: Profile) -> Iterator[Finding]:
    """dr, tun: servers have the VIP on an interface of their own, and cannot reach another machine that has it."""
    told: set[tuple[str, str]] = set()
    for name, service, pool, server, address in uses(profile):
        network = profile.network_of(address)
        vip = next(
            (v for v in service.vip if profile.vips[v].role == "gateway" and profile.vips[v].network == network), ""
        )
        if service.returning or not vip or (name, vip) in told:
            continue
        told.add((name, vip))
        yield error(
            "gateway-on-servers",
            f"service {name} is {service.topology}, so that server {server} has VIP {vip} itself, and that VIP "
            f"is the gateway of its network {network}: the server could not send anything to it",
            ("services", name, "vip"),
            f"add a VIP of its own for the service: {{network: {network}, address: ADDRESS, group: "
            f"{profile.vips[vip].group}}}",
            other=("vips", vip, "role"), also=(topology_of(name), place(profile, pool, server, address)),
        )  # fmt: skip


def tunnels(profile: Profile) -> Iterator[Finding]:
    """tun: every packet to a server gets longer."""
    for name, service in seeing_services(profile):
        if service.topology == "tun":
            room = {4: 20, 6: 40}[max(_versions(profile, name), default=4)]
            yield warning(
                "tunnel-mtu",
                f"service {name} is tun: requests get {room} bytes longer, so that full packets do not fit a link "
                "of 1500",
                topology_of(name),
                f"let the links between balancer and servers carry {1500 + room}, or the servers ask for smaller "
                f"packets (ip route … advmss {1460 - room})",
            )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    families,
    ports,
    reachable,
    own_address,
    gateway_itself,
    tunnels,
)
