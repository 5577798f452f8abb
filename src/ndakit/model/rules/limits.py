"""Cross-checks: limits of services, pages for errors, maintenance, and what has to be there so that they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.core.release import since
from ndakit.model.limits import ERROR_STATUSES
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.sorry_pages import fault as page_fault
from ndakit.model.terminators import TERMINATORS
from ndakit.model.traffic import Service

BODY_SINCE = (22, 3)
"""The first release whose HAProxy (2.4) waits for the beginning of a body and has a status 413."""


def _haproxy_services(profile: Profile) -> Iterator[tuple[str, Service]]:
    return ((name, profile.services[name]) for name in profile.haproxy_services)


def need_http(profile: Profile) -> Iterator[Finding]:
    """Limits of requests, and pages, of services that are tcp."""
    for name, service in _haproxy_services(profile):
        if service.protocol == "http":
            continue
        at: KeyPath = ("services", name)
        stated: list[tuple[KeyPath, str]] = []
        if service.limits is not None and service.limits.requests is not None:
            stated.append(((*at, "limits", "requests"), "counts requests; for tcp write limits.connections.per_client"))
        if service.limits is not None and service.limits.body_kib is not None:
            stated.append(((*at, "limits", "body_kib"), "measures bodies of requests"))
        if service.error_pages:
            stated.append(((*at, "error_pages"), "are answers to http requests"))
        for path, why in stated:
            yield error(
                "limit-needs-http", f"service {name} is tcp, and {path[-1]} {why}", path,
                "write protocol: http, or delete it", other=(*at, "protocol"),
            )  # fmt: skip


def body(profile: Profile) -> Iterator[Finding]:
    """A limit for bodies that the release's HAProxy cannot keep."""
    for name, service in _haproxy_services(profile):
        stated = service.limits is not None and service.limits.body_kib is not None
        if stated and profile.release.branch < BODY_SINCE:
            yield error(
                "body-limit-of-release",
                f"service {name} limits the body of requests, and the HAProxy of OpenWrt {profile.release} does not "
                "wait for a body to look at it",
                ("services", name, "limits", "body_kib"),
                f"use release {since(*BODY_SINCE)}, or delete it and let the servers limit it", other=("release",),
            )  # fmt: skip


def per_client(profile: Profile) -> Iterator[Finding]:
    """Connections of one client where another program takes all of them, and tells HAProxy who the client is with each
    request only. Where it tells by the PROXY protocol, HAProxy counts when it has read that (configuration manual,
    4.2, "tcp-request session")."""
    behind = [t for t in profile.terminators if t.tells_client == "header"]
    able = " or ".join(t.name for t in TERMINATORS.values() if t.tells_client != "header")
    for name, terminator in ((n, t) for t in behind for n in profile.terminated_services(t)):
        limits = profile.services[name].limits
        if limits is not None and limits.connections is not None and limits.connections.per_client is not None:
            other = ", or limits.requests, which counts by the client's own address"
            yield error(
                f"per-client-behind-{terminator.name}",
                f"service {name} limits the connections of a client, and HAProxy sees only "
                f"{terminator.title}'s",
                ("services", name, "limits", "connections", "per_client"),
                f"write terminator: {able}{other if profile.services[name].protocol == 'http' else ''}",
                other=("services", name, "tls", "terminator"),
            )  # fmt: skip


def _sheds(service: Service) -> Iterator[tuple[KeyPath, str]]:
    """Where a service says that clients get the pool's sorry, and when they get it."""
    if service.maintenance:
        yield ("maintenance",), "in maintenance"
    limits = service.limits
    if limits is not None and limits.requests is not None and limits.requests.on_excess == "sorry":
        yield ("limits", "requests", "on_excess"), "who asks too often"


def sorry(profile: Profile) -> Iterator[Finding]:
    """Services whose clients are to get what `sorry` says where a pool has none, or where there is no pool."""
    for name, service in _haproxy_services(profile):
        at: KeyPath = ("services", name)
        wanted = [(keys, f"{when} clients get what the pool's sorry says") for keys, when in _sheds(service)]
        if service.limits is not None and service.limits.queue is not None and service.pool is None:
            wanted.append((("limits", "queue"), "requests wait for servers of a pool"))
        for keys, what in wanted:
            if service.pool is None:
                yield error(
                    "redirect-without-pool", f"service {name}: {what}, and it redirects every request and has no pool",
                    (*at, *keys), "delete it", other=(*at, "redirect"),
                )  # fmt: skip
                continue
            for pool in service.pools:
                if pool in profile.pools and profile.pools[pool].sorry is None:
                    page = "{page: sorry.html}, or {pool: …}" if service.protocol == "http" else "{pool: …}"
                    yield error(
                        "sorry-missing", f"service {name}: {what}, and pool {pool} has none",
                        (*at, *keys), f"add sorry: {page} to the pool, or delete it", other=("pools", pool),
                        also=((*at, "routes"), (*at, "pool")),
                    )  # fmt: skip


