"""The appliance itself: image, access, system, networks, nodes, VIPs and VRRP."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from ndakit.core.names import Name, NicName, PackageName
from ndakit.model.base import (
    Address,
    Addresses,
    Between,
    Bool,
    Int,
    IpAddress,
    IpRange,
    Model,
    Number,
    Port,
    SshKey,
    Subnet,
    Subnets,
    as_list,
    mistake,
)

DEFAULT_NTP = tuple(f"{n}.openwrt.pool.ntp.org" for n in range(4))

Platform = Literal["bare", "kvm", "vmware", "hyperv", "virtualbox", "xen"]
ImageFormat = Literal["img", "qcow2", "vmdk", "vdi", "vhdx", "rootfs"]


class Image(Model):
    """What the ImageBuilder makes."""

    planned: ClassVar = {"console": "another serial console"}

    formats: Annotated[tuple[ImageFormat, ...], BeforeValidator(as_list), Field(min_length=1)] = ("img",)
    """The files that are made; `boot` and `verify` start the first disk. `img`: a raw disk, gzipped, for real machines
    and for updates. `qcow2`: KVM and Proxmox. `vmdk`: VMware, with an `.ovf` to import it by. `vdi`: VirtualBox.
    `vhdx`: Hyper-V. `rootfs`: the root file system as a `.tar.gz`, beside one of the others."""
    firmware: Literal["efi", "bios"] = "efi"
    """`efi` also boots on BIOS machines; `bios` has an MBR and boots there only."""
    filesystem: Literal["squashfs", "ext4"] = "squashfs"
    """`squashfs`: read-only, with an overlay and a factory reset. `ext4`: one writable file system."""
    rootfs_mib: Annotated[Int, Between(64, 65536, "MiB")] = 256
    """Size of the root partition in MiB."""
    packages: dict[PackageName, Literal["add", "remove"]] = Field(default={})
    """Packages to add to those that the profile needs, or to remove: `tcpdump: add`, `ppp: remove`."""


class Ssh(Model):
    """The nodes' own SSH server."""

    port: Port = 22
    """Its TCP port, on every address of the node. With another port, a service of topology proxy can have 22."""


class Access(Model):
    """Who may administer the appliance, and from where."""

    planned: ClassVar = {"luci_password": "the web interface"}
    planned_values: ClassVar = {"luci": {"true": "the web interface"}}

    ssh_keys: Annotated[dict[Name, SshKey], Field(min_length=1)]
    """SSH public keys for root, by the name of their owner; at least one, because passwords are refused. RSA keys have
    at least 2048 bits."""
    sources: Annotated[
        dict[
            Name,
            Annotated[
                tuple[IpRange, ...],
                BeforeValidator(as_list),
                Field(min_length=1),
                WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
            ],
        ],
        Field(min_length=1),
    ]
    """Subnets from which SSH and the statistics page can be reached, by name; nobody else can reach them. If no address
    of a subnet could get in, that is an error; if it is only because the nodes have no address of its IP version, it is
    a warning."""
    ssh: Ssh = Ssh()
    """Where the SSH server listens."""
    luci: Annotated[Bool, AfterValidator(lambda v: _no_luci(v))] = False
    """Whether the web interface is in the image."""


def _no_luci(value: bool) -> bool:
    if value:
        raise mistake(
            "planned-value",
            "the web interface is part of the profile language, but this version does not carry it yet",
            fix="write false, or leave luci out",
        )
    return value


def _timezone(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_+/-]{1,64}", value):
        raise mistake("timezone", "'{got}' is not a time zone", got=value[:40], fix="write Europe/Berlin or UTC")
    return value


def _host_or_address(value: str) -> str:
    try:
        return str(_parse_address(value))
    except ValueError:
        pass
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", value) or len(value) > 253:
        raise mistake(
            "host",
            "'{got}' is neither a host name nor an address",
            got=value[:60],
            fix="write ntp.example or 192.0.2.1",
        )
    return value


def _parse_address(value: str) -> Address:
    return IPv6Address(value) if ":" in value else IPv4Address(value)


class System(Model):
    """Clock and the like."""

    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    """IANA name, such as Europe/Berlin."""
    ntp: tuple[Annotated[str, AfterValidator(_host_or_address)], ...] = DEFAULT_NTP
    """Time servers by name or address; an empty list switches NTP off. Default: OpenWrt's pool."""


class Bond(Model):
    """Several network cards as one link."""

    mode: Literal["802.3ad", "active-backup"]
    """`802.3ad`: LACP with a switch, a stack or an MLAG pair; of two switches that are not a pair, only one is used.
    `active-backup`: one card works, the others wait, and the switches need no setting."""


class Bridge(Model):
    """Several network cards as one switch."""

    stp: Bool = False
    """Spanning tree; needed if both nodes bridge the same segments, because that is a loop."""


def _bridge(value: object) -> object:
    if value == "true":
        return Bridge()
    if value == "false":
        return None
    if isinstance(value, str):
        raise mistake("bridge", "'{got}' is not true or false", got=value[:40], fix="write true, or {stp: true}")
    return value


class Route(Model):
    """A route beyond the default one."""

    to: IpRange
    """Where to."""
    via: IpAddress
    """The router, inside one of the network's subnets."""
    metric: Annotated[Int, Between(0, 2**31 - 1)] | None = None
    """Its metric; the smallest wins."""

    @model_validator(mode="after")
    def _families(self) -> Self:
        if self.to.version != self.via.version:
            raise mistake(
                "family", "{to} cannot be reached via {via}", to=str(self.to), via=str(self.via), fix="use one family"
            )
        return self


