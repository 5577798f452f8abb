"""HAProxy's side of a profile: which frontends, backends, checks and sorry pages there are.

A pool becomes one backend for each way in which it is used (protocol and time-outs); the servers are checked by the
first one, the others follow it (`track`), so that no server is asked twice. Text is the template's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from ndakit.core.addresses import authority, literal
from ndakit.core.names import backend_name, frontend_name
from ndakit.model import Address, Check, Profile, Timeouts, sorry_pages
from ndakit.model import Server as PoolServer
from ndakit.model.capacity import (
    POOLS_CONNECTIONS,
    STATISTICS_CONNECTIONS,
    service_limits,
)
from ndakit.model.checks import HttpCheck
from ndakit.model.claimed_headers import CLAIMS, ClientClaims
from ndakit.model.terminators import Terminator
from ndakit.model.transparent import as_root
from ndakit.render.engines import host_names, persistence
from ndakit.render.engines.haproxy_limits import (
    FrontendLimits,
    StandIn,
    frontend_limits,
    shedding,
    stand_in,
)
from ndakit.render.engines.haproxy_tls import (
    CertificateList,
    FrontendTls,
    TlsDefaults,
    TrustFile,
    certificate_files,
    certificate_lists,
    defaults,
    frontend_tls,
    server_words,
    trust_files,
)
from ndakit.render.engines.host_names import Condition, HostForm, PassedTls, UnknownHosts
from ndakit.render.engines.persistence import KeptClients, TurnedAway
from ndakit.render.engines.redirects import RedirectRule, redirect_rules
from ndakit.render.node import NodeView

SORRY_FOLDER = "/etc/ndakit"
LOOPBACK = IPv4Address("127.0.0.1")
TOGETHER = "_together"
"""The table in which the connections of all services are counted."""


@dataclass(frozen=True)
class Bind:
    """One address and port (or range) to listen on."""

    address: Address
    ports: tuple[int, int]

    @property
    def socket(self) -> str:
        """As HAProxy writes it: `192.0.2.1:80`, `[2001:db8::1]:10000-10100`."""
        low, high = self.ports
        return f"{literal(self.address)}:{low}" if low == high else f"{literal(self.address)}:{low}-{high}"

    @property
    def ipv6(self) -> bool:
        """True for an IPv6 address."""
        return self.address.version == 6


@dataclass(frozen=True)
class Server:
    """A server line."""

    name: str
    socket: str
    weight: int
    max_connections: int | None
    track: str | None
    cookie: str | None
    """What a cookie calls it."""
    number: int | None
    """What a table calls it."""
    role: tuple[str, ...]
    """The words of a backup: no table keeps clients there once another server is back."""


@dataclass(frozen=True)
class Backend:
    """A backend: a pool as one or more services use it."""

    name: str
    pool: str
    service: str
    """The service for which it was made first."""
    protocol: str
    balance: str
    hashed: bool
    check: Check
    check_host: str
    check_encrypted: bool
    """The check goes over TLS, even to a port of its own: HAProxy takes `ssl` over for a check only where the check
    has neither port nor address (configuration manual, 5.2, "check-ssl")."""
    sni: str | None
    checked: bool
    retries: int
    slow_start_s: float | None
    kept: KeptClients | None
    """How its clients keep their servers."""
    turned_away: tuple[TurnedAway, ...]
    """Clients whose server has left, and who get no other one."""
    timeouts: Timeouts
    servers: tuple[Server, ...]
    sorry_file: str | None
    tls_words: tuple[str, ...]
    """What TLS to the servers adds to their lines."""
    transparent: bool = False
    """True if servers are connected to from the client's address (tproxy)."""
    forgets_gone: bool = False
    """True if a client that closes its connection gives its place up, because the queue is limited. Only for http: a
    client of tcp may have said all it has to say."""


@dataclass(frozen=True)
class FallbackRule:
    """Another backend for the time when no server of the ones named is left; with `addresses` only for clients that
    came to one of these, and with nothing but these for all of them."""

    backend: str
    empty: tuple[str, ...]
    addresses: tuple[Address, ...] = ()
    condition: str = ""
    """An ACL that must hold as well."""
    queue: tuple[str, int] | None = None
    """A backend and so many requests that must wait there as well."""


@dataclass(frozen=True)
class HostRoute:
    """Requests for some names: all conditions must hold."""

    conditions: tuple[Condition, ...]
    backend: str
    fallback_rules: tuple[FallbackRule, ...]


