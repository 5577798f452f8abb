"""IPVS's side of a profile: the virtual servers that keepalived keeps in the kernel, with their servers and checks.

A service with one port becomes one virtual server for each address; one with several ports becomes one for each
address family, which takes what the firewall has marked (`firewall` does that). Every node has all of them, so that
it can take the VIPs over at any time. Which modules they need and which kernel values go with them is said here too;
text is the template's business. Sources: docs/facts.md (IPVS and the firewall); ipvs-sysctl.rst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Literal

from ndakit.model import Address, Check, Endpoint, Pool, Profile, capacity_of
from ndakit.model import Server as PoolServer
from ndakit.model.checks import HttpCheck, ScriptCheck
from ndakit.model.engines import IPVS
from ndakit.model.links import watched_alone
from ndakit.model.persistence import SourcePersistence
from ndakit.render.node import NodeView, Sysctl

CHECK_SCRIPT = "/usr/libexec/ndakit/check-script"
"""What keepalived calls for a check by script: it adds the profile's arguments."""

PAGE_BYTES = 4096
SCARCE_PART = 16
Method = Literal["NAT", "DR", "TUN"]
_METHODS: Mapping[str, Method] = {"nat": "NAT", "dr": "DR", "tun": "TUN"}


@dataclass(frozen=True)
class Checker:
    """How keepalived checks one server; the rest is what the check says (templates/checks/TYPE.keepalived.j2)."""

    check: Check
    port: int | None
    """The port that is asked; None where keepalived takes the server's own, or the check has none."""
    host: str | None
    """The name by which clients reach the service."""
    hostname: str
    """The node's own name."""
    script: str
    """script: the command, made of words without blanks."""

    @property
    def retries(self) -> int:
        """Further attempts after a failed one."""
        return self.check.fall - 1


@dataclass(frozen=True)
class RealServer:
    """A server of a virtual server."""

    name: str
    address: Address
    port: int | None
    weight: int
    upper: int | None
    lower: int | None
    checker: Checker


@dataclass(frozen=True)
class SorryServer:
    """The server for the time when no other is left."""

    name: str
    address: Address
    port: int | None


@dataclass(frozen=True)
class VirtualServer:
    """A virtual server: an address and port, or a firewall mark."""

    service: str
    pool: str
    address: Address | None
    port: int | None
    mark: int | None
    version: int
    scheduler: str
    method: Method
    protocol: Literal["TCP", "UDP"]
    interval_s: float
    persistence_s: int | None
    granularity: str | None
    quorum: int
    sorry: SorryServer | None
    servers: tuple[RealServer, ...]


@dataclass(frozen=True)
class Script:
    """A pool's check script: where it lies on the node, the profile's file, its arguments."""

    pool: str
    path: str
    source: str
    content: bytes
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class IpvsView:
    """Everything that IPVS needs on one node."""

    servers: tuple[VirtualServer, ...]
    modules: tuple[str, ...]
    sysctls: tuple[Sysctl, ...]
    scripts: tuple[Script, ...]


def ipvs(node: NodeView) -> IpvsView:
    """IPVS's view of a node."""
    profile = node.profile
    servers = tuple(v for name in profile.ipvs_services for v in _virtual_servers(node, name))
    pools = {name: profile.pools[name].check for name in (*(v.pool for v in servers), *watched_alone(profile))}
    modules = ("ip_vs", *dict.fromkeys(f"ip_vs_{v.scheduler}" for v in servers)) if servers else ()
    return IpvsView(
        servers=servers,
        modules=modules,
        sysctls=_sysctls(profile) if servers else (),
        scripts=tuple(
            Script(pool, f"/usr/libexec/ndakit/script-{pool}", c.script.path, c.script.content, c.arguments or ())
            for pool, c in pools.items()
            if isinstance(c, ScriptCheck) and c.script is not None
        ),
    )


def _sysctls(profile: Profile) -> tuple[Sysctl, ...]:
    sysctls = (
        # With 1, answers that the servers send on their own after a failover would belong to no known connection, and
        # the firewall would drop them; here it has a rule for them instead.
        Sysctl("net.ipv4.vs.conntrack", "0", "IPVS keeps its connections itself; conntrack would know them twice"),
        Sysctl(
            "net.ipv4.vs.expire_nodest_conn", "1", "connections to a server that is out end at once, not by time-out"
        ),
        Sysctl(
            "net.ipv4.vs.expire_quiescent_template", "1", "a drained server (weight 0) gets no persistent clients back"
        ),
        *_defences(profile),
    )
    if not profile.syncs_ipvs:
        return sysctls
    # As the kernel comes, a connection is told with its third packet and then with every fiftieth: one on which little
    # is said would be forgotten by the others after 15 minutes, and a node that returns would hear of it too late
    # (ipvs-sysctl.rst of the kernel; a period of 0 leaves it to the seconds).
    why = "the other nodes are told of a connection anew with its next packet, at most every two seconds"
    return (
        *sysctls,
        Sysctl("net.ipv4.vs.sync_threshold", "3 0", why),
        Sysctl("net.ipv4.vs.sync_refresh_period", "2", why),
    )


