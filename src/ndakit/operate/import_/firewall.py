"""/etc/config/firewall: who may administer, the servers' way out, names and ports of services, rules of its own."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any

from ndakit.core.mistakes import clean
from ndakit.core.uci import Section
from ndakit.model import Address
from ndakit.operate.import_.draft import Draft, NetworkDraft, VipDraft, address, slug, subnet
from ndakit.operate.import_.firewall_defaults import of_openwrt
from ndakit.operate.import_.uci_files import UciFile

PATH = "/etc/config/firewall"
PROTOCOLS = {
    "tcp": "tcp",
    "6": "tcp",
    "udp": "udp",
    "17": "udp",
    "icmp": "icmp",
    "1": "icmp",
    "gre": "gre",
    "47": "gre",
    "esp": "esp",
    "50": "esp",
    "ah": "ah",
    "51": "ah",
    "ospf": "ospf",
    "89": "ospf",
    "all": "all",
    "any": "all",
}
_PINGS = ["echo-request"]
_PLAIN = {"name", "src", "proto", "dest_port", "dest_ip", "target", "family", "enabled", "log", "log_limit", "counter"}
"""The options of a rule that lets in everybody of its zone, to the addresses and ports that it names."""
_ICMP_PLAIN = {"icmp_type"}


def zones(draft: Draft, uci: UciFile) -> dict[str, list[NetworkDraft]]:
    """Zone → its networks."""
    result: dict[str, list[NetworkDraft]] = {}
    for section in uci.of("zone"):
        names = [w.replace("_", "-") for value in section.list("network") for w in value.split()]
        devices = [w for value in section.list("device") for w in value.split()]
        ours = [n for n in draft.networks.values() if n.name in names or n.device in devices]
        result[section.get("name") or ""] = ours
    return result


def words(section: Section, name: str) -> list[str]:
    """The words of an option or list."""
    return [word for value in section.list(name) for word in value.split()]


def enabled(section: Section) -> bool:
    """False for a rule that is switched off."""
    return section.get("enabled") not in ("0", "no", "off", "false")


def access(draft: Draft, uci: UciFile) -> None:
    """`access.sources`: the addresses that the rules for SSH let in; without such rules, those of the zones."""
    theirs = zones(draft, uci)
    kept_out: list[Section] = []
    shut: set[str] = set()
    for section in uci.of("rule"):
        if not _about_ssh(draft, section):
            continue
        source = section.get("src") or ""
        if section.get("target") in ("DROP", "REJECT"):
            if narrowing(section) or section.get("dest_ip"):
                kept_out.append(section)
            else:
                shut.add(source)
            continue
        if section.get("target") != "ACCEPT" or section.get("dest_ip") or not words(section, "dest_port"):
            continue  # a service on a VIP, or a rule that is not for SSH alone
        if source in shut or "*" in shut:
            uci.unsaid(section, "a rule before it keeps everybody out")
            continue
        limits = [o for o in narrowing(section) if o != "src_ip"]
        sources = [s for s in (subnet(w) for w in words(section, "src_ip")) if s is not None]
        if limits or len(sources) != len(words(section, "src_ip")):
            for option in section.options:
                if option.name in (*limits, "src_ip"):
                    uci.file.unsaid(option.line, "access.sources has subnets that may always come, and nothing else")
            draft.decide(f"access.sources: whom does {_named(uci, section)} let in by SSH? No key says its conditions")
            continue
        for other in kept_out:
            if source == "*" or other.get("src") in ("*", source):
                draft.decide(
                    f"access.sources: {_named(uci, other)} kept some out of SSH before {_named(uci, section)} let "
                    "others in, and access.sources lets in all whom the second one names"
                )
        if not sources:
            version = {"ipv4": 4, "ipv6": 6}.get(section.get("family") or "")
            of_zone = [s for n in theirs.get(source, []) for s in n.subnets]
            sources = [s for s in of_zone if version in (None, s.version)]
            if not sources:
                uci.unsaid(section, "it lets everybody in by SSH: write access.sources with those who may")
                continue
            uci.file.unsaid(
                section.line, "everybody may come in through this zone; its own subnets become access.sources"
            )
        _add_sources(draft, section, [str(s) for s in sources])
        for name in ("name", "src", "proto", "src_ip", "dest_port", "target", "family"):
            uci.take(section, name, key="access.sources")
    if draft.sources:
        return
    for section in uci.of("zone"):
        zone = section.get("name") or ""
        ours = theirs.get(zone, [])
        if section.get("input") == "ACCEPT" and ours and zone not in shut and "*" not in shut:
            for other in kept_out:
                if other.get("src") in ("*", zone):
                    draft.decide(
                        f"access.sources: {_named(uci, other)} kept some out of SSH, and access.sources has the "
                        "whole subnet that the zone lets in"
                    )
            for net in ours:
                if not net.heartbeat and net.subnets:
                    draft.sources[net.name] = [str(s) for s in net.subnets]
            uci.file.key(section.line, "access.sources")
            uci.file.unsaid(
                section.line_of("input"),
                "the zone lets everything in: its own subnets become access.sources, and "
                "all else is shut that nothing opens (firewall.allow)",
            )


def _about_ssh(draft: Draft, section: Section) -> bool:
    """True for a rule about packets to the SSH port of the node; without ports it is about all of them."""
    protocols = [PROTOCOLS.get(w, w) for w in words(section, "proto")] or ["tcp", "udp"]
    ports = words(section, "dest_port")
    here = not ports or any(low <= draft.ssh_port <= high for low, high in spans(ports))
    tcp = "tcp" in protocols or "all" in protocols
    return here and tcp and enabled(section) and bool(section.get("src")) and not section.get("dest")


def narrowing(section: Section) -> list[str]:
    """The options by which a rule is about fewer than all who come from its zone to what it names."""
    of_icmp = _ICMP_PLAIN if "icmp" in [PROTOCOLS.get(w, w) for w in words(section, "proto")] else set()
    return [o.name for o in section.options if o.name not in _PLAIN and o.name not in of_icmp and o.value != ""] + [
        o.name for o in section.options if o.name in ("dest_port", "dest_ip", "proto") and o.value.startswith("!")
    ]


def _named(uci: UciFile, section: Section) -> str:
    return f"rule {clean((section.get('name') or '')[:40])!r} of {uci.file.node}:{uci.file.path}:{section.line}"


def _add_sources(draft: Draft, section: Section, sources: list[str]) -> None:
    new = [s for s in sources if not any(s in group for group in draft.sources.values())]
    if not new:
        return
    given = section.get("name") or ""
    base = "admin" if re.search("ssh", given, re.I) or not given else given
    draft.sources[slug(base, "admin", draft.sources)] = new


def spans(texts: list[str]) -> list[tuple[int, int]]:
    """Ports as spans, without what is none (a negation, a name)."""
    result = []
    for word in texts:
        span = re.fullmatch(r"([0-9]{1,5})(?:[-:]([0-9]{1,5}))?", word)
        if span is not None:
            result.append((int(span[1]), int(span[2] or span[1])))
    return result


def service_names(uci: UciFile | None) -> dict[tuple[str, str, str], str]:
    """(address, protocol, port) → what the rule that opens it calls the service; ndakit's rules are `service-NAME`."""
    result: dict[tuple[str, str, str], str] = {}
    for section in uci.of("rule") if uci is not None else ():
        name = section.get("name") or ""
        if not name.startswith("service-") or section.get("target") != "ACCEPT":
            continue
        for ip in words(section, "dest_ip"):
            for port in words(section, "dest_port"):
                result[str(address(ip)), section.get("proto") or "tcp", port] = _without_zone(uci, section, name[8:])
    return result


