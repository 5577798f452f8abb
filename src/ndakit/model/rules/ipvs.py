"""Cross-checks: services that the kernel balances (topology nat, dr, tun), and the checks that their pools can have.

How requests and answers travel with each topology is in `request_paths` and `reply_paths`; what IPVS does not carry at
all in `engines`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.model.base import Address
from ndakit.model.engines import IPVS
from ndakit.model.profile import Profile
from ndakit.model.rules.engines import topology_of
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.traffic import Service

UNREACHABLE_PER_S = 1.0
"""How often Linux tells one address that a port is closed (icmp(7), icmp_ratelimit), after the first six. Measured: of
two questions a second every other one stays without an answer."""


def complete_ipvs_services(profile: Profile) -> Iterator[tuple[str, Service]]:
    """Services of topology nat, dr and tun whose pool, VIPs and networks are all there."""
    for name in profile.ipvs_services:
        service = profile.services[name]
        vips = [profile.vips.get(v) for v in service.vip]
        whole = all(v is not None and v.network in profile.networks for v in vips)
        if service.pool in profile.pools and whole:
            yield name, service


def checks_of_datagrams(profile: Profile) -> Iterator[Finding]:
    """udp services whose pool states no check."""
    for name, pool in profile.pools.items():
        # A sorry server of IPVS is not checked, whatever its pool says.
        asked = (s for s in profile.ipvs_services_of(name) if profile.services[s].pool == name)
        for datagrams in (s for s in asked if profile.services[s].transport == "udp"):
            if "type" not in pool.check.model_fields_set:
                yield error(
                    "check-of-udp",
                    f"service {datagrams} is udp, and pool {name} states no check: a tcp connection would be tried",
                    ("pools", name), "add check: udp, dns, ping, or {type: tcp, port: …}",
                    other=("services", datagrams, "protocol"), also=(("pools", name, "check"),),
                )  # fmt: skip
                break


def closed_ports(profile: Profile) -> Iterator[Finding]:
    """udp checks that ask more often than a server says that its port is closed: it would seem well in between."""
    asked: dict[Address, list[tuple[float, str]]] = {}
    for name in profile.ipvs_services:
        service = profile.services[name]
        pool = profile.pools.get(service.main_pool)
        if pool is None or not pool.check.silence_is_good:
            continue
        endpoints = profile.endpoints(name) if all(v in profile.vips for v in service.vip) else ()
        # One virtual server for each address, or for each family if several ports are one service.
        versions = [e.address.version for e in endpoints]
        for version in sorted(set(versions)) if service.several else versions:
            for address in (s.address_of(version) for s in pool.servers.values()):
                if address is not None:
                    asked.setdefault(address, []).append((1 / pool.check.interval_s, service.main_pool))
    told: set[str] = set()
    for address, rates in asked.items():
        total, pools = sum(rate for rate, _ in rates), dict.fromkeys(name for _, name in rates)
        first = next(iter(pools))
        if total > UNREACHABLE_PER_S and first not in told:
            told.add(first)
            yield warning(
                "closed-ports", f"each node asks {address} {total:.3g} times a second whether a udp port is closed, "
                "and a Linux server says so once a second: a dead one would seem well in between",
                ("pools", first, "check"), "lengthen interval_s, or state expect: {reply: …}: then silence counts too",
                also=tuple(("pools", name, "check") for name in pools),
            )  # fmt: skip


def quorums(profile: Profile) -> Iterator[Finding]:
    """Quorums that say nothing."""
    for name, pool in profile.pools.items():
        if pool.quorum is not None and pool.quorum > pool.total_weight:
            yield error(
                "quorum-too-high", f"pool {name}'s quorum of {pool.quorum} is more than all its weights, "
                f"{pool.total_weight}: the sorry server would always answer",
                ("pools", name, "quorum"), f"write at most {pool.total_weight}", other=("pools", name, "servers"),
            )  # fmt: skip
        if pool.quorum is not None and pool.sorry is None:
            yield error(
                "quorum-without-sorry", f"pool {name} has a quorum, and no sorry server to take over below it",
                ("pools", name, "quorum"), "add sorry: {pool: …}, or delete quorum", also=(("pools", name, "sorry"),),
            )  # fmt: skip


def sorry_servers(profile: Profile) -> Iterator[Finding]:
    """IPVS has room for one sorry server."""
    for name, service in complete_ipvs_services(profile):
        pool = profile.pools[service.main_pool]
        at: KeyPath = ("pools", service.main_pool, "sorry")
        if pool.sorry is None:
            continue
        other = profile.pools.get(pool.sorry.pool or "")
        if other is None:
            continue
        place: KeyPath = ("pools", pool.sorry.pool or "")
        if len(other.servers) > 1:
            yield error(
                "one-sorry-server",
                f"IPVS, behind service {name}, has room for one sorry server, and pool {pool.sorry.pool} has "
                f"{len(other.servers)}",
                (*at, "pool"), "name a pool with one server", other=(*place, "servers"), also=(topology_of(name),),
            )  # fmt: skip
        if other.sorry is not None:
            yield error(
                "one-sorry-server",
                f"IPVS, behind service {name}, has room for one sorry server, and pool {pool.sorry.pool} has a "
                "further one",
                (*at, "pool"), f"delete pools.{pool.sorry.pool}.sorry, or name a pool without", other=(*place, "sorry"),
                also=(topology_of(name),),
            )  # fmt: skip


def ports_together(profile: Profile) -> Iterator[Finding]:
    """Several tcp ports as one service are mostly one conversation (FTP's control and data connections), which breaks
    where each connection gets a server of its own."""
    for name, service in complete_ipvs_services(profile):
        pool = profile.pools[service.main_pool]
        if not service.several or service.transport != "tcp" or len(pool.servers) == 1:
            continue
        if profile.persistence(name) is None and IPVS.balance.get(pool.balance) not in IPVS.one_server:
            yield warning(
                "ports-apart",
                f"service {name} has several ports, and a server is chosen for each connection: a client's connections "
                "to different ports go to different servers, which breaks FTP, for example",
                ("services", name, "port"),
                f"write persistence: {{type: source}} in the service, or balance: source in pool {service.pool}; if "
                "its ports have nothing to do with each other, make a service of each",
                other=("pools", service.main_pool), also=(("services", name, "persistence"), topology_of(name)),
            )  # fmt: skip


def returning(profile: Profile) -> Iterator[Finding]:
    """A node that is master again before it knows which servers are well: keepalived puts a server into IPVS when it
    has answered, and asks for the first time somewhen within the interval."""
    settings = profile.vrrp
    if profile.standalone or not settings.preempt or profile.syncs_ipvs:  # with sync see pair.told_in_time
        return
    waits_s = settings.preempt_delay_s + 3 * settings.advert_interval_s
    checked_s = {s.main_pool: profile.pools[s.main_pool].check.interval_s for _, s in complete_ipvs_services(profile)}
    pool = max(checked_s, key=lambda name: checked_s[name], default=None)
    if pool is not None and checked_s[pool] > waits_s:
        yield warning(
            "back-before-checks",
            f"a node that returns takes its VIPs back after {waits_s:g} s, and has looked at the servers of pool "
            f"{pool} after {checked_s[pool]:g} s: until then IPVS has none of them",
            ("vrrp", "preempt_delay_s"), f"write preempt_delay_s: {math.ceil(checked_s[pool])}",
            other=("pools", pool, "check"), also=(("vrrp", "preempt"),),
        )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    checks_of_datagrams,
    closed_ports,
    quorums,
    sorry_servers,
    ports_together,
    returning,
)
