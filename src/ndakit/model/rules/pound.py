"""Cross-checks: what Pound, in front of HAProxy, cannot do for a service. Each error names a terminator that can.

Pound's limits: pound(8) of 4.19, and docs/pound.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.core.release import since
from ndakit.model.capacity import capacity_of
from ndakit.model.pound import LISTENERS_MAX, SINCE, workers
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning

HAPROXY_CAN = "write terminator: haproxy, which can"


def limits(profile: Profile) -> Iterator[Finding]:
    """Keys of services and of their `tls` that Pound does not carry."""
    for name in profile.pound_services:
        service = profile.services[name]
        tls, at = service.tls, ("services", name, "tls")
        if tls is None:
            continue
        terminator: KeyPath = (*at, "terminator")
        lacks: list[tuple[bool, KeyPath, str, str]] = [
            (service.protocol != "http", ("services", name, "protocol"),
             f"service {name} is {service.protocol}, and Pound reads http only", ""),
            (tls.client_certificates is not None, (*at, "client_certificates"),
             f"service {name} asks clients for certificates, and what Pound tells of them is not what servers are "
             "promised", "client_certificates"),
            (tls.unknown_name == "refuse", (*at, "unknown_name"),
             f"service {name} is to refuse names of no certificate, and Pound gives everybody its first one",
             "unknown_name"),
            ("h2" in (tls.alpn or ()), (*at, "alpn"),
             f"service {name} offers HTTP/2 (h2), and Pound does not speak it", "alpn"),
        ]  # fmt: skip
        for wanted, place, what, key in lacks:
            if wanted:
                yield error(
                    "tls-of-pound", what, place, HAPROXY_CAN + (f"; or delete {key}" if key else ""), other=terminator,
                )  # fmt: skip
        endpoints = profile.endpoints(name) if set(service.vip) <= profile.vips.keys() else ()
        versions = {endpoint.address.version for endpoint in endpoints}
        if service.transparent and len(versions) > 1:
            yield error(
                "tls-of-pound", f"service {name} is tproxy in both families, and behind Pound HAProxy cannot tell by "
                "which of them a client came",
                ("services", name, "topology"), "write families: [ipv4], and one more service with families: [ipv6]; "
                f"or {HAPROXY_CAN}", other=terminator,
            )  # fmt: skip
        count = len(endpoints) * service.port_count
        if count > LISTENERS_MAX:
            yield error(
                "too-many-listeners", f"service {name} has {count} addresses and ports, and Pound takes at most "
                f"{LISTENERS_MAX} of one service", ("services", name, "port"),
                f"narrow the range, or {HAPROXY_CAN}", other=terminator,
            )  # fmt: skip
        if profile.release.branch < SINCE:
            yield error(
                "terminator-of-release",
                f"service {name} needs Pound, which OpenWrt {profile.release} cannot have: its OpenSSL (1.0.2) is too "
                "old for it",
                terminator, f"{HAPROXY_CAN}, or use release {since(*SINCE)}", other=("release",),
            )  # fmt: skip


def connections(profile: Profile) -> Iterator[Finding]:
    """Fewer connections than the load needs: Pound has a thread for each."""
    expected = capacity_of(profile).sessions
    if not profile.pound_services or profile.sizing.sessions_per_second is None or workers(profile) >= expected:
        return
    name = next(iter(profile.pound_services))
    yield warning(
        "sizing-pound",
        f"sizing expects {expected} connections at once, and Pound takes {workers(profile)} on this node: it has a "
        "thread for each, and further clients wait",
        ("services", name, "tls", "terminator"), "write terminator: haproxy, or raise sizing.memory_mib",
        other=("sizing", "sessions_per_second"), also=(("services",), ("device",), ("sizing",)),
    )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (limits, connections)
