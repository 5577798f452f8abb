"""The profile as it grows: plain data in the order of the language, with names for what has none in the files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Any

from ndakit.core.names import is_name, is_nic_name
from ndakit.model import Address, Subnet

FILL_IN = "FILL IN"
DECIDE = "decide: "
PORT_NAMES = {
    20: "ftp-data",
    21: "ftp",
    22: "ssh",
    25: "smtp",
    53: "dns",
    80: "http",
    110: "pop3",
    123: "ntp",
    143: "imap",
    389: "ldap",
    443: "https",
    465: "smtps",
    514: "syslog",
    587: "submission",
    636: "ldaps",
    873: "rsync",
    993: "imaps",
    995: "pop3s",
    1433: "mssql",
    1812: "radius",
    1935: "rtmp",
    3306: "mysql",
    3389: "rdp",
    5060: "sip",
    5432: "postgresql",
    6379: "redis",
    8080: "http-8080",
    8443: "https-8443",
    27017: "mongodb",
}


@dataclass
class NetworkDraft:
    """One network, and each node's own address in it."""

    name: str
    device: str
    nics: list[str]
    bond: str | None = None
    bridge: dict[str, bool] | None = None
    vlan: int | None = None
    subnets: list[Subnet] = field(default_factory=list)
    gateways: list[Address] = field(default_factory=list)
    dns: list[Address] = field(default_factory=list)
    routes: list[dict[str, str | int]] = field(default_factory=list)
    egress: str = "none"
    heartbeat: bool = False
    vrid: int | None = None
    addresses: dict[str, list[Address]] = field(default_factory=dict)
    guessed: bool = False
    """There was no UCI network: it is made of what keepalived.conf says."""

    def holds(self, address: Address) -> bool:
        """True if an address is in one of its subnets."""
        return any(address in subnet for subnet in self.subnets)


@dataclass
class VipDraft:
    """A VIP, as the files have it: without a name."""

    network: str
    addresses: list[Address]
    group: str = "main"
    name: str = ""
    routed: bool = False
    gateway: bool = False


@dataclass
class Draft:
    """Everything that is known so far."""

    name: str
    release: str = ""
    device: str = ""
    platform: str = ""
    customer: str = ""
    description: str = ""
    node_names: list[str] = field(default_factory=list)
    ssh_keys: dict[str, str] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    ssh_port: int = 22
    timezone: str = ""
    ntp: list[str] | None = None
    networks: dict[str, NetworkDraft] = field(default_factory=dict)
    vips: list[VipDraft] = field(default_factory=list)
    vrrp: dict[str, Any] = field(default_factory=dict)
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`vip` of a service is a list of addresses until the VIPs have names."""
    sysctl: dict[str, str] = field(default_factory=dict)
    allow: dict[str, dict[str, Any]] = field(default_factory=dict)
    deny: dict[str, dict[str, Any]] = field(default_factory=dict)
    statistics: dict[str, Any] | None = None
    packages: dict[str, str] = field(default_factory=dict)
    attachments: dict[str, bytes] = field(default_factory=dict)
    """Files beside the profile, by name."""
    secrets: dict[str, bytes | None] = field(default_factory=dict)
    """The secrets that it names; None where the content is not in what was read."""
    secret_of: dict[str, str] = field(default_factory=dict)
    """A certificate's file on the box → the secret that it becomes."""
    beside: dict[str, str] = field(default_factory=dict)
    """A file on the box → its name beside the profile."""
    decisions: set[str] = field(default_factory=set)
    """What was asked for by `decide`, without the nodes' names."""
    fill_in: list[str] = field(default_factory=list)
    """What nobody but a person can know."""
    firmware: str = ""
    renamed: dict[str, str] = field(default_factory=dict)
    """Host name of a node → the one that it gets."""
    aliases: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    """A section of a file → the one that ndakit writes instead."""

    def missing(self, words: str) -> None:
        """Something that a person has to fill in."""
        if words not in self.fill_in:
            self.fill_in.append(words)

    def decide(self, words: str) -> None:
        """Something that was narrower on the old balancer: `check` refuses the profile until somebody has decided it,
        and taken the line out (`load.UNDECIDED`). The same on another node of the pair is asked once."""
        alike = words
        for node in self.node_names:
            alike = alike.replace(f"{node}:/", "/")
        if alike not in self.decisions:
            self.decisions.add(alike)
            self.missing(f"{DECIDE}{words}")

    def network_of(self, address: Address) -> NetworkDraft | None:
        """The network whose subnet holds an address."""
        return next((n for n in self.networks.values() if n.holds(address)), None)

    def network_on(self, device: str) -> NetworkDraft | None:
        """The network on a device."""
        return next((n for n in self.networks.values() if n.device == device), None)

    def own(self, address: Address) -> bool:
        """True for an address of a node itself."""
        return any(address in own for n in self.networks.values() for own in n.addresses.values())

    def vip_with(self, address: Address) -> VipDraft | None:
        """The VIP that has an address."""
        return next((v for v in self.vips if address in v.addresses), None)


def slug(text: str, fallback: str, taken: Collection[str] = ()) -> str:
    """A name of the profile language made of any text, and not one of those that are taken."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    name = re.sub(r"^[0-9-]+", "", name)[:32].rstrip("-") or fallback
    if not is_name(name):
        name = fallback
    free, number = name, 2
    while free in taken:
        free = f"{name[: 31 - len(str(number))].rstrip('-')}-{number}"
        number += 1
    return free


def address(text: str) -> Address | None:
    """An address, None if it is none. Zones (`%eth0`) are none."""
    try:
        return ip_address(text.strip("[]")) if "%" not in text else None
    except ValueError:
        return None


def interface(text: str) -> IPv4Interface | IPv6Interface | None:
    """An address with its length, None if it is none."""
    try:
        return IPv6Interface(text) if ":" in text else IPv4Interface(text)
    except ValueError:
        return None


def subnet(text: str) -> Subnet | None:
    """A subnet (host bits may be set), None if it is none."""
    try:
        return IPv6Network(text, strict=False) if ":" in text else IPv4Network(text, strict=False)
    except ValueError:
        return None


def number(text: str | None, low: int = 0, high: int = 2**31 - 1) -> int | None:
    """A plain number between two others, None if it is none."""
    if text is None or not re.fullmatch(r"[0-9]{1,10}", text):
        return None
    return int(text) if low <= int(text) <= high else None


_PRIVATE = tuple(ip_network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
_NO_CARDS = re.compile(r"(bond|br|team|tun|tap|veth|wg|vlan|dummy|ppp|gre|sit|docker|virbr|lo$)[a-z0-9]*")


def is_private(subnets: Iterable[Subnet]) -> bool:
    """True if all of it is of those that nobody routes (RFC 1918, RFC 4193)."""
    return all(any(s.version == p.version and s.network_address in p for p in _PRIVATE) for s in subnets)


def is_card(name: str) -> bool:
    """True for what can be a network card, and is no bond, bridge or tunnel by its name."""
    return is_nic_name(name) and _NO_CARDS.fullmatch(name) is None


def versions(addresses: Iterable[IPv4Address | IPv6Address]) -> set[int]:
    """4 and/or 6."""
    return {a.version for a in addresses}
