"""Cross-checks: network cards, VRRP, the servers' way out, time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address

from ndakit.core.mistakes import KeyPath
from ndakit.core.names import device_name, instance_name, zone_name
from ndakit.model.host import Network
from ndakit.model.profile import Profile
from ndakit.model.reach import of_documentation
from ndakit.model.rules.findings import Finding, error, unknown, warning

RESERVED_NETWORKS = ("loopback", "globals")
"""Sections of OpenWrt's own /etc/config/network: a second type for one name is a parse error (docs/facts.md, UCI)."""

HOSTNAME_MAX = 63

_NO_CARDS: tuple[tuple[str, str], ...] = (
    (r"lo", "the kernel's loopback: nobody comes in there"),
    (r"all|default", "a word of the kernel's own for every device (net.ipv4.conf)"),
    (r"any|none|auto|unspec", "a word for any device, or for none"),
    (r"(tunl|gre|gretap|erspan|sit|ip6tnl|ip6gre|ip6gretap|vti|ipvti)[0-9]+", "a tunnel of the kernel's own"),
    (r"(tun|tap|wg|ppp|pppoe|l2tp|vxlan|geneve|utun|ipsec|xfrm)[0-9]*", "a tunnel"),
    (r"(dummy|ifb|imq|nlmon|teql|vcan|vsock|netdevsim)[0-9]+", "a device without a cable"),
    (r"(veth|docker|virbr|macvlan|ipvlan|vrf)[0-9a-z]*", "a device of containers or virtual machines on this machine"),
    (r"(bond|team)[0-9]+", "a bond that somebody else would have to make; write bond: {mode: …} and name its cards"),
    (r"br[0-9]+|brlan|brwan", "a bridge that somebody else would have to make; write bridge: true and name its cards"),
)  # fmt: skip
"""Names of devices that are no network cards, and what they are."""


def no_card(name: str) -> str | None:
    """What a device of this name is, if it can be no network card; None if it can be one."""
    return next((what for pattern, what in _NO_CARDS if re.fullmatch(pattern, name)), None)


def cards(profile: Profile) -> Iterator[Finding]:
    """Network cards: bonds, bridges, VLANs, and cards used twice."""
    several = len(profile.nodes) > 1
    for name, net in profile.networks.items():
        path: KeyPath = ("networks", name)
        for number, nic in enumerate(net.nics):
            if (what := no_card(nic)) is not None:
                yield error(
                    "nic-no-card", f"network {name} has the card {nic}, and that is no card but {what}",
                    (*path, "nics", number), "name a network card, such as eth0",
                )  # fmt: skip
        if len(set(net.nics)) != len(net.nics):
            yield error("nic-twice", f"network {name} names a card twice", (*path, "nics"), "name each card once")
        if net.bond is not None and net.bridge is not None:
            yield error(
                "bond-and-bridge", f"network {name} has both a bond and a bridge", (*path, "bond"),
                "keep one: bond joins the cards to one link, bridge to one switch", other=(*path, "bridge"),
            )  # fmt: skip
        elif len(net.nics) > 1 and net.bond is None and net.bridge is None:
            like = next((n for n, o in profile.networks.items() if _joins(o) and set(o.nics) == set(net.nics)), None)
            add = "add bond: {mode: active-backup} or bridge: true, or name one card"
            if like is not None:
                tag = ", and a vlan of its own" if net.vlan == profile.networks[like].vlan else ""
                add = f"add {_joins(profile.networks[like])}{tag}, as network {like} with the same cards has it"
            yield error(
                "several-nics", f"network {name} has {len(net.nics)} cards, and neither a bond nor a bridge",
                (*path, "nics"), add, other=("networks", like) if like is not None else None,
                also=((*path, "bond"), (*path, "bridge")),
            )  # fmt: skip
        if net.bond is not None and len(net.nics) == 1:
            yield warning(
                "bond-of-one", f"network {name}'s bond has one card", (*path, "bond"),
                "name the second card in nics, or delete bond", other=(*path, "nics"),
            )  # fmt: skip
        elif net.bond is not None and profile.platform != "bare" and profile.base_owner(name) == name:
            lacp = net.bond.mode == "802.3ad"
            passes = "passes no LACP on, so that the bond may never come up" if lacp else "shows no lost link"
            yield warning(
                "bond-in-machine", f"network {name} is a bond in a virtual machine: the host's switch {passes}",
                (*path, "bond"), f"bond the host's cards and write nics: [{net.nics[0]}] without bond; keep it "
                "if the cards are passed through to the machine", other=("platform",),
            )  # fmt: skip
        if net.bridge is not None and net.bond is None and len(net.nics) > 1 and not net.bridge.stp and several:
            yield error(
                "bridge-loop",
                f"network {name} is bridged on {len(profile.nodes)} nodes without spanning tree: that is a loop",
                (*path, "bridge"), "write bridge: {stp: true}, or use one card per node here", other=("nodes",),
            )  # fmt: skip


