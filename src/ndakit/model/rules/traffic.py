"""Cross-checks: pools, checks and services."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath, listing
from ndakit.model.base import Address
from ndakit.model.checks import HttpCheck
from ndakit.model.links import routes_only
from ndakit.model.profile import MARKS_MAX, Profile
from ndakit.model.rules.findings import Finding, error, unknown, warning
from ndakit.model.sorry_pages import fault as page_fault

CHECKS_PER_S_MAX = 2.0


def unknown_references(profile: Profile) -> Iterator[Finding]:
    """VIPs and pools that are not there."""
    for name, service in profile.services.items():
        for number, vip in enumerate(service.vip):
            if vip not in profile.vips:
                yield unknown("vip", vip, profile.vips, ("services", name, "vip", number), "vips")
        if len(set(service.vip)) != len(service.vip):
            yield error("vip-twice", f"service {name} names a VIP twice", ("services", name, "vip"), "name it once")
        if service.pool is not None and service.pool not in profile.pools:
            yield unknown("pool", service.pool, profile.pools, ("services", name, "pool"), "pools")
        for number, route in enumerate(service.routes):
            if route.pool not in profile.pools:
                yield unknown("pool", route.pool, profile.pools, ("services", name, "routes", number, "pool"), "pools")
        if len(set(service.hostnames)) != len(service.hostnames):
            yield error(
                "hostname-twice",
                f"service {name} has a host name twice",
                ("services", name, "hostnames"),
                "name it once",
            )
    for name, pool in profile.pools.items():
        if pool.sorry is not None and pool.sorry.pool is not None and pool.sorry.pool not in profile.pools:
            yield unknown("pool", pool.sorry.pool, profile.pools, ("pools", name, "sorry", "pool"), "pools")


def families(profile: Profile) -> Iterator[Finding]:
    """Families that a service wants and its VIPs do not have."""
    for name, service in profile.services.items():
        known = [v for v in service.vip if v in profile.vips]
        offered = {a.version for v in known for a in profile.vips[v].address}
        for number, family in enumerate(service.families or ()):
            if known and int(family[-1]) not in offered:
                yield error(
                    "family-not-offered",
                    f"service {name} wants {family}, and VIP {' and '.join(known)} has no such address",
                    ("services", name, "families", number), "add the address to the VIP, or take the family out",
                    other=("vips", known[0], "address"), also=tuple(("vips", v) for v in known),
                )  # fmt: skip
        for number, vip in enumerate(service.vip):
            if vip not in profile.vips or not service.families:
                continue
            versions = {a.version for a in profile.vips[vip].address}
            if not versions & {int(f[-1]) for f in service.families} and len(known) > 1:
                yield error(
                    "vip-without-family",
                    f"service {name} would not listen on VIP {vip} at all: it has none of its families",
                    ("services", name, "vip", number), "take the VIP out, or widen families",
                    other=("services", name, "families"), also=(("vips", vip, "address"),),
                )  # fmt: skip


def port_clashes(profile: Profile) -> Iterator[Finding]:
    """One address and port for two services."""
    taken: dict[tuple[Address, str], list[tuple[int, int, str, KeyPath]]] = {}
    for name, service in profile.services.items():
        wanted = {int(f[-1]) for f in service.families or ("ipv4", "ipv6")}
        for vip in dict.fromkeys(v for v in service.vip if v in profile.vips):
            for address in profile.vips[vip].address:
                if address.version in wanted:
                    entry = taken.setdefault((address, service.transport), [])
                    entry += [(low, high, name, ("vips", vip)) for low, high in service.port]
    told: set[tuple[str, str]] = set()
    for (address, _), entries in taken.items():
        last: tuple[int, int, str, KeyPath] | None = None
        for low, high, name, vip_path in sorted(entries, key=lambda e: e[:3]):
            if last is not None and low <= last[1] and (last[2], name) not in told and last[2] != name:
                told.add((last[2], name))
                yield error(
                    "port-clash", f"services {last[2]} and {name} both want port {low} of {address}",
                    ("services", name, "port"), "choose another port, VIP or family for one of them",
                    other=("services", last[2], "port"), also=(vip_path,),
                )  # fmt: skip
            if last is None or high > last[1]:
                last = (low, high, name, vip_path)


def port_numbers(profile: Profile) -> Iterator[Finding]:
    """More ports than an engine can listen on, and more services with several ports than IPVS has marks for."""
    for name, service in profile.services.items():
        count, engine = service.port_count, service.carried_by
        if engine.ports_max is not None and count > engine.ports_max:
            yield error(
                "too-many-ports",
                f"service {name} has {count} ports, and {engine.title} would open a socket for each: at most "
                f"{engine.ports_max} are taken",
                ("services", name, "port"),
                "narrow the range" + (", or write topology: nat, dr or tun: the kernel takes any range as one"
                                      if service.protocol == "tcp" else ", or split the service"),
                other=("services", name, "topology"),
            )  # fmt: skip
    marked = profile.marked_services
    if len(marked) > MARKS_MAX:
        name = marked[MARKS_MAX]
        yield error(
            "too-many-marks",
            f"{len(marked)} services of topology nat, dr and tun have several ports, and the kernel tells at most "
            f"{MARKS_MAX} of them apart (by firewall marks)",
            ("services", name, "port"),
            "give services with the same VIP and pool one list of ports together, or give some of them one port",
            also=(("services",),),
        )  # fmt: skip


def _users(profile: Profile) -> dict[str, set[str]]:
    """The services of each pool: directly, by a route, or as a sorry pool."""
    users: dict[str, set[str]] = {name: set() for name in profile.pools}
    for name, service in profile.services.items():
        passed: set[str] = set()
        for first in service.pools:
            pool: str | None = first
            while pool in profile.pools and pool not in passed:
                users[pool].add(name)
                passed.add(pool)
                sorry = profile.pools[pool].sorry
                pool = sorry.pool if sorry is not None else None
    return users


def check_ports(profile: Profile) -> Iterator[Finding]:
    """Checks that do not know which port to ask."""
    users = _users(profile)
    for name, pool in profile.pools.items():
        if pool.port is not None or pool.check.asked_port is not None or not pool.check.needs_port:
            continue
        # keepalived checks for each virtual server, at its port, unless that has several; and no sorry server.
        sockets = {s for s in users[name] if profile.services[s].carried_by.opens_sockets}
        several = {s for s in users[name] if profile.services[s].pool == name and profile.services[s].several}
        some = sorted(sockets | several)
        ports = {span for s in some for span in profile.services[s].port}
        single = len(ports) == 1 and all(low == high for low, high in ports)
        without = [s for s, server in pool.servers.items() if server.port is None]
        if some and without and not single:
            who = f"services {listing(some, 4)} have" if len(some) > 1 else f"service {some[0]} has"
            port = min(low for low, _ in ports)
            either = "" if not several <= sockets else f", or port: {port} to the pool"
            yield error(
                "check-without-port",
                f"pool {name}'s check does not know its port: neither the pool nor server {without[0]} states one, "
                f"and {who} several",
                ("pools", name), f"add check: {{type: {pool.check.type}, port: {port}}}{either}",
                other=("services", some[0], "port"), also=tuple(("services", s) for s in some),
            )  # fmt: skip


def check_hosts(profile: Profile) -> Iterator[Finding]:
    """http checks that would ask for the name of only one of two sites."""
    users = _users(profile)
    for name, pool in profile.pools.items():
        if not isinstance(pool.check, HttpCheck) or pool.check.host is not None:
            continue
        firsts: dict[str, str] = {}
        for service in sorted(users[name]):
            names = profile.services[service].names_for(name)
            if names:
                firsts.setdefault(names[0], service)
        if len(firsts) > 1:
            (host, one), (_, two) = list(firsts.items())[:2]
            yield warning(
                "check-host",
                f"pool {name}'s check can ask for one host name only, and services {one} and {two} have different ones",
                ("pools", name, "check"), f"add check: {{type: http, host: {host}}}, or make two pools",
                other=("services", two), also=tuple(("services", s) for s in users[name]),
            )  # fmt: skip


def check_load(profile: Profile) -> Iterator[Finding]:
    """Servers that are asked more often than they need to be."""
    rates: dict[Address, list[tuple[float, KeyPath]]] = {}
    for name, pool in profile.pools.items():
        for server, facts in pool.servers.items():
            # keepalived checks a server once for each virtual server, HAProxy once for each pool.
            rate = len(profile.nodes) / pool.check.interval_s * _checkers(profile, name)
            rates.setdefault(facts.address[0], []).append((rate, ("pools", name, "servers", server)))
    told: set[KeyPath] = set()
    for address, loads in rates.items():
        total = sum(rate for rate, _ in loads)
        rate, path = max(loads, key=lambda entry: entry[0])
        pool_path = path[:2]
        if total > CHECKS_PER_S_MAX and pool_path not in told:
            told.add(pool_path)
            pools = sorted({str(p[1]) for _, p in loads})
            yield warning(
                "many-checks",
                f"server {path[3]} at {address} gets {total:.3g} checks a second "
                f"({'pools' if len(pools) > 1 else 'pool'} {listing(pools, 4)}, {len(profile.nodes)} nodes)",
                (*pool_path, "check"), f"lengthen interval_s; at most {CHECKS_PER_S_MAX:g} checks a second are enough",
                also=tuple((*p[:2], "check") for _, p in loads),
            )  # fmt: skip


def _checkers(profile: Profile, pool: str) -> int:
    """How many times each node checks a server of a pool at the same time."""
    families: set[int] = set()  # HAProxy checks each address that it uses once
    for name in profile.haproxy_services_of(pool):
        service = profile.services[name]
        if service.transparent and all(v in profile.vips for v in service.vip):
            families |= {e.address.version for e in profile.endpoints(name)}
        else:
            families.add(next(iter(profile.pools[pool].servers.values())).address[0].version)
    checkers = len(families)
    for name in profile.ipvs_services_of(pool):
        service = profile.services[name]
        if service.pool == pool and all(v in profile.vips for v in service.vip):
            endpoints = profile.endpoints(name)
            checkers += len({e.address.version for e in endpoints} if service.several else endpoints)
    return max(1, checkers)


def sorry_pages(profile: Profile) -> Iterator[Finding]:
    """Sorry pages that HAProxy cannot send."""
    for name, pool in profile.pools.items():
        page = pool.sorry.page if pool.sorry is not None else None
        if page is None:
            continue
        path: KeyPath = ("pools", name, "sorry", "page")
        if (fault := page_fault(page.content)) is not None:
            code, what, fix = fault
            other = ", or use sorry: {pool: …}" if code == "too-big" else ""
            yield error(f"sorry-page-{code}", f"the sorry page {page.path} {what}", path, f"{fix}{other}")
    users = _users(profile)
    for name, pool in profile.pools.items():
        if pool.sorry is None or pool.sorry.page is None:
            continue
        for service in sorted(users[name]):
            if profile.services[service].protocol == "tcp" and service in profile.haproxy_services:
                yield error(
                    "sorry-page-on-tcp",
                    f"pool {name} has a sorry page, and service {service} is tcp, which cannot show one",
                    ("services", service, "protocol"), "write protocol: http, or use another pool or sorry: {pool: …}",
                    other=("pools", name, "sorry", "page"), also=(("services", service, "pool"),),
                )  # fmt: skip


def sorry_pools(profile: Profile) -> Iterator[Finding]:
    """Sorry pools that lead in a circle."""
    told: set[str] = set()
    for name in profile.pools:
        chain = [name]
        while True:
            sorry = profile.pools[chain[-1]].sorry
            after = sorry.pool if sorry is not None else None
            if after is None or after not in profile.pools:
                break
            if after in chain:
                circle = chain[chain.index(after) :]
                if not told & set(circle):
                    what = (
                        f"pool {after} is its own sorry pool" if len(circle) == 1
                        else f"the sorry pools lead in a circle: {' → '.join([*circle, after])}"
                    )  # fmt: skip
                    yield error(
                        "sorry-circle", what, ("pools", circle[-1], "sorry", "pool"), "let the last one show a page",
                        also=tuple(("pools", p, "sorry") for p in circle),
                    )  # fmt: skip
                told |= set(circle)
                break
            if len(chain) > 32:
                break
            chain.append(after)


def protocols(profile: Profile) -> Iterator[Finding]:
    """Pools whose services speak different protocols, where one of them cannot."""
    users = _users(profile)
    direct: dict[str, list[str]] = {}
    for name, service in profile.services.items():
        for own in service.pools:
            direct.setdefault(own, []).append(name)
    for name, pool in profile.pools.items():
        for user in sorted(users[name]):
            service = profile.services[user]
            by_uri = service.carried_by.balance.get(pool.balance) == "uri"
            if by_uri and service.protocol == "tcp":
                yield error(
                    "balance-needs-http", f"pool {name} balances by uri, and service {user} is tcp, which has none",
                    ("services", user, "protocol"), "write protocol: http, or balance: source for the pool",
                    other=("pools", name, "balance"), also=(("services", user, "pool"),),
                )  # fmt: skip
        sorry = pool.sorry.pool if pool.sorry is not None else None
        if sorry is None or sorry not in profile.pools:
            continue
        ours = {profile.services[s].protocol: s for s in sorted(users[name])}
        theirs = {profile.services[s].protocol: s for s in sorted(direct.get(sorry, ()))}
        if ours and theirs and not set(ours) & set(theirs):
            mine, other = next(iter(ours.values())), next(iter(theirs.values()))
            yield warning(
                "sorry-protocol", f"pool {sorry} stands in for {name}, but service {other} there speaks "
                f"{profile.services[other].protocol}, and service {mine} here {profile.services[mine].protocol}",
                ("pools", name, "sorry", "pool"), "name a sorry pool of the same protocol",
                other=("services", other, "protocol"), also=(("services", mine),),
            )  # fmt: skip


def servers(profile: Profile) -> Iterator[Finding]:
    """Servers twice in one pool, and pools whose servers take nothing."""
    for name, pool in profile.pools.items():
        seen: dict[tuple[Address, int | None], str] = {}
        for server, facts in pool.servers.items():
            for address in facts.address:
                first = seen.setdefault((address, facts.port or pool.port), server)
                if first != server:
                    yield error(
                        "server-twice", f"servers {first} and {server} of pool {name} are the same: {address}",
                        ("pools", name, "servers", server), "correct the address or the port, or delete one",
                        other=("pools", name, "servers", first),
                    )  # fmt: skip
        if pool.total_weight == 0 and pool.backups:
            yield error(
                "only-backups",
                f"every server of pool {name} that takes anything is a backup: there is nobody to stand in for",
                ("pools", name, "servers", pool.backups[0], "backup"), "delete it for at least one server",
                other=("pools", name, "servers"),
            )  # fmt: skip
        elif pool.total_weight == 0:
            yield error(
                "no-weight", f"no server of pool {name} has a weight above 0, so none gets anything",
                ("pools", name, "servers"), "give at least one server a weight of 1",
            )  # fmt: skip


def unused(profile: Profile) -> Iterator[Finding]:
    """Pools and VIPs that nothing uses."""
    users = _users(profile)
    sorry = {p.sorry.pool for p in profile.pools.values() if p.sorry is not None}
    for name in profile.pools:
        if not users[name] and name not in (*sorry, *profile.vrrp.demote_on):
            yield warning(
                "unused-pool", f"no service uses pool {name}", ("pools", name), "add a service, or delete the pool",
                also=(("services",), ("vrrp", "demote_on")),
            )  # fmt: skip
    wanted = {v for s in profile.services.values() for v in s.vip} | {n.egress for n in profile.networks.values()}
    for name, vip in profile.vips.items():
        if name in wanted or vip.role is not None:
            continue
        if vip.network in profile.networks and _only_heard(profile, vip.network, wanted):
            yield warning(
                "vip-as-heartbeat",
                f"nothing is on network {vip.network} but VIP {name}, which nothing uses. If this is a cable between "
                "the nodes, its link goes down when the other node loses its power: then this one gives all VIPs away",
                ("vips", name), f"delete the VIP, and write role: heartbeat in networks.{vip.network}",
                other=("networks", vip.network), also=(("services",), ("networks",), ("pools",)),
            )  # fmt: skip
            continue
        yield warning(
            "unused-vip", f"nothing uses VIP {name}: no service, no egress, no role", ("vips", name),
            "add a service, or delete the VIP", also=(("services",), ("networks",)),
        )  # fmt: skip
    if not profile.services and not routes_only(profile):
        yield warning(
            "no-service", "the profile has no services, so it balances nothing", ("services",),
            "add services; or, for a pair that only routes, an egress and a VIP of role gateway", also=(("networks",),),
        )  # fmt: skip


def _only_heard(profile: Profile, network: str, wanted: set[str]) -> bool:
    """True if a network of several nodes has no gateway, route, server, egress or VIP that anything uses."""
    net = profile.networks[network]
    if profile.standalone or net.gateway or net.routes or net.egress != "none" or net.role is not None:
        return False
    if any(vip.network == network and (name in wanted or vip.role) for name, vip in profile.vips.items()):
        return False
    servers = (a for pool in profile.pools.values() for s in pool.servers.values() for a in s.address)
    return not any(a in subnet for subnet in net.subnet for a in servers)


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    unknown_references,
    families,
    port_clashes,
    port_numbers,
    check_ports,
    check_hosts,
    check_load,
    sorry_pages,
    sorry_pools,
    protocols,
    servers,
    unused,
)
