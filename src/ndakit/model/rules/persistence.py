"""Cross-checks: ways to keep a client's server that a service, its engine or the release cannot have, and those that
would keep nobody and say nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ndakit.core.mistakes import KeyPath
from ndakit.core.release import since
from ndakit.model.claimed_headers import CLAIMS
from ndakit.model.engines import ENGINES
from ndakit.model.http import covers
from ndakit.model.persistence import TYPES, CookiePersistence, HeaderPersistence, Persistence, SourcePersistence
from ndakit.model.profile import Profile
from ndakit.model.rules.engines import RELEASE, refusal, topology_of
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.traffic import Service

ONLY_SECURE = ("__Secure-", "__Host-")
"""How names of cookies begin that browsers take over TLS only, with the attribute Secure (RFC 6265bis, 4.1.3)."""

SET_BY_US = frozenset({"x-forwarded-for"})
"""Headers that HAProxy deletes, and then sets to what it knows of the client."""
SET_OF_CERTIFICATES = frozenset(
    {"x-ssl-client-dn", "x-ssl-client-issuer-dn", "x-ssl-client-serial", "x-ssl-client-sha1"}
)
"""The same, where clients have certificates."""
OF_CONNECTION = frozenset({
    "connection", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
"""Headers for the next hop only (RFC 9110, 7.6.1)."""


@dataclass(frozen=True)
class Use:
    """One pool of a service whose clients are kept, and the place that says how."""

    name: str
    service: Service
    pool: str
    kept: Persistence
    at: KeyPath

    @property
    def also(self) -> tuple[KeyPath, ...]:
        """Places beside the persistence that a finding depends on."""
        return (("services", self.name), ("pools", self.pool))


def uses(profile: Profile) -> Iterator[Use]:
    """Every persistence of every service: in its own pools and, by HAProxy, in those that stand in for them."""
    for name, service in profile.services.items():
        passed: set[str] = set()
        for first in service.pools:
            pool: str | None = first
            while pool in profile.pools and pool not in passed:
                passed.add(pool)
                settings = profile.pools[pool]
                own = service.persistence if pool in service.pools else None
                kept = own or settings.persistence
                if kept is not None:
                    holder: KeyPath = ("services", name) if own is not None else ("pools", pool)
                    yield Use(name, service, pool, kept, (*holder, "persistence"))
                chained = settings.sorry is not None and service.carried_by.opens_sockets
                pool = settings.sorry.pool if settings.sorry is not None and chained else None


def _once(profile: Profile) -> Iterator[Use]:
    """The same, a service's own word only once however many pools it has."""
    told: set[tuple[str, KeyPath]] = set()
    for use in uses(profile):
        if (use.name, use.at) not in told:
            told.add((use.name, use.at))
            yield use


def carried(profile: Profile) -> Iterator[Finding]:
    """Types, and keys of them, that the service's engine or protocol does not have."""
    for use in _once(profile):
        engine = use.service.carried_by
        if use.kept.type not in engine.persistence:
            able = next((e for e in ENGINES if use.kept.type in e.persistence), None)
            topologies = " or ".join(able.topologies) if able is not None else ""
            does = f", which {able.title} does and {engine.title} does not" if able else f", not by {engine.title}"
            yield error(
                "persistence-of-engine", f"service {use.name} keeps its clients' servers by {use.kept.type}{does}",
                (*use.at, "type"),
                f"write type: {', '.join(engine.persistence)}" + (f", or topology: {topologies}" if able else ""),
                other=topology_of(use.name), also=use.also,
            )  # fmt: skip
            continue
        refused = engine.features["persistence.on_failure"]
        if use.kept.refuses and refused is not None:
            yield refusal(profile, refused, (*use.at, "on_failure"), use.name)
        if use.service.protocol not in use.kept.protocols:
            others = " or ".join(use.kept.protocols)
            fits = [word for word in engine.persistence if use.service.protocol in TYPES[word].protocols]
            elsewhere = ""
            if use.at[0] == "pools":
                own = use.pool in use.service.pools
                elsewhere = f", state one in service {use.name}" if own else ", take a pool of its own"
            yield error(
                "persistence-of-protocol",
                f"service {use.name} is {use.service.protocol}, and its pool {use.pool} keeps clients by "
                f"{use.kept.type}, which needs {others}",
                (*use.at, "type"),
                f"write type: {' or '.join(fits)}{elsewhere}, or write protocol: {others}",
                other=("services", use.name, "protocol"), also=use.also,
            )  # fmt: skip


