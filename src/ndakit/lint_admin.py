"""Lint of the way in: from the rendered files alone, who of access.sources reaches SSH, and gets an answer.

Reads network, firewall, dropbear, authorized_keys and sysctl.conf of one node and makes a `model.wayin.Door` of them:
routes, rules in the order in which fw3 and fw4 try them (those for any zone before those for one), where dropbear
listens. What the profile itself leaves out is `check_access`'s to say; here it is what templates make of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface

from ndakit.lint_firewall import FIREWALL, as_network, as_ports
from ndakit.lint_subject import LintFinding, Subject
from ndakit.lint_uci import DROPBEAR, NETWORK
from ndakit.model.check_access import door as meant
from ndakit.model.sysctl_values import Machine, harm
from ndakit.model.wayin import LINK_LOCAL, WHOLE, Door, Filter, Reason, Way
from ndakit.uci import Section

SYSCTL, KEYS = "/etc/sysctl.conf", "/etc/dropbear/authorized_keys"
_CONDITIONS = (
    "src_mac", "src_port", "mark", "ipset", "start_date", "stop_date", "start_time", "stop_time", "weekdays",
    "monthdays", "helper", "dscp", "limit_burst",
)  # fmt: skip
"""Options that narrow a rule in a way that is not looked into: it may drop, and accepts nobody for sure."""
_OFF = ("0", "off", "no", "false", "disabled")
_WHY: dict[Reason, tuple[str, str]] = {
    "family": (NETWORK, "the node has no address of its family"),
    "no-way": (NETWORK, "no route leads back to it"),
    "astray": (NETWORK, "answers to its hosts, which are on the link, would take a router"),
    "dead-router": (NETWORK, "the router for the answers is not on the link, or is the node itself"),
    "firewall": (FIREWALL, "the firewall drops what comes from it to SSH"),
    "not-listening": (DROPBEAR, "SSH does not listen where it could ask"),
}


def rules(subject: Subject) -> Iterator[LintFinding]:
    """All rules about the way in."""
    if not {"network", "firewall", "dropbear"} <= subject.configs.keys():
        return  # lint_uci says what is missing or cannot be read
    yield from entries(subject)
    yield from keys(subject)
    yield from kernel(subject)


def kernel(subject: Subject) -> Iterator[LintFinding]:
    """sysctl.conf: no value that shuts everybody out."""
    file = subject.tree.get(SYSCTL)
    machine = Machine(subject.view.capacity.memory_mib, subject.view.capacity.files)
    for number, line in enumerate(file.text.splitlines() if file is not None else (), 1):
        key, equals, value = line.partition("=")
        trouble = harm(key.strip(), " ".join(value.split()), machine) if equals and not line.startswith("#") else None
        if trouble is not None and trouble.severity == "error":
            yield subject.finding("no-way-in", SYSCTL, number, f"{line}: {trouble.why}")


def entries(subject: Subject) -> Iterator[LintFinding]:
    """Every entry of access.sources of which somebody gets in by the profile, and nobody by the files."""
    doors = list(_doors(subject))
    if not doors:
        return  # lint_uci: no section of type dropbear
    wanted = meant(subject.profile, subject.node)
    lost: dict[Reason, list[str]] = {}
    for name, subnets in subject.profile.access.sources.items():
        for subnet in subnets:
            if wanted.why_not(subnet):
                continue
            reasons = [d.why_not(subnet) for d in doors]
            if all(reasons):
                lost.setdefault(reasons[0], []).append(f"{subnet} (access.sources.{name})")
    for reason, who in lost.items():
        path, why = _WHY.get(reason, (NETWORK, "nobody there is told apart from the node itself"))
        more = f" and {len(who) - 1} more" if len(who) > 1 else ""
        yield subject.finding("no-way-in", path, 0, f"nobody of {who[0]}{more} gets in: {why}")


def keys(subject: Subject) -> Iterator[LintFinding]:
    """Everybody of access.ssh_keys can log in."""
    file = subject.tree.get(KEYS)
    there = {tuple(line.split()[:2]) for line in file.text.splitlines()} if file is not None else set()
    for name, key in subject.profile.access.ssh_keys.items():
        if there and tuple(key.split()[:2]) not in there:
            yield subject.finding("ssh-key-lost", KEYS, 0, f"the key of {name} is not there: {name} cannot log in")


def _doors(subject: Subject) -> Iterator[Door]:
    """The node's doors, one for each port on which dropbear listens."""
    base = meant(subject.profile, subject.node)
    addresses, ways, devices = _network(subject)
    for section in subject.sections("dropbear", "dropbear"):
        if section.get("enable") in _OFF or section.get("RootLogin") in _OFF:
            continue
        place = section.get("DirectInterface") or section.get("Interface")
        listens = None
        if place is not None:
            device = devices.get(place, place)
            listens = tuple(a for a, d in addresses if d == device)
        for port in section.list("Port") or ("22",):
            number = as_ports(port)
            if number is not None:
                filters = tuple(_filters(subject, devices, number[0]))
                yield replace(base, addresses=addresses, ways=ways, filters=filters, listens=listens)


