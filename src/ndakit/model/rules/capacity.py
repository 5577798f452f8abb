"""Cross-checks: does what `sizing` expects fit into the machine, the kernel's tables and the servers; `tuning`."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator

from ndakit.core.mistakes import KeyPath, guess
from ndakit.model.capacity import (
    OWN_PORTS_LEAST,
    PORTS_FROM_WIDE,
    PORTS_KEY,
    PORTS_TO,
    TRACKED_AFTER_S,
    Capacity,
    capacity_of,
    pools_that_see_us,
    ports_needed,
    served_ports,
    service_limits,
)
from ndakit.model.profile import Profile
from ndakit.model.rules.findings import Finding, error, warning
from ndakit.model.spans import Spans
from ndakit.model.sysctl_values import MachineSize, device, harm, port_range
from ndakit.model.sysctls import KNOWN, general, gone, owner

TRACKED_KEY, TIME_WAIT_KEY = "net.netfilter.nf_conntrack_max", "net.ipv4.tcp_max_tw_buckets"
LEAST = {"sessions_per_second": 0.1, "session_duration_s": 0.001}
"""The smallest load that `sizing` takes."""


def memory(profile: Profile) -> Iterator[Finding]:
    """All limits reached at once must fit into the memory."""
    capacity = capacity_of(profile)
    if capacity.memory_needed_mib > capacity.memory_mib:
        yield _too_much(profile, capacity)
    tuned = profile.tuning.sysctl.get(TRACKED_KEY, "")
    if tuned.isdigit() and int(tuned) < capacity.tracked_needed:
        yield warning(
            "tuning-below-sizing",
            f"{TRACKED_KEY} is {tuned}, and {capacity.sessions_per_second:g} sessions per second keep "
            f"{capacity.tracked_needed} entries there: when it is full, new connections are dropped",
            ("tuning", "sysctl", TRACKED_KEY), "delete it, so that it is computed, or lower sessions_per_second",
            other=_stated(profile, "sessions_per_second"), also=(("device",),),
        )  # fmt: skip


def _too_much(profile: Profile, capacity: Capacity) -> Finding:
    """The finding about too little memory: what asks for it, and only those ways out that lead to a profile that fits.

    What asks: the load, the largest limit of a service, or a kernel's table of one's own size; one of them can be far
    too large while the load is small.
    """

    def fits(changed: Profile) -> bool:
        return capacity_of(changed).memory_needed_mib <= capacity.memory_mib

    load = profile.model_copy(update={"sizing": profile.sizing.model_copy(update=LEAST)})
    largest = [
        s for s, limit in _stated_limits(profile).items() if limit == capacity.connections_max > capacity.usual_max
    ]
    tables = [k for k in (TRACKED_KEY, TIME_WAIT_KEY) if k in profile.tuning.sysctl and fits(_without(profile, [k]))]
    count = _count_that_fits(profile, fits)
    ways = [f"write memory_mib: {capacity.memory_needed_mib} or more (and give the machine that much)"]
    at = _stated(profile, "memory_mib", "sessions_per_second", "session_duration_s")
    what = f"{capacity.sessions_per_second:g} sessions per second of {capacity.session_duration_s:g} s"
    if count is not None:
        over = [s for s, limit in _stated_limits(profile).items() if limit > count]
        ways.append(f"lower limits.connections.count of {' and '.join(over)} to {count} or less")
    if largest:
        at = ("services", largest[0], "limits", "connections")
        what = f"{capacity.connections_max} connections of service {largest[0]} at once"
    elif tables:
        at = ("tuning", "sysctl", tables[0])
        what += f", and {tables[0]} of {profile.tuning.sysctl[tables[0]]},"
    ways += [f"delete {key}, so that it is computed" for key in tables]
    if fits(load):
        ways.append("lower sessions_per_second or session_duration_s")
    if len(ways) == 1 and fits(_limited(_without(load, [TRACKED_KEY, TIME_WAIT_KEY]), 1)):  # nothing does it alone
        ways.append(_all_together(profile))
    parts = ", ".join(f"{part} {mib} MiB" for part, mib in capacity.memory if mib)
    return error(
        "sizing-memory",
        f"{what} need {capacity.memory_needed_mib} MiB, and there are {capacity.memory_mib}: {parts}",
        at, ", or ".join(ways),
        other=("device",) if profile.sizing.memory_mib is None or at[0] == "sizing" else ("sizing", "memory_mib"),
        also=(("tuning", "sysctl"), ("services",), ("pools",), ("sizing",), ("device",)),
    )  # fmt: skip


def _stated_limits(profile: Profile) -> dict[str, int]:
    """Service → its own limit of connections, of those that HAProxy carries and that state one."""
    return {name: limit for name, limit in service_limits(profile, 0) if limit}


def _without(profile: Profile, keys: list[str]) -> Profile:
    """A profile that leaves kernel values to be computed."""
    kept = {k: v for k, v in profile.tuning.sysctl.items() if k not in keys}
    return profile.model_copy(update={"tuning": profile.tuning.model_copy(update={"sysctl": kept})})


def _limited(profile: Profile, count: int) -> Profile:
    """A profile in which no service states a limit above `count` connections."""
    its = dict(profile.services)
    for name, service in its.items():
        stated = service.limits
        if stated is not None and stated.connections is not None and (stated.connections.count or 0) > count:
            lower = stated.model_copy(update={"connections": stated.connections.model_copy(update={"count": count})})
            its[name] = service.model_copy(update={"limits": lower})
    return profile.model_copy(update={"services": its})


def _count_that_fits(profile: Profile, fits: Callable[[Profile], bool]) -> int | None:
    """The limit of connections down to which those of services must come, so that all fits; None if that is not enough,
    or if none of them is larger."""
    limits = _stated_limits(profile)
    if not limits or not fits(_limited(profile, 1)):
        return None
    count = bisect_left(range(1, max(limits.values()) + 1), True, key=lambda c: not fits(_limited(profile, c)))
    return count // 100 * 100 if count >= 1000 else count


def _all_together(profile: Profile) -> str:
    """Everything that makes the need smaller, for a profile in which no single change is enough."""
    tables = [k for k in (TRACKED_KEY, TIME_WAIT_KEY) if k in profile.tuning.sysctl]
    return " and ".join([
        "do several of these: lower sessions_per_second and session_duration_s",
        *(["lower limits.connections.count"] if _stated_limits(profile) else []),
        *(f"delete {key}" for key in tables),
    ])  # fmt: skip


def ports(profile: Profile) -> Iterator[Finding]:
    """Source ports towards one server: one for each session, and for a minute after it (TIME_WAIT)."""
    capacity = capacity_of(profile)
    pools = pools_that_see_us(profile)
    tuned = port_range(profile.tuning.sysctl.get(PORTS_KEY, "")) is not None
    most = capacity.ports if tuned else (Spans(((PORTS_FROM_WIDE, PORTS_TO),)) - capacity.served).size
    for pool, server, need in ports_needed(profile, capacity.sessions_per_second, capacity.session_duration_s):
        if need <= most:
            continue
        weights = [s.share for s in profile.pools[pool].servers.values()]
        whole = math.ceil(need * (sum(weights) - _lost(weights)) / sum(weights)) if sum(weights) else need
        lost = "" if whole > most or len([w for w in weights if w]) == 1 else "with one server lost, "
        what = (
            f"{lost}{capacity.sessions_per_second:g} sessions per second to pool {pool} need {need} source ports "
            f"towards server {server}, and there are {most}: each one is taken for the session and 60 s more"
        )
        # Sure only where every session goes to this pool, and each one makes a connection of its own: those of http
        # are used again.
        sure = not lost and pools == (pool,) and all(
            profile.services[s].protocol == "tcp" for s in profile.services if pool in profile.services[s].pools
        )  # fmt: skip
        say = error if sure else warning
        yield say(
            "sizing-ports", what, ("pools", pool, "servers"),
            (f"widen {PORTS_KEY} (up to {PORTS_FROM_WIDE} {PORTS_TO}) or delete it, " if tuned else "")
            + "add servers to the pool, or use topology nat or dr, which need no ports, or lower sessions_per_second",
            other=("tuning", "sysctl", PORTS_KEY) if tuned
            else _stated(profile, "sessions_per_second", "session_duration_s"),
            also=(("services",), ("device",), ("sizing",)),
        )  # fmt: skip


def own_questions(profile: Profile) -> Iterator[Finding]:
    """Services on the only node's own address leave it source ports for what it asks itself."""
    capacity = capacity_of(profile)
    taken = [
        (last - first, name, vip, f"{first}-{last}" if first < last else str(first))
        for name, vip, (first, last) in served_ports(profile)
        if not profile.services[name].carried_by.opens_sockets
        and first <= capacity.ports_to
        and last >= capacity.ports_from
    ]
    if not taken or capacity.ports >= OWN_PORTS_LEAST:
        return
    _, name, vip, its = max(taken)
    tuned = port_range(profile.tuning.sysctl.get(PORTS_KEY, "")) is not None
    yield error(
        "own-address-ports",
        f"service {name} has port {its} of the node's own address, which leaves {capacity.ports} of the ports "
        f"{capacity.ports_from}-{capacity.ports_to} to ask from, and the node needs {OWN_PORTS_LEAST}: answers to its "
        "questions for names and time, and to its checks, would go to a server",
        ("services", name, "port"),
        (f"delete {PORTS_KEY}, or " if tuned else "")
        + f"give VIP {vip} an address that no node has, or list the ports that the service needs",
        other=("tuning", "sysctl", PORTS_KEY) if tuned else ("vips", vip, "address"), also=(("nodes",), ("services",)),
    )  # fmt: skip


