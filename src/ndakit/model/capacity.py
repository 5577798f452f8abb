"""What a profile's `sizing` comes to: limits of HAProxy and of the kernel, and the memory that they may take.

The arithmetic: a session that begins `sessions_per_second` times and lasts `session_duration_s` is there
rate × duration times at once, and what its end leaves behind stays for a minute (the kernel's TIME_WAIT) or two (its
connection tracking). Everything here is a plain number; what is too much is `check_capacity`'s to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ndakit.model.profile import Profile
from ndakit.model.sysctl_values import port_range

SMALL_DEVICES = ("dockstar",)
"""Devices with 128 MiB of memory (openwrt.md, 2.3)."""

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
"""The lowest local port of connections to servers: as it is, and where one server needs more of them."""

PORTS_KEY = "net.ipv4.ip_local_port_range"

BUFFER_BYTES, LARGE_BUFFER_BYTES = 16 * 1024, 20 * 1024
"""HAProxy's tune.bufsize, as it comes and where a sorry page needs more."""
HAPROXY_BYTES = 2 * 1024
"""HAProxy's own bookkeeping of a connection."""
SOCKET_BYTES = 4 * 1024
"""A TCP socket of the kernel with its file, without data."""
TRACKED_BYTES, BUCKET_BYTES = 320, 8
"""An entry of connection tracking, and a head of its hash table."""
IPVS_BYTES = 400
"""An IPVS connection (ip_vs says so itself when it is loaded)."""
TIME_WAIT_BYTES = 512
"""A TIME_WAIT socket with its port."""
FILES_BESIDE = 1024
"""What HAProxy has open besides its connections: listeners, checks, pipes; generously."""
SYSTEM_MIB = 64
"""OpenWrt itself with the daemons, without connections."""

CONNECTIONS_FLOOR, TRACKED_FLOOR, TIME_WAIT_FLOOR, BACKLOG_FLOOR, BACKLOG_TOP = 1000, 16384, 8192, 4096, 65535


@dataclass(frozen=True)
class Capacity:
    """The limits of one node, and what they were computed from."""

    memory_mib: int
    sessions_per_second: float
    session_duration_s: float
    connections_max: int
    """Client connections that HAProxy holds: twice the expected ones, for a rush."""
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
    kernel_entries: int
    """Connections in IPVS's table, which has no limit of its own."""

    @property
    def sessions(self) -> int:
        """How many sessions are there at once."""
        return math.ceil(self.sessions_per_second * self.session_duration_s)

    @property
    def ports(self) -> int:
        """How many source ports there are towards one server."""
        return self.ports_to - self.ports_from + 1

    @property
    def memory(self) -> tuple[tuple[str, int], ...]:
        """What takes memory when all limits are reached, in MiB."""
        return (
            ("OpenWrt", SYSTEM_MIB),
            ("HAProxy", _mib(self.connections_max * (2 * self.buffer_bytes + HAPROXY_BYTES))),
            ("sockets", _mib(2 * self.connections_max * SOCKET_BYTES)),
            ("connection tracking", _mib(self.tracked_max * (TRACKED_BYTES + BUCKET_BYTES))),
            ("TIME_WAIT", _mib(self.time_wait_max * TIME_WAIT_BYTES)),
            ("IPVS", _mib(self.kernel_entries * IPVS_BYTES)),
        )

    @property
    def memory_needed_mib(self) -> int:
        """All of it."""
        return sum(mib for _, mib in self.memory)

    @property
    def files(self) -> int:
        """Files that HAProxy has open when it holds as many connections as it may: two each."""
        return 2 * self.connections_max + FILES_BESIDE

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
    kernel_only = bool(profile.kernel_services) and not proxied_pools(profile)
    connections = CONNECTIONS_FLOOR
    if not kernel_only:
        connections = max(connections, math.ceil(2 * rate * duration_s / 100) * 100)
    tracked = max(TRACKED_PER_SESSION * rate * (duration_s + TRACKED_AFTER_S), TRACKED_PER_SESSION * connections)
    most = max((need for *_, need in ports_needed(profile, rate, duration_s)), default=0)
    ports = (PORTS_FROM if most <= PORTS_TO - PORTS_FROM + 1 else PORTS_FROM_WIDE, PORTS_TO)
    tuned_ports = port_range(profile.tuning.sysctl.get(PORTS_KEY, "")) or ports
    return Capacity(
        memory_mib=stated.memory_mib or (SMALL_MEMORY_MIB if little else MEMORY_MIB),
        sessions_per_second=rate,
        session_duration_s=duration_s,
        connections_max=connections,
        tracked_max=_tuned(profile, "net.netfilter.nf_conntrack_max") or power_of_two(max(tracked, TRACKED_FLOOR)),
        time_wait_max=_tuned(profile, "net.ipv4.tcp_max_tw_buckets")
        or power_of_two(max(2 * rate * TIME_WAIT_S, TIME_WAIT_FLOOR)),
        backlog=min(BACKLOG_TOP, power_of_two(max(2 * rate, BACKLOG_FLOOR))),
        ports_from=tuned_ports[0],
        ports_to=tuned_ports[1],
        kernel_entries=math.ceil(rate * (duration_s + TRACKED_AFTER_S)) if profile.kernel_services else 0,
        buffer_bytes=LARGE_BUFFER_BYTES if _large_page(profile) else BUFFER_BYTES,
    )


def ports_needed(profile: Profile, rate: float, duration_s: float) -> Iterator[tuple[str, str, int]]:
    """(pool, server, source ports) where connections come from our own address and all sessions go to one pool.

    The busiest server counts, with one other lost (n+1): its share of the weights is then the largest.
    """
    for name in proxied_pools(profile):
        weights = {n: s.weight for n, s in profile.pools[name].servers.items() if s.weight}
        if not weights:
            continue
        busiest = max(weights, key=lambda n: weights[n])
        others = sorted((w for n, w in weights.items() if n != busiest), reverse=True)
        share = weights[busiest] / (weights[busiest] + sum(others[1:]))
        yield name, busiest, math.ceil(rate * share * (duration_s + TIME_WAIT_S))


def proxied_pools(profile: Profile) -> tuple[str, ...]:
    """The pools whose servers see HAProxy's address."""
    return tuple(
        dict.fromkeys(s.pool for s in profile.services.values() if s.topology == "proxy" and s.pool in profile.pools)
    )


def power_of_two(value: float) -> int:
    """The next power of two that is not smaller."""
    return 1 << max(0, math.ceil(value) - 1).bit_length()


def _tuned(profile: Profile, key: str) -> int | None:
    value = profile.tuning.sysctl.get(key, "")
    return int(value) if value.isdigit() else None


def _large_page(profile: Profile) -> bool:
    pages = [p.sorry.page for p in profile.pools.values() if p.sorry is not None and p.sorry.page is not None]
    return any(len(page.content) > BUFFER_BYTES - 1024 for page in pages)


def _mib(count: float) -> int:
    return math.ceil(count / 2**20)
