"""Cross-checks: services that the kernel balances (topology nat, dr, tun), and what only one of the engines can do.

How packets and answers travel with each topology is in `check_replies`; here is what IPVS and keepalived cannot do, or
HAProxy cannot, each with the service that asks for it and the place that says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.core.release import since
from ndakit.model.base import Address
from ndakit.model.checks.base import PROXY_CHECKS
from ndakit.model.engines import ENGINES, IPVS, Engine, Feature, Refused
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.traffic import RETRIES, Pool, Service, Timeouts

RELEASE: KeyPath = ("release",)
_NOT_IN_KEEPALIVED = re.compile(r"\$|~[A-Z]")
"""keepalived.conf replaces these (keepalived.conf(5), "PARAMETER SUBSTITUTION", "~SEQ"), and has no escape for them."""
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


def _topology(service: str) -> KeyPath:
    return ("services", service, "topology")


def protocols(profile: Profile) -> Iterator[Finding]:
    """Protocols that the engine of a service's topology does not speak."""
    for name, service in profile.services.items():
        refused = service.carried_by.protocols[service.protocol]
        if refused is not None:
            yield _refusal(profile, refused, ("services", name, "protocol"), name)


def features(profile: Profile) -> Iterator[Finding]:
    """Keys of services, pools and servers that an engine does not carry."""
    for name, service in profile.services.items():
        for feature in _features_of_service(service):
            refused = service.carried_by.features[feature]
            if refused is not None:
                yield _refusal(profile, refused, ("services", name, feature), name)
    for name, pool in profile.pools.items():
        for feature, keys in _features_of_pool(pool):
            # An engine without sorry pages has no pages of sorry pools either, which is told at the pool before.
            users = [
                s for s in profile.services_of(name) if feature != "sorry.page" or profile.services[s].pool == name
            ]
            for engine in ENGINES:
                refused = engine.features[feature]
                user = next((s for s in users if profile.services[s].carried_by is engine), None)
                if refused is not None and user is not None:
                    yield _refusal(profile, refused, ("pools", name, *keys), user, pool=name)


def _features_of_service(service: Service) -> Iterator[Feature]:
    if service.timeouts != Timeouts():
        yield "timeouts"
    if service.limits is not None:
        yield "limits"


def _features_of_pool(pool: Pool) -> Iterator[tuple[Feature, KeyPath]]:
    """The features that a pool and its servers ask for, each with its place in the pool."""
    if pool.retries != RETRIES:
        yield "retries", ("retries",)
    if pool.slow_start_s is not None:
        yield "slow_start_s", ("slow_start_s",)
    if pool.quorum is not None:
        yield "quorum", ("quorum",)
    if pool.sorry is not None and pool.sorry.page is not None:
        yield "sorry.page", ("sorry", "page")
    for name, server in pool.servers.items():
        if server.resume_below is not None:
            yield "resume_below", ("servers", name, "resume_below")


def _refusal(profile: Profile, refused: Refused, at: KeyPath, user: str, *, pool: str = "") -> Finding:
    """What an engine does not carry as an error. `user` is the service that asks for it, `pool` its pool."""
    service = profile.services[user]
    facts = {"service": user, "topology": service.topology, "pool": pool, "server": at[-2] if len(at) > 1 else ""}
    facts["or_topology"] = ", or topology: proxy" if service.proxiable else ""
    facts["or_write"] = ", or write topology: proxy" if service.proxiable else ""
    return error(
        refused.code, refused.why.format(**facts), at, refused.fix.format(**facts), other=_topology(user),
        also=(("services", user),) if pool else (),
    )  # fmt: skip


def balance(profile: Profile) -> Iterator[Finding]:
    """Ways to choose a server that an engine, or the release, does not have."""
    for name, pool in profile.pools.items():
        at: KeyPath = ("pools", name, "balance")
        for user in profile.services_of(name):
            engine = profile.services[user].carried_by
            if pool.balance not in engine.balance:
                has = next(e.title for e in ENGINES if pool.balance in e.balance)
                yield error(
                    "balance-of-engine",
                    f"pool {name} balances by {pool.balance}, which {has} does and {engine.title}, behind service "
                    f"{user}, does not",
                    at, "write roundrobin, leastconn or source, or a pool of its own for the service",
                    other=_topology(user), also=(("services", user),),
                )  # fmt: skip
        for engine in ENGINES:
            if profile.carried_services_of(engine, name) and pool.balance in engine.balance:
                yield from _balance_of_engine(profile, name, engine)