def _joins(net: Network) -> str:
    """What makes one link of a network's cards, as it is written; empty if nothing does."""
    if net.bond is not None:
        return f"bond: {{mode: {net.bond.mode}}}"
    if net.bridge is not None:
        return "bridge: {stp: true}" if net.bridge.stp else "bridge: true"
    return ""


def _told_alone(before: Network, net: Network) -> bool:
    """True for two networks with the same cards, one of which joins them by nothing: `cards` says so."""
    return len(net.nics) > 1 and set(before.nics) == set(net.nics) and not (_joins(before) and _joins(net))


def cards_shared(profile: Profile) -> Iterator[Finding]:
    """Cards in two networks: VLANs can share a card, a bond or a bridge, if they say the same about it."""
    users: dict[str, list[str]] = {}
    for name, net in profile.networks.items():
        for nic in dict.fromkeys(net.nics):
            users.setdefault(nic, []).append(name)
    told: set[tuple[str, str]] = set()
    for nic, names in users.items():
        tags: dict[int | None, str] = {}
        first = names[0]
        before = profile.networks[first]
        for name in names:
            net = profile.networks[name]
            path: KeyPath = ("networks", name, "nics")
            joined = any(n.bond is not None or n.bridge is not None for n in (before, net))
            if joined and profile.base_owner(name) != profile.base_owner(first):
                if (first, name) not in told and not _told_alone(before, net):
                    yield _not_shared(profile, nic, first, name)
                told.add((first, name))
                continue
            same = tags.setdefault(net.vlan, name)
            if same != name and (same, name) not in told:
                what = f"both with VLAN {net.vlan}" if net.vlan else "both without a VLAN"
                free = 11 if net.vlan == 10 else 10
                told.add((same, name))
                yield error(
                    "nic-shared", f"{nic} is in networks {same} and {name}, {what}", path,
                    f"use another card, or tell them apart with vlan: {free} (the switch must send tagged frames)",
                    other=("networks", same, "nics"), also=(("networks", same, "vlan"), ("networks", name, "vlan")),
                )  # fmt: skip


def _not_shared(profile: Profile, nic: str, first: str, name: str) -> Finding:
    """A card that two networks join to others in different ways."""
    before, net = profile.networks[first], profile.networks[name]
    what = "and one of them is a bond or a bridge"
    fix = "give it cards of its own, or write the same nics and the same bond or bridge in both, and a vlan in each"
    if set(before.nics) == set(net.nics):
        ways = " or ".join(dict.fromkeys(way for way in map(_joins, (before, net)) if way))
        tag = ", and a vlan of its own in each" if before.vlan == net.vlan else ""
        what, fix = "and their bond or bridge differs", f"write the same in both, {ways}{tag}"
    return error(
        "nic-shared", f"{nic} is in networks {first} and {name}, {what}", ("networks", name, "nics"), fix,
        other=("networks", first, "nics"),
        also=tuple(("networks", n, key) for n in (first, name) for key in ("bond", "bridge")),
    )  # fmt: skip


