"""Limits of HAProxy's services, what clients get beyond them, and pages for errors.

Who is to get what the pool's `sorry` says (in maintenance, above the rate, when the queue is full) is sent to another
backend: the sorry pool, or a backend without servers, which answers everybody with its page for 503.
"""

from __future__ import annotations

from dataclasses import dataclass

from ndakit.core.names import stand_in_name
from ndakit.model import Profile, Service, Subnet, sorry_pages
from ndakit.model.capacity import clients_counted
from ndakit.model.http import TARPIT_S

FOLDER = "/etc/ndakit"
CLIENT_PREFIXES = (32, 64)
"""How many bits of an IPv4 and of an IPv6 address are a client: whoever has an IPv6 address has its whole /64."""

ADMINS, TOO_OFTEN = "access-sources", "too-often"
"""Names of ACLs: who is spared from maintenance, and who is above the rate."""


@dataclass(frozen=True)
class ClientTable:
    """What HAProxy remembers of each client of a service."""

    family: str
    size: int
    expire_s: int
    stores: tuple[str, ...]
    key: str
    early: str
    """Where connections are counted, so that a client is known before it asks: `connection`, as soon as it connects,
    or `session`, as soon as the program in front has told who it is; empty where they are not counted."""


@dataclass(frozen=True)
class RequestRule:
    """How many requests a client may make in a period, and what becomes of others."""

    count: int
    per_s: int
    action: str


@dataclass(frozen=True)
class ErrorPage:
    """What clients get with a status of HAProxy's own."""

    status: int
    path: str
    source: str
    """The file as the profile names it."""
    content: bytes


@dataclass(frozen=True)
class StandIn:
    """A backend without servers: what `sorry` of a pool says, while its servers are well."""

    name: str
    pool: str
    protocol: str
    sorry_file: str | None


@dataclass(frozen=True)
class FrontendLimits:
    """The limits of one service, beside its connections."""

    connections_per_s: int | None
    client_connections: int | None
    clients: ClientTable | None
    requests: RequestRule | None
    body_bytes: int | None
    tarpit_s: float | None
    """How long a request stays in the tarpit; None without one."""
    maintenance: bool
    spared: tuple[Subnet, ...]
    """Who is not in maintenance."""
    error_pages: tuple[ErrorPage, ...]


@dataclass(frozen=True)
class Shedding:
    """When clients of a service get what a pool's `sorry` says although it has servers."""

    condition: str
    """An ACL, perhaps with `!`; empty where only the queue counts."""
    queue_max: int | None = None


def frontend_limits(profile: Profile, name: str, rate: float, connections_max: int) -> FrontendLimits:
    """The limits of a service with so many connections at most, on a node with so many sessions per second."""
    service, limits = profile.services[name], profile.services[name].limits
    requests = limits.requests if limits is not None else None
    connections = limits.connections if limits is not None else None
    body_kib = limits.body_kib if limits is not None else None
    tarpit = service.unknown_hosts == "tarpit" or (requests is not None and requests.on_excess == "tarpit")
    return FrontendLimits(
        connections_per_s=connections.per_s if connections is not None else None,
        client_connections=connections.per_client if connections is not None else None,
        clients=_clients(profile, name, rate, connections_max),
        requests=None if requests is None else RequestRule(requests.count, requests.per_s, requests.on_excess),
        body_bytes=None if body_kib is None else body_kib * 1024,
        tarpit_s=TARPIT_S if tarpit else None,
        maintenance=service.maintenance,
        spared=tuple(s for v in (4, 6) for s in profile.sources(v)) if service.maintenance else (),
        error_pages=tuple(
            ErrorPage(
                int(status), f"{FOLDER}/error-{name}-{status}.http", page.path,
                sorry_pages.response(page.content, int(status)),
            )
            for status, page in sorted(service.error_pages.items())
        ),
    )  # fmt: skip


def _clients(profile: Profile, name: str, rate: float, connections_max: int) -> ClientTable | None:
    limits = profile.services[name].limits
    size = clients_counted(profile, name, rate, connections_max)
    if limits is None or not size:
        return None
    counted = limits.connections is not None and limits.connections.per_client is not None
    tls = profile.services[name].tls
    behind = tls is not None and tls.ended_by.tells_client == "proxy-protocol"
    early = "" if not counted else "session" if behind else "connection"
    requests = limits.requests
    stores = (*(("conn_cur",) if early else ()), *(() if requests is None else (f"http_req_rate({requests.per_s}s)",)))
    ipv6 = any(e.address.version == 6 for e in profile.endpoints(name))
    masked = ipv6 and profile.release.haproxy_ipv6_masks
    return ClientTable(
        family="ipv6" if ipv6 else "ip",
        size=size,
        expire_s=2 * requests.per_s if requests is not None else 60,
        stores=stores,
        key=f"src,ipmask({CLIENT_PREFIXES[0]},{CLIENT_PREFIXES[1]})" if masked else "src",
        early=early,
    )


def shedding(service: Service) -> tuple[Shedding, ...]:
    """When clients of a service get what a pool's `sorry` says although it has servers."""
    limits = service.limits
    when = [Shedding(f"!{ADMINS}")] if service.maintenance else []
    if limits is not None and limits.requests is not None and limits.requests.on_excess == "sorry":
        when.append(Shedding(TOO_OFTEN))
    if limits is not None and limits.queue is not None:
        when.append(Shedding("", limits.queue.length))
    return tuple(when)


def stand_in(pool: str, protocol: str, sorry_file: str | None) -> StandIn:
    """The backend that says what a pool without a sorry pool has to say."""
    return StandIn(stand_in_name(pool, protocol), pool, protocol, sorry_file)
