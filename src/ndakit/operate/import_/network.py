"""/etc/config/network of the nodes: cards, bonds, bridges, VLANs, subnets, gateways, routes, own addresses."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from ndakit.core.uci import Section
from ndakit.model import Address
from ndakit.operate.import_.draft import (
    Draft,
    NetworkDraft,
    VipDraft,
    address,
    interface,
    is_card,
    number,
    slug,
    subnet,
)
from ndakit.operate.import_.uci_files import UciFile

PATH = "/etc/config/network"
_BOND_MODES = {"802.3ad": "802.3ad", "4": "802.3ad", "active-backup": "active-backup", "1": "active-backup"}
_PROTOCOLS = {
    "dhcp": "a balancer's addresses are fixed: write networks.NAME and nodes.NAME.addresses with what DHCP gave",
    "dhcpv6": "a balancer's addresses are fixed: write networks.NAME and nodes.NAME.addresses with what DHCP gave",
    "pppoe": "a balancer does not dial in: a router does",
    "wireguard": "tunnels are not carried yet (vpn)",
}
_OPTIONS = {
    "mtu": "other packet sizes are not carried yet (networks.NAME.mtu)",
    "macaddr": "there is no key for a card's MAC address",
    "metric": "a second way to the Internet is not carried yet (networks.NAME.default)",
    "ip6assign": "a balancer's addresses are fixed: write nodes.NAME.addresses",
}


@dataclass(frozen=True)
class _Link:
    """What a device is made of."""

    nics: tuple[str, ...]
    bond: str | None = None
    bridge: tuple[bool] | None = None
    """(spanning tree,)"""
    vlan: int | None = None


def read(draft: Draft, node: str, uci: UciFile) -> None:
    """Put a node's networks into the draft: a new one for each interface that the draft has not yet."""
    for section in uci.of("interface"):
        _interface(draft, node, uci, section)
    for section in uci.of("globals"):
        uci.unsaid(section, "IPv6 subnets are fixed as well: networks.NAME.subnet")
    for section in uci.of("rule", "rule6"):
        uci.unsaid(section, "rules of routing are ndakit's: reply_route, and topology tproxy")
    for section in uci.of("route", "route6"):
        _route(draft, node, uci, section)


def _interface(draft: Draft, node: str, uci: UciFile, section: Section) -> None:
    name = (section.name or "").replace("_", "-")
    protocol = section.get("proto") or "none"
    if name == "loopback":
        return
    if protocol != "static":
        uci.unsaid(section, _PROTOCOLS.get(protocol, f"a network's addresses are static, and this one is {protocol}"))
        return
    device = _device_of(section)
    link = _link(uci, section, device, 0)
    if link is None:
        uci.unsaid(section, f"'{device}' is no card, bond, bridge or VLAN of cards that a profile can name")
        return
    ours = [a for a in (_addresses(section)) if a is not None]
    if not ours:
        uci.unsaid(section, "there is no address in it")
        return
    known = draft.networks.get(name) if name in draft.networks else None
    if known is None:
        name = slug(name, "net", draft.networks)
        known = NetworkDraft(name, _kernel_device(section, device), list(link.nics), link.bond, None, link.vlan)
        known.bridge = None if link.bridge is None else {"stp": link.bridge[0]}
        draft.networks[name] = known
    elif (known.nics, known.bond, known.vlan) != (list(link.nics), link.bond, link.vlan):
        uci.file.unsaid(
            section.line_of("device"),
            f"networks.{name}.nics: nodes with different cards are not carried yet; {draft.node_names[0]}'s are used",
        )
    key = f"networks.{name}"
    for option in ("device", "ifname", "type", "stp"):
        uci.used(section, option, f"{key}.nics" if option in ("device", "ifname") else f"{key}.bridge")
    uci.head(section, key)
    uci.used(section, "proto", key)
    _take_addresses(draft, node, uci, section, known)
    _take_rest(draft, node, uci, section, known)
    for option_name, why in _OPTIONS.items():
        uci.hint(section, option_name, why)


def _device_of(section: Section) -> str:
    return section.get("device") or section.get("ifname") or ""


def _kernel_device(section: Section, device: str) -> str:
    """The interface as Linux calls it: before 21.02 netifd makes br-NAME of an interface that is a bridge."""
    return f"br-{section.name}" if section.get("type") == "bridge" else device


def _link(uci: UciFile, section: Section, device: str, depth: int) -> _Link | None:
    """What a device is made of; None for what no profile can name. Its sections are told as used."""
    if section.type == "interface" and section.get("type") == "bridge":
        ports = tuple(device.split())
        stp = section.get("stp") == "1"
        return _Link(ports, bridge=(stp,)) if ports and all(is_card(p) for p in ports) else None
    made = next((s for s in uci.of("device") if s.get("name") == device), None)
    if made is None or depth > 4:
        base, dot, tag = device.rpartition(".")
        if dot and number(tag, 1, 4094) is not None:
            below = _link(uci, section, base, depth + 1)
            return _Link(below.nics, below.bond, below.bridge, int(tag)) if below and below.vlan is None else None
        return _Link((device,)) if is_card(device) and depth <= 4 else None
    kind = made.get("type") or ""
    key = f"networks.{(section.name or '').replace('_', '-')}"
    if kind in ("8021q", "8021ad"):
        below = _link(uci, section, made.get("ifname") or "", depth + 1)
        vlan = number(made.get("vid"), 1, 4094)
        if below is None or vlan is None or below.vlan is not None or kind == "8021ad":
            return None
        for name in ("name", "type", "ifname", "vid"):
            uci.take(made, name, key=f"{key}.vlan")
        return _Link(below.nics, below.bond, below.bridge, vlan)
    ports = tuple(p for value in made.list("ports") or made.list("ifname") for p in value.split())
    if not ports or not all(is_card(port) for port in ports):
        return None
    if kind == "bridge":
        for name in ("name", "type", "ports", "ifname"):
            uci.take(made, name, key=f"{key}.nics")
        uci.take(made, "stp", key=f"{key}.bridge.stp")
        return _Link(ports, bridge=(made.get("stp") == "1",))
    if kind == "bonding" and (mode := _BOND_MODES.get(made.get("policy") or "")):
        for name in ("name", "type", "ports"):
            uci.take(made, name, key=f"{key}.nics")
        uci.take(made, "policy", key=f"{key}.bond.mode")
        return _Link(ports, bond=mode)
    if not kind and ports == (device,):
        return _Link(ports)
    return None