def servers(profile: Profile) -> Iterator[Finding]:
    """What a pool's servers may take at most, with all of them and with one lost (n+1)."""
    if profile.sizing.sessions_per_second is None:
        return
    capacity = capacity_of(profile)
    used = tuple(dict.fromkeys(p for s in profile.services.values() for p in s.pools if p in profile.pools))
    for name in used:
        limits = {n: s.max_connections for n, s in profile.pools[name].servers.items() if s.share}
        if not limits or any(limit is None for limit in limits.values()):
            continue
        taken = {n: limit or 0 for n, limit in limits.items()}
        whole, largest = sum(taken.values()), max(taken, key=lambda n: taken[n])
        sessions, expected = (
            f"{capacity.sessions} sessions at once (sessions_per_second × session_duration_s)",
            capacity.sessions,
        )
        if profile.ipvs_services_of(name) and whole >= capacity.sessions:
            expected = capacity.ipvs_entries
            sessions = (
                f"{expected} that count (sessions_per_second × (session_duration_s + {TRACKED_AFTER_S}): IPVS counts a "
                "connection until it forgets it, after its end)"
            )
        path: KeyPath = ("pools", name, "servers")
        other = _stated(profile, "sessions_per_second")
        if whole < expected:
            say = error if used == (name,) and expected == capacity.sessions else warning
            yield say(
                "sizing-servers", f"the servers of pool {name} take {whole} connections, and sizing expects {sessions}",
                path, "raise their max_connections if they can take more, or add servers", other=other,
                also=(("services",), ("device",)),
            )  # fmt: skip
        elif len(taken) > 1 and whole - taken[largest] < expected:
            yield warning(
                "n-plus-one",
                f"with {largest} lost, the servers of pool {name} take {whole - taken[largest]} connections, and "
                f"sizing expects {sessions}",
                path, "add a server, or raise max_connections if they can take more", other=other,
                also=(("services",), ("device",)),
            )  # fmt: skip


