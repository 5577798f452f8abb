"""Which addresses the balancer can reach, and through what: its own subnets, routes and default gateways."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from ndakit.model.base import Address, Subnet
from ndakit.model.profile import Profile


class SubnetTable:
    """Subnets with what they belong to; looking an address up takes one step per prefix length."""

    def __init__(self, entries: Iterable[tuple[Subnet, str]]) -> None:
        self._by_length: dict[tuple[int, int], dict[int, str]] = {}
        self._starts: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for subnet, owner in entries:
            at = self._by_length.setdefault((subnet.version, subnet.prefixlen), {})
            at.setdefault(int(subnet.network_address), owner)
            self._starts[subnet.version].append((int(subnet.network_address), int(subnet.broadcast_address)))
        for spans in self._starts.values():
            spans.sort()

    def owner(self, address: Address) -> str | None:
        """What the address's subnet belongs to."""
        value = int(address)
        for (version, length), at in self._by_length.items():
            shift = address.max_prefixlen - length
            if version == address.version and (name := at.get(value >> shift << shift)) is not None:
                return name
        return None

    def overlaps(self, subnet: Subnet) -> bool:
        """True if the subnet shares an address with one of the table."""
        low, high = int(subnet.network_address), int(subnet.broadcast_address)
        return any(start <= high and end >= low for start, end in self._starts[subnet.version])


class Reach:
    """The ways out of the balancer."""

    def __init__(self, profile: Profile) -> None:
        networks = profile.networks.items()
        self.on_link = SubnetTable((s, name) for name, net in networks for s in net.subnet)
        self.routed = SubnetTable((r.to, name) for name, net in networks for r in net.routes)
        self.gateways = {g.version for _, net in networks for g in net.gateway or ()}

    def way(self, address: Address) -> bool:
        """True if packets to the address have somewhere to go."""
        return (
            address.version in self.gateways
            or self.on_link.owner(address) is not None
            or self.routed.owner(address) is not None
        )

    def way_to_some(self, subnet: Subnet) -> bool:
        """True if packets to at least one address of the subnet have somewhere to go."""
        return subnet.version in self.gateways or self.on_link.overlaps(subnet) or self.routed.overlaps(subnet)


def inner_router(profile: Profile, address: Address) -> tuple[str, Address] | None:
    """The network and router of the narrowest route (then the smallest metric) that leads to an off-link address; None
    if only a default gateway does, or nothing."""
    ways = [
        (-r.to.prefixlen, r.metric or 0, number, name, r.via)
        for number, (name, net) in enumerate(profile.networks.items())
        for r in net.routes
        if r.to.version == address.version and address in r.to
    ]
    best = min(ways, key=lambda way: way[:3], default=None)
    return (best[3], best[4]) if best is not None else None


_SPECIAL = tuple(
    (ip_network(text), what)
    for text, what in (
        ("0.0.0.0/8", "an unspecified address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/127", "an unspecified or loopback address"),
        ("::ffff:0:0/96", "an IPv4 address in IPv6 form"),
        ("fe80::/10", "a link-local address"),
        ("ff00::/8", "a multicast address"),
    )
)
"""Ranges that no host has as an address of its own on a routed network (RFC 6890)."""


_DOCUMENTATION = tuple(
    ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")
)
"""Ranges for examples in texts; no host in the world has one (RFC 5737, 3849, 9637)."""


def of_documentation(network: Address | Subnet) -> bool:
    """True for an address, or a subnet, that stands in an example and is nobody's."""
    subnet = network if isinstance(network, IPv4Network | IPv6Network) else ip_network(network)
    return any(r.version == subnet.version and r.overlaps(subnet) for r in _DOCUMENTATION)


def special(address: Address) -> str | None:
    """Why no host can be given this address; None if it can."""
    return next((what for net, what in _SPECIAL if address.version == net.version and address in net), None)
