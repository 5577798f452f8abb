"""What a profile's `sizing` comes to: limits of HAProxy and of the kernel, and the memory that they may take.

The arithmetic: a session that begins `sessions_per_second` times and lasts `session_duration_s` is there
rate × duration times at once, and what its end leaves behind stays for a minute (the kernel's TIME_WAIT) or two (its
connection tracking). Everything here is a plain number; what is too much is `rules.capacity`'s to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ndakit.model import sorry_pages
from ndakit.model.profile import Profile
from ndakit.model.spans import Spans
from ndakit.model.sysctl_values import port_range

SMALL_DEVICES = ("dockstar",)
"""Devices with 128 MiB of memory (docs/facts.md, Targets and devices)."""

MEMORY_MIB, SMALL_MEMORY_MIB = 1024, 128
RATE, SMALL_RATE = 500.0, 50.0
DURATION_S = 10.0

TIME_WAIT_S = 60
"""TCP_TIMEWAIT_LEN, fixed in the kernel (ip-sysctl, tcp_fin_timeout, says so)."""
TRACKED_AFTER_S = 120
"""nf_conntrack_tcp_timeout_time_wait (nf_conntrack-sysctl)."""
TRACKED_PER_SESSION = 2
"""A proxied session is two connections: the client's and ours to the server."""

PORTS_FROM, PORTS_FROM_WIDE, PORTS_TO = 10240, 1024, 65535
OWN_PORTS_LEAST = 1024
"""Source ports that a node needs for its own questions: names, time, health checks."""
"""The lowest local port of connections to servers: as it is, and where one server needs more of them."""

PORTS_KEY = "net.ipv4.ip_local_port_range"

HAPROXY_BYTES = 2 * 1024
"""HAProxy's own bookkeeping of a connection."""
TLS_BYTES = 16 * 1024
"""OpenSSL's part of a connection with TLS on one side, as HAProxy reckons (include/haproxy/defaults.h,
SSL_SESSION_MAX_COST)."""
SOCKET_BYTES = 4 * 1024
"""A TCP socket of the kernel with its file, without data."""
TRACKED_BYTES, BUCKET_BYTES = 320, 8
"""An entry of connection tracking, and a head of its hash table."""
IPVS_BYTES = 400
"""An IPVS connection (ip_vs says so itself when it is loaded)."""
TIME_WAIT_BYTES = 512
"""A TIME_WAIT socket with its port."""
FILES_BESIDE = 1024
"""Files of HAProxy that are no client's connection: the log, pollers, pipes, peers."""
CLIENT_BYTES = 256
"""An entry of a table of clients (196 bytes with an IPv6 key and two counters, seen with HAProxy 2.6; 192 with a key of
32 bytes and a server, seen with 3.0)."""
KEPT_PER_CONNECTION = 10
"""Clients whose servers are remembered, for each connection that a service can have: most of them are reading what they
got. When a table is full, whoever was not seen for the longest is forgotten."""
CLIENTS_FLOOR, CLIENTS_TOP = 1024, 100_000
"""Entries of such a table: at least and at most. When it is full, whoever was not seen for the longest is forgotten."""
SYSTEM_MIB = 64
"""OpenWrt itself with the daemons, without connections."""

STATISTICS_CONNECTIONS, POOLS_CONNECTIONS = 50, 20
"""What HAProxy's own two pages take at most: the statistics, and what keepalived asks about pools."""
RESERVE = 100
"""Connections that HAProxy keeps free of its services: those of its own pages, and what is refused in passing."""
FILES_DEFAULT = 1_048_576
"""fs.nr_open as every kernel comes with it: no process has more files than this, whatever its limits."""

CONNECTIONS_FLOOR, TRACKED_FLOOR, TIME_WAIT_FLOOR, BACKLOG_FLOOR, BACKLOG_TOP = 1000, 16384, 8192, 4096, 65535


