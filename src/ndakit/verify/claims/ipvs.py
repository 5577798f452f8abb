"""Claims about services that the kernel balances (nat, dr, tun): whom servers see, which way answers take, who keeps
whom, and what the servers themselves must have."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ndakit.core.addresses import authority
from ndakit.lab.frames import arp_answer, decode_segment
from ndakit.lab.network import LabNetwork
from ndakit.lab.switch import Frame
from ndakit.model import Endpoint, Profile
from ndakit.model.server_side import ServerSide, servers
from ndakit.verify.claims.base import Claim, LeftOut, Outcome, targets

REQUESTS = 20
ROUNDS = 3
"""Connections for each server until all have been asked: schedulers that look at load may take one twice in a row."""


def about_service(profile: Profile, name: str) -> Iterator[Claim | LeftOut]:
    """What is claimed of a service that the kernel balances, beyond its answers and shares."""
    service = profile.services[name]
    if service.transport == "tcp":
        text = f"servers of {name} see the client's own address"
        yield Claim(f"client-address/{name}", text, partial(seen_client, name=name))
    else:
        yield LeftOut(f"client-address/{name}", "the lab's servers tell whom they see over tcp and http only")
    way = "through" if service.topology == "nat" else "past"
    text = f"answers of {name} ({service.topology}) go {way} the balancers, and nobody else answers for its VIP"
    yield Claim(f"way-back/{name}", text, partial(way_back, name=name))
    if profile.persistence(name) is not None:
        text = f"a client of {name} keeps its server"
        yield Claim(f"persistence/{name}", text, partial(persistence, name=name))


def seen_client(lab: LabNetwork, name: str) -> Outcome:
    """The address that servers see: the client's own, for nobody stands in between."""
    seen, wrong = seen_by_servers(lab, name)
    return Outcome(not wrong, f"servers see {seen}", "; ".join([*wrong, *_blame(lab, name, wrong)]))


def seen_by_servers(lab: LabNetwork, name: str) -> tuple[str, list[str]]:
    """The client's address as the servers saw it last, and what was wrong with it at each place where it was tried."""
    wrong: list[str] = []
    seen = ""
    service = lab.profile.services[name]
    for endpoint, port in targets(lab.profile, name):
        point, at = lab.client_for(endpoint, name), authority(endpoint.address, port)
        own = str(point.address(endpoint.address.version))
        for _ in range(ROUNDS * len(lab.profile.pools[service.main_pool].servers)):
            seen = lab.client_seen(point, endpoint.address, port, service.main_pool)
            if seen != own:
                wrong.append(f"a server behind {at} saw {seen}, the client is {own}")
                break
    return seen, wrong


def way_back(lab: LabNetwork, name: str) -> Outcome:
    """Which way answers take, counted on the wire: past the balancers (dr, tun) or through them (nat)."""
    service = lab.profile.services[name]
    balancers = {nic.mac: node for node, nics in lab.plan.balancers.items() for nic in nics}
    wrong: list[str] = []
    total: Counter[str] = Counter()
    for endpoint, port in targets(lab.profile, name):
        watch = _Answers(endpoint, port, service.transport, balancers)
        point, at = lab.client_for(endpoint, name), authority(endpoint.address, port)
        with lab.switch.on_frame(watch.see):
            # Who has the VIP is asked anew, so that everybody who would answer does.
            lab.hosts[point.host].run(["ip", "neigh", "flush", "to", str(endpoint.address)], check=False)
            result = lab.load(point, endpoint.address, port, service.main_pool, REQUESTS, service.transport)
        if result.failures:
            wrong.append(f"{result.failures} of {result.total} requests to {at} failed")
        through, past = watch.counts["balancer"], watch.counts["others"]
        total.update(watch.counts)
        if service.topology == "nat" and (past or not through):
            wrong.append(f"{past} packets of answers from {at} went past the balancers")
        if service.topology != "nat" and (through or not past):
            wrong.append(f"{through} packets of answers from {at} came through a balancer")
        if watch.claimed:
            wrong.append(f"{', '.join(sorted(watch.claimed))} answered ARP for {endpoint.address}")
    figure = f"{total['others']} packets past the balancers, {total['balancer']} through them"
    values: dict[str, float | int | str] = {"past": total["others"], "through": total["balancer"]}
    return Outcome(not wrong, figure, "; ".join([*wrong, *_blame(lab, name, wrong)]), values)