def _addresses(section: Section) -> list[str]:
    """Every address with its length, as it is written."""
    masks = section.list("netmask")
    result = []
    for value in section.list("ipaddr"):
        for word in value.split():
            text = word if "/" in word or not masks else f"{word}/{masks[0]}"
            if interface(text) is not None:
                result.append(text)
    return result + [w for v in section.list("ip6addr") for w in v.split() if interface(w) is not None]


def _take_addresses(draft: Draft, node: str, uci: UciFile, section: Section, net: NetworkDraft) -> None:
    """The first address of a family that has a subnet is the node's own; others are VIPs of a box that is alone."""
    own = net.addresses.setdefault(node, [])
    for option in section.options:
        if option.name == "netmask":
            uci.file.key(option.line, f"networks.{net.name}.subnet")
        if option.name not in ("ipaddr", "ip6addr"):
            continue
        for word in option.value.split():
            masks = section.list("netmask")
            one = interface(word if "/" in word or option.name == "ip6addr" or not masks else f"{word}/{masks[0]}")
            if one is None:
                uci.file.unsaid(option.line, f"'{word[:60]}' is no address")
                continue
            single = one.network.prefixlen == one.network.max_prefixlen
            if not single and one.version not in {a.version for a in own}:
                own.append(one.ip)
                uci.file.key(option.line, f"nodes.{node}.addresses.{net.name}")
                _take_subnet(uci, option.line, net, one.network)
            else:
                _alias(draft, uci, option.line, net, one.ip)


def _take_subnet(uci: UciFile, line: int, net: NetworkDraft, own: object) -> None:
    own_subnet = subnet(str(own))
    if own_subnet is None:
        return
    of_family = next((s for s in net.subnets if s.version == own_subnet.version), None)
    if of_family is None:
        net.subnets.append(own_subnet)
        net.subnets.sort(key=lambda s: s.version)
    if of_family in (None, own_subnet):
        uci.file.key(line, f"networks.{net.name}.subnet")
    else:
        uci.file.unsaid(line, f"networks.{net.name}.subnet is {of_family} on the node before, and {own_subnet} here")


def _alias(draft: Draft, uci: UciFile, line: int, net: NetworkDraft, ip: Address) -> None:
    """A further address: a VIP if the box is alone."""
    if len(draft.node_names) > 1:
        uci.file.unsaid(
            line,
            "a second subnet on the same wire is not carried yet (networks.NAME.aliases); an address "
            "that both nodes serve is a VIP: write vips.NAME",
        )
        return
    if draft.vip_with(ip) is None:
        draft.vips.append(VipDraft(net.name, [ip], routed=not net.holds(ip)))
    uci.file.key(line, "vips")


def _take_rest(draft: Draft, node: str, uci: UciFile, section: Section, net: NetworkDraft) -> None:
    for option in section.options:
        if option.name not in ("gateway", "ip6gw", "dns"):
            continue
        kept, key = (net.dns, "dns") if option.name == "dns" else (net.gateways, "gateway")
        for word in option.value.split():
            one = address(word)
            if one is None:
                uci.file.unsaid(option.line, f"'{word[:60]}' is no address")
                continue
            of_family = [a for a in kept if a.version == one.version]
            first = node == draft.node_names[0]
            new = first if key == "dns" else not of_family
            if one in kept or new:
                if new:
                    kept.append(one)
                uci.file.key(option.line, f"networks.{net.name}.{key}")
            else:
                uci.file.unsaid(
                    option.line,
                    f"the nodes of a profile have one {key} there, and it is "
                    f"{', '.join(map(str, of_family or kept)) or 'none'}",
                )


def _route(draft: Draft, node: str, uci: UciFile, section: Section) -> None:
    name = (section.get("interface") or "").replace("_", "-")
    net, via = draft.networks.get(name), address(section.get("gateway") or "")
    to = section.get("target") or ""
    mask = section.get("netmask")
    try:
        target = ip_network(f"{to}/{mask}" if mask and "/" not in to else to, strict=False)
    except ValueError:
        target = None
    if net is None or via is None or target is None or section.get("table") or section.get("type"):
        uci.unsaid(section, "routes of a profile have a network, a target and a router, and are in the main table")
        return
    route: dict[str, str | int] = {"to": str(target), "via": str(via)}
    metric = number(section.get("metric"))
    if metric is not None:
        route["metric"] = metric
    key = f"networks.{name}.routes"
    if target.prefixlen == 0:
        if not any(g.version == via.version for g in net.gateways):
            net.gateways.append(via)
        key = f"networks.{name}.gateway"
    elif route not in net.routes:
        if node != draft.node_names[0]:
            uci.unsaid(
                section, f"the nodes of a profile have the same routes, and {draft.node_names[0]} has not this one"
            )
            return
        net.routes.append(route)
    for option in ("interface", "target", "netmask", "gateway", "metric"):
        uci.used(section, option, key)
    uci.head(section, key)
