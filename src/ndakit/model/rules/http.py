"""Cross-checks: what routes by name, and what becomes of unknown names, mean beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.model.http import HostRoute, covers, matches
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error


def names_need_http(profile: Profile) -> Iterator[Finding]:
    """Routes by host and unknown hosts of services that are not read as http."""
    for name in profile.haproxy_services:
        service = profile.services[name]
        by_host = any(route.sni is None for route in service.routes)
        unknown = service.unknown_hosts != "pool" and not service.passes_tls
        for key in (key for key, wanted in {"routes": by_host, "unknown_hosts": unknown}.items() if wanted):
            if service.protocol != "http":
                passing = "" if service.tls is not None else (
                    "write sni instead of host, if clients speak TLS and it passes through to the servers; else "
                    if key == "routes" else "add routes by sni, if clients speak TLS and it passes through; else "
                )  # fmt: skip
                yield error(
                    "routes-need-http",
                    f"service {name} is {service.protocol}, where no Host header can be read",
                    ("services", name, key), f"{passing}write protocol: http, or delete {key}",
                    other=("services", name, "protocol"),
                )  # fmt: skip


def everybody_unknown(profile: Profile) -> Iterator[Finding]:
    """Services that turn unknown names away and know none."""
    for name, service in profile.services.items():
        if service.unknown_hosts != "pool" and not service.hostnames and not service.routes:
            yield error(
                "no-known-host", f"service {name} knows no name, so unknown_hosts: {service.unknown_hosts} would be "
                "for everybody",
                ("services", name, "unknown_hosts"), "add hostnames: [NAME], or delete unknown_hosts",
                also=(("services", name),),
            )  # fmt: skip


def hidden_routes(profile: Profile) -> Iterator[Finding]:
    """Routes that never count, because an earlier one takes all their names."""
    for name, service in profile.services.items():
        for number, route in enumerate(service.routes):
            before = next((n for n, other in enumerate(service.routes[:number]) if _hides(other, route)), None)
            at: KeyPath = ("services", name, "routes", number)
            if before is not None:
                yield error(
                    "route-hidden", f"no request of service {name} comes to the route to pool {route.pool}: an earlier "
                    f"one, to pool {service.routes[before].pool}, takes all its names",
                    at, "write the narrower route first, or delete one of the two",
                    other=("services", name, "routes", before), also=(("services", name),),
                )  # fmt: skip


def _hides(earlier: HostRoute, later: HostRoute) -> bool:
    """True if every name of the later route is one of the earlier's, as far as that can be told from the texts."""
    if not later.names:
        same = set(later.host_regex or ()) <= set(earlier.host_regex or ())
        return not earlier.names and same
    return all(
        (not earlier.names or any(covers(own, name) for own in earlier.names))
        and (earlier.host_regex is None or (not name.startswith("*") and matches(earlier.host_regex, name)))
        for name in later.names
    )


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (names_need_http, everybody_unknown, hidden_routes)