def machine(profile: Profile) -> MachineSize:
    """What a kernel value has to fit."""
    capacity = capacity_of(profile)
    added = frozenset(name for name, wish in profile.image.packages.items() if wish == "add")
    return MachineSize(capacity.memory_mib, capacity.files, added)


def _devices(profile: Profile) -> tuple[str, ...]:
    """Devices of which a node has kernel values: cards, what is made of them, and the names for all and new ones."""
    made = [d for name in profile.networks for d in (profile.base_device(name), profile.l2_device(name))]
    return tuple(dict.fromkeys(("all", "default", *profile.nics, *made, "lo")))


def sysctls(profile: Profile) -> Iterator[Finding]:
    """Kernel values that the profile sets: gone ones, unknown ones, those that another key decides, harmful ones."""
    fits = machine(profile)
    devices = _devices(profile)
    for key, value in profile.tuning.sysctl.items():
        path: KeyPath = ("tuning", "sysctl", key)
        if (owned := owner(key)) is not None:
            place, how = owned
            yield error("sysctl-owned", f"{key} cannot be set here: {how}", path, "delete it", other=place)
        elif (past := gone(key, profile.release)) is not None:
            why, fix = past
            yield error("sysctl-gone", f"{key} is of no use: {why}", path, fix, other=("release",))
        elif key == PORTS_KEY and ((ports := port_range(value)) is None or ports[0] < PORTS_FROM_WIDE):
            what = f"is not a range of ports from {PORTS_FROM_WIDE} to {PORTS_TO}"
            if ports is not None:
                what = f"holds ports below {PORTS_FROM_WIDE}: one that a connection takes keeps SSH from starting again"
            yield error(
                "sysctl-ports", f"{key}: {value} {what}", path,
                f"write two numbers, such as {PORTS_FROM_WIDE} {PORTS_TO}, or delete it",
            )  # fmt: skip
        elif (trouble := harm(key, value, fits)) is not None:
            say = error if trouble.severity == "error" else warning
            yield say(
                "sysctl-harms", f"{key}: {value} does harm: {trouble.why}", path, trouble.fix,
                also=(("sizing",), ("device",), ("services",)),
            )  # fmt: skip
        elif (name := device(key)) is not None and name not in devices:
            yield warning(
                "sysctl-device",
                f"{key} is about {name}, which no network of this profile has: it is ignored without a word", path,
                f"write one of {', '.join(devices)} in its place, or delete it", other=("networks",),
            )  # fmt: skip
        elif general(key) not in KNOWN:
            near = guess(general(key), KNOWN)
            hint = f"did you mean {near}? " if near else ""
            yield warning(
                "sysctl-unknown",
                f"{key} is not known to ndakit; if the kernel does not have it, it is ignored without a word", path,
                f"{hint}look it up on a running node: sysctl {key}",
            )  # fmt: skip


def _stated(profile: Profile, *keys: str) -> KeyPath:
    """The first of the keys of `sizing` that the profile states, else `sizing`."""
    stated = next((k for k in keys if getattr(profile.sizing, k) is not None), None)
    return ("sizing", stated) if stated else ("sizing",)


def _lost(weights: list[int]) -> int:
    """The weight that is gone with the largest of the others lost, as `ports_needed` counts it."""
    return sorted(weights, reverse=True)[1] if len(weights) > 1 else 0


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (memory, ports, own_questions, servers, sysctls)
