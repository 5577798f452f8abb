"""Cross-checks: what time-outs, limits and checks of HAProxy's services mean, where one might expect something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath
from ndakit.model.capacity import capacity_of
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, warning
from ndakit.model.traffic import Pool

SLOW_DETECTION_S = 60.0
"""A dead server that stays in its pool for longer is worth a word; the defaults need at most 18 s."""


def timeouts(profile: Profile) -> Iterator[Finding]:
    """Time-outs of tcp services of which one makes another one meaningless."""
    for name in profile.haproxy_services:
        service = profile.services[name]
        waits, at = service.timeouts, ("services", name, "timeouts")
        if service.protocol != "tcp":
            continue
        stated = [key for key in ("client_s", "server_s") if key in waits.model_fields_set]
        if waits.tunnel_s is not None and stated:
            yield warning(
                "tunnel-overrules",
                f"service {name} is tcp, where tunnel_s ({waits.tunnel_s:g}) takes the place of {' and '.join(stated)}",
                (*at, stated[0]), f"keep tunnel_s alone, or {' and '.join(stated)} alone", other=(*at, "tunnel_s"),
            )  # fmt: skip
        elif waits.tunnel_s is None and len(stated) == 1:
            one, other = stated[0], "server_s" if stated[0] == "client_s" else "client_s"
            long, short = getattr(waits, one), getattr(waits, other)
            if long > short:
                yield warning(
                    "timeouts-differ",
                    f"service {name} is tcp: a silent connection ends after {short:g} s, {other}, although {one} is "
                    f"{long:g}",
                    (*at, one), f"write {other}: {long:g} as well",
                )  # fmt: skip


def detection(profile: Profile) -> Iterator[Finding]:
    """Checks that leave a dead server in its pool for long."""
    for name, pool in profile.pools.items():
        check = pool.check
        if not profile.services_of(name) or profile.detection_s(name) <= SLOW_DETECTION_S:
            continue
        waits = f"every {check.interval_s:g} s, {check.fall} failures" + (
            f", each waited for up to {check.timeout_s:g} s" if check.timeout_s >= 1 else ""
        )
        fix = "shorten interval_s, timeout_s or fall; retry_delay_s: 1 asks a failing server again sooner"
        yield warning(
            "slow-detection",
            f"a dead server of pool {name} gets clients for up to {profile.detection_s(name):.0f} s more ({waits}), "
            f"and one that is back is used after up to {profile.recovery_s(name):.0f} s",
            ("pools", name, "check"), fix, also=(("services",),),
        )  # fmt: skip


def first(profile: Profile) -> Iterator[Finding]:
    """`balance: first`, which fills one server after the other."""
    for name, pool in profile.pools.items():
        users = profile.haproxy_services_of(name)
        if pool.balance != "first" or not users or len(pool.servers) < 2:
            continue
        at: KeyPath = ("pools", name, "balance")
        if open_ended := _first_without_limit(pool):
            yield warning(
                "first-without-limit",
                f"pool {name} fills one server before the next one gets anything, and {open_ended} states no "
                "max_connections: the servers after it only stand by",
                at, f"state max_connections for {open_ended}, or write balance: leastconn",
                other=("pools", name, "servers", open_ended),
            )  # fmt: skip
        if len({s.weight for s in pool.servers.values()} - {0}) > 1:
            yield warning(
                "weights-of-first", f"pool {name} balances by first, which looks at no weights", at,
                "leave the weights out, and state max_connections; or write balance: leastconn",
                other=("pools", name, "servers"),
            )  # fmt: skip


def _first_without_limit(pool: Pool) -> str:
    """The first server that takes everything; empty if that is the last one."""
    names = [n for n, s in pool.servers.items() if s.share]
    return next((n for n in names[:-1] if pool.servers[n].max_connections is None), "")


def limits(profile: Profile) -> Iterator[Finding]:
    """Services whose limits together are below what is expected."""
    size = capacity_of(profile)
    stated = [profile.services[n].limits for n in profile.haproxy_services]
    counts = [None if one is None or one.connections is None else one.connections.count for one in stated]
    every = bool(counts) and all(count is not None for count in counts)
    if every and profile.sizing.sessions_per_second is not None and size.services_sum < size.sessions:
        name = profile.haproxy_services[0]
        yield warning(
            "limits-below-sizing",
            f"the services take {size.services_sum} connections together, and sizing expects {size.sessions} at once "
            "(sessions_per_second × session_duration_s): the others wait",
            ("services", name, "limits"), "raise limits.connections, or lower sizing", other=("sizing",),
            also=(("services",), ("device",)),
        )  # fmt: skip


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (timeouts, detection, first, limits)