class Network(Model):
    """One network that the balancer is attached to."""

    planned: ClassVar = {
        "mtu": "other packet sizes",
        "transfer": "nodes without addresses of the VIPs' subnet",
        "aliases": "a second subnet on the same wire",
        "default": "a second way to the Internet",
    }

    nics: Annotated[tuple[NicName, ...], BeforeValidator(as_list), Field(min_length=1)]
    """The network cards by kernel name (no tunnels, no `lo`); several need `bond` or `bridge`."""
    bond: Bond | None = None
    """The cards work as one link."""
    bridge: Annotated[Bridge | None, BeforeValidator(_bridge)] = None
    """The cards work as one switch: `true`, or `{stp: true}`."""
    vlan: Annotated[Int, Between(1, 4094)] | None = None
    """The 802.1Q tag on top of the card, bond or bridge. Networks with the same `nics`, `bond` and `bridge` share them;
    each has its own tag, and one can have none."""
    subnet: Subnets
    """The network's subnet, at most one per family."""
    gateway: Addresses | None = None
    """The default gateway, at most one per family. Only one network may have a gateway of a family."""
    dns: Annotated[tuple[IpAddress, ...], BeforeValidator(as_list)] = ()
    """Name servers for the appliance itself."""
    routes: tuple[Route, ...] = ()
    """Further routes. A route may not cover an address of the profile that is in a subnet of the nodes' own."""
    egress: Name = "none"
    """The servers' way out: source NAT to the named VIP, to the node's address (`node`), or `none`."""
    role: Literal["heartbeat"] | None = None
    """`heartbeat`: here the nodes only hear each other, over a cable between them or over a separate switch. As long as
    they do, no second node becomes master, whatever else is cut. It carries no VIPs, servers or gateway. Nothing moves
    if its link goes down, as that of a direct cable does when the other node loses its power."""
    vrid: Annotated[Int, Between(1, 255)] | None = None
    """Pins the VRRP router id of the group `main` here; by default computed from network and group."""

    @property
    def families(self) -> tuple[int, ...]:
        """4 and/or 6."""
        return tuple(s.version for s in self.subnet)

    def subnet_of(self, version: int) -> Subnet | None:
        """The subnet of an IP version."""
        return next((s for s in self.subnet if s.version == version), None)

    def gateway_of(self, version: int) -> Address | None:
        """The gateway of an IP version."""
        return next((g for g in self.gateway or () if g.version == version), None)


class Node(Model):
    """One balancer."""

    planned: ClassVar = {
        "device": "nodes of different hardware",
        "platform": "nodes of different hardware",
        "image": "nodes with different images",
        "sizing": "nodes of different size",
        "nics": "nodes with different network cards",
    }

    addresses: Annotated[dict[Name, Addresses], Field(min_length=1)]
    """Its own address in each network, at most one per family."""


class Vip(Model):
    """An address that moves between the nodes."""

    planned: ClassVar = {"arp": "VIPs that are not announced"}

    network: Name
    """The network it lives in."""
    address: Addresses
    """The address, at most one per family. A single node's VIP may be the node's own address."""
    role: Literal["gateway"] | None = None
    """`gateway`: the servers' default gateway."""
    group: Name = "main"
    """VIPs of one group move together."""
    routed: Bool = False
    """The address is outside the network's subnet, and routers send it here."""

    def address_of(self, version: int) -> Address | None:
        """The address of an IP version."""
        return next((a for a in self.address if a.version == version), None)


class Vrrp(Model):
    """How the nodes agree on who holds the VIPs."""

    planned: ClassVar = {"groups": "a preference for each group of VIPs", "notify": "calls when the master changes"}

    prefer: Name | None = None
    """The master when all nodes are well; default: the first node."""
    preempt: Bool = False
    """Whether the preferred node takes the VIPs back when it returns; by default the other node stays master."""
    preempt_delay_s: Annotated[Int, Between(0, 1000, "s")] = 0
    """Seconds it waits before it takes them back."""
    advert_interval_s: Annotated[Number, Between(0.05, 40.95, "s")] = 1.0
    """Seconds between two adverts; a failover takes a little over three of them (RFC 5798, 6.1)."""
    unicast: Bool = True
    """Adverts go to the other nodes' addresses; `false`: to the VRRP multicast group. In both cases a node refuses
    adverts that came through a router."""
    connection_sync: Bool = False
    """Whether the nodes tell each other what a new master has to know: the connections that pass through (the servers'
    way out; topology nat, dr and tun), so that they survive a failover, and which server a client keeps (persistence).
    Connections that end in HAProxy cannot survive. This traffic is not encrypted. It goes over the heartbeat if there
    is one, else over the first network without a gateway in which all nodes have an address."""
    demote_on: tuple[Name, ...] = ()
    """Pools: a node that sees no server of one of them, while another node sees some, gives the VIPs away. Needs
    `preempt`. A pool that no service uses (such as the uplink's router) is checked by keepalived; its check is `ping`
    or `script`."""

    @property
    def takeover_s(self) -> float:
        """The longest time a backup waits for adverts before it takes over: 3 intervals and its skew (RFC 5798)."""
        return 4 * self.advert_interval_s


class Statistics(Model):
    """HAProxy's statistics page."""

    port: Port = 8404
    """Its TCP port, on the node's own addresses, for `access.sources` only."""


class Monitoring(Model):
    """What others may watch."""

    planned: ClassVar = {"prometheus": "metrics", "collectd": "metrics", "syslog": "remote logs"}

    statistics: Statistics = Statistics()
    """The statistics page. `{}` asks for it if HAProxy carries no service; otherwise HAProxy would not be in the
    image."""