@dataclass(frozen=True)
class Capacity:
    """The limits of one node, and what they were computed from."""

    memory_mib: int
    sessions_per_second: float
    session_duration_s: float
    usual_max: int
    """Client connections that a service without a limit of its own may have: twice the expected ones, for a rush."""
    connections_max: int
    """Client connections that the largest service may have; 0 without services that HAProxy carries."""
    services_sum: int
    """The limits of all those services added up."""
    together_max: int
    """Client connections that they may have together: the sum, as far as the memory and the kernel's table of
    connections carry it, and never less than `connections_max`."""
    haproxy_max: int
    """HAProxy's own limit, with a reserve, so that its pages answer when its services are full; 0 without HAProxy."""
    files: int
    """The files that HAProxy then has open: two for each connection, its listeners, and its checks; 0 without it."""
    tracked_max: int
    """nf_conntrack_max, and as many hash buckets, as kernels from 5.15 on choose themselves."""
    time_wait_max: int
    """tcp_max_tw_buckets."""
    backlog: int
    """somaxconn and tcp_max_syn_backlog: two seconds' worth of new connections."""
    ports_from: int
    ports_to: int
    """The ends of ip_local_port_range: those of `tuning.sysctl`, else computed."""
    buffer_bytes: int
    tls_sides: int
    """On how many sides of HAProxy TLS is spoken: none, clients or servers, both."""
    client_entries: int
    """Clients whose requests or connections HAProxy counts, over all services with such a limit."""
    kept_entries: int
    """Clients that keep their servers by a table, over all tables."""
    ipvs_entries: int
    """Connections in IPVS's table, which has no limit of its own."""
    served: Spans = field(default_factory=Spans)
    """Ports of services on the only node's own address: no source ports for what the node itself asks."""

    @property
    def sessions(self) -> int:
        """How many sessions are there at once."""
        return math.ceil(self.sessions_per_second * self.session_duration_s)

    @property
    def limited_together(self) -> bool:
        """True if the services' limits add up to more than they may have together."""
        return self.services_sum > self.together_max

    @property
    def ports(self) -> int:
        """How many source ports there are towards one server."""
        return (Spans(((self.ports_from, self.ports_to),)) - self.served).size

    @property
    def memory(self) -> tuple[tuple[str, int], ...]:
        """What takes memory when all limits are reached, in MiB."""
        return (
            ("OpenWrt", SYSTEM_MIB),
            ("HAProxy", _mib(self._held * self.connection_bytes)),
            ("HAProxy's tables of clients", _mib((self.client_entries + self.kept_entries) * CLIENT_BYTES)),
            ("sockets", _mib(2 * self._held * SOCKET_BYTES)),
            ("connection tracking", _mib(self.tracked_max * (TRACKED_BYTES + BUCKET_BYTES))),
            ("TIME_WAIT", _mib(self.time_wait_max * TIME_WAIT_BYTES)),
            ("IPVS", _mib(self.ipvs_entries * IPVS_BYTES)),
        )

    @property
    def connection_bytes(self) -> int:
        """What HAProxy needs for a connection in full use: two buffers, its bookkeeping, and OpenSSL's."""
        return 2 * self.buffer_bytes + HAPROXY_BYTES + self.tls_sides * TLS_BYTES

    @property
    def _held(self) -> int:
        """Connections whose memory must be there: those of the largest service, and the reserve. More of them are
        allowed only where they fit (`together_max`)."""
        return self.connections_max + (RESERVE if self.haproxy_max else 0)

    @property
    def memory_needed_mib(self) -> int:
        """All of it."""
        return sum(mib for _, mib in self.memory)

    @property
    def tracked_needed(self) -> int:
        """The entries that the expected load keeps in connection tracking."""
        return math.ceil(TRACKED_PER_SESSION * self.sessions_per_second * (self.session_duration_s + TRACKED_AFTER_S))


def small(profile: Profile) -> bool:
    """True on hardware with little memory."""
    return profile.device in SMALL_DEVICES


