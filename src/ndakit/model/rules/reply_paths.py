"""Cross-checks: the way of the answers where servers see the clients' addresses (nat, tproxy, dr, tun).

nat, tproxy: answers come back through the balancer, which is the servers' gateway. dr: servers share a network with the
balancer and answer past it. tun: servers are anywhere, and answer past it. So a server cannot have both kinds with one
default route, and answers that carry the VIP as their source must not meet the balancer that has it (Linux drops a
packet from an address of its own; docs/facts.md, IPVS and the firewall).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.model.base import Address
from ndakit.model.links import exits
from ndakit.model.profile import Profile
from ndakit.model.reach import inner_router
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.rules.request_paths import place, topology_of, uses
from ndakit.model.traffic import Service


def _gateways(profile: Profile, network: str, version: int) -> list[str]:
    """The VIPs that servers in a network can have as their gateway."""
    return [
        v
        for v, vip in profile.vips.items()
        if vip.network == network and vip.role == "gateway" and vip.address_of(version) is not None
    ]


def return_gateways(profile: Profile) -> Iterator[Finding]:
    """nat, tproxy: the servers' gateway is a VIP of ours, and moves along with the service's."""
    told: set[tuple[str, str, int]] = set()
    through: dict[Address, tuple[str, str]] = {}
    for name, service, pool, server, address in uses(profile):
        network = profile.network_of(address)
        policy = profile.pools[pool].reply_route == "policy"
        router = inner_router(profile, address) if network is None else None
        # Servers behind one router need one gateway, and share what is said about it.
        shared = router[0] if router is not None and policy else str(address)
        key = (name, network or shared, address.version)
        if not service.returning or key in told:
            continue
        at = place(profile, pool, server, address)
        if network is None and (router is None or not policy):
            told.add(key)
            yield _off_link(profile, name, service, pool, server, address, router, at)
            continue
        if profile.standalone and router is None:
            continue
        network = network or (router[0] if router is not None else "")
        gateways = _gateways(profile, network, address.version)
        groups = {profile.vips[v].group for v in service.vip}
        fitting = [g for g in gateways if groups == {profile.vips[g].group}]
        if not gateways and router is not None:
            told.add(key)
            yield error(
                "return-router-without-gateway",
                f"service {name} is {service.topology}, answers of server {server} come through the router "
                f"{router[1]}, and network {network} has no IPv{address.version} VIP with role: gateway, to which that "
                "router could send them",
                ("pools", pool, "reply_route"),
                f"add a VIP: {{network: {network}, address: ADDRESS, role: gateway, group: {min(groups)}}}"
                + ("; the only node's own address will do" if profile.standalone else ""),
                other=at, also=(("vips",), topology_of(name), ("networks", network, "routes")),
            )  # fmt: skip
        elif not gateways:
            told.add(key)
            yield _without_gateway(profile, name, network, server, address, pool, at)
        elif not fitting:
            told.add(key)
            yield error(
                "return-other-group",
                f"service {name}'s VIP and the servers' gateway {gateways[0]} are in different groups, so they may "
                "be on different nodes",
                ("services", name, "vip"), "put both into one group", other=("vips", gateways[0]),
                also=tuple(("vips", v) for v in service.vip),
            )  # fmt: skip
        elif not policy:
            first = through.setdefault(address, (name, fitting[0]))
            if profile.vips[first[1]].group != profile.vips[fitting[0]].group:
                told.add(key)
                yield error(
                    "return-two-gateways",
                    f"server {server} at {address} is to have two default gateways: VIP {first[1]} for service "
                    f"{first[0]}, and VIP {fitting[0]} for service {name}, whose VIPs may be on different nodes",
                    ("services", name, "vip"),
                    f"put the VIPs of both services into one group, or write reply_route: policy for pool {pool}",
                    other=("services", first[0], "vip"), also=(at, ("vips", first[1]), ("vips", fitting[0])),
                )  # fmt: skip


def _off_link(
    profile: Profile,
    name: str,
    service: Service,
    pool: str,
    server: str,
    address: Address,
    router: tuple[str, Address] | None,
    at: KeyPath,
) -> Finding:
    """nat, tproxy, with a server in no network of ours: only an inner router that does its part brings answers back."""
    others = [*(["tun"] if service.protocol != "http" else []), *(["proxy"] if service.proxiable else [])]
    fix = f"write topology: {' or '.join(others)}"
    if router is not None:
        there = _gateways(profile, router[0], address.version)
        group = min(profile.vips[v].group for v in service.vip)
        vip = "" if there else f", add a VIP: {{network: {router[0]}, address: ADDRESS, role: gateway, group: {group}}}"
        fix += (
            f"; or write reply_route: policy for pool {pool}{vip}, and let the router {router[1]} send the answers "
            "there (./inv servers writes how)"
        )
    return error(
        "return-not-on-link",
        f"service {name} is {service.topology}, and server {server} at {address} is in no network of the balancer, "
        "which must be its gateway", at, fix, other=topology_of(name),
        also=(("networks",), ("pools", pool, "reply_route"), ("vips",)),
    )  # fmt: skip


def _without_gateway(
    profile: Profile, name: str, network: str, server: str, address: Address, pool: str, at: KeyPath
) -> Finding:
    kind = profile.services[name].topology
    if profile.pools[pool].reply_route == "policy":
        return warning(
            "return-policy-without-gateway",
            f"service {name} is {kind}, and network {network} of server {server} has no IPv{address.version} VIP with "
            "role: gateway, to which a rule on the server could send the answers: ./inv servers writes none",
            topology_of(name),
            f"add a VIP: {{network: {network}, address: ADDRESS, role: gateway}}; only these answers take it",
            other=("pools", pool, "reply_route"), also=(("vips",), at),
        )  # fmt: skip
    return error(
        "return-without-gateway",
        f"service {name} is {kind}, and network {network} of server {server} has no IPv{address.version} VIP "
        "with role: "
        "gateway, through which answers come back",
        topology_of(name), f"add a VIP: {{network: {network}, address: ADDRESS, role: gateway}}",
        other=at, also=(("vips",),),
    )  # fmt: skip


def same_network(profile: Profile) -> Iterator[Finding]:
    """nat, tproxy: clients beside the servers get their answers directly, from an address that they never asked."""
    told: set[tuple[str, str]] = set()
    for name, service, pool, server, address in uses(profile):
        network = profile.network_of(address)
        if service.transparent and (
            # The servers' rule counts for neighbours too, and HAProxy has nothing against such a way.
            profile.pools[pool].reply_route == "policy"
            # What goes back into the network is seen as the VIP: rules/transparent.
            or (network is not None and network in exits(profile, network, address.version))
        ):
            continue
        inside = [v for v in service.vip if profile.vips[v].network == network]
        if service.returning and inside and network is not None and (name, network) not in told:
            told.add((name, network))
            nodes = {a for its in profile.nodes.values() for own in its.addresses.values() for a in own}
            kernel = service.protocol != "http" and not nodes & set(profile.vips[inside[0]].address)
            ways = ["dr"] if kernel else []
            direct = " or ".join([*ways, *(["proxy"] if service.proxiable else [])])
            yield warning(
                "return-same-network",
                f"service {name}'s VIP {inside[0]} and server {server} are both in network {network}: clients there "
                "get no answers, because servers answer them directly",
                ("services", name, "vip"), "use it for clients of other networks only"
                + (f", or write topology: {direct}" if direct else "")
                + (f", or write reply_route: policy for pool {pool}" if service.transparent else ""),
                other=("vips", inside[0], "network"), also=(topology_of(name), ("pools", pool, "reply_route")),
            )  # fmt: skip


def behind_router(profile: Profile) -> Iterator[Finding]:
    """nat, tproxy through an inner router: clients beside those servers are answered directly too, and come by it."""
    told: set[tuple[str, str, Address]] = set()
    for name, service, pool, server, address in uses(profile):
        router = inner_router(profile, address) if profile.network_of(address) is None else None
        if not service.returning or router is None or profile.pools[pool].reply_route != "policy":
            continue
        network, via = router
        inside = [
            v for v in service.vip
            if profile.vips[v].network == network and profile.vips[v].address_of(address.version) is not None
        ]  # fmt: skip
        if not inside or (name, network, via) in told:
            continue
        told.add((name, network, via))
        yield warning(
            "return-behind-router",
            f"service {name}'s VIP {inside[0]} is in network {network}, and server {server} at {address} behind its "
            f"router {via}: clients in the server's own network get no answers, because servers answer them directly",
            ("services", name, "vip"),
            "use it for clients of other networks only" + (", or write topology: proxy" if service.proxiable else ""),
            other=place(profile, pool, server, address),
            also=(topology_of(name), ("networks", network), ("pools", pool, "reply_route"), ("vips", inside[0])),
        )  # fmt: skip


def _answers_leave(profile: Profile, service: Service, network: str | None, version: int) -> bool:
    """True if clients of a dr or tun service can be outside the servers' network, so that answers take a gateway."""
    there = {profile.vips[v].network for v in service.vip if profile.vips[v].address_of(version) is not None}
    outside = any(
        profile.networks[n].gateway_of(version) or any(r.via.version == version for r in profile.networks[n].routes)
        for n in there
    )
    return there != {network} or outside


