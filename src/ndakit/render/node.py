"""What templates ask for: one node of a profile, with everything computed that a template would have to compute.

Owns host names, the L2 devices and interfaces, routes, VRRP instances and kernel values of one node. Traffic (HAProxy)
is `engines.haproxy`, the firewall `firewall`. Values here are plain and frozen; quoting is the filters' business.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from ndakit.core.names import uci_name
from ndakit.core.release import Release
from ndakit.model import Address, Capacity, Profile, Route, capacity_of, transparent
from ndakit.model.capacity import BACKLOG_FLOOR, FILES_DEFAULT
from ndakit.model.profile import PEERS_PORT, SYNC_PORT
from ndakit.model.sizing import Tuning
from ndakit.model.spans import Spans
from ndakit.model.vrrp import VrrpInstance, instances_of

MONITOR_MS, MONITOR_LEAST_MS = 100, 10


@dataclass(frozen=True)
class Device:
    """A layer-2 device that netifd makes: `bonding`, `bridge` or `8021q`."""

    name: str
    type: str
    ports: tuple[str, ...] = ()
    mode: str | None = None
    stp: bool = False
    vlan: int | None = None
    monitor_ms: int = 0
    """How often a bond looks at its cards' links."""


@dataclass(frozen=True)
class Interface:
    """A netifd interface: a network's own addresses on its device."""

    network: str
    section: str
    device: str
    ipv4: tuple[IPv4Interface, ...]
    ipv6: tuple[IPv6Interface, ...]
    gateway4: Address | None
    gateway6: Address | None
    dns: tuple[Address, ...]
    ports: tuple[str, ...]
    bridge: bool
    stp: bool

    @property
    def single4(self) -> IPv4Interface | None:
        """The only IPv4 address, None if there are none or several."""
        return self.ipv4[0] if len(self.ipv4) == 1 else None


@dataclass(frozen=True)
class RouteSection:
    """A route beyond the default one."""

    section_type: str
    interface: str
    route: Route


@dataclass(frozen=True)
class Divert:
    """How answers of servers that are addressed to clients come to the node's own sockets (topology tproxy)."""

    mark: int
    table: int
    priority: int
    versions: tuple[int, ...]
    """The IP versions in which there are such services."""

    @property
    def bit(self) -> str:
        """The mark as nft writes it: `0x1`."""
        return f"{self.mark:#x}"

    @property
    def masked(self) -> str:
        """The mark as rules and iptables write it, with itself as the mask: its other bits are not looked at."""
        return f"{self.bit}/{self.bit}"


@dataclass(frozen=True)
class SyncGroup:
    """Instances that change their state together."""

    name: str
    instances: tuple[str, ...]


@dataclass(frozen=True)
class Sysctl:
    """One sysctl key with its value and the reason for it."""

    key: str
    value: str
    why: str


