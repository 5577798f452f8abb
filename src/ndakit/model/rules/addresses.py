"""Cross-checks: who has which address in which network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv6Address

from ndakit.core.mistakes import KeyPath, dotted
from ndakit.model.base import Address, Subnet
from ndakit.model.profile import Profile
from ndakit.model.reach import Reach, SubnetTable, special
from ndakit.model.rules.findings import Finding, error, unknown, warning

_WIDEST = {4: 8, 6: 16}


def _family(version: int) -> str:
    return f"IPv{version}"


def _subnets(network: str, profile: Profile) -> str:
    return " and ".join(str(s) for s in profile.networks[network].subnet)


def unknown_networks(profile: Profile) -> Iterator[Finding]:
    """Addresses and VIPs in networks that are not there."""
    for node, its in profile.nodes.items():
        for network in its.addresses:
            if network not in profile.networks:
                yield unknown("network", network, profile.networks, ("nodes", node, "addresses", network), "networks")
    for name, vip in profile.vips.items():
        if vip.network not in profile.networks:
            yield unknown("network", vip.network, profile.networks, ("vips", name, "network"), "networks")


def nodes_without_address(profile: Profile) -> Iterator[Finding]:
    """Nodes that lack an address in a network, or one of a family that something there needs."""
    needs = {(n, v): path for n, v, path in reversed(list(_needs(profile)))}
    for node, its in profile.nodes.items():
        for network, net in profile.networks.items():
            own = its.addresses.get(network)
            at: KeyPath = ("nodes", node, "addresses")
            if own is None:
                yield error(
                    "node-without-address",
                    f"node {node} has no address in network {network}",
                    at,
                    f"add nodes.{node}.addresses.{network}: an address of its own inside {_subnets(network, profile)}",
                    other=("networks", network),
                    also=((*at, network),),
                )
                continue
            for version in (4, 6):
                reason = needs.get((network, version))
                if reason is None or any(a.version == version for a in own):
                    continue
                subnet = net.subnet_of(version)
                yield error(
                    "node-lacks-family",
                    f"node {node} has no {_family(version)} address in network {network}, which {dotted(reason)} needs",
                    (*at, network),
                    f"add one inside {subnet}"
                    if subnet
                    else f"add an {_family(version)} subnet to networks.{network}.subnet, and an address in it",
                    other=reason,
                )


def _needs(profile: Profile) -> Iterator[tuple[str, int, KeyPath]]:
    """What makes an address of a family necessary in a network: (network, version, place)."""
    for name, vip in profile.vips.items():
        for number, address in enumerate(vip.address):
            yield vip.network, address.version, ("vips", name, "address", number)
    for name, net in profile.networks.items():
        for number, gateway in enumerate(net.gateway or ()):
            yield name, gateway.version, ("networks", name, "gateway", number)
        for number, route in enumerate(net.routes):
            yield name, route.via.version, ("networks", name, "routes", number, "via")
    for name in profile.heartbeats:
        yield name, profile.heard_version(name), ("networks", name, "role")
    on_link = Reach(profile).on_link
    for pool, its in profile.pools.items():
        for server, facts in its.servers.items():
            network = on_link.owner(facts.address[0])
            if network is not None:
                yield network, facts.address[0].version, ("pools", pool, "servers", server, "address", 0)


def _placed(profile: Profile) -> Iterator[tuple[KeyPath, str, Address, str, bool]]:
    """What has to be inside a network's subnets: place, words, address, network, may be link-local."""
    for node, its in profile.nodes.items():
        for network, addresses in its.addresses.items():
            for number, address in enumerate(addresses):
                path: KeyPath = ("nodes", node, "addresses", network, number)
                yield path, f"node {node}'s address {address}", address, network, False
    for name, vip in profile.vips.items():
        for number, address in enumerate(vip.address):
            if not vip.routed:
                path = ("vips", name, "address", number)
                yield path, f"VIP {name}'s address {address}", address, vip.network, _link_local(address)
    for name, net in profile.networks.items():
        for number, gateway in enumerate(net.gateway or ()):
            yield ("networks", name, "gateway", number), f"the gateway {gateway}", gateway, name, True
        for number, route in enumerate(net.routes):
            path = ("networks", name, "routes", number, "via")
            yield path, f"the router {route.via}", route.via, name, True