def _balance_of_engine(profile: Profile, name: str, engine: Engine) -> Iterator[Finding]:
    """What follows from an engine's way to choose a server of a pool."""
    pool, at = profile.pools[name], ("pools", name, "balance")
    word = engine.balance[pool.balance]
    later = engine.balance_since.get(word)
    if later is not None and (later.since is None or profile.release.branch < later.since):
        use = f", or use release {since(*later.since)}" if later.since is not None else ""
        yield error(
            "balance-of-release",
            f"pool {name} balances by {pool.balance}, and the {engine.title} of OpenWrt {profile.release} does not "
            "know that",
            at, f"write balance: {later.instead}{use}", other=RELEASE,
        )  # fmt: skip
    left_out = next((n for n, s in pool.servers.items() if not s.weight or s.max_connections is not None), None)
    if word in engine.refuses and left_out is not None:
        why = "is full" if pool.servers[left_out].weight else "has weight 0"
        yield warning(
            "destination-refuses",
            f"pool {name} balances by {pool.balance}, which sends whole VIPs to one server each, and to no "
            f"other while {left_out} {why}: its clients are refused",
            at, "write locality (lblc), or leave weight 0 and max_connections out",
            other=("pools", name, "servers", left_out),
        )  # fmt: skip
    if word in engine.weightless and len({s.weight for s in pool.servers.values()} - {0}) > 1:
        yield warning(
            "weights-ignored", f"pool {name} balances by {pool.balance}, which looks at no weights", at,
            "write roundrobin (wrr) or leastconn (wlc), or leave the weights out",
            other=("pools", name, "servers"),
        )  # fmt: skip


def checks_of_engine(profile: Profile) -> Iterator[Finding]:
    """Checks that HAProxy or keepalived does not have."""
    for name, pool in profile.pools.items():
        check, at = pool.check, ("pools", name, "check")
        proxied, balanced = profile.haproxy_services_of(name), profile.ipvs_services_of(name)
        if proxied and check.type not in PROXY_CHECKS:
            yield error(
                "check-needs-kernel",
                f"pool {name}'s check is {check.type}, which keepalived has and HAProxy, behind service "
                f"{proxied[0]}, has not",
                at, f"write one of {', '.join(PROXY_CHECKS)}, or a pool of its own for the service",
                other=("services", proxied[0]), also=(_topology(proxied[0]),),
            )  # fmt: skip
        if proxied and check.expect.digest is not None:
            yield error(
                "digest-needs-kernel",
                f"pool {name}'s check compares a digest, which keepalived does and HAProxy, behind service "
                f"{proxied[0]}, "
                "does not",
                (*at, "expect", "digest"), "state expect: {status: 200}, or a pool of its own for the service",
                other=("services", proxied[0]), also=(_topology(proxied[0]),),
            )  # fmt: skip
        if not balanced:
            continue
        user = balanced[0]
        if check.talks:
            yield error(
                "talk-needs-proxy",
                f"pool {name}'s tcp check sends or expects something, and keepalived, behind service {user}, only "
                "connects",
                at, "write type: script with a script that does it, or leave send and expect out",
                other=_topology(user),
            )  # fmt: skip
        if check.good_in_a_row > 1 and check.rise is not None:
            yield error(
                "rise-of-kernel",
                f"pool {name}'s check wants {check.rise} good answers in a row, and keepalived, behind service {user}, "
                "takes a server back after the first",
                (*at, "rise"), "write rise: 1, or leave it out", other=_topology(user),
            )  # fmt: skip
        if check.type in ("http", "https") and _NOT_IN_KEEPALIVED.search(check.request_path):
            yield error(
                "path-of-keepalived",
                f"keepalived, behind service {user}, would read $ and ~ in the path {check.path} as something else",
                (*at, "path"), "write %24 for $ and %7E for ~", other=_topology(user),
            )  # fmt: skip
        # A sorry server of IPVS is not checked, whatever its pool says.
        asked = (s for s in balanced if profile.services[s].pool == name)
        for datagrams in (s for s in asked if profile.services[s].transport == "udp"):
            if "type" not in check.model_fields_set:
                yield error(
                    "check-of-udp",
                    f"service {datagrams} is udp, and pool {name} states no check: a tcp connection would be tried",
                    ("pools", name), "add check: udp, dns, ping, or {type: tcp, port: …}",
                    other=("services", datagrams, "protocol"), also=(at,),
                )  # fmt: skip
                break


