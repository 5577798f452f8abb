"""Claims about whom the kernel chooses: servers that are drained, and pools below their quorum."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ndakit.core.addresses import authority
from ndakit.lab.clients import ServicePort
from ndakit.lab.network import LabNetwork
from ndakit.lab.server_ports import joined, ports_of
from ndakit.model import Pool, Profile
from ndakit.model.engines import IPVS
from ndakit.node.control import bring_back, drain
from ndakit.verify.claims.base import SLACK_S, Outcome, first_service_port, service_port, share_text

REQUESTS = 8


def _lasting(profile: Profile, pool: str) -> ServicePort | None:
    """The first service of the kernel's with this pool over which a connection can be held open: tcp, with servers that
    speak HTTP."""
    for name in profile.ipvs_services_of(pool):
        port, ahead = profile.services[name], first_service_port(profile, name)
        if port.pool == pool and port.protocol == "tcp" and _by_http(profile, pool, ahead.port):
            return ahead
    return None


def _by_http(profile: Profile, pool: str, port: int) -> bool:
    """True if the lab's servers of a pool speak HTTP on a service's port."""
    everyone = [(p, n, s) for p, settings in profile.pools.items() for n, s in settings.servers.items()]
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
        with _taken_out(lab, name, server):
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
def _taken_out(lab: LabNetwork, pool: str, server: str) -> Iterator[None]:
    """A server that is drained on the master for a while, as `./inv drain` does it, over the console."""
    node = lab.one_master()
    drain(lab.shell(node), lab.profile, pool, server)
    lab.tell(f"{server} is drained on {node}")
    try:
        yield
    finally:
        bring_back(lab.shell(node), lab.profile, pool, server)


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
    left, stopped = pool.total_weight, list[str]()
    for name, server in sorted(pool.servers.items(), key=lambda item: -item[1].weight):
        if left < (pool.quorum or math.inf):
            break
        left -= server.weight
        stopped.append(name)
    return stopped
