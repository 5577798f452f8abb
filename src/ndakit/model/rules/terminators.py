"""Cross-checks: what programs that end TLS in front of HAProxy cannot do for a service.

Each error names one that can. What each of them lacks stands in its row (model/terminators.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.core.release import since
from ndakit.model.capacity import capacity_of
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.terminator_load import connections_max
from ndakit.model.terminators import IN_FRONT, Terminator, Wanted


def limits(profile: Profile) -> Iterator[Finding]:
    """Keys of services and of their `tls` that a terminator does not carry."""
    for terminator in profile.terminators:
        for name in profile.terminated_services(terminator):
            yield from _limits(profile, terminator, name)


def _limits(profile: Profile, terminator: Terminator, name: str) -> Iterator[Finding]:
    service = profile.services[name]
    tls, at = service.tls, ("services", name, "tls")
    if tls is None:
        return
    here: KeyPath = (*at, "terminator")
    endpoints = profile.endpoints(name) if set(service.vip) <= profile.vips.keys() else ()
    both = service.transparent and len({endpoint.address.version for endpoint in endpoints}) > 1
    asked: list[tuple[Wanted, bool, KeyPath, str, str]] = [
        ("tcp", service.protocol != "http", ("services", name, "protocol"), f"is {service.protocol}", ""),
        ("client_certificates", tls.client_certificates is not None, (*at, "client_certificates"),
         "asks clients for certificates", "; or delete client_certificates"),
        ("refuse", tls.unknown_name == "refuse", (*at, "unknown_name"), "is to refuse names of no certificate",
         "; or delete unknown_name"),
        ("h2", "h2" in (tls.alpn or ()), (*at, "alpn"), "offers HTTP/2 (h2)", "; or delete alpn"),
        ("both_families", both, ("services", name, "topology"), "is tproxy in both families",
         "; or write families: [ipv4], and one more service with families: [ipv6]"),
    ]  # fmt: skip
    code = f"tls-of-{terminator.name}"
    for wanted, is_wanted, place, what, otherwise in asked:
        if is_wanted and not terminator.carries(wanted):
            able = [row.name for row in IN_FRONT if row is not terminator and row.carries(wanted)]
            fix = f"write terminator: {' or '.join(['haproxy', *able])}, which can{otherwise}"
            what = f"service {name} {what}, and {terminator.lacks[wanted]}"
            yield error(code, what, place, fix, other=here)
    count = len(endpoints) * service.port_count
    if terminator.listeners_max is not None and count > terminator.listeners_max:
        yield error(
            "too-many-listeners",
            f"service {name} has {count} addresses and ports, and {terminator.title} takes at most "
            f"{terminator.listeners_max} of one service", ("services", name, "port"),
            "narrow the range, or write terminator: haproxy, which can", other=here,
        )  # fmt: skip
    if profile.release.branch < terminator.since:
        yield error(
            "terminator-of-release",
            f"service {name} needs {terminator.title}, which OpenWrt {profile.release} cannot have: "
            f"{terminator.missing}",
            here, f"write terminator: haproxy, which can, or use release {since(*terminator.since)}",
            other=("release",),
        )  # fmt: skip


def connections(profile: Profile) -> Iterator[Finding]:
    """Fewer connections than the load needs: a terminator in front has a thread for each."""
    expected = capacity_of(profile).sessions
    for terminator in profile.terminators if profile.sizing.sessions_per_second is not None else ():
        most = connections_max(profile, terminator)
        if most >= expected:
            continue
        name = profile.terminated_services(terminator)[0]
        yield warning(
            f"sizing-{terminator.name}",
            f"sizing expects {expected} connections at once, and {terminator.title} takes {most} on this node: it has "
            "a thread for each, and further clients wait",
            ("services", name, "tls", "terminator"), "write terminator: haproxy, or raise sizing.memory_mib",
            other=("sizing", "sessions_per_second"), also=(("services",), ("device",), ("sizing",)),
        )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (limits, connections)
