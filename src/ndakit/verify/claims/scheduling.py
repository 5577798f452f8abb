"""Claims about whom the kernel chooses: servers that are drained, and pools below their quorum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from ndakit.core.addresses import authority, literal
from ndakit.lab.clients import ServicePort
from ndakit.lab.network import LabNetwork
from ndakit.lab.server_ports import joined, ports_of
from ndakit.model import Pool, Profile
from ndakit.model.engines import IPVS
from ndakit.verify.claims.base import SLACK_S, Outcome, first_service_port, service_port, share_text

REQUESTS = 8
METHODS: Mapping[str, str] = {"nat": "-m", "dr": "-g", "tun": "-i"}
"""How ipvsadm calls the topologies; without any of them it takes -g."""


def _lasting(profile: Profile, pool: str) -> ServicePort | None:
    """The first service of the kernel's with this pool over which a connection can be held open: tcp, with servers that
    speak HTTP."""
    for name in profile.ipvs_services_of(pool):
        found, ahead = profile.services[name], first_service_port(profile, name)
        if found.pool == pool and found.protocol == "tcp" and _by_http(profile, pool, ahead.port):
            return ahead
    return None


def _by_http(profile: Profile, pool: str, port: int) -> bool:
    """True if the lab's servers of a pool speak HTTP on a service's port."""
    everyone = [(p, n, s) for p, found in profile.pools.items() for n, s in found.servers.items()]
    for server in profile.pools[pool].servers.values():
        number = server.port or profile.pools[pool].port or port
        same = [(p, n) for p, n, s in everyone if set(s.address) & set(server.address)]
        offered = joined(one for p, n in same for one in ports_of(profile, p, n))
        if not any(one.number == number and one.kind == "http" for one in offered):
            return False
    return True


def can_drain(profile: Profile, pool: str) -> bool:
    """True if others take over from a drained server of a pool. By destination (dh) they do not: its clients are
    refused, whoever else is there."""
    taking = [s for s in profile.pools[pool].servers.values() if s.weight]
    others = len(taking) > 1 and IPVS.balance.get(profile.pools[pool].balance) != "dh"
    return others and _lasting(profile, pool) is not None


def no_drain(profile: Profile, pool: str) -> str:
    """Why `can_drain` says no, of a pool that the kernel balances."""
    if sum(1 for s in profile.pools[pool].servers.values() if s.weight) < 2:
        return "only one server of it takes anything: nobody would take over"
    if IPVS.balance.get(profile.pools[pool].balance) == "dh":
        return "by destination, clients of a drained server are refused"
    return "no tcp service of it whose servers speak HTTP in the lab, over which a connection could be held"


def drained(lab: LabNetwork, name: str) -> Outcome:
    """A held connection's server is drained on the running master, as an admin would: who gets new connections then,
    and does the held one go on?"""
    ahead = _lasting(lab.profile, name)
    assert ahead is not None, "can_drain says so"
    names = {lab.servers[name, s].label: s for s in lab.profile.pools[name].servers if (name, s) in lab.servers}
    point, address = lab.client_for(ahead.endpoint, ahead.service), ahead.endpoint.address
    source = str(point.address(address.version))
    held = lab.hosts[point.host].hold(f"http://{authority(address, ahead.port)}/", source=source)
    server = names.get(held.server)
    if server is None:
        return Outcome(False, "not tried", f"no connection to {authority(address, ahead.port)}: {held.first.error}")
    try:
        with _without_weight(lab, ahead, server):
            result = lab.load(point, address, ahead.port, name, REQUESTS)
            after = held.again()
    finally:
        held.close()
    wrong = []
    if server in result.shares:
        wrong.append(f"{server} was drained, and got {result.shares[server]} of {result.total} new connections")
    if result.failures:
        wrong.append(f"while {server} was drained, {result.failures} of {result.total} failed ({result.first_error})")
    if names.get(after.server) != server:
        wrong.append(f"the connection that {server} had did not go on: {after.error or after.server}")
    figure = (
        f"{server} drained: its connection {'goes on' if after.ok else 'broke'}, new ones {share_text(result.shares)}"
    )
    return Outcome(not wrong, figure, "; ".join(wrong))


@contextmanager
def _without_weight(lab: LabNetwork, ahead: ServicePort, server: str) -> Iterator[None]:
    """A server without weight on the master for a while (docs/topologies.md, "Taking a server out")."""
    node = lab.one_master()
    pool = lab.profile.pools[lab.profile.services[ahead.service].main_pool]
    lab.order(node, weight_command(lab.profile, ahead, server, 0))
    lab.tell(f"{server} is drained on {node}")
    try:
        yield
    finally:
        lab.order(node, weight_command(lab.profile, ahead, server, pool.servers[server].weight))


def weight_command(profile: Profile, ahead: ServicePort, server: str, weight: int) -> str:
    """The command that gives a server another weight until keepalived adds it anew (ipvsadm(8)).

    It sets all that there is of a server: what is not said again (the way there, the limits) would be lost.
    """
    found = profile.services[ahead.service]
    pool, mark, version = (
        profile.pools[found.main_pool],
        profile.marks.get(ahead.service),
        ahead.endpoint.address.version,
    )
    facts = pool.servers[server]
    address = facts.address_of(version) or facts.address[0]
    virtual, real = f"-t {authority(ahead.endpoint.address, ahead.port)}", literal(address)
    if mark is not None:
        virtual = f"-f {mark}{' -6' if version == 6 else ''}"
        # ipvsadm takes an address in brackets with a port only; 0 is the port of servers behind a mark.
        real += ":0" if address.version == 6 else ""
    else:
        real += f":{facts.port or pool.port or ahead.port}"
    limits = f" -x {facts.max_connections} -y {facts.resume_below or 0}" if facts.max_connections else ""
    return f"ipvsadm -e {virtual} -r {real} {METHODS[found.topology]} -w {weight}{limits}"


def has_quorum(pool: Pool) -> bool:
    """True if a pool can be below its quorum with servers left."""
    weights = [s.weight for s in pool.servers.values() if s.weight]
    return len(weights) > 1 and pool.quorum is not None and min(weights) < pool.quorum


def quorum(lab: LabNetwork, name: str) -> Outcome:
    """Servers stop until the others' weights are below the quorum; the sorry server answers; then all return."""
    pool, ahead = lab.profile.pools[name], service_port(lab.profile, name)
    assert ahead is not None and pool.quorum is not None, "the claim is made for such pools only"
    service, endpoint, port = ahead
    point, transport = lab.client_for(endpoint, service), lab.profile.services[service].transport
    others = set(lab.profile.pools[pool.sorry.pool or ""].servers) if pool.sorry else set()
    with ExitStack() as stack:
        for server in (stopped := to_stop(pool)):
            stack.enter_context(lab.server_down(name, server))
        for server in stopped:
            lab.wait_server(name, server, up=False, timeout_s=lab.profile.detection_s(name) + SLACK_S)
        below = lab.load(point, endpoint.address, port, name, REQUESTS, transport)
    for server in pool.servers:
        lab.wait_server(name, server, up=True, timeout_s=lab.profile.recovery_s(name) + SLACK_S)
    again = lab.load(point, endpoint.address, port, name, REQUESTS, transport)
    wrong = []
    if below.failures or not below.shares or not set(below.shares) <= others:
        wrong.append(f"without {', '.join(stopped)}: {share_text(below.shares)}, {below.failures} failures")
    if again.failures or not set(again.shares) <= set(pool.servers):
        wrong.append(f"with all servers again: {share_text(again.shares)}, {again.failures} failures")
    return Outcome(not wrong, f"without {', '.join(stopped)}: {share_text(below.shares)}", "; ".join(wrong))


def to_stop(pool: Pool) -> list[str]:
    """As few servers as it takes to come below the quorum; at least one is left."""
    left, found = pool.total_weight, list[str]()
    for name, server in sorted(pool.servers.items(), key=lambda item: -item[1].weight):
        if left < (pool.quorum or math.inf):
            break
        left -= server.weight
        found.append(name)
    return found