def _wrong_subnets(profile: Profile) -> dict[Subnet, tuple[str, KeyPath]]:
    """Subnets that hold none of their network's addresses (two or more): then it is the subnet that is wrong."""
    outside: dict[Subnet, set[Address]] = {}
    held: set[Subnet] = set()
    owners: dict[Subnet, tuple[str, KeyPath]] = {}
    for name, net in profile.networks.items():
        for number, subnet in enumerate(net.subnet):
            owners[subnet] = (name, ("networks", name, "subnet", number))
    for _, _, address, network, _ in _placed(profile):
        around = profile.networks[network].subnet_of(address.version) if network in profile.networks else None
        if around is not None and address in around:
            held.add(around)
        elif around is not None and not address.is_link_local:
            outside.setdefault(around, set()).add(address)
    return {s: owners[s] for s, addresses in outside.items() if len(addresses) > 1 and s not in held}


def outside_subnet(profile: Profile) -> Iterator[Finding]:
    """Addresses outside their networks, and the ones that a subnet keeps for itself."""
    wrong = _wrong_subnets(profile)
    for odd, (name, at) in wrong.items():
        yield error(
            "subnet-holds-nothing", f"network {name}'s subnet {odd} holds none of the addresses stated for it", at,
            "correct the subnet; or, if it is right, the addresses of nodes, VIPs and gateways there",
            also=(("nodes",), ("vips",)),
        )  # fmt: skip
    for path, words, address, network, link_local in _placed(profile):
        net = profile.networks.get(network)
        if net is None or (
            isinstance(address, IPv6Address) and address.is_link_local and (link_local or path[0] == "vips")
        ):
            continue  # link_local_vips says what is wrong with those of other VIPs
        subnet = net.subnet_of(address.version)
        other: KeyPath = ("networks", network, "subnet")
        kind = {"vips": "vip", "nodes": "node"}.get(str(path[0]), "gateway" if "gateway" in path else "route")
        if subnet is None:
            if kind not in ("node", "gateway", "route"):
                continue  # nodes_without_address says what is missing
            yield error(
                f"{kind}-outside-subnet",
                f"{words} is in network {network}, which has no {_family(address.version)} subnet",
                path,
                f"add the subnet to networks.{network}.subnet, or take the address out",
                other=other,
            )
        elif subnet in wrong:
            continue
        elif address not in subnet:
            elsewhere = next((n for n, o in profile.networks.items() if any(address in s for s in o.subnet)), None)
            hint = f" ({elsewhere} has a subnet that holds it)" if elsewhere else ""
            routed = "; or, if routers send this address here, write routed: true" if kind == "vip" else ""
            yield error(
                f"{kind}-outside-subnet",
                f"{words} is outside network {network}'s subnet {subnet}{hint}",
                path,
                f"choose an address inside {subnet}, or correct the subnet{routed}",
                other=other,
            )
        elif why := _kept(address, subnet):
            yield error(
                "address-of-subnet", f"{words} is the {why} of {subnet}", path, "choose another address", other=other
            )


def _kept(address: Address, subnet: Subnet) -> str | None:
    """What the address is in its subnet, if no host can have it (RFC 3021 frees both in a /31, RFC 6164 in a /127)."""
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return None
    if address == subnet.network_address:
        return "network address" if subnet.version == 4 else "subnet-router anycast address"
    return "broadcast address" if subnet.version == 4 and address == subnet.broadcast_address else None


def special_addresses(profile: Profile) -> Iterator[Finding]:
    """Addresses and subnets that no host on a network can have."""
    odd: set[str] = set()
    for name, net in profile.networks.items():
        for number, subnet in enumerate(net.subnet):
            path: KeyPath = ("networks", name, "subnet", number)
            why = special(subnet.network_address)
            if subnet.prefixlen < _WIDEST[subnet.version]:
                odd.add(name)
                yield error(
                    "subnet-too-wide", f"network {name}'s subnet {subnet} is far too wide for one network", path,
                    "write the prefix length of the network's hosts, such as /24 or /64",
                )  # fmt: skip
            elif why is not None and not subnet.network_address.is_link_local:
                odd.add(name)
                yield error(
                    "special-address", f"network {name}'s subnet {subnet} cannot be one: it holds {why}", path,
                    "write the subnet that the network's hosts have",
                )  # fmt: skip
    for path, words, address, network, link_local in _placed(profile):
        why = special(address)
        if why is None or network in odd or (link_local and address.is_link_local):
            continue
        home = profile.networks.get(network)
        if home is not None and any(address in s for s in home.subnet):
            yield error("special-address", f"{words} is {why}", path, "write the address that it really has")
    for name, vip in profile.vips.items():
        for number, address in enumerate(vip.address):
            if vip.routed and not _link_local(address) and (why := special(address)):
                yield error(
                    "special-address", f"VIP {name}'s address {address} is {why}", ("vips", name, "address", number),
                    "write the address that clients use",
                )  # fmt: skip
    for pool, its in profile.pools.items():
        for server, facts in its.servers.items():
            for number, address in enumerate(facts.address):
                if why := special(address):
                    fix = "write the address that the server really has"
                    if _link_local(address):
                        fix = (
                            "this version cannot reach a server, or ping a router, at a link-local address: write "
                            "another address of it, or ping a host behind that router"
                        )
                    yield error(
                        "special-address", f"server {server}'s address {address} is {why}",
                        ("pools", pool, "servers", server, "address", number), fix,
                    )  # fmt: skip