def two_gateways(profile: Profile) -> Iterator[Finding]:
    """Servers that are to answer through us (nat, tproxy) and past us (dr, tun) with one default route."""
    through: dict[Address, tuple[str, str]] = {}
    for name, service, pool, _, address in uses(profile):
        if service.returning and profile.pools[pool].reply_route == "default":
            through.setdefault(address, (name, pool))
    told: set[tuple[str, str]] = set()
    for name, service, pool, server, address in uses(profile):
        if service.returning or profile.pools[pool].reply_route == "policy":
            continue
        network = profile.network_of(address)
        if not _answers_leave(profile, service, network, address.version):
            continue
        first = through.get(address)
        if first is not None and (name, first[0]) not in told:
            told.add((name, first[0]))
            yield error(
                "two-gateways-of-server",
                f"server {server} at {address} is to answer through the balancer (service {first[0]}, "
                f"{profile.services[first[0]].topology}) and past it "
                f"(service {name}, {service.topology}), and has one default route",
                topology_of(name),
                "use one topology for both, or write reply_route: policy for pool "
                f"{pool if pool != first[1] else first[1]}",
                other=topology_of(first[0]), also=(place(profile, pool, server, address),),
            )  # fmt: skip


def past_the_balancer(profile: Profile) -> Iterator[Finding]:
    """dr, tun: answers whose only known way out is the balancer that has their source address."""
    told: set[tuple[str, str]] = set()
    for name, service, pool, server, address in uses(profile):
        network = profile.network_of(address)
        if service.returning or network is None or profile.pools[pool].reply_route == "policy":
            continue
        net, version = profile.networks[network], address.version
        if net.gateway_of(version) is not None or any(r.via.version == version for r in net.routes):
            continue
        if (name, network) in told or not _answers_leave(profile, service, network, version):
            continue
        told.add((name, network))
        gateways = _gateways(profile, network, version)
        if gateways:
            yield error(
                "answers-cross-balancer",
                f"service {name} is {service.topology}, and the only way out of network {network} is the balancer (VIP "
                f"{gateways[0]}), which has the VIP and so drops answers of server {server} that come from it",
                topology_of(name),
                f"write topology: nat, put the service's VIP into network {network}, or write reply_route: policy "
                f"for pool {pool} if its servers answer through another router",
                other=("vips", gateways[0], "role"), also=(("networks", network),),
            )  # fmt: skip
        else:
            yield warning(
                "answers-without-router",
                f"service {name} is {service.topology}, and network {network} names no router through which server "
                f"{server} could answer clients elsewhere",
                topology_of(name),
                f"make sure that there is one besides the balancer; reply_route: policy for pool {pool} says that "
                "you did",
                other=("networks", network), also=(place(profile, pool, server, address),),
            )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    return_gateways,
    same_network,
    behind_router,
    two_gateways,
    past_the_balancer,
)
