"""Cross-checks: TLS that passes through to the servers, and the pool chosen by the name in it (routes with `sni`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error


def contradictions(profile: Profile) -> Iterator[Finding]:
    """Keys of a service that have no place beside TLS that passes through."""
    for name in profile.haproxy_services:
        service = profile.services[name]
        number = next((n for n, route in enumerate(service.routes) if route.sni is not None), None)
        if number is None:
            continue
        at: KeyPath = ("services", name, "routes", number, "sni")
        if service.protocol != "tcp":
            yield error(
                "sni-needs-tcp",
                f"service {name} is {service.protocol}, and sni is for TLS that passes through to the servers",
                at, "write host instead of sni; or protocol: tcp, and no tls", other=("services", name, "protocol"),
            )  # fmt: skip
        elif service.tls is not None:
            yield error(
                "sni-and-tls", f"service {name} ends TLS, and sni is for TLS that passes through to the servers",
                at, "delete tls, and the servers' own certificates are shown; or write protocol: http, and host "
                "instead of sni", other=("services", name, "tls"),
            )  # fmt: skip
        if service.unknown_hosts == "tarpit" and service.protocol == "tcp":
            yield error(
                "tarpit-needs-http",
                f"service {name} is tcp, and only requests that are read as http can be kept waiting",
                ("services", name, "unknown_hosts"), "write unknown_hosts: refuse",
                other=("services", name, "protocol"),
            )  # fmt: skip


def pools(profile: Profile) -> Iterator[Finding]:
    """Pools that are asked in plain text, or to which HAProxy would speak TLS of its own around the clients'."""
    for name, pool in profile.pools.items():
        users = profile.haproxy_services_of(name)
        passing = next((s for s in users if profile.services[s].passes_tls), None)
        if passing is None:
            continue
        at, other = ("pools", name, "to_servers"), ("services", passing, "routes")
        if pool.speaks_tls:
            yield error(
                "tls-twice",
                f"service {passing} passes clients' TLS through to pool {name}, and to_servers would put another TLS "
                "around it",
                at, "delete to_servers, or write a pool of its own for the service", other=other,
            )  # fmt: skip
        elif pool.check.type == "http" and pool.check.port is None:
            yield error(
                "check-without-tls",
                f"service {passing} passes clients' TLS through to pool {name}, and the check asks its servers without",
                ("pools", name, "check"), "write check: https, or name the check's own port", other=other,
            )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (contradictions, pools)