def addresses_twice(profile: Profile) -> Iterator[Finding]:
    """One address for two things. A link-local one is another address on each network."""
    seen: dict[tuple[Address, str], tuple[KeyPath, str]] = {}
    for path, words, address, network in owned(profile):
        first = seen.setdefault((address, network if _link_local(address) else ""), (path, words))
        if first[0] != path and not _same_host(profile, first[0], path):
            yield error(
                "address-twice", f"{address} is stated twice: for {first[1]} and for {words}", path,
                "give each its own address", other=first[0], also=(("nodes",), (*path[:2], "network")),
            )  # fmt: skip
    ours = {a: v for a, v in seen.items() if v[0][0] in ("nodes", "vips")}
    for path, words, address, network in foreign(profile):
        key = (address, network if _link_local(address) else "")
        if key in ours:
            yield error(
                "address-is-ours", f"{words} has the address {address}, which is that of {ours[key][1]}", path,
                "write the address of the other machine", other=ours[key][0],
            )  # fmt: skip


def _same_host(profile: Profile, node: KeyPath, vip: KeyPath) -> bool:
    """True for a VIP that is the only node's own address in its network: a small box serves on the address it has."""
    return (
        profile.standalone and node[0] == "nodes" and vip[0] == "vips" and profile.vips[str(vip[1])].network == node[3]
    )


def _link_local(address: Address) -> bool:
    return isinstance(address, IPv6Address) and address.is_link_local


def owned(profile: Profile) -> Iterator[tuple[KeyPath, str, Address, str]]:
    """Addresses of the pair and its gateways: place, words, address, network."""
    for node, its in profile.nodes.items():
        for network, addresses in its.addresses.items():
            for number, address in enumerate(addresses):
                yield ("nodes", node, "addresses", network, number), f"node {node} in {network}", address, network
    for name, vip in profile.vips.items():
        for number, address in enumerate(vip.address):
            yield ("vips", name, "address", number), f"VIP {name}", address, vip.network
    for name, net in profile.networks.items():
        for number, gateway in enumerate(net.gateway or ()):
            yield ("networks", name, "gateway", number), f"the gateway of {name}", gateway, name


def foreign(profile: Profile) -> Iterator[tuple[KeyPath, str, Address, str]]:
    """Addresses of other machines that the profile names: place, words, address, network (empty: by its address)."""
    for pool, its in profile.pools.items():
        for server, facts in its.servers.items():
            for number, address in enumerate(facts.address):
                yield ("pools", pool, "servers", server, "address", number), f"server {server}", address, ""
    for name, net in profile.networks.items():
        for number, route in enumerate(net.routes):
            yield ("networks", name, "routes", number, "via"), f"the router to {route.to}", route.via, name
        for number, server_address in enumerate(net.dns):
            yield ("networks", name, "dns", number), "the name server", server_address, name