def _without_zone(uci: UciFile | None, section: Section, name: str) -> str:
    """A service with rules for several zones has the zone in their names."""
    source = section.get("src") or ""
    base = name.removesuffix("-any" if source == "*" else f"-{source}")
    names = [s.get("name") or "" for s in (uci.of("rule") if uci is not None else ())]
    others = [n for n in names if n.startswith(f"service-{base}-") and n != f"service-{name}"]
    return base if base != name and others else name


def marks(uci: UciFile | None) -> dict[int, tuple[list[tuple[int, int]], list[Address], str, str]]:
    """Firewall mark → ports, addresses, protocol and service name of the rule that sets it."""
    result: dict[int, tuple[list[tuple[int, int]], list[Address], str, str]] = {}
    for section in uci.of("rule") if uci is not None else ():
        text = (section.get("set_xmark") or section.get("set_mark") or "").split("/")[0]
        if not re.fullmatch(r"0x[0-9a-fA-F]{1,8}|[0-9]{1,10}", text) or section.get("target") != "MARK":
            continue
        ports = spans(words(section, "dest_port"))
        addresses = [a for a in (address(w) for w in words(section, "dest_ip")) if a is not None]
        name = section.get("name") or ""
        if ports and addresses and uci is not None:
            service = (
                name.removeprefix("mark-").removesuffix(f"-{section.get('src')}") if name.startswith("mark-") else ""
            )
            result[int(text, 0)] = (ports, addresses, section.get("proto") or "tcp", service)
            for option in ("name", "src", "dest", "proto", "dest_ip", "dest_port", "set_xmark", "set_mark", "target"):
                uci.take(section, option, key="services")
    return result