@dataclass(frozen=True)
class NodeView:
    """One node of a profile."""

    profile: Profile
    name: str

    @property
    def hostname(self) -> str:
        """The node's host name."""
        return self.profile.hostname(self.name)

    @property
    def release(self) -> Release:
        """The OpenWrt release."""
        return self.profile.release

    @functools.cached_property
    def devices(self) -> tuple[Device, ...]:
        """Bonds, bridges and VLANs, each below the ones that use it."""
        devices: list[Device] = []
        for name, net in self.profile.networks.items():
            base, top = self.profile.base_device(name), self.profile.l2_device(name)
            shared = self.profile.base_owner(name) != name  # then the network before has it already
            if net.bond is not None and not shared:
                devices.append(Device(base, "bonding", net.nics, mode=net.bond.mode, monitor_ms=self._monitor_ms))
            elif net.bridge is not None and not shared:
                devices.append(Device(base, "bridge", net.nics, stp=net.bridge.stp))
            if net.vlan is not None:
                devices.append(Device(top, "8021q", (base,), vlan=net.vlan))
        return tuple(devices)

    @property
    def _monitor_ms(self) -> int:
        """A tenth of a second, as is usual; a quarter of an advert's interval where that is less, so that a lost card
        costs one advert and not three, which would make another node master beside this one."""
        if self.profile.standalone:
            return MONITOR_MS
        return max(MONITOR_LEAST_MS, min(MONITOR_MS, int(self.profile.vrrp.advert_interval_s * 250)))

    @functools.cached_property
    def interfaces(self) -> tuple[Interface, ...]:
        """One per network, in the profile's order; a standalone node's VIPs are addresses of it."""
        interfaces: list[Interface] = []
        for name, net in self.profile.networks.items():
            own = [
                ip_interface(f"{address}/{subnet.prefixlen}")
                for subnet in net.subnet
                if (address := self.profile.node_address(self.name, name, subnet.version)) is not None
            ]
            if self.profile.standalone:
                there = {i.ip for i in own}  # a VIP may be the node's own address
                vips = [a for v in self.profile.vips.values() if v.network == name for a in v.address]
                own += [ip_interface(a) for a in vips if a not in there]
            interfaces.append(
                Interface(
                    network=name,
                    section=uci_name(name),
                    device=self.profile.l2_device(name),
                    ipv4=tuple(i for i in own if isinstance(i, IPv4Interface)),
                    ipv6=tuple(i for i in own if isinstance(i, IPv6Interface)),
                    gateway4=net.gateway_of(4),
                    gateway6=net.gateway_of(6),
                    dns=net.dns,
                    ports=net.nics,
                    bridge=net.bridge is not None,
                    stp=net.bridge is not None and net.bridge.stp,
                )
            )
        return tuple(interfaces)

    @functools.cached_property
    def routes(self) -> tuple[RouteSection, ...]:
        """The routes of all networks."""
        return tuple(
            RouteSection("route" if r.to.version == 4 else "route6", uci_name(name), r)
            for name, net in self.profile.networks.items()
            for r in net.routes
        )

    @functools.cached_property
    def divert(self) -> Divert | None:
        """How answers addressed to clients are taken in; None where no service is tproxy."""
        versions = transparent.versions(self.profile)
        made = Divert(transparent.MARK, transparent.TABLE, transparent.RULE_PRIORITY, versions)
        return made if versions else None

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The node's own addresses, in the order of the networks."""
        return tuple(
            a
            for name, net in self.profile.networks.items()
            for s in net.subnet
            if (a := self.profile.node_address(self.name, name, s.version)) is not None
        )

    @property
    def vrrp(self) -> bool:
        """True if keepalived runs here."""
        return bool(self.profile.instances)

    @functools.cached_property
    def instances(self) -> tuple[VrrpInstance, ...]:
        """The VRRP instances of this node."""
        return instances_of(self.profile, self.name)

    @property
    def garp_refresh_s(self) -> int:
        """How often the master announces its VIPs again, in seconds: every five adverts, for as long may clients ask a
        node that was master for a moment if its last advert is lost; ten announcements a second at most."""
        addresses = sum(len(vip.address) for vip in self.profile.vips.values())
        return min(60, math.ceil(max(1, 5 * self.profile.vrrp.advert_interval_s, addresses / 10)))

    @property
    def vips_watched_s(self) -> float:
        """How often the node looks whether its keepalived runs, in seconds: every two adverts, for another node notices
        after three, and once a second at least."""
        return min(1.0, round(2 * self.profile.vrrp.advert_interval_s, 2))

    @property
    def vips_doubted_looks(self) -> int:
        """At how many looks in a row a keepalived hangs before it is killed: for three seconds, and for longer than
        another node takes to become master, or nobody would have the VIPs meanwhile."""
        return math.ceil(max(3.0, 4 * self.profile.vrrp.advert_interval_s) / self.vips_watched_s)

    @functools.cached_property
    def sync_groups(self) -> tuple[SyncGroup, ...]:
        """The groups with instances on more than one network (keepalived has no use for a group of one)."""
        groups = (
            SyncGroup(group, tuple(i.name for i in self.instances if i.group == group)) for group in self.profile.groups
        )
        return tuple(g for g in groups if len(g.instances) > 1)

    @functools.cached_property
    def capacity(self) -> Capacity:
        """The limits that follow from `sizing`."""
        return capacity_of(self.profile)

    @property
    def forwards(self) -> bool:
        """True if packets of others pass through: some network has a way out through this node, or servers answer
        through it (topology nat)."""
        return any(net.egress != "none" for net in self.profile.networks.values()) or any(
            s.topology == "nat" for s in self.profile.services.values()
        )

    @functools.cached_property
    def sysctls(self) -> tuple[Sysctl, ...]:
        """The lines of sysctl.conf, `tuning.sysctl` among them. Keys that every kernel from 4.14 (18.06) on has."""
        computed = [*self._addressing(), *self._limits(self.capacity)]
        wishes = dict(self.profile.tuning.sysctl)
        untuned = capacity_of(self.profile.model_copy(update={"tuning": Tuning()})) if wishes else self.capacity
        untouched = {item.key: item.value for item in self._limits(untuned)}
        sysctls = []
        for item in computed:
            wish = wishes.pop(item.key, None)
            if wish is not None:
                value = untouched.get(item.key, item.value)
                why = f"tuning.sysctl of the profile; computed was {value}: {item.why}"
                item = Sysctl(item.key, wish, why)
            sysctls.append(item)
        sysctls += [Sysctl(k, v, "tuning.sysctl of the profile; nothing is computed") for k, v in wishes.items()]
        return tuple(sysctls)

    def _addressing(self) -> list[Sysctl]:
        forward = "1" if self.forwards else "0"
        way = "the servers' way out leads through this node" if self.forwards else "nothing is routed through this node"
        elsewhere = [
            Sysctl("net.ipv4.ip_nonlocal_bind", "1", "HAProxy listens on the VIPs also where they are not"),
            Sysctl("net.ipv6.ip_nonlocal_bind", "1", "the same for IPv6, and for addresses that are still probed"),
        ]
        return [
            *(elsewhere if self.profile.runs_haproxy else ()),
            Sysctl("net.ipv4.conf.all.promote_secondaries", "1", "a changed node address takes no other with it"),
            Sysctl("net.ipv4.ip_forward", forward, way),
            Sysctl("net.ipv6.conf.all.forwarding", forward, way),
            *self._no_redirects(),
            *self._neighbours(),
        ]

    def _limits(self, size: Capacity) -> list[Sysctl]:
        """What follows from `sizing`, each with the figures behind it."""
        rate, duration_s = f"{size.sessions_per_second:g}", f"{size.session_duration_s:g}"
        proxied = self.profile.runs_haproxy
        towards = "source ports towards one server" if proxied else "source ports of this node's own connections"
        ended, sides = "ended connections that still wait", "both sides of HAProxy"
        if not proxied:
            ended, sides = "ended connections of this node's own that still wait, room as for HAProxy", "both its sides"
        who = "HAProxy" if proxied else "a daemon"
        per = "proxied session" if proxied else "session that passes, as with HAProxy"
        sysctls = [
            Sysctl(
                "net.ipv4.ip_local_port_range",
                f"{size.ports_from} {size.ports_to}",
                f"{towards}: {size.ports} instead of 28232",
            ),
            Sysctl(
                "net.ipv4.tcp_tw_reuse",
                "1",
                "a port may be taken again a second after its connection, where the server's timestamps make that safe",
            ),
            Sysctl(
                "net.ipv4.tcp_max_tw_buckets",
                str(size.time_wait_max),
                f"{ended}: {rate} sessions per second x 60 s, on {sides}",
            ),
            Sysctl(
                "net.core.somaxconn",
                str(size.backlog),
                f"connections that wait until {who} accepts them, per listener: two seconds' worth, at least "
                f"{BACKLOG_FLOOR}",
            ),
            Sysctl(
                "net.ipv4.tcp_max_syn_backlog", str(size.backlog), "the same for connections that are not complete yet"
            ),
            Sysctl(
                "net.netfilter.nf_conntrack_max",
                str(size.tracked_max),
                f"two entries per {per}: {rate} per second x ({duration_s} s, and two minutes after its end) "
                f"= {size.tracked_needed}; 320 bytes each",
            ),
            Sysctl(
                "net.netfilter.nf_conntrack_buckets",
                str(size.tracked_max),
                "as many lists to look them up in, or every packet would walk along long ones; 8 bytes each",
            ),
        ]
        if size.files > FILES_DEFAULT:
            why = f"files that one process may have open: HAProxy's {size.haproxy_max} connections, two files each"
            sysctls.append(Sysctl("fs.nr_open", str(size.files), why))
        listened = Spans() | Spans(tuple((p, p) for p in self.own_ports))
        open_range = Spans(((size.ports_from, size.ports_to),))
        reserved = open_range & (listened | size.served)
        if reserved:
            why = "ports that daemons here listen on: taken by a connection, it would keep one from starting again"
            if open_range & size.served:
                why += "; and those of services on this node's own address: answers to its own questions would go there"
            words = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in reserved.pairs)
            sysctls.append(Sysctl("net.ipv4.ip_local_reserved_ports", words, why))
        return sysctls

    @property
    def own_ports(self) -> tuple[int, ...]:
        """Ports on the node's own addresses and on its loopback."""
        ports = [self.profile.ssh_port]
        ports += [self.profile.monitoring.statistics.port] if self.profile.runs_haproxy else []
        ports += self.profile.inner_ports.values()
        ports += [SYNC_PORT] if self.profile.tracks_connections else []
        ports += [PEERS_PORT] if self.profile.shares_tables else []
        return tuple(ports)

    def _no_redirects(self) -> list[Sysctl]:
        """Keys that keep ICMP redirects out. Without forwarding each card's own key counts as well (ip-sysctl), and
        switching forwarding off sets it."""
        cards = () if self.forwards else self.profile.nics
        sysctls = [
            Sysctl(f"net.ipv{v}.conf.{place}.accept_redirects", "0", "no ICMP redirect leads traffic elsewhere")
            for v in ("4", "6")
            for place in ("all", "default", *cards)
        ]
        if self.forwards:
            # Either of all and the card's own switches it on (ip-sysctl); devices made later take the default.
            why = "servers are not told to go past us, where nothing changes their source address"
            for place in ("all", "default", *self.profile.nics):
                sysctls.append(Sysctl(f"net.ipv4.conf.{place}.send_redirects", "0", why))
        return sysctls

    def _neighbours(self) -> list[Sysctl]:
        """IPv6's keys of each card, and of what is made later (bonds, bridges, VLANs take the default; one for all
        devices does not reach any, ip-sysctl)."""
        places = ("default", *self.profile.nics)
        # With forwarding the kernel takes none by itself.
        why = "no router advertisement gives this node addresses or a way out: both are the profile's"
        sysctls = [Sysctl(f"net.ipv6.conf.{place}.accept_ra", "0", why) for place in places]
        if (
            self.profile.vrrp.unicast
            and not self.release.keepalived_ttl
            and any(i.version == 6 for i in self.instances)
        ):
            # keepalived before 2.1 leaves it at 64 for unicast.
            why = "VRRP adverts leave with the hop limit that shows the other nodes that no router passed them on"
            sysctls += [Sysctl(f"net.ipv6.conf.{place}.hop_limit", "255", why) for place in places]
        return sysctls