def names_collide(profile: Profile) -> Iterator[Finding]:
    """Names that OpenWrt keeps for itself, or that become the same after shortening."""
    for name in profile.networks:
        if name in RESERVED_NETWORKS:
            yield error(
                "reserved-name", f"OpenWrt uses '{name}' for itself, so no network can be called that",
                ("networks", name), f"call it {name}-net, for example",
            )  # fmt: skip
    for name in ("node", "none"):
        if name in profile.vips:
            yield error(
                "reserved-name", f"no VIP can be called '{name}': egress: {name} means something else", ("vips", name),
                f"call it {name}-vip, for example",
            )  # fmt: skip
    made: dict[tuple[str, str], tuple[KeyPath, str]] = {}
    vlans: set[tuple[str, int | None]] = set()
    for name, net in profile.networks.items():
        path: KeyPath = ("networks", name)
        results = [("firewall zone", zone_name(name))]
        if net.bond is not None and profile.base_owner(name) == name:
            results.append(("interface", device_name("bond", name)))
        if net.bridge is not None and profile.base_owner(name) == name:
            results.append(("interface", device_name("br", name)))
        tagged = (profile.base_device(name), net.vlan)
        if net.vlan is not None and tagged not in vlans:  # cards_shared says it if one is there twice
            results.append(("interface", profile.l2_device(name)))
        vlans.add(tagged)
        for kind, result in results:
            first = made.setdefault((kind, result), (path, name))
            if first[0] != path:
                yield error(
                    "names-collide", f"networks {first[1]} and {name} would both get the {kind} name '{result}'", path,
                    "rename one of them so that they differ within the first 7 characters", other=first[0],
                )  # fmt: skip
    instances: dict[str, tuple[str, KeyPath]] = {}
    wanted: list[tuple[str, str, KeyPath]] = [(v.network, v.group, ("vips", n)) for n, v in profile.vips.items()]
    wanted += [(name, group, ("networks", name)) for name in profile.heartbeats for group in profile.groups]
    for network, group, at in wanted:
        result, meant = instance_name(network, group), f"{network}/{group}"
        before = instances.setdefault(result, (meant, at))
        if before[0] != meant:
            yield error(
                "names-collide",
                f"group {group} on {network} would get the VRRP name '{result}', which is taken", at,
                "rename the group" if at[0] == "vips" else "rename the network", other=before[1],
            )  # fmt: skip
    for node in profile.nodes:
        whole = f"{profile.name}-{node}"
        if len(whole) > HOSTNAME_MAX:
            yield error(
                "hostname-too-long",
                f"node {node}'s host name '{whole}' would have more than {HOSTNAME_MAX} characters",
                ("nodes", node), "shorten the node's or the profile's name", other=("name",),
            )  # fmt: skip


def vrrp(profile: Profile) -> Iterator[Finding]:
    """How the nodes agree on who holds the VIPs."""
    settings = profile.vrrp
    path: KeyPath = ("vrrp",)
    if settings.prefer is not None and settings.prefer not in profile.nodes:
        yield unknown("node", settings.prefer, profile.nodes, (*path, "prefer"), "nodes")
    if profile.standalone:
        if "vrrp" in profile.model_fields_set:
            yield warning(
                "vrrp-standalone", "there is one node, so no VRRP runs, and vrrp means nothing", path,
                "add the second node, or delete vrrp", other=("nodes",),
            )  # fmt: skip
        for name, net in profile.networks.items():
            if net.vrid is not None:
                yield warning(
                    "vrrp-standalone", f"there is one node, so no VRRP runs, and networks.{name}.vrid means nothing",
                    ("networks", name, "vrid"), "add the second node, or delete vrid", other=("nodes",),
                )  # fmt: skip
        return
    if settings.preempt_delay_s and not settings.preempt:
        yield warning(
            "delay-without-preempt", "preempt_delay_s does nothing, because preempt is not true",
            (*path, "preempt_delay_s"), "write preempt: true, or delete preempt_delay_s", other=(*path, "preempt"),
        )  # fmt: skip
    if settings.advert_interval_s < 1:
        yield warning(
            "subsecond-adverts",
            f"adverts every {settings.advert_interval_s:g} s take the VIPs over after a hiccup of "
            f"{settings.takeover_s:g} s: a busy node or switch is enough",
            (*path, "advert_interval_s"), "keep it if failover has to be that fast; else write 1",
        )  # fmt: skip
    if not profile.vips:
        yield warning(
            "nothing-shared", f"there are {len(profile.nodes)} nodes, and no VIP that they could share", ("nodes",),
            "add vips, or keep one node", also=(("vips",),),
        )  # fmt: skip
    for name, net in profile.networks.items():
        mains = any(i.network == name and i.group == "main" for i in profile.instances)
        if net.vrid is not None and not mains:
            yield warning(
                "vrid-unused", f"network {name} pins a router id, and no VIP of group main is there",
                ("networks", name, "vrid"), "delete vrid", also=(("vips",),),
            )  # fmt: skip