def egress(draft: Draft, uci: UciFile) -> None:
    """The servers' way out: source NAT to a VIP or to the node, or masquerading of a zone that others may leave by."""
    theirs = zones(draft, uci)
    for section in uci.of("nat"):
        source, to = subnet(section.get("src_ip") or ""), address(section.get("snat_ip") or "")
        net = next((n for n in draft.networks.values() if source in n.subnets), None)
        if section.get("target") != "SNAT" or net is None or to is None:
            continue
        if (vip := draft.vip_with(to)) is not None:
            net.egress = f"vip:{vip.addresses[0]}"
        elif draft.own(to):
            net.egress = "node"
        else:
            continue
        uci.whole(section, f"networks.{net.name}.egress")
    masquerading = {s.get("name"): s for s in uci.of("zone") if s.get("masq") in ("1", "yes", "on", "true")}
    for section in uci.of("forwarding"):
        out = masquerading.get(section.get("dest"))
        if out is None:
            uci.unsaid(
                section, "nothing passes from one network to another but the servers' way out: networks.NAME.egress"
            )
            continue
        for net in theirs.get(section.get("src") or "", []):
            net.egress = "node" if net.egress == "none" else net.egress
            uci.whole(section, f"networks.{net.name}.egress")
            uci.take(out, "masq", key=f"networks.{net.name}.egress")


def implied(draft: Draft, uci: UciFile) -> None:
    """Rules that a profile needs not: what OpenWrt comes with, what services open, VRRP, and reasons for the rest."""
    for section in uci.of("rule"):
        given, why = section.get("name") or "", of_openwrt(section)
        fewer = "" if why is not None else "the rule lets in fewer than the profile does"
        ports, protocol = spans(words(section, "dest_port")), words(section, "proto") or ["tcp", "udp"]
        accepts = section.get("target") == "ACCEPT" and enabled(section)
        if why is None and accepts and protocol in (["112"], ["vrrp"]):
            why = "the nodes' adverts are let in without being told"
        if why is None and accepts and ports and section.get("src") and not section.get("dest"):
            opened = [n for n, s in draft.services.items() if _opens(s, ports, protocol)]
            if opened:
                why = f"service {opened[0]} opens its ports itself"
        if given.startswith(("allow-", "deny-")):
            why = None  # of a profile's firewall.allow or deny
        if why is not None:
            limits = [*narrowing(section), "family"] if fewer else []
            for option in section.options:
                if option.name in limits and option.line not in uci.file.fates:
                    uci.file.unsaid(option.line, fewer)
            for line in (section.line, *(o.line for o in section.options)):
                if line not in uci.file.fates:
                    uci.file.same(line, why)
        else:
            uci.unsaid(section, f"a rule that no key says{': ' + given[:40] if given else ''}")
    for kind, why in (
        ("redirect", "ports are not forwarded past HAProxy and IPVS: make a service of it"),
        ("include", "scripts of the firewall are not a profile's: put them into templates/rootfs/, and see overlays"),
        ("ipset", "there is no key for sets of addresses: name subnets in firewall.deny.NAME.sources"),
        ("zone", "a zone's policies are ndakit's: everything is shut that nothing opens"),
        ("defaults", "the firewall's own settings are ndakit's: everything is shut that nothing opens"),
        ("nat", "only the servers' way out is changed by the firewall: networks.NAME.egress"),
    ):
        for section in uci.of(kind):
            uci.unsaid(section, why)
    for section in uci.of("zone"):
        for name in ("name", "network", "device"):
            for option in section.options:
                if option.name == name and option.line not in uci.file.fates:
                    uci.file.same(option.line, "each network is a zone of its own")
        uci.file.same(section.line, "each network is a zone of its own")