def overlapping_networks(profile: Profile) -> Iterator[Finding]:
    """Two networks with common addresses, and two default gateways of a family."""
    for version in (4, 6):
        spans = sorted(
            ((int(s.network_address), -int(s.broadcast_address), name, number, s)
             for name, net in profile.networks.items() for number, s in enumerate(net.subnet) if s.version == version),
            key=lambda entry: entry[:3],
        )  # fmt: skip
        widest: tuple[int, str, int, Subnet] | None = None
        for start, negative_end, name, number, subnet in spans:
            if widest is not None and start <= widest[0] and widest[1] != name:
                yield error(
                    "subnets-overlap", f"networks {widest[1]} and {name} overlap: {widest[3]} and {subnet}",
                    ("networks", name, "subnet", number), "give each network a subnet of its own",
                    other=("networks", widest[1], "subnet", widest[2]),
                )  # fmt: skip
            if widest is None or -negative_end > widest[0]:
                widest = (-negative_end, name, number, subnet)
        holders = [
            (("networks", name, "gateway", number), name)
            for name, net in profile.networks.items()
            for number, gateway in enumerate(net.gateway or ())
            if gateway.version == version
        ]
        for path, name in holders[1:]:
            yield error(
                "two-gateways", f"networks {holders[0][1]} and {name} both have an {_family(version)} default gateway",
                path, "keep the gateway of one network; reach the rest with routes: [{to: …, via: …}]",
                other=holders[0][0],
            )  # fmt: skip


def unreachable(profile: Profile) -> Iterator[Finding]:
    """Servers, name servers and time servers that no network leads to."""
    reach = Reach(profile)
    for pool, its in profile.pools.items():
        for server, facts in its.servers.items():
            address = facts.address[0]
            if not reach.way(address) and special(address) is None:
                yield error(
                    "server-unreachable",
                    f"no network leads to server {server} at {address}: it is in no subnet, "
                    f"and there is neither a route nor an {_family(address.version)} gateway",
                    ("pools", pool, "servers", server, "address", 0),
                    "correct the address, or add the network, a route or a gateway",
                    also=(("networks",),),
                )
    for name, net in profile.networks.items():
        for number, address in enumerate(net.dns):
            if not reach.way(address):
                yield warning(
                    "dns-unreachable", f"no network leads to the name server {address}",
                    ("networks", name, "dns", number), "correct the address, or add a gateway or a route",
                    also=(("networks",),),
                )  # fmt: skip


def link_local_vips(profile: Profile) -> Iterator[Finding]:
    """fe80::1 and the like: known on one network only, so that nobody but that network's own hosts can use them."""
    for name, vip in profile.vips.items():
        for number, address in enumerate(vip.address):
            if not _link_local(address):
                continue
            at: KeyPath = ("vips", name, "address", number)
            other = "write role: gateway if it is the servers' gateway; else choose an address of the network's subnet"
            if vip.role != "gateway":
                yield error(
                    "link-local-vip", f"VIP {name}'s address {address} is link-local: its own network's hosts can name "
                    "it as their gateway, and nobody can use it for anything else", at, other, also=(("vips", name),),
                )  # fmt: skip
                continue
            if vip.routed:
                yield error(
                    "link-local-vip", f"no router can send {address} to the balancer: it is link-local", at,
                    "delete routed: true", other=("vips", name, "routed"),
                )  # fmt: skip
            for service, settings in profile.services.items():
                if name in settings.vip and "ipv6" in (settings.families or ("ipv6",)):
                    yield error(
                        "link-local-vip", f"service {service} would listen on {address}, which is link-local: no "
                        "client beyond the network can reach it",
                        ("services", service, "vip", settings.vip.index(name)),
                        "name another VIP; or, for IPv4 alone, write families: [ipv4]", other=at,
                    )  # fmt: skip
            for network, net in profile.networks.items():
                if net.egress == name:
                    yield error(
                        "link-local-vip", f"what leaves network {network} cannot wear {address}: no answer to a "
                        "link-local address comes back", ("networks", network, "egress"),
                        "name a VIP with another IPv6 address, or node", other=at,
                    )  # fmt: skip


def routed_vips(profile: Profile) -> Iterator[Finding]:
    """`routed: true` where the subnet says otherwise."""
    table = SubnetTable((s, name) for name, net in profile.networks.items() for s in net.subnet)
    for name, vip in profile.vips.items():
        for number, address in enumerate(vip.address):
            owner = table.owner(address) if vip.routed else None
            if owner is not None:
                yield warning(
                    "routed-inside-subnet",
                    f"VIP {name} is routed, and yet {address} is inside network {owner}'s subnet",
                    ("vips", name, "routed"), "delete routed: true, or correct the address",
                    other=("networks", owner, "subnet"), also=(("vips", name, "address", number),),
                )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    unknown_networks,
    nodes_without_address,
    outside_subnet,
    special_addresses,
    addresses_twice,
    overlapping_networks,
    unreachable,
    link_local_vips,
    routed_vips,
)