def _defences(profile: Profile) -> tuple[Sysctl, ...]:
    """What keeps half-open connections from taking all memory: IPVS's table has no limit, and an entry of a SYN that
    nobody completes stays for a minute. All are in their automatic mode (1; the kernel makes it 2 while memory is
    scarce): in quiet times they cost nothing, and drop nothing (ipvs-sysctl.rst; ip_vs_ctl.c, update_defense_level)."""
    pages = capacity_of(profile).memory_mib * (1 << 20) // PAGE_BYTES // SCARCE_PART
    scarce = "below that many free pages (a sixteenth of the memory; 4 MiB as it comes is too late) memory is scarce"
    return (
        Sysctl("net.ipv4.vs.amemthresh", str(pages), f"{scarce}, for the next three"),
        Sysctl(
            "net.ipv4.vs.drop_packet", "1", "while it is, of new connections one in so many is not taken, at last none"
        ),
        Sysctl(
            "net.ipv4.vs.drop_entry",
            "1",
            "while it is, half-open and nearly silent ones are forgotten at random",
        ),
        Sysctl("net.ipv4.vs.secure_tcp", "1", "while it is, a connection counts once its handshake is complete"),
    )


def _virtual_servers(node: NodeView, name: str) -> list[VirtualServer]:
    profile = node.profile
    mark = profile.marks.get(name)
    endpoints = profile.endpoints(name)
    if mark is None:
        return [_virtual_server(node, name, e, None) for e in endpoints]
    by_version = {e.address.version: e for e in endpoints}
    return [_virtual_server(node, name, e, mark) for e in by_version.values()]


def _virtual_server(node: NodeView, name: str, endpoint: Endpoint, mark: int | None) -> VirtualServer:
    profile, version = node.profile, endpoint.address.version
    service = profile.services[name]
    pool = profile.pools[service.main_pool]
    port = None if mark is not None else endpoint.ports[0][0]
    stated = profile.persistence(name)
    persistence = stated if isinstance(stated, SourcePersistence) else None  # the rules refuse any other
    return VirtualServer(
        service=name,
        pool=service.main_pool,
        address=None if mark is not None else endpoint.address,
        port=port,
        mark=mark,
        version=version,
        scheduler=IPVS.balance[pool.balance],
        method=_METHODS[service.topology],
        protocol="UDP" if service.transport == "udp" else "TCP",
        interval_s=pool.check.interval_s,
        persistence_s=persistence.timeout_s if persistence is not None else None,
        granularity=_granularity(version, persistence.bits(version)) if persistence is not None else None,
        quorum=pool.quorum or 1,
        sorry=_sorry(profile, pool, version, port),
        servers=tuple(
            _real_server(node, name, server, facts, address, port)
            for server, facts in pool.servers.items()
            if (address := server_address(facts, version, service.topology)) is not None
        ),
    )


def server_address(server: PoolServer, version: int, topology: str) -> Address | None:
    """The address at which a service of an IP version reaches a server; a tunnel may have another version inside."""
    stated = server.address_of(version)
    return stated or (server.address[0] if topology == "tun" else None)


def _granularity(version: int, bits: int) -> str | None:
    """As keepalived takes it: a mask for IPv4, a length for IPv6; None if every bit counts."""
    if bits == (32 if version == 4 else 128):
        return None
    return str(ip_network(f"0.0.0.0/{bits}").netmask) if version == 4 else str(bits)


def _sorry(profile: Profile, pool: Pool, version: int, port: int | None) -> SorryServer | None:
    if pool.sorry is None or pool.sorry.pool is None:
        return None
    other = profile.pools[pool.sorry.pool]
    name, server = next(iter(other.servers.items()))
    address = server.address_of(version) or server.address[0]
    return SorryServer(name, address, None if port is None else server.port or other.port or port)


def _real_server(
    node: NodeView, service: str, name: str, server: PoolServer, address: Address, port: int | None
) -> RealServer:
    pool = node.profile.pools[node.profile.services[service].main_pool]
    own = None if port is None else server.port or pool.port or port
    return RealServer(
        name=name,
        address=address,
        port=own,
        weight=server.weight,
        upper=server.max_connections,
        lower=server.resume_below,
        checker=_checker(node, service, pool, address, own or server.port or pool.port, asked=own is None),
    )


def _checker(node: NodeView, service: str, pool: Pool, address: Address, port: int | None, *, asked: bool) -> Checker:
    """`asked`: the server has no port of its own for keepalived to ask, so that the check must name one."""
    check = pool.check
    target = check.asked_port or port or node.profile.services[service].first_port
    words = (CHECK_SCRIPT, node.profile.services[service].main_pool, str(address), str(target))
    balanced = node.profile.services[service]
    hostnames = balanced.names_for(balanced.main_pool)
    own = check.host if isinstance(check, HttpCheck) else None
    named = check.needs_port and (asked or check.asked_port is not None)
    return Checker(
        check=check,
        port=target if named else None,
        host=own or (hostnames[0] if hostnames else None),
        hostname=node.hostname,
        script=" ".join(words),
    )
