"""The profile: one balancer pair, as one frozen value, with what follows from it.

Derived facts (priorities, router ids, device names, who is whose peer) are properties here, so that templates and the
verification ask the same source. Rules over several objects are in `rules`.
"""

from __future__ import annotations

import functools
import itertools
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from ndakit.core.mistakes import guess
from ndakit.core.names import Name, device_name
from ndakit.core.release import Release, newest
from ndakit.model.base import Address, Model, Subnet, Text, mistake
from ndakit.model.engines import ENGINES, HAPROXY, IPVS, Engine
from ndakit.model.firewall import Firewall, Opening
from ndakit.model.host import Access, Image, Monitoring, Network, Node, Platform, System, Vip, Vrrp
from ndakit.model.persistence import Persistence
from ndakit.model.sizing import Sizing, Tuning
from ndakit.model.terminators import IN_FRONT, POUND, STUNNEL, Terminator
from ndakit.model.traffic import Pool, Server, Service, Timeouts

PRIORITY_TOP = 250
"""High, because a backup waits (256 - priority) / 256 of an advert longer than three (RFC 5798, 6.1)."""
PRIORITY_STEP = 10
NODES_MAX = 8

FLASH_TARGETS = ("kirkwood",)
"""Targets whose devices start from NAND flash (docs/facts.md, Targets and devices)."""
SYNC_PORT = 3780
"""conntrackd's UDP port (conntrackd.conf(5))."""
IPVS_SYNC_PORT, IPVS_SYNC_GROUP = 8848, "224.0.0.81"
"""UDP port and multicast group of IPVS's sync daemon (ipvsadm(8))."""
MARKS_MAX = IPVS.marked_services_max or 0
"""Firewall marks for services."""
INNER_PORT = 10443
"""The first TCP port of the loopback on which HAProxy takes from Pound or stunnel what they have decrypted."""
PEERS_PORT = 10000
"""TCP port on which the nodes' HAProxies tell each other which client belongs to which server."""

DEVICES: Mapping[str, tuple[str, str]] = {
    "x86-64": ("x86/64", "generic"),
    "x86": ("x86/generic", "generic"),
    "dockstar": ("kirkwood/generic", "seagate_dockstar"),
    "armsr-armv8": ("armsr/armv8", "generic"),
    "armsr-armv7": ("armsr/armv7", "generic"),
}
"""Device in the profile → (OpenWrt target, ImageBuilder's PROFILE); docs/facts.md, Targets and devices."""


