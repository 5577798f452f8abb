"""Cross-checks: what the engine of a service does not carry, each with the service that asks for it.

Which that is, and the words of the error, stand in the engines' rows (model/engines.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.core.release import since
from ndakit.model.checks import types_of
from ndakit.model.engines import ENGINES, Engine, Feature, Refused
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.traffic import RETRIES, Pool, Service, Timeouts

RELEASE: KeyPath = ("release",)


def topology_of(service: str) -> KeyPath:
    """The place that decides a service's engine."""
    return ("services", service, "topology")


def protocols(profile: Profile) -> Iterator[Finding]:
    """Protocols that the engine of a service's topology does not speak."""
    for name, service in profile.services.items():
        refused = service.carried_by.protocols[service.protocol]
        if refused is not None:
            yield refusal(profile, refused, ("services", name, "protocol"), name)


def features(profile: Profile) -> Iterator[Finding]:
    """Keys of services, pools and servers that an engine does not carry."""
    for name, service in profile.services.items():
        for feature in _features_of_service(service):
            refused = service.carried_by.features[feature]
            if refused is not None:
                yield refusal(profile, refused, ("services", name, feature), name)
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
                    yield refusal(profile, refused, ("pools", name, *keys), user, pool=name)


def _features_of_service(service: Service) -> Iterator[Feature]:
    if service.timeouts != Timeouts():
        yield "timeouts"
    if service.limits is not None:
        yield "limits"
    if service.error_pages:
        yield "error_pages"
    if service.maintenance:
        yield "maintenance"
    if service.routes:
        yield "routes"
    if service.unknown_hosts != "pool":
        yield "unknown_hosts"


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
        if server.backup:
            yield "backup", ("servers", name, "backup")


def refusal(profile: Profile, refused: Refused, at: KeyPath, user: str, *, pool: str = "") -> Finding:
    """What an engine does not carry as an error. `user` is the service that asks for it, `pool` its pool."""
    service = profile.services[user]
    facts = {"service": user, "topology": service.topology, "pool": pool, "server": at[-2] if len(at) > 1 else ""}
    facts["or_topology"] = ", or topology: proxy" if service.proxiable else ""
    facts["or_write"] = ", or write topology: proxy" if service.proxiable else ""
    return error(
        refused.code, refused.why.format(**facts), at, refused.fix.format(**facts), other=topology_of(user),
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
                    other=topology_of(user), also=(("services", user),),
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


def checks(profile: Profile) -> Iterator[Finding]:
    """Checks, and keys of them, that the program which checks an engine's servers does not have."""
    for name, pool in profile.pools.items():
        at: KeyPath = ("pools", name, "check")
        for engine in ENGINES:
            users = profile.carried_services_of(engine, name)
            if not users:
                continue
            if engine.name not in pool.check.carried:
                yield _check_not_carried(profile, name, engine, users[0])
                continue
            for keys, refused in pool.check.refused(engine):
                yield refusal(profile, refused, (*at, *keys), users[0], pool=name)
            first = pool.check.carried[engine.name]
            if engine.is_in(profile.release) and profile.release.branch < first:
                yield error(
                    "check-of-release", f"pool {name}'s check is {pool.check.type}, and the {engine.checker} of "
                    f"OpenWrt {profile.release} has none",
                    at, f"use release {since(*first)}, or write type: script", other=RELEASE,
                )  # fmt: skip


def _check_not_carried(profile: Profile, pool: str, engine: Engine, user: str) -> Finding:
    check = profile.pools[pool].check
    has = next(e.checker for e in ENGINES if e.name in check.carried)
    return error(
        f"check-of-{engine.name}",
        f"pool {pool}'s check is {check.type}, which {has} has and {engine.checker}, behind service {user}, has not",
        ("pools", pool, "check"),
        f"write one of {', '.join(types_of(engine, profile.release))}, or a pool of its own for the service",
        other=("services", user), also=(topology_of(user),),
    )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (protocols, features, balance, checks)
