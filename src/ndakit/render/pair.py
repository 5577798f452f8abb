"""What the nodes of a pair need to know of each other beyond VRRP's adverts: tracked connections, links, pools.

Connections that pass through (the servers' way out) are told by conntrackd over one network (`Profile.sync_link`); a
node that becomes master enters what it was told into its kernel. Links and pools decide whether a node is fit to be
master.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from ipaddress import IPv4Address

from ndakit.core.addresses import authority
from ndakit.model import Address, Profile
from ndakit.model.checks import PingCheck, ScriptCheck
from ndakit.model.links import watched
from ndakit.model.profile import IPVS_SYNC_PORT, PEERS_PORT, SYNC_PORT
from ndakit.render.engines.haproxy import haproxy
from ndakit.render.node import NodeView

SYNC_GROUP = IPv4Address("225.0.0.50")
"""conntrackd's multicast group, for three or more nodes (conntrackd.conf(5))."""


@dataclass(frozen=True)
class Sync:
    """How tracked connections are told to the others."""

    device: str
    version: int
    own: Address
    peer: Address
    """The other node, or the multicast group of three and more."""
    multicast: bool
    port: int
    ignored: tuple[Address, ...]
    """Addresses of the nodes themselves: what ends here cannot move."""
    entries: int
    group: str
    """The VIP group whose master tracks them."""


@dataclass(frozen=True)
class IpvsSync:
    """How connections that the kernel balances are told to the others."""

    device: str
    instance: str
    """The VRRP instance whose master tells."""
    number: int
    port: int


@dataclass(frozen=True)
class Peer:
    """A HAProxy that knows which server a client keeps: this node's or another's."""

    name: str
    """The host name, by which a HAProxy knows that it is itself meant."""
    socket: str


@dataclass(frozen=True)
class WatchedPool:
    """A pool whose servers decide who is master."""

    name: str
    script: str
    backends: tuple[str, ...]
    """HAProxy's backends for it; empty if the kernel alone balances it."""
    ipvs_pattern: str
    """How its servers look in /proc/net/ip_vs while they are well; empty if HAProxy watches them."""
    pinged: tuple[Address, ...] = ()
    """No service uses it: the servers that are pinged."""
    asked: tuple[tuple[Address, int], ...] = ()
    """No service uses it: the servers (address, port) about which its own script is asked."""
    interval_s: int = 1
    timeout_s: int = 5
    """For one look at the pool: all its servers."""
    wait_s: int = 1
    """How long one server may take to answer a ping."""
    fall: int = 2
    rise: int = 2
    user: str = "root"


@dataclass(frozen=True)
class PairView:
    """Everything that templates need for this."""

    sync: Sync | None
    ipvs_sync: IpvsSync | None
    peers: tuple[Peer, ...]
    """Empty if nothing is told."""
    links: dict[str, tuple[str, ...]]
    """VIP group → devices without VIPs of the group that its servers, or the way out, are behind."""
    pools: tuple[WatchedPool, ...]
    weight: int
    """What an empty pool takes off the priority."""


def pair(node: NodeView) -> PairView:
    """The pair's view of a node."""
    profile = node.profile
    return PairView(
        sync=_sync(node),
        ipvs_sync=_ipvs_sync(node),
        peers=_peers(node.profile),
        links={group: _links(profile, group) for group in profile.groups} if profile.instances else {},
        pools=tuple(_watched(node, pool) for pool in profile.vrrp.demote_on) if profile.instances else (),
        weight=-profile.demotion,
    )


