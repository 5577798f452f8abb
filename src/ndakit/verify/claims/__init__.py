"""What is claimed about a running pair, each with its figure: made from the model alone, tried on a lab network.

A claim never looks at rendered files: the profile says what should be, the lab's hosts and the nodes' consoles say what
is. Each one leaves the lab as it found it. Order, display and record are the business of `run` and `report`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from ndakit.lab.plan import plan
from ndakit.model import Profile, engines
from ndakit.model.links import watched_alone
from ndakit.verify.claims import (
    bonding,
    connection_sync,
    failover,
    faults,
    firewall,
    forged,
    haproxy,
    ipvs,
    limits,
    node,
    scheduling,
    tls,
    traffic,
    transparent,
    wrong_answers,
)
from ndakit.verify.claims.base import Claim, LeftOut, Outcome, service_port, unanswered, unasked

__all__ = ["Claim", "LeftOut", "Outcome", "all_claims", "left_out"]


def all_claims(profile: Profile) -> tuple[Claim, ...]:
    """Every claim that a profile makes, in the order in which they are tried: the harmless ones first."""
    return tuple(one for one in _everything(profile) if isinstance(one, Claim))


def left_out(profile: Profile) -> tuple[LeftOut, ...]:
    """What a profile says and nobody tries, each with its reason."""
    return tuple(one for one in _everything(profile) if isinstance(one, LeftOut))


def _everything(profile: Profile) -> Sequence[Claim | LeftOut]:
    return (
        *_about_nodes(profile),
        *transparent.about_nodes(profile),
        *_about_services(profile),
        *_about_networks(profile),
        *_about_pools(profile),
        *_about_failover(profile),
        *(
            Claim(f"quiet/{n}", f"nothing on {n} crashed, and its log has no alarm", partial(node.quiet, node=n))
            for n in profile.nodes
        ),
    )


def _about_nodes(profile: Profile) -> Iterator[Claim | LeftOut]:
    for n in profile.nodes:
        host = profile.hostname(n)
        text = f"{n} is {host} on OpenWrt {profile.release}"
        yield Claim(f"identity/{n}", text, partial(node.identity, node=n), beside=True, timeless=True)
        text = f"{n} has its own addresses, with their prefixes, and no others"
        yield Claim(f"addresses/{n}", text, partial(node.addresses, node=n), beside=True, timeless=True)
        text = f"{n} runs what the profile needs, under procd"
        yield Claim(f"daemons/{n}", text, partial(node.daemons, node=n), beside=True)
        if profile.instances:
            text = f"{n} is master or ready to become it, by keepalived's own account"
            yield Claim(f"vrrp/{n}", text, partial(node.vrrp, node=n), beside=True)
        text = f"SSH to {n} is open to access.sources only, and takes keys only"
        yield Claim(f"ssh/{n}", text, partial(node.ssh, node=n), beside=True)
        if profile.runs_haproxy:
            text = f"the statistics page of {n} is open to access.sources only"
            yield Claim(f"statistics/{n}", text, partial(node.statistics, node=n), beside=True)
        else:
            yield LeftOut(
                f"statistics/{n}", "no HAProxy runs: it carries no service, and nobody asked for its statistics"
            )


def _about_services(profile: Profile) -> Iterator[Claim | LeftOut]:
    if profile.vips:
        text = "every VIP is held by exactly one node, those of a group by the same"
        yield Claim("vips/one-holder", text, traffic.one_holder)
    if profile.instances:
        text = "adverts in a node's name that came through a router move no VIP"
        yield Claim(forged.name_of(profile), text, forged.forged)
    for name, service in profile.services.items():
        yield from tls.about_service(profile, name)
        yield from limits.about_service(profile, name)
        if service.redirect is not None:
            continue
        if why := unasked(profile, name):
            yield LeftOut(f"service/{name}", why)
            continue
        text = f"{name} answers on its VIP, and every server gets its share"
        yield Claim(f"service/{name}", text, partial(traffic.service, name=name))
        yield from _ABOUT_ENGINE[service.carried_by.name](profile, name)


_ABOUT_ENGINE: Mapping[str, Callable[[Profile, str], Iterator[Claim | LeftOut]]] = {
    engines.HAPROXY.name: haproxy.about_service,
    engines.IPVS.name: ipvs.about_service,
}
"""What is claimed of a service beyond its answers and shares, by its engine."""


def _about_networks(profile: Profile) -> Iterator[Claim | LeftOut]:
    lab = plan(profile)
    for name, network in profile.networks.items():
        if name in lab.clients or name in lab.strangers:
            text = f"from {name} exactly what the profile opens can be reached"
            yield Claim(f"firewall/{name}", text, partial(firewall.firewall, network=name), beside=True)
        else:
            yield LeftOut(f"firewall/{name}", "every address of its subnet is taken, so that nobody can ask from there")
        if bonding.speaks_lacp(profile, name):
            yield from _about_bond(profile, name)
        if network.egress != "none" and firewall.egress_ways(profile, name):
            text = f"servers in {name} get out, and are seen as the address the profile says"
            yield Claim(f"egress/{name}", text, partial(firewall.egress, network=name), beside=True)
        elif network.egress != "none":
            yield LeftOut(f"egress/{name}", firewall.no_way(profile, name))


def _about_bond(profile: Profile, name: str) -> Iterator[Claim | LeftOut]:
    cards = " and ".join(profile.networks[name].nics)
    text = f"{cards} are one link for the switch (LACP), and traffic spreads over them"
    yield Claim(f"bond/{name}", text, partial(bonding.bundled, network=name))
    for kind in bonding.CASES:
        if profile.services and profile.vips:
            claim = partial(bonding.case, network=name, kind=kind)
            yield Claim(f"bond/{name}-{kind.name}", f"{name}: {kind.text}", claim, thorough=True)
        else:
            yield LeftOut(f"bond/{name}-{kind.name}", "there is no service that could be asked meanwhile")


def _about_pools(profile: Profile) -> Iterator[Claim | LeftOut]:
    lying = wrong_answers.WrongAnswers()
    for name, pool in profile.pools.items():
        if not profile.services_of(name):
            if name not in watched_alone(profile):  # failover/empty tries those
                yield LeftOut(f"check/{name}", "no service uses this pool")
            continue
        if why := unanswered(profile, name):
            yield LeftOut(f"check/{name}", why)
            continue
        if any(profile.services[s].shows_client for s in profile.services_of(name)):
            text = f"servers of {name} have what their topology needs (./inv servers)"
            yield Claim(f"servers/{name}", text, partial(ipvs.server_side, pool=name), timeless=True)
        if sum(1 for s in pool.servers.values() if s.weight) > 1:
            text = f"a dead server of {name} leaves the pool, nobody notices, and it comes back"
            yield Claim(f"check/{name}", text, partial(traffic.check, name=name))
        else:
            yield LeftOut(f"check/{name}", "only one server of it takes anything: nobody would be left to answer")
        if why := wrong_answers.why_not(profile, name):
            yield LeftOut(f"wrong-answer/{name}", why)
        else:
            text = f"a server of {name} that answers wrongly leaves the pool though its port is open, and comes back"
            yield Claim(
                f"wrong-answer/{name}", text, partial(lying.outcome, name=name), again=partial(lying.again, name=name)
            )
        if scheduling.can_drain(profile, name):
            text = f"a drained server of {name} keeps its connections, and others get the new ones"
            yield Claim(f"drain/{name}", text, partial(scheduling.drained, name=name))
        elif profile.ipvs_services_of(name):
            yield LeftOut(f"drain/{name}", scheduling.no_drain(profile, name))
        if service_port(profile, name) is None and (pool.sorry is not None or scheduling.has_quorum(pool)):
            yield LeftOut(f"sorry/{name}", _unasked_pool(profile, name))
        if pool.backups and service_port(profile, name):
            text = f"with the other servers of {name} dead, {' and '.join(pool.backups)} answer, and only then"
            yield Claim(f"backup/{name}", text, partial(traffic.backups, name=name))
        if scheduling.has_quorum(pool) and service_port(profile, name):
            text = f"below the quorum of {name} the sorry server answers, although servers are left"
            yield Claim(f"quorum/{name}", text, partial(scheduling.quorum, name=name))
        if pool.sorry is not None and service_port(profile, name):
            text = f"with all servers of {name} dead, clients get what the profile says"
            yield Claim(f"sorry/{name}", text, partial(traffic.sorry, name=name))


def _unasked_pool(profile: Profile, name: str) -> str:
    """Why no service shows what becomes of a pool."""
    whys = (unasked(profile, s) for s in profile.services_of(name) if profile.services[s].pool == name)
    return next((why for why in whys if why), "no service has it as its own pool, so that nobody can ask it by itself")


def _about_failover(profile: Profile) -> Iterator[Claim | LeftOut]:
    if why := _no_failover(profile):
        yield LeftOut("failover", why)
        return
    if profile.haproxy_services:
        text = "a master whose HAProxy stops hands the VIPs over"
        yield Claim("failover/haproxy-stopped", text, partial(failover.daemon_stopped, daemon="haproxy"))
    for terminator in profile.terminators:
        text = f"a master whose {terminator.title} stops hands the VIPs over"
        stopped = partial(failover.daemon_stopped, daemon=terminator.service)
        yield Claim(f"failover/{terminator.service}-stopped", text, stopped)
    if told := connection_sync.handed_over(profile):
        text = f"{told.words}: handed over to the next master, and back"
        yield Claim("failover/connections", text, connection_sync.connections)
    else:
        yield LeftOut("failover/connections", _no_handover(profile))
    for pool in dict.fromkeys(profile.vrrp.demote_on):
        if pool not in watched_alone(profile):
            yield LeftOut(f"failover/empty/{pool}", "its services have no servers either until the VIPs have moved")
    for kind in faults.faults(profile):
        text = f"{kind.text}: another node is master in time, and one again afterwards"
        yield Claim(f"failover/{kind.name}", text, partial(faults.fault, kind=kind), thorough=True)
    text = f"each daemon of the master is killed {faults.KILLS} times, comes back, and no VIP has two holders"
    yield Claim("failover/killed", text, faults.killed, thorough=True)
    yield Claim("failover/power-off", "a master that loses power is replaced in time", failover.power_off)
    if profile.vrrp.preempt:
        text = f"{profile.preferred()} takes the VIPs back when it returns (preempt: true)"
    else:
        text = "a node that returns leaves the VIPs where they are (preempt: false)"
    yield Claim("failover/return", text, failover.power_on, needs=("failover/power-off",), again=failover.off_again)


def _no_failover(profile: Profile) -> str:
    if profile.standalone:
        return "there is one node"
    if not profile.vips:
        return "there is no VIP that could move"
    if failover.poll_target(profile) is None:
        return "there is no service and no way out, so that nobody in the lab can ask anything of a master"
    return ""


def _no_handover(profile: Profile) -> str:
    if not profile.vrrp.connection_sync:
        return "connection_sync is not on, so that connections end with their master"
    return "connection_sync has nothing to tell of that could be tried"