class _Answers:
    """Counts the packets that come from a VIP's port, by who put them on the wire, and sees foreign ARP answers."""

    def __init__(self, endpoint: Endpoint, port: int, transport: str, balancers: dict[str, str]) -> None:
        self._wanted = (endpoint.address, port, transport)
        self._balancers = balancers
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.claimed: set[str] = set()

    def see(self, frame: Frame) -> None:
        """A frame on the wire, from the switch's thread."""
        arp = arp_answer(frame.data)
        segment = decode_segment(frame.data)
        with self._lock:
            if arp is not None and arp[0] == self._wanted[0] and arp[1] not in self._balancers:
                self.claimed.add(arp[1])
            if segment is not None and (segment.source, segment.source_port, segment.transport) == self._wanted:
                self.counts["balancer" if segment.source_mac in self._balancers else "others"] += 1


def persistence(lab: LabNetwork, name: str) -> Outcome:
    """One client's connections, one after the other, on every address of the service."""
    service = lab.profile.services[name]
    wrong: list[str] = []
    kept = ""
    for endpoint, port in targets(lab.profile, name):
        point, at = lab.client_for(endpoint, name), authority(endpoint.address, port)
        result = lab.load(point, endpoint.address, port, service.main_pool, REQUESTS, service.transport)
        kept = ", ".join(result.shares)
        if result.failures or len(result.shares) != 1:
            wrong.append(f"{result.total} connections to {at} were answered by {kept or 'nobody'}")
    return Outcome(not wrong, f"{REQUESTS} connections, all answered by {kept}", "; ".join(wrong))


def server_side(lab: LabNetwork, pool: str) -> Outcome:
    """What the servers must have, looked at on the servers."""
    wrong = server_trouble(lab, pool)
    count = len(lab.profile.pools[pool].servers)
    return Outcome(not wrong, f"{count} servers looked at", "; ".join(wrong[:6]), {"servers": count})


def server_trouble(lab: LabNetwork, pool: str) -> list[str]:
    """What the servers of a pool lack, one sentence each."""
    needing = servers(lab.profile)
    sides = {n: s for s in needing for n in s.names}
    wrong = [
        f"server {name} {trouble}"
        for name in lab.profile.pools[pool].servers
        for trouble in _troubles(lab, pool, name, sides[f"{pool}/{name}"])
    ]
    for router in (s for s in needing if s.router):
        for name, facts in lab.profile.pools[pool].servers.items():
            mine = replace(router, answers=tuple(a for a in router.answers if a.source in facts.address))
            # In the lab a server behind a router is an address of that router.
            wrong += [f"{router.title} {trouble}" for trouble in _troubles(lab, pool, name, mine)]
    return wrong


def _troubles(lab: LabNetwork, pool: str, name: str, side: ServerSide) -> Iterator[str]:
    host = lab.server_host(pool, name)

    def says(command: str) -> str:
        return host.run(["dash", "-c", command], check=False).stdout

    def setting(key: str) -> str:
        return says(f"cat /proc/sys/net/ipv4/conf/{key} 2>/dev/null").strip()

    for own in side.addresses:
        if not says(f"ip -o addr show dev {own.device} to {own.address} 2>/dev/null"):
            yield f"has no {own.address} on {own.device}: it drops what is sent to it"
    if side.hides and (setting("all/arp_ignore"), setting("all/arp_announce")) != ("1", "2"):
        yield "does not keep its VIPs from ARP (arp_ignore 1, arp_announce 2): clients find it instead of the balancer"
    if side.ipip and max(setting("all/rp_filter"), setting(f"{side.ipip_device}/rp_filter")) != "0":
        yield f"has rp_filter on for {side.ipip_device}: it drops what comes out of the tunnel"
    for way in side.gateways:
        if f"via {way.gateway} " not in says(f"ip -{way.gateway.version} route show default"):
            yield f"has not {way.gateway} as its default gateway: its answers do not come back through the balancer"
    for rule in side.answers:
        version = rule.gateway.version
        if f"from {rule.source} " not in says(f"ip -{version} rule show"):
            yield f"has no rule for its answers from {rule.source} port {rule.port} through {rule.gateway}"


def _blame(lab: LabNetwork, name: str, wrong: list[str]) -> list[str]:
    """Why it may be so, if something is wrong."""
    return server_trouble(lab, lab.profile.services[name].main_pool)[:3] if wrong else []