def _sync(node: NodeView) -> Sync | None:
    profile = node.profile
    if not profile.tracks_connections or profile.sync_link is None:
        return None
    network, version = profile.sync_link
    own = profile.node_address(node.name, network, version)
    peers = [profile.node_address(peer, network, version) for peer in profile.peers(node.name)]
    if own is None or peers[0] is None:
        raise ValueError(f"sync_link {network} without an address of every node")
    here = [a for n in profile.nodes for addresses in profile.nodes[n].addresses.values() for a in addresses]
    vips = [a for v in profile.vips.values() for a in v.address]
    return Sync(
        device=profile.l2_device(network),
        version=version,
        own=own,
        peer=SYNC_GROUP if len(peers) > 1 else peers[0],
        multicast=len(peers) > 1,
        port=SYNC_PORT,
        ignored=tuple(sorted({*here, *vips}, key=lambda a: (a.version, int(a)))),
        entries=node.capacity.tracked_max,
        group=profile.egress_groups[0],
    )


def _ipvs_sync(node: NodeView) -> IpvsSync | None:
    profile = node.profile
    if not profile.syncs_ipvs or profile.sync_link is None:
        return None
    instance = next(i for i in node.instances if i.group == profile.ipvs_groups[0] and not i.heartbeat)
    return IpvsSync(profile.l2_device(profile.sync_link[0]), instance.name, instance.vrid, IPVS_SYNC_PORT)


def _peers(profile: Profile) -> tuple[Peer, ...]:
    if not profile.shares_tables or profile.sync_link is None:
        return ()
    network, version = profile.sync_link
    return tuple(
        Peer(profile.hostname(node), authority(address, PEERS_PORT))
        for node in profile.nodes
        if (address := profile.node_address(node, network, version)) is not None
    )


def _links(profile: Profile, group: str) -> tuple[str, ...]:
    """VRRP watches the link of each network with a VIP of the group by itself; these are the others that matter."""
    own = {profile.l2_device(i.network) for i in profile.instances if i.group == group and not i.heartbeat}
    devices = dict.fromkeys(profile.l2_device(name) for name in watched(profile, group))
    return tuple(d for d in devices if d not in own)


def _watched(node: NodeView, pool: str) -> WatchedPool:
    profile = node.profile
    if not profile.services_of(pool):
        return _watched_alone(profile, pool)
    backends = tuple(b.name for b in haproxy(node).backends if b.pool == pool and b.checked)
    entries: dict[str, None] = {}
    for name in () if backends else profile.ipvs_services_of(pool):
        marked = name in profile.marks
        for server in profile.pools[pool].servers.values():
            port = 0 if marked else server.port or profile.pools[pool].port
            number = port if port is not None else profile.services[name].first_port
            for address in server.address:
                entries[_entry(address, number)] = None
    return WatchedPool(
        name=pool,
        script=f"pool-{pool}",
        backends=backends,
        ipvs_pattern=f"-> ({'|'.join(entries)}) +[A-Za-z]+ +[1-9]" if entries else "",
    )


def _watched_alone(profile: Profile, pool: str) -> WatchedPool:
    """A pool that nobody balances, so that nobody else looks after its servers: keepalived, at the check's pace."""
    settings = profile.pools[pool]
    check, servers = settings.check, [s for s in settings.servers.values() if s.weight]
    addresses = [a for s in servers for a in s.address]
    wait_s = math.ceil(check.timeout_s)
    return WatchedPool(
        name=pool,
        script=f"pool-{pool}",
        backends=(),
        ipvs_pattern="",
        pinged=tuple(addresses) if isinstance(check, PingCheck) else (),
        asked=tuple((a, s.port or check.asked_port or settings.port or 0) for s in servers for a in s.address)
        if isinstance(check, ScriptCheck)
        else (),
        interval_s=math.ceil(check.interval_s),
        timeout_s=wait_s * len(addresses) + 1,
        wait_s=wait_s,
        fall=check.fall,
        rise=check.good_in_a_row,
        user=check.user if isinstance(check, ScriptCheck) else "root",
    )


def _entry(address: Address, port: int) -> str:
    """A server as /proc/net/ip_vs writes it (ip_vs_info_seq_show): hexadecimal, IPv6 in brackets and in full."""
    host = f"{int(address):08X}" if address.version == 4 else rf"\[{address.exploded}\]"
    return f"{host}:{port:04X}"