def of_release(profile: Profile) -> Iterator[Finding]:
    """What the release's HAProxy does not know."""
    for use in _once(profile):
        if not use.service.carried_by.opens_sockets:
            continue
        kept, release = use.kept, profile.release
        if isinstance(kept, SourcePersistence) and kept.netmask_ipv6 != 128 and not release.haproxy_ipv6_masks:
            yield error(
                "netmask-of-release", f"service {use.name} counts {kept.netmask_ipv6} bits of an IPv6 address, "
                f"and the HAProxy of OpenWrt {release} (1.8) has masks for IPv4 only",
                (*use.at, "netmask_ipv6"), f"delete it, or use release {since(19, 7)}", other=RELEASE,
            )  # fmt: skip
        site = isinstance(kept, CookiePersistence) and kept.same_site is not None
        if site and not release.haproxy_cookie_attributes:
            yield error(
                "same-site-of-release", f"the cookie of service {use.name} has same_site, which the HAProxy of "
                f"OpenWrt {release} cannot say",
                (*use.at, "same_site"),
                f"leave it out (browsers then take lax), or use release {since(21, 2)}", other=RELEASE,
            )  # fmt: skip


def secure(profile: Profile) -> Iterator[Finding]:
    """Cookies that browsers drop, do not send back, or show to everybody on the way."""
    for use in _once(profile):
        kept, tls = use.kept, use.service.tls is not None
        if not isinstance(kept, CookiePersistence) or use.service.protocol not in kept.protocols:
            continue
        if tls and kept.secure is False:
            yield error(
                "cookie-not-secure",
                f"service {use.name} speaks TLS, and its cookie {kept.name} is not secure: browsers send it without "
                "TLS as well",
                (*use.at, "secure"), "leave secure out", other=("services", use.name, "tls"), also=use.also,
            )  # fmt: skip
        if not tls and kept.secure:
            yield warning(
                "secure-without-tls",
                f"service {use.name} has no TLS, and its cookie {kept.name} is for TLS only: browsers do not send it "
                "back, and nobody is kept, unless a proxy before the balancer ends TLS",
                (*use.at, "secure"), "leave secure out", other=("services", use.name), also=use.also,
            )  # fmt: skip
        insert = kept.mode == "insert" and not kept.secure_for(tls=tls)
        if insert and kept.same_site == "none":
            yield error(
                "same-site-without-tls",
                f"service {use.name} has no TLS, and browsers drop cookies with SameSite=None that are not secure",
                (*use.at, "same_site"), "write same_site: lax, or give the service tls", other=("services", use.name),
                also=use.also,
            )  # fmt: skip
        if insert and kept.name.startswith(ONLY_SECURE):
            yield error(
                "cookie-prefix-without-tls",
                f"service {use.name} has no TLS, and browsers drop a cookie {kept.name} that is not secure",
                (*use.at, "name"), "choose a name without __Host- and __Secure-, or give the service tls",
                other=("services", use.name), also=use.also,
            )  # fmt: skip


def headers(profile: Profile) -> Iterator[Finding]:
    """Headers that are not there any more when a server is chosen, or are about the connection alone."""
    for use in _once(profile):
        kept, clients = use.kept, use.service.tls.client_certificates if use.service.tls is not None else None
        if not isinstance(kept, HeaderPersistence) or use.service.protocol not in kept.protocols:
            continue
        name = kept.name.lower()
        if name in SET_BY_US or (clients is not None and name in SET_OF_CERTIFICATES):
            continue
        why = ""
        if CLAIMS.covers(name):
            why = "HAProxy takes out of every request, because a client could claim something by it"
        elif name in OF_CONNECTION:
            why = "is about the connection and not about the client"
        if why:
            yield error(
                "header-not-there", f"service {use.name} keeps its clients' servers by the header {kept.name}, which "
                f"{why}: nobody would be kept",
                (*use.at, "name"), "choose another header, such as X-User, or write type: cookie or source",
                other=("services", use.name), also=use.also,
            )  # fmt: skip