def egress(profile: Profile) -> Iterator[Finding]:
    """The servers' way out."""
    for name, net in profile.networks.items():
        if net.egress == "none":
            continue
        path: KeyPath = ("networks", name, "egress")
        gateways = [(v, vip) for v, vip in profile.vips.items() if vip.network == name and vip.role == "gateway"]
        if not gateways and not profile.standalone:
            yield warning(
                "egress-without-gateway",
                f"network {name} has an egress, and no VIP there that servers could use as their gateway", path,
                f"add a VIP: {{network: {name}, address: ADDRESS, role: gateway}}; else their way out dies with one "
                "node",
                also=(("vips",),),
            )  # fmt: skip
        if net.egress == "node":
            if not any(o.gateway or o.routes for o in profile.networks.values()):
                yield warning(
                    "egress-nowhere", f"network {name} has an egress, and no network has a gateway or a route", path,
                    "add the gateway of the network that leads out", also=(("networks",),),
                )  # fmt: skip
            continue
        vip = profile.vips.get(net.egress)
        if vip is None:
            yield unknown("vip", net.egress, profile.vips, path, "vips", words=("node", "none"))
            continue
        other: KeyPath = ("vips", net.egress)
        way = profile.networks.get(vip.network)
        if way is not None and not (way.gateway or way.routes):
            yield warning(
                "egress-nowhere",
                f"network {name}'s way out is VIP {net.egress}, and {vip.network} has neither a gateway nor a route",
                path, "add the gateway there, or name a VIP of the network that leads out", other=(*other, "network"),
                also=(("networks", vip.network),),
            )  # fmt: skip
        if not {a.version for a in vip.address} & set(net.families):
            yield error(
                "egress-other-family", f"VIP {net.egress} and network {name} have no address family in common", path,
                "name a VIP of the servers' family", other=(*other, "address"),
            )  # fmt: skip
        for gateway, facts in gateways:
            if facts.group != vip.group:
                yield error(
                    "egress-other-group",
                    f"the gateway VIP {gateway} and the egress VIP {net.egress} are in different groups, so they may "
                    "be on different nodes",
                    path, "put both into one group", other=("vips", gateway), also=(other,),
                )  # fmt: skip


def time_servers(profile: Profile) -> Iterator[Finding]:
    """Time servers by name need a name server."""
    if any(net.dns for net in profile.networks.values()):
        return
    named = next((n for n in profile.system.ntp if not _is_address(n)), None)
    if named is not None:
        stated = "system" in profile.model_fields_set and "ntp" in profile.system.model_fields_set
        what = f"the time server {named} is a name" if stated else f"the default time servers ({named} …) are names"
        yield warning(
            "ntp-without-dns", f"{what}, and no network has a name server",
            ("system", "ntp"), "write your own name server's address as dns of a network, or the time servers' "
            "addresses, or ntp: []",
            also=tuple(("networks", n, "dns") for n in profile.networks),
        )  # fmt: skip


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def examples(profile: Profile) -> Iterator[Finding]:
    """Name and time servers that were copied from an example. A profile that is itself one has the networks of one."""
    if any(of_documentation(subnet) for net in profile.networks.values() for subnet in net.subnet):
        return
    asked: list[tuple[KeyPath, str]] = [
        (("networks", name, "dns", number), str(server))
        for name, net in profile.networks.items()
        for number, server in enumerate(net.dns)
    ]
    asked += [(("system", "ntp", number), server) for number, server in enumerate(profile.system.ntp)]
    for at, server in asked:
        if _is_address(server) and of_documentation(ip_address(server)):
            yield warning(
                "address-of-example", f"nobody has the address {server}: it is one for examples in texts", at,
                "write the address of your own server", also=(("networks",),),
            )  # fmt: skip


def ntp_twice(profile: Profile) -> Iterator[Finding]:
    """Name and time servers stated twice."""
    lists: list[tuple[KeyPath, tuple[object, ...]]] = [(("system", "ntp"), profile.system.ntp)]
    lists += [(("networks", name, "dns"), net.dns) for name, net in profile.networks.items()]
    for path, entries in lists:
        for before, after in itertools.pairwise(sorted(map(str, entries))):
            if before == after:
                yield warning("server-twice", f"{after} is stated twice", path, "state it once")


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    cards,
    cards_shared,
    names_collide,
    vrrp,
    egress,
    time_servers,
    examples,
    ntp_twice,
)