def capacity_of(profile: Profile) -> Capacity:
    """The limits of a profile's nodes, with defaults where `sizing` says nothing."""
    stated, little = profile.sizing, small(profile)
    rate = stated.sessions_per_second or (SMALL_RATE if little else RATE)
    duration_s = stated.session_duration_s or DURATION_S
    usual = max(CONNECTIONS_FLOOR, math.ceil(2 * rate * duration_s / 100) * 100)
    limits = [limit for _, limit in service_limits(profile, usual)]
    connections = max(limits, default=0)
    tracked = max(TRACKED_PER_SESSION * rate * (duration_s + TRACKED_AFTER_S), TRACKED_PER_SESSION * connections)
    most = max((need for *_, need in ports_needed(profile, rate, duration_s)), default=0)
    served = Spans() | Spans(tuple(span for *_, span in served_ports(profile)))
    usual_ports = (Spans(((PORTS_FROM, PORTS_TO),)) - served).size
    fits = usual_ports >= max(most, OWN_PORTS_LEAST)
    ports = (PORTS_FROM if fits else PORTS_FROM_WIDE, PORTS_TO)
    tuned_ports = port_range(profile.tuning.sysctl.get(PORTS_KEY, "")) or ports
    capacity = Capacity(
        memory_mib=stated.memory_mib or (SMALL_MEMORY_MIB if little else MEMORY_MIB),
        sessions_per_second=rate,
        session_duration_s=duration_s,
        usual_max=usual,
        connections_max=connections,
        services_sum=sum(limits),
        together_max=connections,
        haproxy_max=connections + RESERVE if profile.runs_haproxy else 0,
        files=0,
        tracked_max=_tuned(profile, "net.netfilter.nf_conntrack_max") or power_of_two(max(tracked, TRACKED_FLOOR)),
        time_wait_max=_tuned(profile, "net.ipv4.tcp_max_tw_buckets")
        or power_of_two(max(2 * rate * TIME_WAIT_S, TIME_WAIT_FLOOR)),
        backlog=min(BACKLOG_TOP, power_of_two(max(2 * rate, BACKLOG_FLOOR))),
        ports_from=tuned_ports[0],
        ports_to=tuned_ports[1],
        client_entries=sum(
            clients_counted(profile, name, rate, limit) for name, limit in service_limits(profile, usual)
        ),
        kept_entries=kept_tables(profile) * KEPT_PER_CONNECTION * connections,
        ipvs_entries=math.ceil(rate * (duration_s + TRACKED_AFTER_S)) if profile.ipvs_services else 0,
        buffer_bytes=sorry_pages.buffer_bytes(_pages(profile)),
        tls_sides=tls_sides(profile),
        served=served,
    )
    return _with_haproxy(profile, capacity) if profile.runs_haproxy else capacity