def tls_sessions(profile: Profile) -> Iterator[Finding]:
    """`tls-session` where HAProxy ends TLS itself, and what it cannot do anywhere."""
    for use in _once(profile):
        if use.kept.type != "tls-session" or use.service.protocol not in use.kept.protocols:
            continue
        if use.service.tls is not None:
            yield error(
                "tls-session-of-ours",
                f"TLS of service {use.name} ends at the balancer, so that its servers have no TLS sessions with "
                "clients",
                (*use.at, "type"), "write type: source, or leave tls out: then the servers end TLS",
                other=("services", use.name, "tls"), also=use.also,
            )  # fmt: skip
        else:
            yield warning(
                "tls-session-1-3",
                f"service {use.name} keeps clients by their TLS session, which TLS 1.3 does not show: clients and "
                "servers that agree on 1.3, or on tickets, are not kept",
                (*use.at, "type"),
                "switch TLS 1.3 and session tickets off on the servers and ignore this, or write type: source",
                also=use.also,
            )  # fmt: skip


def one_name_for_two(profile: Profile) -> Iterator[Finding]:
    """Two pools whose clients get a cookie of one name under one host name: browsers keep one of the two, so that each
    visit of the one pool makes them forget their server of the other (cookies know no ports: RFC 6265, 8.5)."""
    named = [
        (use, use.kept) for use in uses(profile)
        if isinstance(use.kept, CookiePersistence) and use.kept.mode != "existing" and use.service.protocol == "http"
        and use.pool in use.service.pools  # not those that stand in: by then the others have no server to lose
    ]  # fmt: skip
    told: set[frozenset[str]] = set()
    for (one, first), (other, second) in itertools.combinations(named, 2):
        pair = frozenset((one.pool, other.pool))
        if first.name != second.name or len(pair) == 1 or pair in told:
            continue
        where, sure = _where_both(one, other)
        if not where:
            continue
        told.add(pair)
        make = error if sure else warning
        may = "" if sure else " if clients ask for both by one host name"
        yield make(
            "cookie-name-twice",
            f"pools {one.pool} and {other.pool} both set a cookie {first.name} under {where}{may}: browsers keep one "
            "of them, and clients lose their server",
            (*other.at, "name") if other.at != one.at else ("services", other.name, "persistence"),
            "give one of the two another cookie name"
            + ("" if other.at != one.at else ": state a persistence in each pool instead of the service"),
            other=(*one.at, "name") if other.at != one.at else ("pools", one.pool), also=(*one.also, *other.also),
        )  # fmt: skip


def _where_both(one: Use, other: Use) -> tuple[str, bool]:
    """A host name under which clients reach both pools, or a VIP; and whether that is sure. Empty if there is none."""
    ours, theirs = _names_of(one), _names_of(other)
    for mine, yours in itertools.product(ours, theirs):
        if covers(mine, yours) or covers(yours, mine):
            return (yours if mine.startswith("*") else mine), True
    vips = [vip for vip in one.service.vip if vip in other.service.vip]
    if vips and not (ours and theirs) and one.name != other.name:
        return f"VIP {vips[0]}", False
    return "", False


def _names_of(use: Use) -> tuple[str, ...]:
    """The host names, with wildcards, by which clients of a service reach one of its pools."""
    routed = [name for route in use.service.routes if route.pool == use.pool for name in route.host or ()]
    own = use.service.hostnames if use.pool == use.service.pool else ()
    return tuple(dict.fromkeys((*routed, *own)))


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    carried,
    of_release,
    secure,
    headers,
    tls_sessions,
    one_name_for_two,
)