def _opens(service: dict[str, Any], ports: list[tuple[int, int]], protocols: list[str]) -> bool:
    own = spans([str(p) for p in service.get("port", [])])
    kind = "udp" if service.get("protocol") == "udp" else "tcp"
    return kind in protocols and all(any(a <= low and high <= b for a, b in own) for low, high in ports)


def own_rules(draft: Draft, uci: UciFile, left: list[Section]) -> None:
    """Rules that ndakit does not write of itself: `firewall.allow` and `firewall.deny`."""
    theirs = zones(draft, uci)
    for section in left:
        opening = _opening(draft, section, theirs, {s.get("name") or "" for s in left})
        if opening is None:
            continue
        kind, name, keys = opening
        rules = draft.deny if kind == "deny" else draft.allow
        written = re.sub(rf"^{kind}-", "", name)
        base = re.sub(r"-ipv[46]$", "", written)
        twin = rules.get(base)
        if keys["protocol"] == "icmp" and twin is not None and written != base and twin["protocol"] == "icmp":
            twin["sources"] = [*twin.get("sources", []), *keys.get("sources", [])]
            if not twin["sources"]:
                del twin["sources"]
            label = base
        else:
            label = slug(base if keys["protocol"] == "icmp" else written, kind, rules)
            rules[label] = keys
        for line in (section.line, *(o.line for o in section.options)):
            uci.file.fates.pop(line, None)
            uci.file.key(line, f"firewall.{kind}.{label}")


def _opening(
    draft: Draft, section: Section, theirs: dict[str, list[NetworkDraft]], names: set[str]
) -> tuple[str, str, dict[str, Any]] | None:
    target = section.get("target") or ""
    known = {
        "name",
        "src",
        "device",
        "direction",
        "family",
        "proto",
        "src_ip",
        "dest_port",
        "icmp_type",
        "target",
        "enabled",
    }
    kind = {"ACCEPT": "allow", "DROP": "deny", "REJECT": "deny"}.get(target)
    if (
        kind is None
        or section.get("dest")
        or any(o.name not in known for o in section.options)
        or not enabled(section)
        or not section.get("src")
        or section.get("direction") not in (None, "in")
    ):
        return None
    protocols = words(section, "proto") or ["tcp", "udp"]
    if len(protocols) != 1 or protocols[0] not in PROTOCOLS:
        return None
    protocol = PROTOCOLS[protocols[0]]
    device = section.get("device")
    nets = (
        [n for n in draft.networks.values() if n.device == device]
        if device
        else theirs.get(section.get("src") or "", [])
    )
    if len(nets) != 1 or (protocol == "icmp" and section.list("icmp_type") not in ((), tuple(_PINGS))):
        return None
    if protocol == "all" and kind == "allow":
        return None
    keys: dict[str, Any] = {"network": nets[0].name, "protocol": protocol}
    ports = words(section, "dest_port")
    if ports:
        of_rule = spans(ports)
        if len(of_rule) != len(ports):
            return None
        keys["port"] = [f"{a}-{b}" if a != b else a for a, b in of_rule]
    sources = [str(ip_network(s)) for s in (subnet(w) for w in words(section, "src_ip")) if s is not None]
    if len(sources) != len(words(section, "src_ip")):
        return None
    family = {"ipv4": 4, "ipv6": 6}.get(section.get("family") or "")
    own = {s.version for s in nets[0].subnets}
    name = section.get("name") or ""
    twin = re.sub("-ipv[46]$", "", name) + ("-ipv6" if name.endswith("-ipv4") else "-ipv4")
    paired = protocol == "icmp" and name.endswith(("-ipv4", "-ipv6")) and twin in names
    by_source = bool(sources) and all((":" in s) == (family == 6) for s in sources)
    if family is not None and own != {family} and not paired and not by_source:
        return None
    if sources:
        keys["sources"] = [s.removesuffix("/32").removesuffix("/128") for s in sources]
    return kind, name, keys


def gateways(draft: Draft) -> None:
    """VIPs that are the servers' default gateway: in a network without a way out, where no service listens."""
    served = {a for s in draft.services.values() for a in s.get("vip", [])}
    for vip in draft.vips:
        net = draft.networks.get(vip.network)
        if net is not None and not any(a in served for a in vip.addresses) and not vip.routed:
            vip.gateway = not net.gateways or _only_way(draft, vip)


def _only_way(draft: Draft, vip: VipDraft) -> bool:
    """True for a VIP that something goes out by, or that nothing else is known for."""
    return not any(v is not vip and v.network == vip.network and v.gateway for v in draft.vips)
