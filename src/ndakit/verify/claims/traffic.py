"""Claims about VIPs, services and pools: who holds, who answers, what servers and clients see, what dead servers do."""

from __future__ import annotations

import contextlib
import time

from ndakit.core.addresses import authority
from ndakit.lab.clients import ServicePort
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import VantagePoint
from ndakit.model import Endpoint
from ndakit.verify.claims.base import SLACK_S, Outcome, asked_services, service_port, share_text, targets
from ndakit.verify.claims.shares import (
    IN_TURN,
    at_once_errors,
    hold_at_once,
    keeps_one,
    known_by_address,
    share_errors,
    shows_at_once,
)

HOLDER_WAIT_S = 8.0
"""A handover may be under way when holders are asked for; it takes no longer than this."""

REQUESTS = 60
"""Requests per measurement of shares: a multiple of small weights, and quick enough under emulation."""

RANDOM_REQUESTS = 240
"""The same where chance decides."""

KEPT_REQUESTS = 12
"""The same where one server has to answer all of them: any other way of choosing shows within a few."""

SORRY_REQUESTS = 6
"""Who answers does not change: a few are enough."""


def one_holder(lab: LabNetwork) -> Outcome:
    """Who has the VIPs, asked on every node's console."""
    end_s = time.monotonic() + HOLDER_WAIT_S
    while any(len(nodes) != 1 for nodes in lab.vip_holders().values()) and time.monotonic() < end_s:
        time.sleep(0.5)
    holders = lab.vip_holders()
    wrong = [f"{vip} is on {', '.join(nodes) or 'no node'}" for vip, nodes in holders.items() if len(nodes) != 1]
    for group in lab.profile.groups:
        nodes = {n for vip, nodes_of in holders.items() if lab.profile.vips[vip].group == group for n in nodes_of}
        if len(nodes) > 1:
            wrong.append(f"group {group} is split over {', '.join(sorted(nodes))}")
        if lab.profile.vrrp.preempt and not lab.profile.standalone and nodes != {lab.profile.preferred()}:
            wrong.append(f"group {group} is on {', '.join(sorted(nodes))}, preferred is {lab.profile.preferred()}")
    figure = ", ".join(f"{vip}: {'+'.join(nodes) or 'nobody'}" for vip, nodes in holders.items())
    return Outcome(not wrong, figure, "; ".join(wrong))


def service(lab: LabNetwork, name: str) -> Outcome:
    """Requests to every address of the service (first and last port of each range), and who answered them."""
    settings = lab.profile.services[name]
    wrong: list[str] = []
    shares: dict[str, int] = {}
    total = 0
    requests = RANDOM_REQUESTS if lab.profile.pools[settings.main_pool].balance == "random" else REQUESTS
    if keeps_one(lab.profile, name):
        requests = KEPT_REQUESTS
    held = ""
    for endpoint, port in targets(lab.profile, name):
        point, at = lab.client_for(endpoint, name), authority(endpoint.address, port)
        result = lab.load(point, endpoint.address, port, settings.main_pool, requests, settings.transport)
        total += result.total
        if result.failures:
            wrong.append(f"{result.failures} of {result.total} to {at} failed ({result.first_error})")
        if result.total == requests:
            wrong += [f"{at}: {w}" for w in share_errors(lab.profile, name, result)]
        for server, count in result.shares.items():
            shares[server] = shares.get(server, 0) + count
        if not held and shows_at_once(lab, name, port):
            at_once = hold_at_once(lab, ServicePort(name, endpoint, port))
            held = f"; {share_text(at_once)} of {sum(at_once.values())} at once"
            wrong += [f"{at}: {w}" for w in at_once_errors(lab.profile, name, at_once)]
    figure = share_text(shares) + f" of {total} requests" + held
    return Outcome(
        not wrong and total > 0,
        figure,
        "; ".join(wrong),
        {"requests": total, **{f"share_{s}": c for s, c in shares.items()}},
    )


def check(lab: LabNetwork, name: str) -> Outcome:
    """Kill one server's program, watch it leave, ask for the others, start it again, watch it return."""
    pool = lab.profile.pools[name]
    ahead = service_port(lab.profile, name)
    victim = next(n for n, s in pool.servers.items() if s.share)
    with lab.server_down(name, victim):
        left_s = lab.wait_server(name, victim, up=False, timeout_s=lab.profile.detection_s(name) + SLACK_S)
        without = lab.ask(ahead) if ahead else None
    back_s = lab.wait_server(name, victim, up=True, timeout_s=lab.profile.recovery_s(name) + SLACK_S)
    after = lab.ask(ahead) if ahead else None
    wrong = []
    if left_s is None:
        wrong.append(f"{victim} was still in the pool after {lab.profile.detection_s(name) + SLACK_S:.0f} s")
    if back_s is None:
        wrong.append(f"{victim} was not back in the pool after {lab.profile.recovery_s(name) + SLACK_S:.0f} s")
    if without is not None and (without.failures or victim in without.shares):
        wrong.append(
            f"while {victim} was out: {without.failures} failures, {without.shares.get(victim, 0)} answers of its own"
        )
    turns = pool.balance in IN_TURN and (ahead is None or not known_by_address(lab.profile, ahead[0]))
    if after is not None and (after.failures or (turns and victim not in after.shares)):
        wrong.append(f"after its return: {after.failures} failures, {after.shares.get(victim, 0)} answers of {victim}")
    figure = f"{victim} out after {_s(left_s)}, back after {_s(back_s)}"
    return Outcome(not wrong, figure, "; ".join(wrong), {"out_s": left_s or -1, "back_s": back_s or -1})


