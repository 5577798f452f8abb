"""Lint of the way in: from the rendered files alone, who of access.sources reaches SSH, and gets an answer.

Reads network, firewall, dropbear and authorized_keys of one node and makes a `model.admin_access.Door` of them: routes,
rules in the order in which fw3 and fw4 try them (those for any zone before those for one), where dropbear listens. Then
the kernel's values and root's shell. What the profile itself leaves out is `model.rules.access`'s to say; here it is
what templates make of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface

from ndakit.core.uci import Section
from ndakit.lint.firewall import FIREWALL, as_network, as_ports
from ndakit.lint.subject import LintFinding, Subject
from ndakit.lint.uci import DROPBEAR, NETWORK
from ndakit.model.admin_access import LINK_LOCAL, WHOLE, Door, Filter, Reason, Way
from ndakit.model.rules.access import door as meant
from ndakit.model.rules.capacity import machine
from ndakit.model.sysctl_values import harm
from ndakit.model.sysctls import owner

SYSCTL, KEYS = "/etc/sysctl.conf", "/etc/dropbear/authorized_keys"
PASSWD, SHELLS = "/etc/passwd", "/etc/shells"
ROOT_SHELL = "/bin/ash"
"""Root's shell in OpenWrt's own /etc/passwd, and the only line of its /etc/shells."""
_SHELLS_OF_OPENWRT = (ROOT_SHELL, "/bin/sh")
_SHELLS_OF_PACKAGES = {"bash": "/bin/bash", "zsh": "/usr/bin/zsh", "fish": "/usr/bin/fish"}
"""Each of these packages adds its own shell to /etc/shells (its postinst)."""
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
        return  # `uci` says what is missing or cannot be read
    yield from entries(subject)
    yield from keys(subject)
    yield from kernel(subject)
    yield from logins(subject)


def kernel(subject: Subject) -> Iterator[LintFinding]:
    """What the kernel is left with: no value that shuts everybody out, and none that the profile decides otherwise.

    /etc/init.d/sysctl applies /etc/sysctl.d/*.conf in the order of their names, then sysctl.conf: the last line about a
    key counts.
    """
    fits = machine(subject.profile)
    last: dict[str, tuple[str, int, str]] = {}
    folder = sorted(p for p in subject.tree if re.fullmatch(r"/etc/sysctl\.d/[^/.][^/]*\.conf", p))
    for path in (*folder, *(p for p in subject.tree if p == SYSCTL)):
        for number, line in enumerate(subject.tree[path].text.splitlines(), 1):
            key, equals, value = line.strip().partition("=")
            if equals and not key.startswith(("#", ";")):
                last[_dotted(key)] = (path, number, " ".join(value.split()))
    for key, (path, number, value) in last.items():
        trouble = harm(key, value, fits)
        if trouble is not None and trouble.severity == "error":
            yield subject.finding("no-way-in", path, number, f"{key}={value}: {trouble.why}")
        elif path != SYSCTL and (owned := owner(key)) is not None:
            what = f"{key}={value} is not for a file of one's own: {owned[1]} ({'.'.join(owned[0])})"
            yield subject.finding("sysctl", path, number, what)


def _dotted(key: str) -> str:
    """A kernel value's name as sysctl.conf has it: with dots, and `/` for those of a device's name (sysctl(8))."""
    name = key.strip().removeprefix("-").strip()
    slashes = "/" in name and "." not in name.partition("/")[0]
    return name.translate(str.maketrans("./", "/.")) if slashes else name


def logins(subject: Subject) -> Iterator[LintFinding]:
    """Root's shell in a passwd or shells of one's own: Dropbear lets nobody in whose shell /etc/shells does not name
    (svr-auth.c, checkusername; an empty one is /bin/sh)."""
    passwd, shells = subject.tree.get(PASSWD), subject.tree.get(SHELLS)
    added = {p for p, wish in subject.profile.image.packages.items() if wish == "add"}
    brought = {s for p, s in _SHELLS_OF_PACKAGES.items() if p in added}
    shell, number = ROOT_SHELL, 0
    if passwd is not None:
        lines = {line.split(":")[0]: (n, line.split(":")) for n, line in enumerate(passwd.text.splitlines(), 1)}
        number, fields = lines.get("root", (0, []))
        if len(fields) != 7 or fields[2] != "0":
            what = "there is no line of root with seven fields and the number 0: nobody can log in"
            yield subject.finding("no-way-in", PASSWD, number, what)
            return
        shell = fields[6] or "/bin/sh"
        if shell not in {*_SHELLS_OF_OPENWRT, *brought} and shell not in subject.tree:
            what = f"root's shell {shell} is none, or is not in the image: nobody can log in ({ROOT_SHELL} can)"
            yield subject.finding("no-way-in", PASSWD, number, what)
            return
    stated = {line.strip() for line in shells.text.splitlines()} if shells is not None else {ROOT_SHELL}
    if shell not in stated | brought:
        path, line = (SHELLS, 0) if shells is not None else (PASSWD, number)
        what = f"{SHELLS} does not name root's shell {shell}: SSH lets nobody in"
        yield subject.finding("no-way-in", path, line, what)


def entries(subject: Subject) -> Iterator[LintFinding]:
    """Every entry of access.sources of which somebody gets in by the profile, and nobody by the files."""
    doors = list(_doors(subject))
    if not doors:
        return  # `uci`: no section of type dropbear
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
            continue  # `uci`: addresses


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
        zone.get("name") or "": frozenset((*(devices.get(n, n) for n in zone.list("network")), *zone.list("device")))
        for zone in subject.sections("firewall", "zone")
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