def _with_haproxy(profile: Profile, capacity: Capacity) -> Capacity:
    """What HAProxy may hold beyond its largest service, as far as there is room for it."""
    each = capacity.connection_bytes + 2 * SOCKET_BYTES
    # Two MiB less, because each part is rounded up to whole ones.
    room = capacity.connections_max + max(0, capacity.memory_mib - capacity.memory_needed_mib - 2) * 2**20 // each
    together = max(
        capacity.connections_max, min(capacity.services_sum, room, capacity.tracked_max // TRACKED_PER_SESSION)
    )
    most = together + RESERVE
    servers = sum(len(p.servers) for p in profile.pools.values())
    listeners = sum(2 * len(s.vip) * s.port_count for s in profile.services.values() if s.carried_by.opens_sockets)
    return replace(
        capacity, together_max=together, haproxy_max=most, files=2 * most + FILES_BESIDE + servers + listeners
    )


def service_limits(profile: Profile, usual: int) -> Iterator[tuple[str, int]]:
    """(service, connections at most) of those that HAProxy carries; `usual` is for those that state none."""
    for name in profile.haproxy_services:
        limits = profile.services[name].limits
        stated = limits.connections if limits is not None else None
        yield name, usual if stated is None or stated.count is None else stated.count


def clients_counted(profile: Profile, name: str, rate: float, connections_max: int) -> int:
    """How many clients HAProxy keeps in mind for a service's limits per client; 0 where it has none.

    Requests: everybody who came in the last two periods. Connections: everybody who has one, for whom there must be
    room because such an entry cannot be forgotten.
    """
    limits = profile.services[name].limits
    if limits is None:
        return 0
    asked = 0 if limits.requests is None else min(CLIENTS_TOP, math.ceil(2 * rate * limits.requests.per_s))
    per_client = limits.connections.per_client if limits.connections is not None else None
    held = 0 if per_client is None else connections_max
    return max(asked, held, CLIENTS_FLOOR) if asked or held else 0


def kept_tables(profile: Profile) -> int:
    """How many tables of clients that keep their servers HAProxy has: one for each way in which a pool is used, and for
    each family where the servers see the client's address."""
    tables: set[object] = set()
    for name in profile.haproxy_services:
        service = profile.services[name]
        if not all(vip in profile.vips for vip in service.vip):
            continue  # a mistake of its own
        families = sorted({e.address.version for e in profile.endpoints(name)}) if service.transparent else [0]
        for pool in service.pools:
            kept = profile.persistence(name, pool)
            if kept is not None and kept.table_s is not None:
                waits = service.timeouts.model_copy(update={"client_s": 0.0})
                tables |= {(pool, service.protocol, waits, kept, version) for version in families}
    return len(tables)


def tls_sides(profile: Profile) -> int:
    """On how many sides HAProxy speaks TLS: towards clients, towards servers."""
    clients = any(profile.services[name].tls is not None for name in profile.haproxy_services)
    servers = any(p.speaks_tls and profile.haproxy_services_of(name) for name, p in profile.pools.items())
    return clients + servers


def ports_needed(profile: Profile, rate: float, duration_s: float) -> Iterator[tuple[str, str, int]]:
    """(pool, server, source ports) where connections come from our own address and all sessions go to one pool.

    The busiest server counts, with one other lost (n+1): its share of the weights is then the largest.
    """
    for name in pools_that_see_us(profile):
        weights = {n: s.share for n, s in profile.pools[name].servers.items() if s.share}
        if not weights:
            continue
        busiest = max(weights, key=lambda n: weights[n])
        others = sorted((w for n, w in weights.items() if n != busiest), reverse=True)
        share = weights[busiest] / (weights[busiest] + sum(others[1:]))
        yield name, busiest, math.ceil(rate * share * (duration_s + TIME_WAIT_S))


def served_ports(profile: Profile) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """(service, VIP, ports) of the services on the only node's own address.

    IPVS takes whatever comes to such a port, the answer to a question of the node's from there as well.
    """
    own = {a for its in profile.nodes.values() for addresses in its.addresses.values() for a in addresses}
    for name, service in profile.services.items() if profile.standalone else ():
        if not profile.vips.keys() >= set(service.vip):
            continue  # a VIP that is not there is told by another check
        for endpoint in profile.endpoints(name):
            if endpoint.address in own:
                for span in endpoint.ports:
                    yield name, endpoint.vip, span


def pools_that_see_us(profile: Profile) -> tuple[str, ...]:
    """The pools whose servers see the node's own address, which then needs a source port for each connection."""
    users = [s for s in profile.services.values() if not s.shows_client]
    return tuple(dict.fromkeys(p for s in users for p in s.pools if p in profile.pools))


def power_of_two(value: float) -> int:
    """The next power of two that is not smaller."""
    return 1 << max(0, math.ceil(value) - 1).bit_length()


def _tuned(profile: Profile, key: str) -> int | None:
    value = profile.tuning.sysctl.get(key, "")
    return int(value) if value.isdigit() else None


def _pages(profile: Profile) -> Iterator[bytes]:
    for service in profile.services.values():
        yield from (page.content for page in service.error_pages.values())
    for pool in profile.pools.values():
        if pool.sorry is not None and pool.sorry.page is not None:
            yield pool.sorry.page.content


def _mib(count: float) -> int:
    return math.ceil(count / 2**20)