def closed_ports(profile: Profile) -> Iterator[Finding]:
    """udp checks that ask more often than a server says that its port is closed: it would seem well in between."""
    asked: dict[Address, list[tuple[float, str]]] = {}
    for name in profile.ipvs_services:
        service = profile.services[name]
        pool = profile.pools.get(service.pool)
        if pool is None or pool.check.type != "udp" or pool.check.expect.reply is not None:
            continue
        endpoints = profile.endpoints(name) if all(v in profile.vips for v in service.vip) else ()
        # One virtual server for each address, or for each family if several ports are one service.
        versions = [e.address.version for e in endpoints]
        for version in sorted(set(versions)) if service.several else versions:
            for address in (s.address_of(version) for s in pool.servers.values()):
                if address is not None:
                    asked.setdefault(address, []).append((1 / pool.check.interval_s, service.pool))
    told: set[str] = set()
    for address, found in asked.items():
        total, pools = sum(rate for rate, _ in found), dict.fromkeys(name for _, name in found)
        first = next(iter(pools))
        if total > UNREACHABLE_PER_S and first not in told:
            told.add(first)
            yield warning(
                "closed-ports", f"each node asks {address} {total:.3g} times a second whether a udp port is closed, "
                "and a Linux server says so once a second: a dead one would seem well in between",
                ("pools", first, "check"), "lengthen interval_s, or state expect: {reply: …}: then silence counts too",
                also=tuple(("pools", name, "check") for name in pools),
            )  # fmt: skip


def checks_of_release(profile: Profile) -> Iterator[Finding]:
    """Checks that the release's keepalived does not have."""
    release = profile.release
    for name, pool in profile.pools.items():
        check, at = pool.check, ("pools", name, "check")
        if not profile.ipvs_services_of(name) or not IPVS.is_in(release):
            continue
        if check.type in ("ping", "udp") and not release.keepalived_ping_udp:
            yield error(
                "check-of-release", f"pool {name}'s check is {check.type}, and the keepalived of OpenWrt {release} "
                "has none",
                at, f"use release {since(21, 2)}, or write type: script", other=RELEASE,
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
        pool = profile.pools[service.pool]
        at: KeyPath = ("pools", service.pool, "sorry")
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
                (*at, "pool"), "name a pool with one server", other=(*place, "servers"), also=(_topology(name),),
            )  # fmt: skip
        if other.sorry is not None:
            yield error(
                "one-sorry-server",
                f"IPVS, behind service {name}, has room for one sorry server, and pool {pool.sorry.pool} has a "
                "further one",
                (*at, "pool"), f"delete pools.{pool.sorry.pool}.sorry, or name a pool without", other=(*place, "sorry"),
                also=(_topology(name),),
            )  # fmt: skip


def persistence(profile: Profile) -> Iterator[Finding]:
    """Masks that the release's HAProxy does not have."""
    if profile.release.haproxy_ipv6_masks:
        return
    for name in profile.haproxy_services:
        service, found = profile.services[name], profile.persistence(name)
        if found is not None and found.netmask_ipv6 != 128:
            holder: KeyPath = ("services", name) if service.persistence is not None else ("pools", service.pool)
            yield error(
                "netmask-of-release", f"service {name} counts {found.netmask_ipv6} bits of an IPv6 address, and the "
                f"HAProxy of OpenWrt {profile.release} (1.8) has masks for IPv4 only",
                (*holder, "persistence", "netmask_ipv6"), f"delete it, or use release {since(19, 7)}", other=RELEASE,
            )  # fmt: skip


def ports_together(profile: Profile) -> Iterator[Finding]:
    """Several tcp ports as one service are mostly one conversation (FTP's control and data connections), which breaks
    where each connection gets a server of its own."""
    for name, service in complete_ipvs_services(profile):
        pool = profile.pools[service.pool]
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
                other=("pools", service.pool), also=(("services", name, "persistence"), _topology(name)),
            )  # fmt: skip


def returning(profile: Profile) -> Iterator[Finding]:
    """A node that is master again before it knows which servers are well: keepalived puts a server into IPVS when it
    has answered, and asks for the first time somewhen within the interval."""
    settings = profile.vrrp
    if profile.standalone or not settings.preempt or profile.syncs_ipvs:  # with sync see check_pair.told_in_time
        return
    waits_s = settings.preempt_delay_s + 3 * settings.advert_interval_s
    checked_s = {s.pool: profile.pools[s.pool].check.interval_s for _, s in complete_ipvs_services(profile)}
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
    protocols,
    features,
    balance,
    checks_of_engine,
    closed_ports,
    checks_of_release,
    quorums,
    sorry_servers,
    persistence,
    ports_together,
    returning,
)