def nobody_is_stranger(profile: Profile) -> Iterator[Finding]:
    """Maintenance where `access.sources` are everybody."""
    everybody = next(((n, i) for n, its in profile.access.sources.items() for i in its if not i.prefixlen), None)
    for name, service in _haproxy_services(profile):
        if service.maintenance and everybody is not None:
            source, subnet = everybody
            yield warning(
                "maintenance-for-nobody",
                f"service {name} is in maintenance, and access.sources ({source}: {subnet}) are everybody: nobody "
                "gets the sorry page",
                ("services", name, "maintenance"), "narrow access.sources to the networks of your admins",
                other=("access", "sources", source),
            )  # fmt: skip


def queue(profile: Profile) -> Iterator[Finding]:
    """A limit of the queue for servers at which nobody waits."""
    for name, service in _haproxy_services(profile):
        if service.limits is None or service.limits.queue is None:
            continue
        for pool in service.pools:
            servers = profile.pools[pool].servers if pool in profile.pools else {}
            endless = next((n for n, s in servers.items() if s.share and s.max_connections is None), None)
            if endless is not None:
                yield warning(
                    "queue-of-nobody",
                    f"service {name} limits the queue, and server {endless} of pool {pool} takes any number of "
                    "connections: nobody waits for it",
                    ("services", name, "limits", "queue"), f"state max_connections for the servers of {pool}",
                    other=("pools", pool, "servers", endless),
                )  # fmt: skip


def error_pages(profile: Profile) -> Iterator[Finding]:
    """Pages that HAProxy cannot send, or never sends."""
    for name, service in _haproxy_services(profile):
        for status, page in service.error_pages.items():
            at: KeyPath = ("services", name, "error_pages", status)
            if (fault := page_fault(page.content)) is not None:
                code, what, fix = fault
                yield error(f"error-page-{code}", f"the page {page.path} {what}", at, fix)
            elif why := _never(profile, service, int(status)):
                yield warning(
                    "error-page-unused",
                    f"service {name} has a page for status {status}, which HAProxy does not send here: {why}",
                    at, "delete it; a server's own answers reach clients as they are",
                    other=("release",) if status == "403" else None, also=(("services", name), ("pools",)),
                )  # fmt: skip


def _never(profile: Profile, service: Service, status: int) -> str:
    """Why HAProxy never sends a status of its own for a service; empty if it can."""
    limits, pools = service.limits, [p for p in service.pools if p in profile.pools]
    by_rate = limits is not None and limits.requests is not None and limits.requests.on_excess == "429"
    can = {
        403: not profile.release.haproxy_header_patterns and bool(pools),
        413: limits is not None and limits.body_kib is not None,
        421: service.unknown_hosts == "refuse",
        429: by_rate,
        **dict.fromkeys((502, 503, 504), bool(pools)),
    }
    pages = [pool for name in pools if (pool := profile.pools[name].sorry) is not None and pool.page is not None]
    if status == 503 and pools and len(pages) == len(pools):
        return "the pool's sorry page takes its place"
    return "" if can.get(status, True) else f"it would if {ERROR_STATUSES[status]}"


def retries(profile: Profile) -> Iterator[Finding]:
    """Pools in which one server that fails shows the sorry page."""
    for name, pool in profile.pools.items():
        page = pool.sorry is not None and pool.sorry.page is not None
        if page and not pool.retries and len(pool.servers) > 1 and profile.haproxy_services_of(name):
            yield warning(
                "sorry-without-retries",
                f"pool {name} has a sorry page and retries: 0: clients get the page whenever one server refuses a "
                "connection, although the others are well",
                ("pools", name, "retries"), "leave retries out (3, each with another server)",
                other=("pools", name, "sorry"), also=(("services",),),
            )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    need_http, body, per_client, sorry, nobody_is_stranger, queue, error_pages, retries,
)  # fmt: skip
