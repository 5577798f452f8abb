"""Cross-checks: how the nodes hear each other (heartbeats), what they tell each other of (`connection_sync`), and which
pools decide who is master."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.core.release import since
from ndakit.model.profile import PEERS_PORT, Profile
from ndakit.model.rules.findings import Finding, error, unknown, warning

SYNC: KeyPath = ("vrrp", "connection_sync")
IPVS_TOLD_S = 5.0
"""A connection is told again after two seconds (`engines.ipvs`), and what is to be told is gathered for up to three
(Linux, include/net/ip_vs.h: IPVS_SYNC_FLUSH_TIME, IPVS_SYNC_CHECK_PERIOD)."""
RETURN_S = 4
"""A `preempt_delay_s` with which no connection was lost at a return (docs/failover.md)."""
"""Checks that need nothing on a node but its shell: those of pools that no service uses."""
DEMOTE: KeyPath = ("vrrp", "demote_on")


def connection_sync(profile: Profile) -> Iterator[Finding]:
    """Whether there is something to tell, and a network to tell it over."""
    if not profile.vrrp.connection_sync or profile.standalone or not profile.instances:
        return
    egress = {name: net.egress for name, net in profile.networks.items() if net.egress != "none"}
    if profile.shares_tables and profile.monitoring.statistics.port == PEERS_PORT:
        yield error(
            "sync-port", f"the nodes' HAProxies tell each other on port {PEERS_PORT} which server a client keeps, and "
            "the statistics page has that port", ("monitoring", "statistics", "port"), "choose another port",
            other=SYNC, also=(("services",), ("pools",)),
        )  # fmt: skip
    if not profile.egress_groups and not profile.ipvs_services and not profile.shares_tables:
        proxied = " (connections that end in HAProxy cannot: their other end is HAProxy)" if profile.services else ""
        at_node = next((name for name, to in egress.items() if to == "node"), None)
        why = (
            f"network {at_node}'s way out wears the node's own address, which the next master does not have"
            if at_node is not None
            else "no network has a way out through a VIP"
        )
        yield warning(
            "sync-nothing", f"no connection would survive a failover: {why}{proxied}", SYNC,
            "name a VIP as the egress of the servers' network, or delete connection_sync",
            other=("networks", at_node, "egress") if at_node is not None else None,
            also=(("networks",), ("services",), ("vips",)),
        )  # fmt: skip
        return
    if profile.sync_link is None:  # then a node lacks the address that VRRP needs, which `addresses` says
        return
    network, version = profile.sync_link
    for what, groups in (("the ways out wear", profile.egress_groups), ("IPVS balances", profile.ipvs_groups)):
        if len(groups) > 1:
            yield error(
                "sync-several-groups",
                f"{what} VIPs of the groups {' and '.join(groups)}, which may have different masters, and connections "
                "can be handed over to one of them only",
                SYNC, "put those VIPs into one group", other=("vips",), also=(("networks",), ("services",)),
            )  # fmt: skip
    if version == 6 and (len(profile.nodes) > 2 or profile.ipvs_services):
        yield error(
            "sync-without-ipv4", "what nodes tell each other of connections goes by IPv4 multicast where there are "
            f"three of them, or services of topology nat, dr or tun, and network {network} has no IPv4",
            SYNC, "give every node an IPv4 address in one network",
            other=("networks", network, "subnet"), also=(("nodes",), ("services",)),
        )  # fmt: skip


def told_in_time(profile: Profile) -> Iterator[Finding]:
    """A node that is master again before IPVS has heard of the connections: keepalived puts a server into IPVS once it
    has answered, and a connection that was told before belongs to no server until it is told again (topology tun then
    drops its packets: Linux, ip_vs_xmit.c)."""
    settings = profile.vrrp
    if not settings.preempt:
        return
    if not profile.syncs_ipvs:
        yield from _told_at_all(profile)
        return
    adverts_s = 3 * settings.advert_interval_s
    waits_s = settings.preempt_delay_s + adverts_s
    names = dict.fromkeys(profile.services[n].pool for n in profile.ipvs_services)
    pools = [profile.pools[name] for name in names if name in profile.pools]
    if not pools:  # then `traffic` says that they are not there
        return
    needs_s = IPVS_TOLD_S + max(pool.check.interval_s for pool in pools)
    if waits_s < needs_s:
        yield warning(
            "back-before-told",
            f"a node that returns takes its VIPs back after {waits_s:g} s, and it may take {needs_s:g} s until IPVS "
            "knows its servers and has been told of their connections: those would end then",
            ("vrrp", "preempt_delay_s"), f"write preempt_delay_s: {math.ceil(needs_s - adverts_s)}",
            other=SYNC, also=(("vrrp", "preempt"),),
        )  # fmt: skip


def _told_at_all(profile: Profile) -> Iterator[Finding]:
    """A node that asks conntrackd, or HAProxy, of the other node for everything, and has no time for the answer."""
    what = "connections that pass through" if profile.tracks_connections else "servers that clients keep"
    if (profile.tracks_connections or profile.shares_tables) and profile.vrrp.preempt_delay_s == 0:
        yield warning(
            "back-before-told",
            "a node that returns takes its VIPs back at once, and has had no time to hear from the other node of the "
            f"{what}",
            ("vrrp", "preempt_delay_s"), f"write preempt_delay_s: {RETURN_S}", other=SYNC, also=(("vrrp", "preempt"),),
        )  # fmt: skip


def demote_on(profile: Profile) -> Iterator[Finding]:
    """Pools that decide who is master."""
    pools = profile.vrrp.demote_on
    for number, pool in enumerate(pools):
        at: KeyPath = (*DEMOTE, number)
        if pool not in profile.pools:
            yield unknown("pool", pool, profile.pools, at, "pools")
        elif not profile.services_of(pool) and not profile.pools[pool].check.stands_alone:
            yield error(
                "demote-check", f"no service uses pool {pool}, so that keepalived looks after its servers by itself, "
                "and it can only ping or run a script for that",
                ("pools", pool, "check"), "write check: ping, or type: script with a script that asks them; or let a "
                "service use the pool", other=at, also=(("services",),),
            )  # fmt: skip
        elif not profile.services_of(pool) and len(profile.nodes) > 1:
            servers = profile.pools[pool].servers.values()
            if {a.version for facts in servers for a in facts.address} == {4, 6}:
                yield warning(
                    "demote-either-family", f"pool {pool} has IPv4 and IPv6 addresses, and one that answers is enough: "
                    "where only one of the two families is lost, nothing moves", ("pools", pool, "servers"),
                    "make two pools, one with the IPv4 and one with the IPv6 addresses, and name both in demote_on",
                    other=at, also=(("services",),),
                )  # fmt: skip
        if pool in pools[:number]:
            yield error("demote-twice", f"pool {pool} is named twice", at, "name it once")
    if not pools or profile.standalone:
        return
    if not profile.vrrp.preempt:
        yield error(
            "demote-without-preempt", "demote_on works only with preempt: true, because the other node must be "
            "allowed to take the VIPs",
            DEMOTE, "write preempt: true, or delete demote_on", other=("vrrp", "preempt"),
        )  # fmt: skip
    if profile.priority_lowest < 1:
        yield error(
            "demote-too-many", f"{len(pools)} pools and {len(profile.nodes)} nodes need more than the "
            "254 steps of priority that VRRP has", DEMOTE, "name fewer pools", other=("nodes",),
        )  # fmt: skip
    if not profile.release.track_script_in_group:
        yield error(
            "demote-of-release", f"keepalived of OpenWrt {profile.release} cannot lower the priority of several "
            "networks together", DEMOTE, f"use release {since(19, 7)}, or delete demote_on", other=("release",),
        )  # fmt: skip


def heartbeats(profile: Profile) -> Iterator[Finding]:
    """A heartbeat is for the nodes alone, and worth something only beside the networks that it stands in for."""
    for name, net in profile.networks.items():
        if net.role != "heartbeat":
            continue
        at: KeyPath = ("networks", name, "role")
        if profile.standalone:
            yield warning(
                "heartbeat-alone", f"there is one node, so nobody is heard on network {name}", at,
                "add the second node, or delete role", other=("nodes",),
            )  # fmt: skip
            continue
        yield from _nodes_only(profile, name)
        if not profile.release.heartbeats:
            yield error(
                "heartbeat-of-release", f"keepalived of OpenWrt {profile.release} does not listen to network {name} "
                "any more once it was silent for a while", at, f"use release {since(19, 7)}, or delete role",
                other=("release",),
            )  # fmt: skip
        with_vips = [i.network for i in profile.instances if not i.heartbeat]
        beside = [other for other in with_vips if set(profile.networks[other].nics) & set(net.nics)]
        if beside:
            yield warning(
                "heartbeat-shares-card",
                f"network {name} shares {net.nics[0]} with network {beside[0]}, so what cuts one cuts the other, and "
                "both nodes become master all the same", ("networks", name, "nics"),
                "give the heartbeat a card and a cable of its own", other=("networks", beside[0], "nics"),
            )  # fmt: skip


def _nodes_only(profile: Profile, name: str) -> Iterator[Finding]:
    """What is not for the nodes alone has no place on a heartbeat: its link is not watched."""
    net, at = profile.networks[name], ("networks", name, "role")
    why = f"is on network {name}, which is a heartbeat: its link is not watched, so it would be lost with the cable"
    for vip, facts in profile.vips.items():
        if facts.network == name:
            yield error(
                "heartbeat-not-alone", f"VIP {vip} {why}", ("vips", vip, "network"),
                "move the VIP to another network (a heartbeat needs none), or delete role", other=at,
            )  # fmt: skip
    for pool, settings in profile.pools.items():
        for server, its in settings.servers.items():
            if any(a in s for a in its.address for s in net.subnet):
                yield error(
                    "heartbeat-not-alone", f"server {server} {why}", ("pools", pool, "servers", server, "address"),
                    "move the server to another network, or delete role", other=at,
                )  # fmt: skip
    for key, there in (("gateway", net.gateway), ("routes", net.routes), ("egress", net.egress != "none")):
        if there:
            yield error(
                "heartbeat-not-alone", f"network {name} is a heartbeat, which the nodes have for themselves, and has "
                f"{'an' if key == 'egress' else 'a' if key == 'gateway' else ''} {key}".replace("  ", " "),
                ("networks", name, key), f"delete {key}, or role", other=at,
            )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (connection_sync, told_in_time, demote_on, heartbeats)