@dataclass(frozen=True)
class Frontend:
    """A frontend: one service."""

    name: str
    protocol: str
    binds: tuple[Bind, ...]
    behind: Terminator | None
    """Who ends TLS in front of it: nobody else comes to it."""
    backend: str | None
    fallback_rules: tuple[FallbackRule, ...]
    routes: tuple[HostRoute, ...]
    host_form: HostForm | None
    unknown: UnknownHosts | None
    passed: PassedTls | None
    """Clients' TLS passes through, and the name in it is looked at."""
    timeouts: Timeouts
    tls: FrontendTls | None
    redirects: tuple[RedirectRule, ...]
    """What answers every request; then there is no backend."""
    connections_max: int
    """Clients' connections at once; more of them wait in the kernel until HAProxy takes them."""
    limits: FrontendLimits


@dataclass(frozen=True)
class HaproxyView:
    """Everything haproxy.cfg needs beyond the node itself."""

    frontends: tuple[Frontend, ...]
    backends: tuple[Backend, ...]
    statistics: tuple[Bind, ...]
    sorry_pages: Mapping[str, tuple[str, bytes]]
    """Path on the node → (the profile's file, the whole HTTP response); those for errors as well."""
    stand_ins: tuple[StandIn, ...]
    """Backends that show what `sorry` says while servers are there."""
    tls: TlsDefaults | None
    """What is said of TLS for all; None where nobody speaks it."""
    certificates: Mapping[str, str]
    """Path on the node → the secret that becomes this file: certificate, chain and private key."""
    certificate_lists: tuple[CertificateList, ...]
    """Which certificates services show that have too many for a line."""
    trust_files: tuple[TrustFile, ...]
    connections_max: int
    """HAProxy's own limit: what the services may have together, and the reserve."""
    together: str
    """The table in which the services' connections are counted; empty where the sum of their limits cannot exceed what
    they may have together."""
    together_max: int
    buffer_bytes: int
    connection_bytes: int
    tls_sides: int
    transparent: bool = False
    """True if some servers are connected to from the client's address, which takes a right of root's."""
    as_root: bool = False
    """True if HAProxy has to stay root for that."""

    @property
    def memory_mib(self) -> int:
        """What the connections need at most: buffers and some bookkeeping each."""
        return -(-self.connections_max * self.connection_bytes // 2**20)

    @property
    def statistics_max(self) -> int:
        """Connections to the statistics page."""
        return STATISTICS_CONNECTIONS

    @property
    def pools_max(self) -> int:
        """Connections of keepalived's questions about pools."""
        return POOLS_CONNECTIONS

    @property
    def larger_buffers(self) -> bool:
        """True if its buffers are larger than they come."""
        return self.buffer_bytes != sorry_pages.BUFFER_BYTES

    @property
    def claims(self) -> ClientClaims:
        """The request headers in which clients could claim something about themselves."""
        return CLAIMS


_Backends = dict[tuple[str, str, Timeouts, KeptClients | None, int | None], Backend]


def haproxy(node: NodeView) -> HaproxyView:
    """HAProxy's view of a node."""
    profile = node.profile
    backends: _Backends = {}
    stand_ins: dict[str, StandIn] = {}
    frontends = tuple(_frontend(node, name, backends, stand_ins) for name in profile.haproxy_services)
    port = profile.monitoring.statistics.port
    shown = {b.pool for b in backends.values() if b.sorry_file is not None}
    pages = _sorry_pages(profile, shown | {s.pool for s in stand_ins.values() if s.sorry_file is not None})
    pages |= {page.path: (page.source, page.content) for f in frontends for page in f.limits.error_pages}
    size = node.capacity
    return HaproxyView(
        frontends=frontends,
        backends=tuple(backends.values()),
        # Only where access.sources can come from: an address of a family without sources would answer nobody.
        statistics=tuple(Bind(a, (port, port)) for a in node.addresses if profile.sources(a.version)),
        sorry_pages=pages,
        stand_ins=tuple(stand_ins.values()),
        tls=defaults(profile.release) if size.tls_sides else None,
        certificates=certificate_files(profile),
        certificate_lists=tuple(certificate_lists(profile, node.name)),
        trust_files=tuple(trust_files(profile)),
        connections_max=size.haproxy_max,
        together=TOGETHER if size.limited_together else "",
        together_max=size.together_max,
        buffer_bytes=size.buffer_bytes,
        connection_bytes=size.connection_bytes,
        tls_sides=size.tls_sides,
        transparent=any(b.transparent for b in backends.values()),
        as_root=as_root(profile),
    )


def _sorry_pages(profile: Profile, pools: set[str]) -> dict[str, tuple[str, bytes]]:
    """The pages of the pools that some http service can end up at."""
    pages: dict[str, tuple[str, bytes]] = {}
    for name, pool in profile.pools.items():
        if name in pools and pool.sorry is not None and pool.sorry.page is not None:
            pages[sorry_file(name)] = (pool.sorry.page.path, sorry_pages.response(pool.sorry.page.content))
    return pages


def sorry_file(pool: str) -> str:
    """Where a pool's sorry page lies on the node."""
    return f"{SORRY_FOLDER}/sorry-{pool}.http"


def _frontend(node: NodeView, name: str, backends: _Backends, stand_ins: dict[str, StandIn]) -> Frontend:
    profile = node.profile
    service = profile.services[name]
    way = (None, ()) if service.pool is None else _way(node, name, service.pool, backends, stand_ins)
    backend, fallback_rules = way
    connections_max = dict(service_limits(profile, node.capacity.usual_max))[name]
    return Frontend(
        name=frontend_name(name),
        protocol=service.protocol,
        binds=_binds(profile, name),
        behind=service.tls.ended_by if service.tls is not None and service.tls.ended_by.in_front else None,
        backend=backend,
        fallback_rules=fallback_rules,
        routes=tuple(_route(node, name, number, backends, stand_ins) for number in range(len(service.routes))),
        host_form=host_names.form(service) if service.protocol == "http" else None,
        unknown=host_names.unknown(service),
        passed=host_names.passed(service),
        timeouts=service.timeouts,
        tls=frontend_tls(name, service, profile.release),
        redirects=redirect_rules(profile, name),
        connections_max=connections_max,
        limits=frontend_limits(profile, name, node.capacity.sessions_per_second, connections_max),
    )


def _binds(profile: Profile, name: str) -> tuple[Bind, ...]:
    """Where a service's frontend listens: on its VIPs, or behind who ends TLS in front of it."""
    inner = profile.inner_ports.get(name)
    if inner is not None:
        return (Bind(LOOPBACK, (inner, inner)),)
    return tuple(Bind(e.address, ports) for e in profile.endpoints(name) for ports in e.ports)


def _way(
    node: NodeView, name: str, pool: str, backends: _Backends, stand_ins: dict[str, StandIn]
) -> tuple[str, tuple[FallbackRule, ...]]:
    """The backend of a pool of a service, and the others that are asked before it: where it is empty, where its
    clients get what its `sorry` says all the same, and where a client came by another family."""
    profile = node.profile
    chain, endpoints = _chain(profile, pool), profile.endpoints(name)
    families: list[int | None] = [None]
    if profile.services[name].transparent:  # from a client's address to a server's of the same family
        families = [*sorted({e.address.version for e in endpoints})]
    names = {v: [_backend(node, name, one, backends, v).name for one in chain] for v in families}
    fallback_rules: list[FallbackRule] = []
    for version in reversed(families):
        first = version == families[0]
        came_to = () if first else tuple(dict.fromkeys(e.address for e in endpoints if e.address.version == version))
        ours = names[version]
        for shed in shedding(profile.services[name]):
            queue = None if shed.queue_max is None else (ours[0], shed.queue_max)
            instead = ours[1:] or [_stand_in(profile, name, pool, stand_ins).name]
            fallback_rules += [
                FallbackRule(instead[i], tuple(instead[:i]), came_to, shed.condition, queue)
                for i in range(len(instead) - 1, -1, -1)
            ]
        # The last resort first: HAProxy takes the first rule that holds.
        fallback_rules += [
            FallbackRule(ours[i], tuple(ours[:i]), came_to) for i in range(len(ours) - 1, -1 if came_to else 0, -1)
        ]
    return names[families[0]][0], tuple(fallback_rules)


def _stand_in(profile: Profile, service: str, pool: str, stand_ins: dict[str, StandIn]) -> StandIn:
    """The backend without servers for a pool without a sorry pool."""
    protocol, sorry = profile.services[service].protocol, profile.pools[pool].sorry
    page = sorry is not None and sorry.page is not None and protocol == "http"
    made = stand_in(pool, protocol, sorry_file(pool) if page else None)
    return stand_ins.setdefault(made.name, made)


def _route(node: NodeView, service: str, number: int, backends: _Backends, stand_ins: dict[str, StandIn]) -> HostRoute:
    route = node.profile.services[service].routes[number]
    backend, fallback_rules = _way(node, service, route.pool, backends, stand_ins)
    return HostRoute(host_names.conditions(route, number + 1), backend, fallback_rules)


def _chain(profile: Profile, pool: str) -> list[str]:
    """A pool, its sorry pool, that one's sorry pool and so on; a circle ends where it began."""
    chain = [pool]
    while (sorry := profile.pools[chain[-1]].sorry) is not None and sorry.pool is not None:
        if sorry.pool in chain:
            break
        chain.append(sorry.pool)
    return chain


def _backend(node: NodeView, service: str, pool: str, backends: _Backends, version: int | None) -> Backend:
    """The backend by which a service uses a pool; `version`: for clients of an IP version, with their addresses."""
    profile = node.profile
    settings, user = profile.pools[pool], profile.services[service]
    relevant = user.timeouts.model_copy(update={"client_s": Timeouts().client_s})
    kept = persistence.kept(node, service, pool)
    key = (pool, user.protocol, relevant, kept, version)
    if key in backends:
        return backends[key]
    sockets = {n: _socket(_address(s, version), profile.server_port(pool, s)) for n, s in settings.servers.items()}
    others = [b for b in backends.values() if b.pool == pool]
    second = any(b.service == service for b in others)
    # Another address of a server is checked by itself.
    checks = (b for b in others if b.checked and {s.name: s.socket for s in b.servers} == sockets)
    first = next(checks, None)
    name = backend_name(pool, service if others else None, f"ipv{version}" if second else "")
    numbers = persistence.server_numbers(settings.servers) if kept is not None and kept.table is not None else {}
    page = settings.sorry is not None and settings.sorry.page is not None and user.protocol == "http"
    backends[key] = Backend(
        name=name,
        pool=pool,
        service=service,
        protocol=user.protocol,
        balance=settings.balance,
        hashed=settings.balance in ("source", "uri"),
        check=settings.check,
        check_host=_check_host(profile, pool),
        check_encrypted=settings.check.encrypted or (settings.speaks_tls and not settings.check.states_encryption),
        sni=_host_stated(settings.check) or next(iter(_names(profile, pool)), None),
        checked=first is None,
        retries=settings.retries,
        slow_start_s=settings.slow_start_s,
        kept=kept,
        turned_away=persistence.turned_away(kept, name, first.name if first is not None else name, settings.servers),
        timeouts=relevant,
        servers=tuple(
            Server(
                name=label,
                socket=sockets[label],
                weight=server.weight,
                max_connections=server.max_connections,
                track=None if first is None else f"{first.name}/{label}",
                cookie=label if kept is not None and kept.cookie else None,
                number=numbers.get(label),
                role=_role(server, kept),
            )
            for label, server in settings.servers.items()
        ),
        sorry_file=sorry_file(pool) if page else None,
        tls_words=server_words(profile, pool),
        transparent=version is not None,
        forgets_gone=user.protocol == "http" and _queue_limited(profile, pool),
    )
    return backends[key]


def _queue_limited(profile: Profile, pool: str) -> bool:
    """True if a service that uses a pool limits the queue."""
    limits = (profile.services[name].limits for name in profile.haproxy_services_of(pool))
    return any(one is not None and one.queue is not None for one in limits)


def _role(server: PoolServer, kept: persistence.KeptClients | None) -> tuple[str, ...]:
    """What a server line says of a backup."""
    if not server.backup:
        return ()
    return ("backup", "non-stick") if kept is not None and kept.table is not None else ("backup",)


def _address(server: PoolServer, version: int | None) -> Address:
    """Where a server is asked: at its address of an IP version, or at the one stated first."""
    return (None if version is None else server.address_of(version)) or server.address[0]


def _socket(address: Address, port: int | None) -> str:
    """Where a server listens; without a port HAProxy uses the one that the client asked for."""
    return literal(address) if port is None else authority(address, port)


def _check_host(profile: Profile, pool: str) -> str:
    """The Host of a pool's http check: its own, else the first name of its services, else what clients then type."""
    own = _host_stated(profile.pools[pool].check)
    if own is not None:
        return own
    names, first = _names(profile, pool), profile.haproxy_services_of(pool)[0]
    return names[0] if names else literal(profile.endpoints(first)[0].address)


def _host_stated(check: Check) -> str | None:
    return check.host if isinstance(check, HttpCheck) else None


def _names(profile: Profile, pool: str) -> list[str]:
    """The names by which clients reach a pool."""
    return [name for s in profile.haproxy_services_of(pool) for name in profile.services[s].names_for(pool)]