def _s(value_s: float | None) -> str:
    return "never" if value_s is None else f"{value_s:.1f} s"


def backups(lab: LabNetwork, name: str) -> Outcome:
    """All servers but the backups at once, who answers then, and who does when they are back."""
    pool, profile, ahead = lab.profile.pools[name], lab.profile, service_port(lab.profile, name)
    assert ahead is not None, "the claim is made for pools that can be asked only"
    others = [server for server, facts in pool.servers.items() if not facts.backup]
    with contextlib.ExitStack() as stack:
        for server in others:
            stack.enter_context(lab.server_down(name, server))
        for server in others:
            lab.wait_server(name, server, up=False, timeout_s=profile.detection_s(name) + SLACK_S)
        alone = lab.ask(ahead, SORRY_REQUESTS)
    for server in others:
        lab.wait_server(name, server, up=True, timeout_s=profile.recovery_s(name) + SLACK_S)
    again = lab.ask(ahead, SORRY_REQUESTS)
    wrong = []
    if alone.failures or not alone.shares or not set(alone.shares) <= set(pool.backups):
        wrong.append(f"without the others: {share_text(alone.shares)}, {alone.failures} failures")
    if again.failures or not again.shares or set(again.shares) & set(pool.backups):
        wrong.append(f"with the others again: {share_text(again.shares)}, {again.failures} failures")
    return Outcome(not wrong, f"without the others: {share_text(alone.shares)}", "; ".join(wrong))


def sorry(lab: LabNetwork, name: str) -> Outcome:
    """All servers of a pool at once, and what every service of it answers then, in each family."""
    pool, profile = lab.profile.pools[name], lab.profile
    ours = [s for s in asked_services(profile) if profile.services[s].pool == name]
    if pool.sorry is not None and pool.sorry.page is not None:
        ours = [s for s in ours if profile.services[s].protocol == "http"]
    fronts = [(s, e) for s in ours for e in profile.endpoints(s)]
    if not fronts or pool.sorry is None:
        return Outcome(False, "not tried", "no service in front of the pool")
    figures: list[str] = []
    wrong: list[str] = []
    with lab.pool_down(name):
        for server in pool.servers:
            lab.wait_server(name, server, up=False, timeout_s=profile.detection_s(name) + SLACK_S)
        for service, endpoint in fronts:
            good, figure = sorry_answer(lab, name, service, endpoint, lab.client_for(endpoint, service))
            figures.append(figure)
            if not good:
                transport = profile.services[service].transport
                wrong.append(f"{endpoint.address} {transport} port {endpoint.ports[0][0]}: {figure}")
    for server in pool.servers:
        lab.wait_server(name, server, up=True, timeout_s=profile.recovery_s(name) + SLACK_S)
    expected = "status 503 with " + pool.sorry.page.path if pool.sorry.page else f"answers from pool {pool.sorry.pool}"
    detail = f"expected {expected}; {'; '.join(wrong)}" if wrong else ""
    return Outcome(not wrong, ", ".join(dict.fromkeys(figures)), detail)


def sorry_answer(lab: LabNetwork, name: str, service: str, endpoint: Endpoint, point: VantagePoint) -> tuple[bool, str]:
    """Does an endpoint of a service answer somebody as the profile says for the time without servers of its pool, and
    what it answers."""
    wanted, port = lab.profile.pools[name].sorry, endpoint.ports[0][0]
    assert wanted is not None, "looked at before"
    if wanted.page is not None:
        answer = lab.get(point, endpoint.address, port)
        same = answer.body.strip() == wanted.page.content.decode(errors="replace").strip()
        return answer.status == 503 and same, f"status {answer.status}, {'the page' if same else 'another text'}"
    transport = lab.profile.services[service].transport
    result = lab.load(point, endpoint.address, port, name, SORRY_REQUESTS, transport)
    others = set(lab.profile.pools[wanted.pool or ""].servers)
    good = result.failures == 0 and bool(result.shares) and set(result.shares) <= others
    return good, share_text(result.shares)