def _release(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return Release.parse(value)
        except ValueError as cause:
            fix = "write 24.10.8"
            if re.fullmatch(r"\d{2}\.\d{2}", value):
                known = newest((int(value[:2]), int(value[3:])))
                fix = f"write {known or '24.10.8'}"
            elif re.fullmatch(r"v\d{2}\.\d{2}\.\d{1,2}", value):
                fix = f"write {value[1:]}"
            raise mistake("release", "'{got}': {why}", got=value[:40], why=str(cause), fix=fix) from None
    return value


def _device(value: str) -> str:
    if value in DEVICES:
        return value
    target, colon, name = value.partition(":")
    parts = target.split("/")
    plain = all(p and all(c.isascii() and (c.isalnum() or c in "_-") for c in p) for p in (*parts, name))
    if not colon or len(parts) != 2 or not plain:
        near = guess(value.replace("/", "-"), DEVICES)
        hint = f"did you mean {near}? " if near else ""
        raise mistake(
            "device", "'{got}' is not a device", got=value[:60],
            fix=f"{hint}write {', '.join(DEVICES)}, or <target>:<device> such as ath79/generic:tplink_archer-c7-v2",
        )  # fmt: skip
    return value


ReleaseField = Annotated[
    Release,
    BeforeValidator(_release),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\d{2}\.\d{2}\.\d{1,2}(-rc\d{1,2})?$"}),
]


@dataclass(frozen=True)
class Instance:
    """One VRRP instance: the VIPs of one group on one network, or none on a heartbeat."""

    network: str
    group: str
    vrid: int
    vips: tuple[str, ...]

    @property
    def heartbeat(self) -> bool:
        """True if it holds no VIPs: the nodes only hear each other there."""
        return not self.vips


@dataclass(frozen=True)
class Endpoint:
    """One place where a service listens: a VIP's address and the port ranges there."""

    vip: str
    network: str
    address: Address
    ports: tuple[tuple[int, int], ...]


class Profile(Model):
    """A balancer pair (or a standalone balancer, or more than two), from one YAML file."""

    planned: ClassVar = {
        "vpn": "tunnels",
        "renumber": "test twins",
        "raw": "the escape hatch",
    }

    format: Annotated[Literal[1], BeforeValidator(lambda v: int(v) if v == "1" else v)] = 1
    """The version of the profile language."""
    name: Name
    """The profile's name, the same as its file's; names the overlay, the image and the hosts (`acme-shop-lb1`)."""
    customer: Text | None = None
    """The customer, as free text: for the login banner and reports. `./inv check` compares private addresses and VRRP
    router ids only between profiles of the same customer. All profiles without this key count as one customer."""
    description: Text | None = None
    """What it is for, as free text."""
    labels: dict[Name, Text] = Field(default={})
    """Labels of your own; without meaning to ndakit."""
    release: ReleaseField
    """The exact OpenWrt release, such as 24.10.8."""
    device: Annotated[str, AfterValidator(_device)] = "x86-64"
    """The hardware: `x86-64`, `x86`, `dockstar`, `armsr-armv8`, `armsr-armv7`, or `<target>:<device>`."""
    platform: Platform = "bare"
    """Where it runs: `bare`, `kvm`, `vmware`, `hyperv`, `virtualbox`, `xen`; decides drivers and guest agent."""
    image: Image = Image()
    """What is built."""
    access: Access
    """Who may administer it, and from where."""
    system: System = System()
    """Clock and the like."""
    networks: Annotated[dict[Name, Network], Field(min_length=1)]
    """The networks it is attached to, by name."""
    nodes: Annotated[dict[Name, Node], Field(min_length=1, max_length=NODES_MAX)]
    """The balancers by name: one is standalone, two or more share the VIPs by VRRP."""
    vips: dict[Name, Vip] = Field(default={})
    """The addresses that move between the nodes, by name."""
    vrrp: Vrrp = Vrrp()
    """How the nodes agree on who holds the VIPs."""
    pools: dict[Name, Pool] = Field(default={})
    """Groups of servers, by name."""
    services: dict[Name, Service] = Field(default={})
    """What clients reach, by name."""
    sizing: Sizing = Sizing()
    """The expected load; limits and kernel values are computed from it."""
    tuning: Tuning = Tuning()
    """Kernel values that you set yourself."""
    firewall: Firewall = Firewall()
    """Firewall rules beyond those that follow from the rest."""
    monitoring: Monitoring = Monitoring()
    """What others may watch."""

    @property
    def target(self) -> str:
        """OpenWrt's target, such as x86/64."""
        return DEVICES[self.device][0] if self.device in DEVICES else self.device.partition(":")[0]

    @property
    def imagebuilder_device(self) -> str:
        """ImageBuilder's PROFILE; x86's is spelled `Generic` up to 19.07."""
        if self.device in ("x86-64", "x86"):
            return self.release.generic_device
        return DEVICES[self.device][1] if self.device in DEVICES else self.device.partition(":")[2]

    @property
    def on_flash(self) -> bool:
        """True if the device starts from NAND flash (UBI): one file system image, no BIOS, EFI or partitions."""
        return self.target.partition("/")[0] in FLASH_TARGETS

    @property
    def standalone(self) -> bool:
        """True with one node: its VIPs are plain addresses and there is no VRRP."""
        return len(self.nodes) == 1

    @property
    def ssh_port(self) -> int:
        """The TCP port of the nodes' own SSH server."""
        return self.access.ssh.port

    @property
    def groups(self) -> tuple[str, ...]:
        """The VIP groups, `main` first."""
        names = {v.group for v in self.vips.values()}
        return tuple(sorted(names, key=lambda g: (g != "main", g)))

    @functools.cached_property
    def instances(self) -> tuple[Instance, ...]:
        """The VRRP instances, by network and group; empty for a standalone node."""
        if self.standalone:
            return ()
        instances: list[Instance] = []
        for name, network in self.networks.items():
            taken: set[int] = set()
            for group in self.groups:
                vips = tuple(v for v, vip in self.vips.items() if vip.network == name and vip.group == group)
                if vips or network.role == "heartbeat":
                    pinned = network.vrid if group == "main" else None
                    vrid = pinned or _vrid(name, group, taken | ({network.vrid} if network.vrid else set()))
                    taken.add(vrid)
                    instances.append(Instance(name, group, vrid, vips))
        return tuple(instances)

    @property
    def heartbeats(self) -> tuple[str, ...]:
        """The networks on which the nodes only hear each other; empty for a standalone node."""
        return () if self.standalone else tuple(n for n, net in self.networks.items() if net.role == "heartbeat")

    def heard_version(self, network: str) -> int:
        """The IP version of adverts on a heartbeat: IPv4 if it has it."""
        return min(self.networks[network].families)

    def preferred(self) -> str:
        """The node that is master when all are well."""
        return self.vrrp.prefer or next(iter(self.nodes))

    def priority(self, node: str) -> int:
        """A node's VRRP priority: the preferred one's is highest, the others follow in their order."""
        order = [self.preferred(), *(n for n in self.nodes if n != self.preferred())]
        return PRIORITY_TOP - PRIORITY_STEP * order.index(node)

    @property
    def demotion(self) -> int:
        """How much a pool of `vrrp.demote_on` that is empty takes off a node's priority: more than all nodes differ by,
        so that a node with fewer empty pools is always the better one."""
        return PRIORITY_STEP * len(self.nodes)

    @property
    def priority_lowest(self) -> int:
        """The priority of the last node with all those pools empty."""
        return PRIORITY_TOP - PRIORITY_STEP * (len(self.nodes) - 1) - self.demotion * len(self.vrrp.demote_on)

    def peers(self, node: str) -> tuple[str, ...]:
        """The other nodes."""
        return tuple(n for n in self.nodes if n != node)

    def hostname(self, node: str) -> str:
        """A node's host name, at most 63 characters."""
        return f"{self.name}-{node}"[:63].rstrip("-")

    def l2_device(self, network: str) -> str:
        """The Linux interface that carries a network's addresses: card, bond, bridge, or a VLAN on top of it."""
        base, vlan = self.base_device(network), self.networks[network].vlan
        if vlan is None:
            return base
        plain = f"{base}.{vlan}"
        return plain if len(plain) <= 15 else device_name("vlan", network)

    def base_device(self, network: str) -> str:
        """The interface below a network's VLAN, if it has one: card, bond or bridge."""
        owner = self.base_owner(network)
        net = self.networks[owner]
        if net.bond is not None:
            return device_name("bond", owner)
        return device_name("br", owner) if net.bridge is not None else net.nics[0]

    def base_owner(self, network: str) -> str:
        """The first network with exactly these cards, bond and bridge: what it has is there once, named after it, and
        the other networks are VLANs beside it on top."""
        return self._base_owners[network]

    @functools.cached_property
    def _base_owners(self) -> dict[str, str]:
        owners: dict[Any, str] = {}
        return {
            name: owners.setdefault((frozenset(net.nics), net.bond, net.bridge), name)
            for name, net in self.networks.items()
        }

    @property
    def nics(self) -> tuple[str, ...]:
        """Every network card, in the order of the kernel's numbering."""
        names = {nic for net in self.networks.values() for nic in net.nics}
        return tuple(sorted(names, key=lambda n: (n.rstrip("0123456789"), int(n[len(n.rstrip("0123456789")) :] or 0))))

    @property
    def cards(self) -> tuple[str, ...]:
        """The network cards of a balancer's machine: the kernel numbers them without gaps, so that a profile that names
        only eth1 needs an eth0 before it."""
        if all(n.startswith("eth") and n[3:].isdigit() for n in self.nics):
            return tuple(f"eth{i}" for i in range(1 + max(int(n[3:]) for n in self.nics)))
        return self.nics

    def node_address(self, node: str, network: str, version: int) -> Address | None:
        """A node's own address of an IP version in a network."""
        return next((a for a in self.nodes[node].addresses.get(network, ()) if a.version == version), None)

    def network_of(self, address: Address) -> str | None:
        """The network whose subnet holds an address."""
        for name, net in self.networks.items():
            if any(address in s for s in net.subnet):
                return name
        return None

    def endpoints(self, service: str) -> tuple[Endpoint, ...]:
        """Where a service listens, with `families` applied."""
        settings = self.services[service]
        wanted = {int(f[-1]) for f in settings.families or ("ipv4", "ipv6")}
        return tuple(
            Endpoint(name, self.vips[name].network, address, settings.port)
            for name in settings.vip
            for address in self.vips[name].address
            if address.version in wanted
        )

    def server_port(self, pool: str, server: Server) -> int | None:
        """A server's port: its own, else its pool's, else that of the services that use it (those that HAProxy
        carries, if there are any); None if they differ."""
        if server.port or self.pools[pool].port:
            return server.port or self.pools[pool].port
        ports = {self.services[s].single_port for s in self.haproxy_services_of(pool) or self.services_of(pool)}
        return ports.pop() if len(ports) == 1 else None

    def services_of(self, pool: str) -> tuple[str, ...]:
        """The services that use a pool: as their own, by a route, or as another pool's sorry pool."""
        return self._services_of.get(pool, ())

    @functools.cached_property
    def _services_of(self) -> dict[str, tuple[str, ...]]:
        names_of: dict[str, list[str]] = {}
        for name, service in self.services.items():
            passed: set[str] = set()
            for first in service.pools:
                pool: str | None = first
                while pool is not None and pool not in passed:
                    names_of.setdefault(pool, []).append(name)
                    passed.add(pool)
                    sorry = self.pools[pool].sorry if pool in self.pools else None
                    pool = sorry.pool if sorry is not None else None
        return {pool: tuple(names) for pool, names in names_of.items()}

    @property
    def served(self) -> tuple[str, ...]:
        """The services behind which there are servers: all but those that redirect."""
        return tuple(name for name, service in self.services.items() if service.pool is not None)

    def https_port(self, address: Address) -> int | None:
        """The port of an address at which an http service ends TLS, or TLS passes through: 443 if it is one, else the
        lowest."""
        ports = [
            low
            for name, service in self.services.items()
            if (service.passes_tls or (service.tls is not None and service.protocol == "http"))
            and set(service.vip) <= self.vips.keys()
            for endpoint in self.endpoints(name)
            if endpoint.address == address
            for low, high in endpoint.ports
            for low in ([443] if low <= 443 <= high else [low])
        ]
        return 443 if 443 in ports else min(ports, default=None)

    def carried_services(self, engine: Engine) -> tuple[str, ...]:
        """The services that an engine carries."""
        return self._carried.get(engine.name, ())

    @functools.cached_property
    def _carried(self) -> dict[str, tuple[str, ...]]:
        names: dict[str, list[str]] = {}
        for name, service in self.services.items():
            names.setdefault(service.carried_by.name, []).append(name)
        return {engine: tuple(its) for engine, its in names.items()}

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines that carry some service."""
        carrying = {service.carried_by.name for service in self.services.values()}
        return tuple(engine for engine in ENGINES if engine.name in carrying)

    @property
    def running_engines(self) -> tuple[Engine, ...]:
        """The engines that run on the nodes: those that carry a service, and HAProxy for its statistics."""
        return tuple(e for e in ENGINES if e in self.engines or (e is HAPROXY and self.statistics_wanted))

    def carried_services_of(self, engine: Engine, pool: str) -> tuple[str, ...]:
        """Those of `services_of` that an engine carries."""
        return tuple(n for n in self.services_of(pool) if self.services[n].carried_by is engine)

    def haproxy_services_of(self, pool: str) -> tuple[str, ...]:
        """Those of `services_of` that HAProxy carries."""
        return self.carried_services_of(HAPROXY, pool)

    def ipvs_services_of(self, pool: str) -> tuple[str, ...]:
        """Those of `services_of` that the kernel balances (IPVS)."""
        return self.carried_services_of(IPVS, pool)

    @property
    def haproxy_services(self) -> tuple[str, ...]:
        """The services that HAProxy carries."""
        return self.carried_services(HAPROXY)

    @property
    def ipvs_services(self) -> tuple[str, ...]:
        """The services that the kernel balances (IPVS)."""
        return self.carried_services(IPVS)

    @functools.cached_property
    def inner_ports(self) -> Mapping[str, int]:
        """The services for which a program in front of HAProxy ends TLS → the port of the loopback on which HAProxy
        takes them from it."""
        names = [n for terminator in IN_FRONT for n in self.terminated_services(terminator)]
        taken = {self.monitoring.statistics.port, self.ssh_port}
        free = (port for port in itertools.count(INNER_PORT) if port not in taken)
        return dict(zip((n for n in self.services if n in names), free, strict=False))

    @property
    def terminators(self) -> tuple[Terminator, ...]:
        """The programs in front of HAProxy that end TLS for a service."""
        return tuple(terminator for terminator in IN_FRONT if self.terminated_services(terminator))

    def terminated_services(self, terminator: Terminator) -> tuple[str, ...]:
        """The services for which a program ends TLS."""
        ending = ((n, s.tls) for n, s in self.services.items() if s.carried_by is HAPROXY)
        return tuple(n for n, tls in ending if tls is not None and tls.ended_by is terminator)

    @property
    def pound_services(self) -> tuple[str, ...]:
        """The services for which Pound ends TLS."""
        return self.terminated_services(POUND)

    @property
    def stunnel_services(self) -> tuple[str, ...]:
        """The services for which stunnel ends TLS."""
        return self.terminated_services(STUNNEL)

    @property
    def statistics_wanted(self) -> bool:
        """True if the profile names HAProxy's statistics page itself."""
        return "statistics" in self.monitoring.model_fields_set

    @property
    def runs_haproxy(self) -> bool:
        """True if HAProxy runs on the nodes: it carries a service, or its statistics page was asked for."""
        return HAPROXY in self.running_engines

    def persistence(self, service: str, pool: str | None = None) -> Persistence | None:
        """How clients of a service keep their server in its pool, or in another one that a route leads to: the
        service's own word, else the pool's."""
        settings = self.services[service]
        name = pool or settings.pool
        return settings.persistence or (self.pools[name].persistence if name in self.pools else None)

    @functools.cached_property
    def marks(self) -> dict[str, int]:
        """Service → firewall mark, for those that the kernel balances as one although they have several ports.

        From the names alone, so that nodes with images of different age agree; 1 to 255, shifted left by four: the bits
        below belong to others (TProxy's is the lowest one).
        """
        mark_of: dict[str, int] = {}
        taken: set[int] = set()
        for name in sorted(self.marked_services)[:MARKS_MAX]:
            number = zlib.crc32(name.encode()) % MARKS_MAX + 1
            while number in taken:
                number = number % MARKS_MAX + 1
            taken.add(number)
            mark_of[name] = number << 4
        return mark_of

    @property
    def marked_services(self) -> tuple[str, ...]:
        """The services with several ports that the kernel balances: each wants a firewall mark of its own, and there
        are MARKS_MAX of them (rules/traffic)."""
        return tuple(n for n in self.ipvs_services if self.services[n].several)

    def detection_s(self, pool: str) -> float:
        """The longest time, in seconds, from a server's death to its leaving the pool (one node's view)."""
        check = self.pools[pool].check
        by_haproxy = check.detection_s(self._check_connect_s(pool))
        if not self.ipvs_services_of(pool):
            return by_haproxy
        return max(check.keepalived_detection_s, by_haproxy if self.haproxy_services_of(pool) else 0)

    def recovery_s(self, pool: str) -> float:
        """The longest time, in seconds, from a server's recovery to its return to the pool (one node's view)."""
        check = self.pools[pool].check
        by_haproxy = check.recovery_s(self._check_connect_s(pool))
        if not self.ipvs_services_of(pool):
            return by_haproxy
        return max(check.keepalived_recovery_s, by_haproxy if self.haproxy_services_of(pool) else 0)

    def _check_connect_s(self, pool: str) -> float:
        """The time-out for connecting that a pool's checks have: that of the first proxied service that uses the pool,
        for it makes the backend that checks."""
        users = self.haproxy_services_of(pool)
        return self.services[users[0]].timeouts.connect_s if users else Timeouts().connect_s

    def sources(self, version: int) -> tuple[Subnet, ...]:
        """`access.sources` of an IP version."""
        return tuple(s for group in self.access.sources.values() for s in group if s.version == version)

    def opening_sources(self, opening: Opening) -> tuple[Subnet, ...]:
        """Who a firewall rule is about, names of `access.sources` resolved; empty for everybody."""
        subnets: dict[Subnet, None] = {}
        for source in opening.sources:
            subnets.update(dict.fromkeys(self.access.sources.get(source, ()) if isinstance(source, str) else (source,)))
        return tuple(subnets)

    @functools.cached_property
    def sync_link(self) -> tuple[str, int] | None:
        """The network and IP version over which the nodes tell each other of connections: of the networks in which
        every node has an address, the first heartbeat, else the first one without a default gateway (what is told there
        is not encrypted), else the first one whose servers have their gateway in us, else the first one; IPv4 where
        there is a choice."""
        inner = {vip.network for vip in self.vips.values() if vip.role == "gateway"}
        links = [
            (net.role is None, net.gateway is not None, net.gateway is not None and name not in inner, number, version,
             name)
            for number, (name, net) in enumerate(self.networks.items())
            for version in net.families
            if all(self.node_address(node, name, version) is not None for node in self.nodes)
        ]  # fmt: skip
        return (min(links)[-1], min(links)[-2]) if links else None

    @property
    def egress_groups(self) -> tuple[str, ...]:
        """The groups of the VIPs that servers' connections to the outside wear."""
        return tuple(dict.fromkeys(self.vips[n.egress].group for n in self.networks.values() if n.egress in self.vips))

    @property
    def tracks_connections(self) -> bool:
        """True if the nodes tell each other of the connections that they track (conntrackd)."""
        return bool(self.instances and self.vrrp.connection_sync and self.sync_link and self.egress_groups)

    @property
    def shares_tables(self) -> bool:
        """True if the nodes' HAProxies tell each other which client belongs to which server (peers)."""
        every = (self.persistence(n, pool) for n in self.haproxy_services for pool in self.services[n].pools)
        kept = any(one is not None and one.table_s is not None for one in every)
        return bool(self.instances and self.vrrp.connection_sync and self.sync_link and kept)

    @property
    def ipvs_groups(self) -> tuple[str, ...]:
        """The groups of the VIPs that the kernel (IPVS) balances."""
        names = (v for s in self.ipvs_services for v in self.services[s].vip if v in self.vips)
        return tuple(dict.fromkeys(self.vips[v].group for v in names))

    @property
    def syncs_ipvs(self) -> bool:
        """True if the nodes tell each other of the connections that the kernel balances (IPVS's sync daemon)."""
        return bool(
            self.instances and self.vrrp.connection_sync and self.ipvs_groups and (self.sync_link or ("", 6))[1] == 4
        )


def _vrid(network: str, group: str, taken: set[int]) -> int:
    """A router id from the names alone (1–255), the next free one if it is taken on this network."""
    vrid = zlib.crc32(f"{network}/{group}".encode()) % 255 + 1
    while vrid in taken:
        vrid = vrid % 255 + 1
    return vrid