def _network(
    subject: Subject,
) -> tuple[tuple[tuple[IPv4Address | IPv6Address, str], ...], tuple[Way, ...], dict[str, str]]:
    """Own addresses with their devices, the main table's routes, and the device of every interface."""
    addresses: list[tuple[IPv4Address | IPv6Address, str]] = []
    ways: list[Way] = []
    devices: dict[str, str] = {}
    for section in subject.sections("network", "interface"):
        device = section.get("device") or section.get("ifname") or ""
        if section.get("type") == "bridge":
            device = f"br-{section.name}"
        devices[section.name or ""] = device = devices.get(device.removeprefix("@"), device.removeprefix("@"))
        if device in ("", "lo") or section.get("proto") != "static" or section.get("disabled") == "1":
            continue
        own = [*_interfaces(section, "ipaddr", section.get("netmask")), *_interfaces(section, "ip6addr", None)]
        addresses += [(i.ip, device) for i in own]
        ways += [Way(i.network, device) for i in own]
        if any(i.version == 6 for i in own):
            ways.append(Way(LINK_LOCAL, device))
        for option in ("gateway", "ip6gw"):
            value = section.get(option)
            if value is not None and (via := _address(value)) is not None:
                ways.append(Way(WHOLE[via.version], device, via, _number(section.get("metric"))))
    for kind in ("route", "route6"):
        for section in subject.sections("network", kind):
            ways += _route(section, devices)
    return tuple(addresses), tuple(ways), devices


def _interfaces(section: Section, option: str, netmask: str | None) -> Iterator[IPv4Interface | IPv6Interface]:
    for value in section.list(option):
        try:
            yield ip_interface(value if "/" in value or netmask is None else f"{value}/{netmask}")
        except ValueError:
            continue  # lint_uci: addresses


def _route(section: Section, devices: dict[str, str]) -> Iterator[Way]:
    target, device = as_network(section.get("target") or ""), devices.get(section.get("interface") or "")
    if target is None or device is None or section.get("table") not in (None, "main", "254"):
        return
    via = _address(section.get("gateway") or "")
    if section.get("type") in ("blackhole", "unreachable", "prohibit"):
        via = ip_address("0.0.0.0") if target.version == 4 else ip_address("::")
    yield Way(target, device, via, _number(section.get("metric")))


def _filters(subject: Subject, devices: dict[str, str], port: int) -> Iterator[Filter]:
    """The rules about a TCP port of the node in the order in which they are tried, then the zones' policies."""
    zones = {
        z.get("name") or "": frozenset((*(devices.get(n, n) for n in z.list("network")), *z.list("device")))
        for z in subject.sections("firewall", "zone")
    }
    sections = [s for s in subject.sections("firewall", "rule") if s.get("dest") is None and s.get("src") is not None]
    for section in sorted(sections, key=lambda s: s.get("src") != "*"):  # a stable sort: the order within stays
        source = section.get("src") or ""
        accepts = section.get("target") == "ACCEPT"
        if section.get("target") not in ("ACCEPT", "DROP", "REJECT") or section.get("enabled") == "0":
            continue
        if (section.get("proto") or "tcpudp") not in ("tcp", "tcpudp", "all", "6"):
            continue
        ports = [p for v in section.list("dest_port") for w in v.split() if (p := as_ports(w)) is not None]
        if ports and not any(low <= port <= high for low, high in ports):
            continue
        places: frozenset[str] | None = None if source == "*" else zones.get(source, frozenset())
        if section.get("direction") == "in" and (device := section.get("device")) is not None:
            places = frozenset({device}) if places is None else places & {device}
        stated = {o: section.list(o) for o in ("src_ip", "dest_ip")}
        read = {o: tuple(n for v in values if (n := as_network(v)) is not None) for o, values in stated.items()}
        odd = any(len(read[o]) < len(stated[o]) for o in read) or any(section.get(o) is not None for o in _CONDITIONS)
        if odd and accepts:
            continue
        family = section.get("family")
        version = int(family[-1]) if family in ("ipv4", "ipv6") else None
        yield Filter(accepts, places, () if odd else read["src_ip"], () if odd else read["dest_ip"], version)
    for zone in subject.sections("firewall", "zone"):
        yield Filter(zone.get("input") == "ACCEPT", zones[zone.get("name") or ""])


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0
