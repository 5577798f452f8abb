"""Claims about servers that answer, but wrongly: each leaves its pool although its port is open, and comes back.

How a server lies is said by the type of its pool's check (model/checks/). The pools of a lab are tried together, in one
disturbance, because their checks do not know of each other: the first of these claims tries them all, and the others
tell what came of it. Tried again after a failure, a pool is tried alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping

from ndakit.core.addresses import authority
from ndakit.lab.network import LabNetwork
from ndakit.lab.server_ports import asked_ports
from ndakit.model import Address, Profile
from ndakit.verify.claims.base import SLACK_S, Outcome

TOGETHER_S = 2.0
"""Beyond SLACK_S: all servers begin to lie one after the other, and are then asked about in turn."""


def why_not(profile: Profile, pool: str) -> str:
    """Why a pool is not tried; empty if it is."""
    check = profile.pools[pool].check
    if sum(1 for s in profile.pools[pool].servers.values() if s.weight) < 2:
        return "only one server of it takes anything: nobody would be left to answer"
    return "" if check.lie() is not None else check.never_wrong


def victims(profile: Profile) -> dict[str, str]:
    """Pool → the server that lies. One host for several pools where it can be, so that each keeps a server that does
    not."""
    lying: set[Address] = set()
    chosen: dict[str, str] = {}
    for name, pool in profile.pools.items():
        if not profile.services_of(name) or why_not(profile, name):
            continue
        taking = {server: facts for server, facts in pool.servers.items() if facts.share}
        server = next((s for s, facts in taking.items() if lying & set(facts.address)), next(iter(taking)))
        lying |= set(taking[server].address)
        chosen[name] = server
    return chosen


class WrongAnswers:
    """What became of one run's lying servers, by pool."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Outcome] = {}

    def outcome(self, lab: LabNetwork, name: str) -> Outcome:
        """What became of the lying server of a pool."""
        if name not in self._outcomes:
            every = victims(lab.profile)
            self._outcomes |= lied(lab, {name: every[name]} if self._outcomes else every)
        return self._outcomes[name]

    def again(self, lab: LabNetwork, name: str) -> None:
        """Forget a pool, and put the lab back, so that it is tried anew."""
        self._outcomes.pop(name, None)
        lab.put_back()


def lied(lab: LabNetwork, servers: Mapping[str, str]) -> dict[str, Outcome]:
    """One server of each pool lies, all at the same time, until they are out; then all are well again."""
    profile = lab.profile
    out_s: dict[str, float] = {}
    back_s: dict[str, float] = {}
    is_open: dict[str, bool] = {}
    with contextlib.ExitStack() as stack:
        started_s = time.monotonic()
        for pool, server in servers.items():
            stack.enter_context(lab.server_lies(pool, server))
        # The quickest checks first: then no pool is looked at later than its own limit because of a slower one.
        for pool in sorted(servers, key=profile.detection_s):
            _watch(lab, pool, servers[pool], started_s, out_s, up=False)
        for pool, server in servers.items():
            is_open[pool] = _is_open(lab, pool, server)
    started_s = time.monotonic()
    for pool in sorted(servers, key=profile.recovery_s):
        _watch(lab, pool, servers[pool], started_s, back_s, up=True)
    return {
        pool: _outcome(profile, pool, server, out_s.get(pool), back_s.get(pool), is_open=is_open[pool])
        for pool, server in servers.items()
    }


def _limit_s(profile: Profile, pool: str, *, up: bool) -> float:
    return (profile.recovery_s(pool) if up else profile.detection_s(pool)) + SLACK_S + TOGETHER_S


def _watch(lab: LabNetwork, pool: str, server: str, started_s: float, seen_s: dict[str, float], *, up: bool) -> None:
    """Note when a server was in or out of its pool, in seconds; nothing if it was not in time."""
    left_s = started_s + _limit_s(lab.profile, pool, up=up) - time.monotonic()
    if lab.wait_server(pool, server, up=up, timeout_s=max(0.0, left_s)) is not None:
        seen_s[pool] = time.monotonic() - started_s


def _is_open(lab: LabNetwork, pool: str, server: str) -> bool:
    """True if a server still answers on the port that its pool's check asks, or its services use."""
    running = lab.servers[pool, server]
    for port in (p for p in running.ports if p.number in asked_ports(lab.profile, pool, server)):
        kind, said = ("udp", b"?") if port.datagrams else ("tcp", b"")
        url = f"{kind}://{authority(running.addresses[0], port.number)}"
        return running.host.ask(url, said, lines=0).ok
    return False


def _outcome(
    profile: Profile, pool: str, server: str, out_s: float | None, back_s: float | None, *, is_open: bool
) -> Outcome:
    wrong = []
    if not is_open:
        wrong.append(f"{server}'s port was shut, so that it did not lie")
    if out_s is None:
        limit_s = _limit_s(profile, pool, up=False)
        wrong.append(f"{server} answered wrongly, and was still in the pool after {limit_s:.0f} s")
    if back_s is None:
        wrong.append(f"{server} was not back in the pool after {_limit_s(profile, pool, up=True):.0f} s")
    left = "stayed in" if out_s is None else f"out after {out_s:.1f} s"
    returned = "not back" if back_s is None else f"back after {back_s:.1f} s"
    values: dict[str, float | int | str] = {"out_s": out_s or -1, "back_s": back_s or -1}
    return Outcome(not wrong, f"{server} {left}, {returned}", "; ".join(wrong), values)
