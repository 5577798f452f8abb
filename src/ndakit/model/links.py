"""Which networks' links decide who is master, and why: those of the VIPs, of the way to the servers, of the way out.

The same source for keepalived (it watches these links) and for the verification (it pulls these cables). A heartbeat
is none of them: a dead cable between the nodes says nothing about the node that sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ndakit.model.base import Address
from ndakit.model.profile import Profile


def network_towards(profile: Profile, address: Address) -> str | None:
    """The network through which packets to an address leave: its own, that of the narrowest route, or the gateway's."""
    own = profile.network_of(address)
    routed = [(r.to.prefixlen, name) for name, net in profile.networks.items() for r in net.routes if address in r.to]
    gateways = (n for n, net in profile.networks.items() if net.gateway_of(address.version) is not None)
    return own or (max(routed)[1] if routed else next(gateways, None))


def exits(profile: Profile, network: str, version: int) -> tuple[str, ...]:
    """The networks through which connections of a network's servers leave: those with a default gateway, and that of
    the VIP whose address they wear; empty without egress."""
    net = profile.networks[network]
    if net.egress == "none" or net.subnet_of(version) is None:
        return ()
    through = [n for n, other in profile.networks.items() if other.gateway_of(version) is not None]
    vip = profile.vips.get(net.egress)
    if vip is not None and vip.network in profile.networks and vip.network not in (*through, network):
        through.append(vip.network)
    return tuple(through)


@dataclass(frozen=True)
class WayOut:
    """A network whose servers have a gateway VIP and a way to the outside, in one IP version."""

    network: str
    gateway: str
    """The gateway VIP."""
    through: str
    """The network with the default gateway."""
    version: int


def ways_out(profile: Profile) -> Iterator[WayOut]:
    """The ways out that move with the VIPs: from a network with a gateway VIP and egress to a default gateway, with an
    address to wear there."""
    for name, net in profile.networks.items():
        for version in net.families:
            gateway = next(
                (
                    v
                    for v, vip in profile.vips.items()
                    if vip.network == name and vip.role == "gateway" and vip.address_of(version) is not None
                ),
                None,
            )
            worn = profile.vips.get(net.egress)
            if gateway is None or (worn is not None and worn.address_of(version) is None):
                continue
            for through in exits(profile, name, version):
                if through != name and profile.networks[through].gateway_of(version) is not None:
                    yield WayOut(name, gateway, through, version)


def routes_only(profile: Profile) -> bool:
    """True if a profile balances nothing and is the servers' way out: a use of its own."""
    return not profile.services and any(
        exits(profile, n, v) for n, net in profile.networks.items() for v in net.families
    )


def watched(profile: Profile, group: str) -> dict[str, str]:
    """Network → why its link decides whether a node can be master of a VIP group; the VIPs' own networks first."""
    reasons: dict[str, str] = {}
    for name in profile.networks:
        if any(v.network == name and v.group == group for v in profile.vips.values()):
            reasons[name] = "VIPs are there"
    vips = {n for n, v in profile.vips.items() if v.group == group}
    users = [s for s in profile.services.values() if vips & set(s.vip)]
    for pool in dict.fromkeys(p for s in users for p in s.pools if p in profile.pools):
        for server in profile.pools[pool].servers.values():
            for address in server.address:
                if (towards := network_towards(profile, address)) is not None:
                    reasons.setdefault(towards, "the way to the servers")
    for way in ways_out(profile):
        if profile.vips[way.gateway].group == group:
            reasons.setdefault(way.through, "the way out")
    return reasons


def deciding(profile: Profile) -> dict[str, str]:
    """Network → why its link decides, for any group; empty for a standalone node."""
    reasons: dict[str, str] = {}
    for group in profile.groups if profile.instances else ():
        for network, why in watched(profile, group).items():
            reasons.setdefault(network, why)
    return reasons


def watched_alone(profile: Profile) -> tuple[str, ...]:
    """The pools of `vrrp.demote_on` that no service uses: nobody but keepalived's own scripts looks after them."""
    wanted = profile.vrrp.demote_on if profile.instances else ()
    return tuple(p for p in dict.fromkeys(wanted) if p in profile.pools and not profile.services_of(p))
