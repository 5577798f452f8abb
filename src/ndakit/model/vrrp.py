"""The VRRP instances of one node: who speaks with whom, and which VIPs move along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ndakit.core.errors import InputError
from ndakit.core.names import instance_name
from ndakit.model.base import Address
from ndakit.model.profile import Profile

_MARKS: Mapping[int, Address] = {4: IPv4Address("127.0.112.1"), 6: IPv6Address("100::1")}
"""IP version → the first of the addresses that heartbeats advertise, for VRRP version 3 has no advert without one (RFC
5798, 5.2.5). They are put on the loopback device: those of 127.0.0.0/8 are there anyway, and those of 100::/64 lead
nowhere in the world (RFC 6666)."""


@dataclass(frozen=True)
class VrrpVip:
    """A VIP as keepalived adds it."""

    address: Address
    device: str

    @property
    def prefixed(self) -> str:
        """With /32 or /128: inside the node's own prefix it would be lost with the node's address."""
        return f"{self.address}/{self.address.max_prefixlen}"


@dataclass(frozen=True)
class VrrpInstance:
    """A VRRP instance of this node."""

    name: str
    group: str
    network: str
    device: str
    vrid: int
    priority: int
    version: int
    own: Address
    peers: tuple[Address, ...]
    advertised: VrrpVip
    others: tuple[VrrpVip, ...]
    grouped: bool
    """True if it changes its state together with others (SyncGroup)."""
    heartbeat: bool
    """True if it only hears: its link is not watched."""


def instances_of(profile: Profile, node: str) -> tuple[VrrpInstance, ...]:
    """The VRRP instances of a node. Raises InputError for a node without the address that VRRP needs."""
    instances: list[VrrpInstance] = []
    for number, instance in enumerate(profile.instances):
        device = profile.l2_device(instance.network)
        if instance.heartbeat:
            vips = [VrrpVip(_MARKS[profile.heard_version(instance.network)] + number, "lo")]
        else:
            vips = [VrrpVip(a, device) for v in instance.vips for a in profile.vips[v].address]
        version = min(v.address.version for v in vips)
        own = profile.node_address(node, instance.network, version)
        if own is None:
            raise _no_address(profile, node, instance.network, version)
        peers = tuple(
            a
            for peer in profile.peers(node)
            if (a := profile.node_address(peer, instance.network, version)) is not None
        )
        advertised = next(v for v in vips if v.address.version == version)
        instances.append(
            VrrpInstance(
                name=instance_name(instance.network, instance.group),
                group=instance.group,
                network=instance.network,
                device=device,
                vrid=instance.vrid,
                priority=profile.priority(node),
                version=version,
                own=own,
                peers=peers,
                advertised=advertised,
                others=tuple(v for v in vips if v is not advertised),
                grouped=sum(1 for i in profile.instances if i.group == instance.group) > 1,
                heartbeat=instance.heartbeat,
            )
        )
    return tuple(instances)


def _no_address(profile: Profile, node: str, network: str, version: int) -> InputError:
    return InputError(
        f"node '{node}' has no IPv{version} address in network '{network}', and VRRP there needs one",
        where=f"profile {profile.name}, nodes.{node}.addresses.{network}",
        fix=f"add one of {profile.networks[network].subnet_of(version) or f'an IPv{version} subnet'}",
    )
